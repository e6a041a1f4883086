package kernel

import (
	"encoding/json"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// ipLink is a link of `ip -json -details address`.
type ipLink struct {
	Index   int      `json:"ifindex"`
	Name    string   `json:"ifname"`
	Flags   []string `json:"flags"`
	MTU     int      `json:"mtu"`
	Group   string   `json:"group"`
	Address []struct {
		Local      netip.Addr `json:"local"`
		Peer       netip.Addr `json:"address"`
		Length     int        `json:"prefixlen"`
		Scope      string     `json:"scope"`
		Secondary  bool       `json:"secondary"`
		Temporary  bool       `json:"temporary"`
		Tentative  bool       `json:"tentative"`
		Failed     bool       `json:"dadfailed"`
		Deprecated bool       `json:"deprecated"`
	} `json:"addr_info"`
}

// TestLinksAndAddressesAreThoseOfIP: what is read is what ip reads, in its order.
func TestLinksAndAddressesAreThoseOfIP(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	ipInput(t, "-batch -", `
link set em2 down mtu 1400 group 115
link add tun1 type veth peer name far1
link set tun1 arp off
addr add 192.0.2.3/24 dev em1
addr add 192.0.2.4/32 dev em1 scope link
addr add 192.0.2.5 peer 203.0.113.5/24 dev em1
addr add 2001:db8:1::3/64 dev em1 preferred_lft 0
addr add 2001:db8:1::4 peer 2001:db8:9::4/64 dev em1 nodad
addr add 2001:db8:2::5/64 dev em2
`)
	h := openTestHost(t)
	read := func() ([]state.Link, []state.Address) {
		t.Helper()
		if err := h.links.read(); err != nil {
			t.Fatal(err)
		}
		return h.links.all(), h.links.addresses()
	}
	// Link-local addresses come, and duplicate detection ends, by themselves.
	var out []byte
	for still := false; !still; {
		linksBefore, before := read()
		var err error
		if out, err = exec.Command("ip", "-json", "-details", "-N", "address").Output(); err != nil {
			t.Fatal(err)
		}
		linksAfter, after := read()
		still = slices.Equal(linksBefore, linksAfter) && slices.Equal(before, after)
	}
	var told []ipLink
	if err := json.Unmarshal(out, &told); err != nil {
		t.Fatal(err)
	}
	var links []state.Link
	var addresses []state.Address
	for _, l := range told {
		has := func(flag string) bool { return slices.Contains(l.Flags, flag) }
		link := state.Link{
			Name: l.Name, Index: l.Index, MTU: l.MTU, Up: has("UP"), Carrier: has("LOWER_UP"),
			Loopback: has("LOOPBACK"), PointToPoint: has("POINTOPOINT"), NoARP: has("NOARP"),
		}
		if l.Group == "115" {
			link.Group = 115
		}
		links = append(links, link)
		for _, a := range l.Address {
			want := state.Address{
				Link: l.Name, Prefix: netip.PrefixFrom(a.Local, a.Length), Secondary: a.Secondary, Temporary: a.Temporary,
				Tentative: a.Tentative || a.Failed, Deprecated: a.Deprecated,
				// ip -N gives scopes as numbers: link is 253, host 254.
				LinkLocal: a.Scope == "253" || a.Scope == "254",
			}
			if a.Peer.IsValid() {
				want.Prefix, want.Peer = netip.PrefixFrom(a.Local, a.Local.BitLen()), netip.PrefixFrom(a.Peer, a.Length)
			}
			addresses = append(addresses, want)
		}
	}
	if len(links) < 7 || len(addresses) < 13 {
		t.Fatalf("ip tells of %d links and %d addresses: this test looks at too few", len(links), len(addresses))
	}
	if !slices.Equal(h.links.all(), links) {
		t.Errorf("links\n%+v, ip tells\n%+v", h.links.all(), links)
	}
	// ip has them by link, the kernel by family.
	byName := func(a, b state.Address) int {
		return slices.Compare([]string{a.Link, a.Prefix.String()}, []string{b.Link, b.Prefix.String()})
	}
	if got, want := slices.SortedFunc(slices.Values(h.links.addresses()), byName), slices.SortedFunc(slices.Values(addresses), byName); !slices.Equal(got, want) {
		t.Errorf("addresses\n%+v, ip tells\n%+v", got, want)
	}
}

// TestTheOtherEndMayBeAnybody: a peer of 0.0.0.0 has no attribute, and the length is
// its network's. The host has no neighbours by that address.
func TestTheOtherEndMayBeAnybody(t *testing.T) {
	enterNamespace(t)
	ip(t, "link add em1 type veth peer name far")
	ip(t, "address add 192.0.2.6 peer 0.0.0.0/24 dev em1")
	h := openTestHost(t)
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	want := []state.Address{{Link: "em1", Prefix: netip.MustParsePrefix("192.0.2.6/32")}}
	if got := h.links.addresses(); !slices.Equal(got, want) {
		t.Errorf("addresses %+v, want %+v", got, want)
	}
}

// TestAddressesOfOtherFamiliesAreLeftOut: a list of all families holds those of
// MCTP, of one byte, where the kernel has it (net/mctp/device.c).
func TestAddressesOfOtherFamiliesAreLeftOut(t *testing.T) {
	short := func(family byte) []byte {
		return appendAttribute([]byte{family, 0, 0, 0, 1, 0, 0, 0}, unix.IFA_LOCAL, 8)
	}
	told := func(a seenAddress, _ seenAddressState) { t.Errorf("told of %+v", a) }
	if err := listedAddress(unix.RTM_NEWADDR, short(unix.AF_MCTP), told); err != nil {
		t.Errorf("an address of MCTP: %v", err)
	}
	if err := listedAddress(unix.RTM_NEWADDR, short(unix.AF_INET), told); err == nil {
		t.Error("an address of IPv4 of one byte is no error")
	}
}
