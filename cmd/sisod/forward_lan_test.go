package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// routerProfile is followProfile for a router: the LAN behind leaves by the first
// uplink that has a way out.
const routerProfile = `[uplink.one]
interface = "em1"
gateway = ["192.0.2.1", "2001:db8:1::1"]
forward = true
masquerade = true
[uplink.one.default]
metric = 10
[uplink.two]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
forward = true
masquerade = true
[uplink.two.default]
metric = 20
`

// unmasked checks that what comes in by one uplink and goes out by the other
// arrives with its own address.
func (f forwarder) unmasked(t *testing.T, what string) {
	t.Helper()
	for i, u := range f.Uplinks {
		for v6, own := range u.Remote.All() {
			for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
				reply := ask(t, u.Client, lab.Request{Protocol: p, To: u.Address.At(v6 == 1, toNeighbour)})
				if reply.Peer.Addr() != own {
					t.Errorf("%s: %s of client %d comes to the other uplink's network from %s, want %s", what, p, i+1, reply.Peer, own)
				}
			}
		}
	}
}

func TestALANBehindLeavesWithTheAddressOfItsUplink(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		t.Run(fmt.Sprintf("rp_filter %d", filter), func(t *testing.T) {
			t.Parallel()
			f := newForwarder(t, filter, 0)
			plain := strings.ReplaceAll(followProfile, "forward = true", "masquerade = true")
			sources := "sources = [\"10.1.0.0/16\", \"fd00:10:1::/64\"]\n"
			if _, err := f.private.Host.Ask(t.Context(), lab.Request{Protocol: lab.UDP, To: f.Uplinks[1].Remote.At(false, lab.Port)}); err == nil {
				t.Fatal("a private address is answered without translation: nothing is proved")
			}
			writeProfile(t, f.Host, "isp.toml", plain)
			apply(t, f.Host, 0)
			f.leaves(t, "masquerade", 0)
			writeProfile(t, f.Host, "isp.toml", plain+sources)
			apply(t, f.Host, 0)
			f.leaves(t, "masquerade and sources", 1)
			if filter != 1 {
				// Without forward, strict filters drop what comes by the other uplink.
				one := f.Uplinks[0]
				for v6, own := range one.Remote.All() {
					reply := ask(t, one.Client, lab.Request{Protocol: lab.TCP, To: one.Address.At(v6 == 1, toNeighbour)})
					if reply.Peer.Addr() != own {
						t.Errorf("masquerade alone: what came by em1 goes out by em2 from %s, want %s", reply.Peer, own)
					}
				}
			}
			writeProfile(t, f.Host, "isp.toml", strings.ReplaceAll(followProfile, "forward = true", "masquerade = true\nforward = true")+sources)
			apply(t, f.Host, 0)
			f.leaves(t, "masquerade, forward and sources", 1)
			f.unmasked(t, "masquerade, forward and sources")
			converse(t, f.Host, "masquerade, forward and sources", f.asked(false, func(by int) int { return by }), everyWay(f.TwoUplinks, true, false))
		})
	}
}

// tracked are the connections that the kernel knows, without their clocks and
// counters, of those that carry the mark of an uplink: 1 or 2.
func tracked(t *testing.T, h *lab.Host, uplink int) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(run(t, h, "cat", "/proc/net/nf_conntrack")) {
		var mark uint32
		_, rest, _ := strings.Cut(line, " mark=")
		if _, err := fmt.Sscan(rest, &mark); err != nil {
			continue
		}
		// The highest bit tells what went out.
		if mark&0x1f000000 != uint32(uplink)<<24 {
			continue
		}
		var words []string
		for _, w := range strings.Fields(line) {
			if name, _, ok := strings.Cut(w, "="); ok && slices.Contains([]string{"src", "dst", "sport", "dport", "mark"}, name) {
				words = append(words, w)
			}
		}
		list = append(list, strings.Join(words, " "))
	}
	slices.Sort(list)
	return list
}

