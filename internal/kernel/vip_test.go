package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

func vip(link, addr string) state.VIP {
	return state.VIP{Link: link, Addr: netip.MustParseAddr(addr)}
}

func wantVIPs(vips ...state.VIP) state.Desired {
	d := state.Desired{State: state.New()}
	for _, v := range vips {
		d.VIPs[v] = true
	}
	return d
}

// plan is the difference of the namespace, as a process that starts now sees
// it, and of what is wanted. One that runs must see the same.
func plan(t testing.TB, h *Host, q Query, d state.Desired) state.Plan {
	t.Helper()
	fresh, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	p, same := state.Diff(readHost(t, fresh, q, AllParts).Observed, d), state.Diff(readHost(t, h, q, AllParts).Observed, d)
	if got, want := strings.Join(same.Commands(), "\n"), strings.Join(p.Commands(), "\n"); got != want {
		t.Fatalf("a process that starts plans\n%s\nthe one that runs\n%s", want, got)
	}
	return p
}

// reach applies what is missing, and fails when something is missing still.
func reach(t testing.TB, h *Host, q Query, d state.Desired) state.Plan {
	t.Helper()
	p := plan(t, h, q, d)
	applyAll(t, h, p)
	if again := plan(t, h, q, d); !again.Empty() {
		t.Fatalf("after apply there is still to do:\n%s", strings.Join(again.Commands(), "\n"))
	}
	return p
}

