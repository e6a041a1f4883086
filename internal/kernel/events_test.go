package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

func listen(t *testing.T, h *Host) *Events {
	t.Helper()
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	e, err := h.Listen(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// eventsUntil gathers the events up to one with that reason.
func eventsUntil(t *testing.T, e *Events, reason string) []Event {
	t.Helper()
	var got []Event
	timeout := time.After(patience)
	for {
		select {
		case event, ok := <-e.C():
			if !ok {
				t.Fatalf("the stream ended before %q: %v", reason, e.Err())
			}
			got = append(got, event)
			if event.Reason == reason {
				return got
			}
		case <-timeout:
			t.Fatalf("no event %q, but %v", reason, got)
		}
	}
}

// eventsNow gathers what has been told: the kernel keeps the order, so that
// nothing comes after the mark that was done before it.
func eventsNow(t *testing.T, e *Events, mark int) []Event {
	t.Helper()
	ip(t, fmt.Sprintf("rule add pref %d lookup main", mark))
	got := eventsUntil(t, e, fmt.Sprintf("rule %d added", mark))
	return got[:len(got)-1]
}

// quietUplinks is twoUplinks, after all that the kernel announces about new links
// with a delay: carrier, and IPv6 addresses.
func quietUplinks(t *testing.T) {
	t.Helper()
	setSysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	twoUplinks(t)
	deadline := time.Now().Add(patience)
	for {
		links := strings.Join(ip(t, "-o link show up"), "\n")
		addresses := strings.Join(ip(t, "-6 -o addr show scope link"), "\n")
		if strings.Count(links, "state UP") == 4 && strings.Count(addresses, "fe80::") == 4 && !strings.Contains(addresses, "tentative") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("links did not settle:\n%s\n%s", links, addresses)
		}
	}
}

// setSysctl is somebody else who writes a value.
func setSysctl(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// getSysctl reads a value with another program.
func getSysctl(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("cat", "/proc/sys/"+path).Output()
	if err != nil {
		t.Fatalf("cat %s: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}

func TestEventsSayWhatChanged(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	e := listen(t, h)
	e.SetInterest([]string{"em1", "wan"}, []uint32{11500})
	for _, c := range []struct {
		command string
		reason  string
		parts   Parts
		peer    bool
	}{
		{"addr add 192.0.2.9/24 dev em1", "address 192.0.2.9/24 added on em1", PartLinks, true},
		{"addr del 192.0.2.9/24 dev em1", "address 192.0.2.9/24 removed from em1", PartLinks | PartMain | PartRoutes, true},
		{"addr add 2001:db8:1::9/64 dev em1 nodad", "address 2001:db8:1::9/64 added on em1", PartLinks, false},
		{"addr add 192.0.2.77 peer 192.0.2.78/32 dev em1", "address 192.0.2.77/32 added on em1", PartLinks, true},
		{"rule add pref 11800 lookup main", "rule 11800 added", PartRules, true},
		{"rule del pref 11800", "rule 11800 deleted", PartRules, true},
		{"-6 rule add pref 11801 lookup main", "rule 11801 added", PartRules, true},
		{"route add default via 198.51.100.1", "route default via 198.51.100.1 dev em2 table main added", PartMain, true},
		{"route add 10.0.0.0/8 via 192.0.2.1", "route 10.0.0.0/8 via 192.0.2.1 dev em1 table main added", PartMain, true},
		{"route del 10.0.0.0/8", "route 10.0.0.0/8 via 192.0.2.1 dev em1 table main deleted", PartMain, true},
		{"route add default via 192.0.2.1 table 100", "route default via 192.0.2.1 dev em1 table 100 added", PartMain, true},
		{"route add 10.1.0.0/16 via 192.0.2.1 table 11500", "route 10.1.0.0/16 via 192.0.2.1 dev em1 table 11500 added", PartRoutes, true},
		{"route add 10.2.0.0/16 via 198.51.100.1 table 77 proto 115", "route 10.2.0.0/16 via 198.51.100.1 dev em2 table 77 added", PartRoutes, true},
		{"-6 route add default via 2001:db8:2::1", "route default via 2001:db8:2::1 dev em2 table main added", PartMain, true},
		{"link set em1 group 7", "link em1 put into group 7", linkParts &^ PartRoutes, false},
		{"link set em1 mtu 1400", "link em1 has mtu 1400", linkParts &^ PartRoutes, false},
		{"link set em1 down", "link em1 down", linkParts, false},
		{"link set em1 name wan", "link em1 renamed to wan", linkParts, false},
		{"link set wan up", "link wan up", linkParts &^ PartRoutes, false},
		{"link del wan", "link wan removed", linkParts, false},
		{"link add em1 type veth peer name peer1", "link em1 added", linkParts, false},
	} {
		ip(t, c.command)
		got := eventsUntil(t, e, c.reason)
		last := got[len(got)-1]
		if last.Parts != c.parts {
			t.Errorf("%s: parts %b, want %b", c.command, last.Parts, c.parts)
		}
		if c.peer && (last.Peer == 0 || last.Peer == h.conn.portID()) {
			t.Errorf("%s: peer %d", c.command, last.Peer)
		}
	}
}

func TestCarrierIsAnEvent(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	e := listen(t, openTestHost(t))
	ip(t, "link set peer1 down")
	eventsUntil(t, e, "link em1 lost carrier")
	ip(t, "link set peer1 up")
	eventsUntil(t, e, "link em1 has carrier")
}

func TestSysctlsOfOthersAreEvents(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	e := listen(t, openTestHost(t))
	for _, path := range []string{
		"net/ipv4/conf/em1/rp_filter", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/em1/forwarding",
		"net/ipv4/conf/em1/ignore_routes_with_linkdown",
	} {
		value := "1"
		if getSysctl(t, path) == "1" {
			value = "0"
		}
		setSysctl(t, path, value)
		got := eventsUntil(t, e, "sysctl "+path+" changed")
		if last := got[len(got)-1]; last.Parts != PartValues {
			t.Errorf("%s: parts %b", path, last.Parts)
		}
	}
}

func TestNoiseIsNoEvent(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	ip(t, "addr change 192.0.2.2/24 dev em1 valid_lft 5000 preferred_lft 4000")
	ip(t, "addr change 2001:db8:1::2/64 dev em1 valid_lft 5000 preferred_lft 4000")
	e := listen(t, openTestHost(t))
	e.SetInterest([]string{"em1"}, []uint32{11500})
	for _, c := range []string{
		"link set em1 alias noise",
		"link set em1 txqueuelen 500",
		"addr change 192.0.2.2/24 dev em1 valid_lft 6000 preferred_lft 5000",
		"addr change 2001:db8:1::2/64 dev em1 valid_lft 6000 preferred_lft 5000",
		"neigh add 192.0.2.200 lladdr 02:00:00:00:00:01 dev em1",
		"route add 10.0.0.0/8 via 198.51.100.1",           // not by an uplink
		"route add 10.1.0.0/16 via 192.0.2.1 proto bird",  // a routing daemon's
		"route add 10.2.0.0/16 via 192.0.2.1 table 100",   // nobody's
		"route add default via 198.51.100.1 table 100",    // a default, not by an uplink
		"route add 10.3.0.0/16 via 192.0.2.1 table 70000", // a large number
		"-6 route add 2001:db8:9::/48 via 2001:db8:2::1",  // not by an uplink
		"-6 route add 2001:db8:a::/48 via 2001:db8:1::1 proto bird",
	} {
		ip(t, c)
	}
	for _, event := range eventsNow(t, e, 4242) {
		t.Errorf("event %q", event.Reason)
	}
	// What the filter in the kernel dropped is dropped without it, too.
	e.detachFilter()
	for _, c := range []string{
		"route add 10.11.0.0/16 via 192.0.2.1 proto bird",
		"route add 10.12.0.0/16 via 192.0.2.1 table 100",
		"route add 10.13.0.0/16 via 192.0.2.1 table 70000",
		"route add local 10.14.0.1 dev em1 table local proto static",
	} {
		ip(t, c)
	}
	for _, event := range eventsNow(t, e, 4243) {
		t.Errorf("without the kernel's filter: event %q", event.Reason)
	}
}

func TestReplacedRouteIsAnEventWhereverItLeads(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	ip(t, "route add 10.0.0.0/8 via 192.0.2.1")
	e := listen(t, openTestHost(t))
	e.SetInterest([]string{"em1"}, nil)
	ip(t, "route replace 10.0.0.0/8 via 198.51.100.1")
	eventsUntil(t, e, "route 10.0.0.0/8 via 198.51.100.1 dev em2 table main replaced")
}

func TestOwnChangesAreNoEvents(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	e := listen(t, h)
	e.SetInterest([]string{"em1"}, []uint32{11500})
	way := state.Way{
		Family: state.IPv4, Table: 11500, Type: state.Unicast, Protocol: state.Protocol,
		Hops: state.HopsOf(state.Hop{Via: netip.MustParseAddr("192.0.2.1"), Dev: "em1", Weight: 1}),
	}
	steps := []state.Step{
		{Op: state.Replace, Object: state.LinkGroup{Link: "em1", Group: 115}},
		{Op: state.Replace, Object: state.Sysctl{Path: "net/ipv4/conf/em1/rp_filter", Value: "2"}},
		{Op: state.Add, Object: state.RouteSet{Way: way, Dsts: prefix.Of(state.AnyDestination(state.IPv4))}},
		{Op: state.Add, Object: state.NewRule(state.IPv4, 11800, 11500)},
		{Op: state.Delete, Object: state.NewRule(state.IPv4, 11800, 11500)},
		{Op: state.Delete, Object: state.RouteSet{Way: way, Dsts: prefix.Of(state.AnyDestination(state.IPv4))}},
		{Op: state.Restore, Object: state.Sysctl{Path: "net/ipv4/conf/em1/rp_filter", Value: getSysctl(t, "net/ipv4/conf/em1/rp_filter")}},
		{Op: state.Restore, Object: state.LinkGroup{Link: "em1", Group: 0}},
	}
	// With the kernel's filter, and again with our own alone.
	for _, mark := range []int{4242, 4243} {
		for _, o := range h.Apply(context.Background(), state.Plan{Steps: steps}, nil) {
			if !o.Done() {
				t.Fatalf("%v: %v %s", o.Step, o.Err, o.Held)
			}
		}
		for _, event := range eventsNow(t, e, mark) {
			t.Errorf("event %q", event.Reason)
		}
		e.detachFilter()
	}
	// The same done by somebody else is one.
	ip(t, "rule add pref 11800 lookup 11500 protocol 115")
	eventsUntil(t, e, "rule 11800 added")
	ip(t, "link set em1 group 115")
	eventsUntil(t, e, "link em1 put into group 115")
}

// floodRoutes is a routing daemon at work: it never concerns an uplink.
func floodRoutes(n int, extra string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "route add 10.%d.%d.0/24 via 192.0.2.1 %s\n", i/256, i%256, extra)
	}
	return b.String()
}

func TestFloodOfForeignRoutesLosesNothing(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	h.options.EventBuffer = 16 << 10
	e := listen(t, h)
	e.SetInterest([]string{"em1"}, []uint32{11500, 11501})
	// Nobody reads meanwhile: what gets past the filter stays in the buffer.
	ipInput(t, "-batch -", floodRoutes(5000, "proto bird"))
	ipInput(t, "-batch -", floodRoutes(5000, "table 9999"))
	for _, event := range eventsNow(t, e, 4242) {
		t.Fatalf("event %q", event.Reason)
	}
}

func TestFloodOfOwnRoutesLosesNothing(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	h.options.EventBuffer = 16 << 10
	e := listen(t, h)
	set := state.RouteSet{Way: state.Way{
		Family: state.IPv4, Table: 11500, Type: state.Unicast, Protocol: state.Protocol,
		Hops: state.HopsOf(state.Hop{Via: netip.MustParseAddr("192.0.2.1"), Dev: "em1", Weight: 1}),
	}}
	set.Dsts = prefixes4(5000)
	for _, o := range h.Apply(context.Background(), state.Plan{Steps: []state.Step{{Op: state.Add, Object: set}}}, nil) {
		if !o.Done() {
			t.Fatal(o.Err, o.Held)
		}
	}
	for _, event := range eventsNow(t, e, 4242) {
		t.Fatalf("event %q", event.Reason)
	}
}

func TestLostEventsAreTold(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	// Room for many more messages than are told before somebody takes them.
	h.options.EventBuffer = 32 << 10
	e := listen(t, h)
	var batch strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&batch, "rule add pref %d lookup main\n", 1000+i)
	}
	ipInput(t, "-batch -", batch.String())
	ip(t, "link set em2 group 5")
	got := eventsUntil(t, e, lostEvents)
	if last := got[len(got)-1]; last.Parts != AllParts {
		t.Errorf("lost events make stale %b, want all of %b", last.Parts, AllParts)
	}
	if len(got) > 100 {
		t.Errorf("%d events although most were lost", len(got))
	}
	// It goes on, and knows the links of now.
	ip(t, "link set em1 group 9")
	eventsUntil(t, e, "link em1 put into group 9")
	ip(t, "link set em2 group 0")
	eventsUntil(t, e, "link em2 put into group 0")
	ip(t, "link set em1 alias noise")
	for _, event := range eventsNow(t, e, 4242) {
		t.Errorf("event %q", event.Reason)
	}
}

func TestStreamEnds(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	for name, end := range map[string]func(*Events, context.CancelFunc){
		"context": func(_ *Events, cancel context.CancelFunc) { cancel() },
		"close":   func(e *Events, _ context.CancelFunc) { e.Close() },
	} {
		ctx, cancel := context.WithCancel(context.Background())
		e, err := h.Listen(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// More than the channel holds, so that the stream is in the middle of telling.
		for i := range 40 {
			ip(t, fmt.Sprintf("rule add pref %d lookup main", 100+i))
			ip(t, fmt.Sprintf("rule del pref %d", 100+i))
		}
		end(e, cancel)
		if err := e.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for range e.C() {
			// What was told before the end is still there.
		}
		e.SetInterest([]string{"em1"}, []uint32{1})
		e.Close()
		cancel()
	}
}

func TestProcessOf(t *testing.T) {
	enterNamespace(t)
	c, err := openConn(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if got := ProcessOf(c.portID()); got != strings.TrimSpace(string(comm)) {
		t.Errorf("ProcessOf(%d) = %q, want %q", c.portID(), got, comm)
	}
	port := c.portID()
	c.close()
	if got := ProcessOf(port); got != "" {
		t.Errorf("ProcessOf of a closed socket = %q", got)
	}
	if got := ProcessOf(0); got != "" {
		t.Errorf("ProcessOf of the kernel = %q", got)
	}
}

// FuzzInterpret: whatever comes, nothing breaks.
func FuzzInterpret(f *testing.F) {
	for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_NEWADDR, unix.RTM_NEWROUTE, unix.RTM_NEWRULE, unix.RTM_NEWNETCONF} {
		f.Add(kind, slices.Repeat([]byte{0}, 40))
		f.Add(kind, append(slices.Repeat([]byte{0}, 16), 8, 0, 3, 0, 'e', 'm', '1', 0))
		f.Add(kind, []byte{2, 0, 0, 0, 8, 0, 1, 0, 1, 0, 0, 0, 8, 0, 3, 0, 2, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, kind uint16, body []byte) {
		b := baseline{links: map[int]seenLink{}, addresses: map[seenAddress]seenAddressState{}, values: map[netconfKey]int32{}}
		for range 2 {
			if e, ok := b.interpret(kind, 0, body, false); ok && (e.Parts == 0 || e.Reason == "") {
				t.Errorf("event %+v", e)
			}
		}
	})
}