func TestAnUplinkThatGoesTakesOnlyItsConnectionsAlong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, gone, back string
		filter           int
	}{
		{"interface deleted", "ip link del em2", "", 0},
		{"interface down", "ip link set em2 down", "ip link set em2 up; ip address add 2001:db8:2::2/64 dev em2 nodad", 0},
		{"gateway gone", "sed -i 's/198.51.100.1/auto/; s/, .2001:db8:2::1.//' /etc/sisod/profiles/isp.toml", "sed -i 's/\"auto\"/\"198.51.100.1\", \"2001:db8:2::1\"/' /etc/sisod/profiles/isp.toml", 1},
		{"removed from the profile", "mv /etc/sisod/profiles/isp.toml /etc/sisod/all; sed '/uplink.two.$/,$d' /etc/sisod/all > /etc/sisod/profiles/isp.toml", "mv /etc/sisod/all /etc/sisod/profiles/isp.toml", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newForwarder(t, c.filter, 0)
			// The second uplink is the better way for the LAN.
			writeProfile(t, f.Host, "isp.toml", strings.Replace(routerProfile, "metric = 10", "metric = 30", 1))
			_, log := started(t, f.Host)
			settled(t, f.Host)
			request := lab.Request{Protocol: lab.TCP, To: f.Uplinks[0].Remote.At(false, lab.Port)}
			visits := f.establish(t)
			f.leaves(t, "before", 1)
			first, second := tracked(t, f.Host, 1), tracked(t, f.Host, 2)
			if len(first) < 2 || len(second) < 10 {
				t.Fatalf("too few connections are known: %q and %q", first, second)
			}
			run(t, f.Host, "sh", "-c", c.gone)
			patiently(t, func() error {
				if left := tracked(t, f.Host, 2); len(left) > 0 {
					return fmt.Errorf("connections of the uplink that is gone: %q", left)
				}
				return nil
			})
			says(t, log, "delete mark", "of uplink two")
			if now := tracked(t, f.Host, 1); !slices.Equal(slices.DeleteFunc(slices.Clone(first), func(s string) bool { return slices.Contains(now, s) }), nil) {
				t.Errorf("connections of the other uplink are gone: now\n%q\nbefore\n%q", now, first)
			}
			// The LAN is there again with the next connection.
			reply := ask(t, f.private.Host, request)
			if want := f.Uplinks[0].Address.V4; reply.Peer.Addr() != want {
				t.Errorf("the LAN comes from %s, want %s", reply.Peer, want)
			}
			for _, v := range visits[0] {
				if _, err := v.Fetch(t.Context(), 1000, visitTime); err != nil {
					t.Errorf("a connection of the other uplink has ended: %v", err)
				}
			}
			if c.back == "" {
				return
			}
			stays, err := f.private.Host.Visit(t.Context(), f.Uplinks[0].Remote.At(false, 81), visitTime)
			if err != nil {
				t.Fatal(err)
			}
			defer stays.Close()
			if _, err := stays.Fetch(t.Context(), 1000, visitTime); err != nil {
				t.Fatal(err)
			}
			run(t, f.Host, "sh", "-c", c.back)
			patiently(t, func() error {
				return f.comesFrom(t, request, f.Uplinks[1].Address.V4)
			})
			// What began while it was gone has the other uplink's address, and stays there.
			if _, err := stays.Fetch(t.Context(), 1000, visitTime); err != nil {
				t.Errorf("a connection that had moved away has ended: %v", err)
			}
		})
	}
}

// visitTime is how long a page of a connection that stands is waited for.
const visitTime = 5 * time.Second

// establish connects to the LAN behind by each uplink, in both families.
func (f forwarder) establish(t *testing.T) (visits [2][]*lab.Visit) {
	t.Helper()
	for i, u := range f.Uplinks {
		for v6 := range 2 {
			v, err := u.Client.Visit(t.Context(), u.Address.At(v6 == 1, toWeb), visitTime)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { v.Close() })
			if _, err := v.Fetch(t.Context(), 1000, visitTime); err != nil {
				t.Fatal(err)
			}
			visits[i] = append(visits[i], v)
		}
	}
	return visits
}

// comesFrom says why a request of the LAN does not come from an address.
func (f forwarder) comesFrom(t *testing.T, r lab.Request, want netip.Addr) error {
	reply, err := f.private.Host.Ask(t.Context(), r)
	if err == nil && reply.Peer.Addr() != want {
		err = errors.New("the LAN comes from " + reply.Peer.String() + ", want " + want.String())
	}
	return err
}