// addressLines are the addresses of a link as ip prints them.
func addressLines(t testing.TB, link string) []string {
	t.Helper()
	var lines []string
	for _, l := range ip(t, "-o addr show dev "+link) {
		_, rest, _ := strings.Cut(l, " ")
		lines = append(lines, strings.Join(strings.Fields(strings.ReplaceAll(rest, `\`, " ")), " "))
	}
	return lines
}

func TestVIPsComeAndGo(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	found := slices.Concat(addressLines(t, "em1"), addressLines(t, "lo"))
	want := wantVIPs(vip("em1", "203.0.113.1"), vip("lo", "203.0.113.2"), vip("em1", "2001:db8:9::1"), vip("lo", "2001:db8:9::2"))
	reach(t, h, Query{}, want)
	got := strings.Join(slices.Concat(addressLines(t, "em1"), addressLines(t, "lo")), "\n")
	for _, line := range []string{
		"em1 inet 203.0.113.1/32 scope global em1 valid_lft forever preferred_lft forever",
		"lo inet 203.0.113.2/32 scope global lo valid_lft forever preferred_lft forever",
		"em1 inet6 2001:db8:9::1/128 scope global nodad deprecated valid_lft forever preferred_lft 0sec",
		"lo inet6 2001:db8:9::2/128 scope global nodad deprecated valid_lft forever preferred_lft 0sec",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("%s is not there, but\n%s", line, got)
		}
	}
	// By somebody else, or with its link: it is missed.
	ip(t, "addr del 203.0.113.1/32 dev em1")
	if p := reach(t, h, Query{}, want); len(p.Steps) != 1 {
		t.Errorf("one VIP is gone, and to do is\n%s", strings.Join(p.Commands(), "\n"))
	}
	reach(t, h, Query{}, wantVIPs())
	if left := slices.Concat(addressLines(t, "em1"), addressLines(t, "lo")); !slices.Equal(left, found) {
		t.Errorf("left\n%s\nfound\n%s", strings.Join(left, "\n"), strings.Join(found, "\n"))
	}
	if len(h.ledger.page.VIPs) != 0 {
		t.Errorf("the ledger still has %v", h.ledger.page.VIPs)
	}
}

func TestForeignVIPSurvives(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	v := vip("em1", "203.0.113.1")
	ip(t, "addr add 203.0.113.1/32 dev em1")
	p := plan(t, h, Query{}, wantVIPs(v))
	outcomes := h.Apply(t.Context(), p, nil)
	if len(outcomes) != 1 || outcomes[0].Err == nil || !strings.Contains(outcomes[0].Err.Error(), "not sisod's") {
		t.Fatalf("a VIP of somebody else's was taken: %+v", outcomes)
	}
	if p := plan(t, h, Query{}, wantVIPs()); !p.Empty() {
		t.Errorf("it would be taken away: %v", p.Commands())
	}
	// And whatever was planned before.
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Delete, Object: v}}})
	if got := strings.Join(addressLines(t, "em1"), "\n"); !strings.Contains(got, "203.0.113.1/32") {
		t.Errorf("it is gone: %s", got)
	}
}

// What sisod put there, somebody took away and somebody put there again is
// theirs, once its absence was seen.
func TestAVIPThatWasAbsentIsNotOurs(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1")))
	ip(t, "addr del 203.0.113.1/32 dev em1")
	readHost(t, h, Query{}, AllParts)
	ip(t, "addr add 203.0.113.1/32 dev em1")
	if own := readHost(t, h, Query{}, AllParts).Observed.VIPs; len(own) != 0 {
		t.Errorf("taken for sisod's: %v", own)
	}
	// Another process makes it again meanwhile: it is sisod's again for all.
	ip(t, "addr del 203.0.113.1/32 dev em1")
	other, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	reach(t, other, Query{}, wantVIPs(vip("em1", "203.0.113.1")))
	if own := readHost(t, h, Query{}, AllParts).Observed.VIPs; len(own) != 1 {
		t.Errorf("not taken for sisod's: %v", own)
	}
}

func TestVIPsAreRecordedBeforeTheyAreAdded(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	p := plan(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1")))
	path := h.ledger.path
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.ledger.path = filepath.Join(blocked, "ledger.json")
	if o := h.Apply(t.Context(), p, nil); o[0].Err == nil || strings.Contains(strings.Join(addressLines(t, "em1"), ""), "203.0.113.1") {
		t.Errorf("without a ledger: %v, %v", o[0].Err, addressLines(t, "em1"))
	}
	h.ledger.path = path
	// Killed after the ledger: it is sisod's as soon as it is there.
	h.ledger.noteVIP(vipEntry{h.links.index("em1"), netip.MustParseAddr("203.0.113.1")})
	if err := h.ledger.save(); err != nil {
		t.Fatal(err)
	}
	ip(t, "addr add 203.0.113.1/32 dev em1")
	reach(t, h, Query{}, wantVIPs())
	if got := addressLines(t, "em1"); strings.Contains(strings.Join(got, ""), "203.0.113.1") {
		t.Errorf("still there: %v", got)
	}
}

func TestAVIPOnAnAbsentLinkIsAnError(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	p := plan(t, h, Query{}, wantVIPs(vip("absent0", "203.0.113.1")))
	if o := h.Apply(t.Context(), p, nil); !errors.Is(o[0].Err, unix.ENODEV) {
		t.Errorf("%v", o[0].Err)
	}
}

func TestOwnVIPsAreNoEvents(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	e := listen(t, h)
	reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1"), vip("em1", "2001:db8:9::1")))
	reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1"), vip("em1", "2001:db8:9::1"), vip("lo", "203.0.113.2")))
	for _, event := range eventsNow(t, e, 31000) {
		if strings.HasPrefix(event.Reason, "address ") {
			t.Errorf("event %q of a change of our own", event.Reason)
		}
	}
	ip(t, "addr del 203.0.113.1/32 dev em1")
	ip(t, "addr del 2001:db8:9::1/128 dev em1")
	got := eventsUntil(t, e, "address 2001:db8:9::1/128 removed from em1")
	if !slices.ContainsFunc(got, func(e Event) bool {
		return e.Reason == "address 203.0.113.1/32 removed from em1" && e.Parts&PartLinks != 0
	}) {
		t.Errorf("events %v", got)
	}
	// What the events name is enough to see it.
	if own := readHost(t, h, Query{}, got[0].Parts).Observed.VIPs; len(own) != 1 {
		t.Errorf("seen: %v", own)
	}
	reach(t, h, Query{}, wantVIPs())
	if got := eventsNow(t, e, 31001); slices.ContainsFunc(got, func(e Event) bool { return strings.HasPrefix(e.Reason, "address ") }) {
		t.Errorf("events of our own deletions: %v", got)
	}
}

// neighbours listens with tcpdump on a link. The result stops it after count
// packets and returns what it printed.
func neighbours(t *testing.T, link string, count string, filter string) func() []string {
	t.Helper()
	cmd := exec.Command("tcpdump", "-n", "-e", "-t", "-v", "--immediate-mode", "-l", "-i", link, "-c", count, filter)
	var out bytes.Buffer
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("tcpdump: %v (install tcpdump)", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	return func() []string {
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("tcpdump: %v", err)
		}
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
}

func TestNewVIPsAreAnnounced(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	link, err := h.links.look(h.links.index("em1"))
	if err != nil {
		t.Fatal(err)
	}
	hardware := link.Attrs().HardwareAddr.String()

	arp := neighbours(t, "peer1", "3", "arp")
	setSysctl(t, "net/ipv6/conf/em1/forwarding", "1")
	reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1"), vip("lo", "203.0.113.2")))
	for _, line := range arp() {
		want := hardware + " > ff:ff:ff:ff:ff:ff, ethertype ARP (0x0806), length 60: Ethernet (len 6), IPv4 (len 4), " +
			"Request who-has 203.0.113.1 tell 203.0.113.1, length 46"
		if line != want {
			t.Errorf("heard %q\nwant  %q", line, want)
		}
	}
	for _, forwarding := range []string{"0", "1"} {
		setSysctl(t, "net/ipv6/conf/em1/forwarding", forwarding)
		heard := neighbours(t, "peer1", "3", "icmp6 and ip6[40] == 136 and src host 2001:db8:9::1")
		reach(t, h, Query{}, wantVIPs(vip("em1", "2001:db8:9::1")))
		got := strings.Join(heard(), "\n")
		flags := "Flags [override]"
		if forwarding == "1" {
			flags = "Flags [router, override]"
		}
		for _, words := range []string{
			hardware + " > 33:33:00:00:00:01", "hlim 255", "2001:db8:9::1 > ff02::1: [icmp6 sum ok] ICMP6, neighbor advertisement",
			"tgt is 2001:db8:9::1, " + flags, "destination link-address option (2), length 8 (1): " + hardware,
		} {
			if strings.Count(got, words) != 3 {
				t.Errorf("forwarding %s: not thrice %q in\n%s", forwarding, words, got)
			}
		}
		reach(t, h, Query{}, wantVIPs())
	}
}

// Where the host does not answer for an address it does not announce it
// either. The neighbour's table is the witness: it follows announcements.
func TestSilentVIPsAreNotAnnounced(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	for _, silence := range []struct{ where, level string }{{"all", "8"}, {"em1", "2"}, {"em1", "8"}, {"all", "1"}, {"em1", "3"}} {
		path := "net/ipv4/conf/" + silence.where + "/arp_ignore"
		setSysctl(t, path, silence.level)
		heard := neighbours(t, "peer1", "1", "arp")
		reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1")))
		reach(t, h, Query{}, wantVIPs())
		setSysctl(t, path, "0")
		h.AnnounceVIPs([]state.VIP{vip("em1", "203.0.113.99")}) // the mark: what came before would be heard before
		announced := silence.level == "1" || silence.level == "3"
		if got := heard()[0]; strings.Contains(got, "203.0.113.1 tell") != announced {
			t.Errorf("%s=%s: heard %q", path, silence.level, got)
		}
	}
}

// A VIP that another host has by now is that host's to announce.
func TestOnlyVIPsThatAreThereAreAnnouncedAgain(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	reach(t, h, Query{}, wantVIPs(vip("em1", "203.0.113.1"), vip("em1", "203.0.113.2")))
	ip(t, "addr del 203.0.113.1/32 dev em1")
	heard := neighbours(t, "peer1", "3", "arp")
	h.AnnounceAgain([]state.VIP{vip("em1", "203.0.113.1"), vip("em1", "203.0.113.2")})
	for _, line := range heard() {
		if !strings.Contains(line, "who-has 203.0.113.2 tell 203.0.113.2,") {
			t.Errorf("heard %q", line)
		}
	}
}

func TestWithoutRawSocketsVIPsComeAllTheSame(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	var said bytes.Buffer
	h.options.Log = slog.New(slog.NewTextHandler(&said, nil))
	readHost(t, h, Query{}, AllParts)
	// The thread is locked to the test and ends with it, and so does what it lacks.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	sets[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Add, Object: vip("em1", "203.0.113.1")}}})
	if !strings.Contains(said.String(), "VIP not announced") || !strings.Contains(said.String(), "operation not permitted") {
		t.Errorf("said %q", said.String())
	}
	if got := strings.Join(addressLines(t, "em1"), "\n"); !strings.Contains(got, "203.0.113.1/32") {
		t.Errorf("no VIP: %s", got)
	}
}
