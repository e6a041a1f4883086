package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// ruleMessages are n additions of rules, the ones at the given places
// impossible: a range of ports that begins at 0.
func ruleMessages(t testing.TB, n int, bad ...int) []message {
	t.Helper()
	var msgs []message
	for i := range n {
		r := state.NewRule(state.IPv4, uint32(1000+i), 101)
		if slices.Contains(bad, i) {
			r.SPort = state.PortRange{First: 0, Last: 9}
		}
		body, err := appendRule(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, message{unix.RTM_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, body})
	}
	return msgs
}

func TestErrorsBelongToTheirMessages(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	bad := []int{0, 511, 512, 700, 1299}
	for i, err := range c.do(ruleMessages(t, 1300, bad...)) {
		if slices.Contains(bad, i) != errors.Is(err, unix.EINVAL) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if n := len(ip(t, "rule")); n != 3+1300-len(bad) {
		t.Errorf("ip shows %d rules, want %d", n, 3+1300-len(bad))
	}
}

func TestARefusalCarriesTheKernelsWords(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	w := state.Way{Family: state.IPv4, Table: 1001, Type: state.Unicast, Protocol: state.Protocol,
		Hops: state.HopsOf(state.Hop{Via: netip.MustParseAddr("203.0.113.1"), Dev: "em1", Weight: 1})}
	body, err := appendRoute(nil, netip.MustParsePrefix("10.0.0.0/8"), w, l.index)
	if err != nil {
		t.Fatal(err)
	}
	err = c.do([]message{{unix.RTM_NEWROUTE, unix.NLM_F_CREATE, body}})[0]
	const want = "Nexthop has invalid gateway (network is unreachable)"
	if !errors.Is(err, unix.ENETUNREACH) || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
}

// With the smallest buffer, nearly every answer of a batch is lost.
func TestMessagesWithLostAnswersAreSentAgain(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	var bad []int
	for i := range 300 {
		if i%3 == 0 {
			bad = append(bad, i)
		}
	}
	msgs := ruleMessages(t, 300, bad...)
	answered := 0
	var b batch
	for _, m := range msgs {
		b.begin(m.kind, m.flags)
		b.bytes = append(b.bytes, m.body...)
		b.end()
	}
	lost := c.ask(&b, func(int, error) { answered++ })
	if !errors.Is(lost, unix.ENOBUFS) || answered > 50 {
		t.Fatalf("%d answers came, and %v: the test shows nothing", answered, lost)
	}
	for i := range msgs {
		r := state.NewRule(state.IPv4, uint32(20000+i), 101)
		if i%3 == 0 {
			r.SPort = state.PortRange{Last: 9}
		}
		msgs[i].body, _ = appendRule(nil, r)
	}
	for i, err := range c.do(msgs) {
		switch {
		case i%3 == 0 && !errors.Is(err, unix.EINVAL):
			t.Errorf("impossible message %d: %v", i, err)
		case i%3 != 0 && err != nil && !errors.Is(err, unix.EEXIST):
			t.Errorf("message %d: %v", i, err)
		}
	}
	if n := len(ip(t, "rule")); n != 3+2*200 {
		t.Errorf("ip shows %d rules, want %d", n, 3+2*200)
	}
}

// manyRules puts enough rules into the namespace that their list takes several datagrams.
func manyRules(t testing.TB, c *conn) {
	t.Helper()
	for i, err := range c.do(ruleMessages(t, 3000)) {
		if err != nil {
			t.Fatalf("rule %d: %v", i, err)
		}
	}
}

// nexthopMessage adds a nexthop object: their lists tell when they changed.
func nexthopMessage(id uint32) message {
	body := []byte{unix.AF_INET, 0, state.Protocol, 0, 0, 0, 0, 0}
	body = appendUint32(body, unix.NHA_ID, id)
	body = appendAttribute(body, unix.NHA_BLACKHOLE)
	return message{unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE | unix.NLM_F_EXCL, body}
}

// manyNexthops puts 3000 of them into the namespace, from number 1000: more
// than fit into one datagram.
func manyNexthops(t testing.TB, c *conn) {
	t.Helper()
	ip(t, "link set lo up")
	var msgs []message
	for i := range 3000 {
		msgs = append(msgs, nexthopMessage(uint32(1000+i)))
	}
	for i, err := range c.do(msgs) {
		if err != nil {
			t.Fatalf("nexthop %d: %v", i, err)
		}
	}
}

var listNexthops = message{kind: unix.RTM_GETNEXTHOP, body: make([]byte, 8)}

func TestAnInterruptedListBeginsAgain(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	other, _ := openTestConn(t)
	manyNexthops(t, c)
	restarts, got := 0, 0
	err := c.dump(listNexthops, func() { restarts++; got = 0 }, func(uint16, []byte) error {
		if got++; restarts == 0 && got == 10 {
			return other.do([]message{nexthopMessage(500)})[0]
		}
		return nil
	})
	if err != nil || restarts != 1 || got != 3001 {
		t.Errorf("began again %d times, saw %d, %v; want once and 3001", restarts, got, err)
	}
}

func TestAListThatNeverHoldsStillIsAnError(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	other, _ := openTestConn(t)
	manyNexthops(t, c)
	attempts, got := 1, 0
	change := func(uint16, []byte) error {
		if got++; got == 10 {
			return other.do([]message{nexthopMessage(uint32(500 + attempts))})[0]
		}
		return nil
	}
	err := c.dump(listNexthops, func() { attempts++; got = 0 }, change)
	if !errors.Is(err, errInterrupted) || attempts != dumpAttempts {
		t.Errorf("after %d attempts: %v", attempts, err)
	}
	// The socket is still good.
	got = 10
	if err := c.dump(listNexthops, func() { got = 10 }, change); err != nil || got != 10+3000+dumpAttempts {
		t.Errorf("saw %d, %v", got-10, err)
	}
}

// The kernel does not say that rules changed below their list.
func TestALongListOfRulesIsReadUntilItAgrees(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	manyRules(t, c)
	first := c.received
	if n := len(observedRules(t, c, state.IPv4)); n != 3+3000 {
		t.Errorf("%d rules", n)
	}
	twice := c.received - first
	first = c.received
	_, pieces, err := c.dumpRules(state.IPv4)
	if once := c.received - first; err != nil || pieces < 2 || twice != 2*once {
		t.Errorf("%d datagrams for the list, %d for one dump of %d pieces, %v", twice, once, pieces, err)
	}
	if _, pieces, err := c.dumpRules(state.IPv6); err != nil || pieces != 1 {
		t.Errorf("a short list came in %d pieces, %v", pieces, err)
	}
}

func TestAReaderThatStopsLeavesTheSocketUsable(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	manyRules(t, c)
	stop := errors.New("stop")
	body := make([]byte, sizeofRuleHeader)
	body[0] = unix.AF_INET
	calls := 0
	err := c.dump(message{kind: unix.RTM_GETRULE, body: body}, func() {}, func(uint16, []byte) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	if n := len(observedRules(t, c, state.IPv4)); n != 3+3000 {
		t.Errorf("%d rules", n)
	}
}

// Any process may send to a netlink socket.
func TestAnswersOfOthersThanTheKernelAreIgnored(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	other, _ := openTestConn(t)
	forged := binary.NativeEndian.AppendUint32(nil, 0xffffffff) // -EPERM
	forged = append(forged, make([]byte, unix.SizeofNlMsghdr)...)
	packet := appendMessage(nil, unix.NLMSG_ERROR, 0, c.seq+1, forged)
	if err := unix.Sendto(other.fd, packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: c.portID()}); err != nil {
		t.Fatal(err)
	}
	if n, _, err := unix.Recvfrom(c.fd, make([]byte, 100), unix.MSG_PEEK|unix.MSG_DONTWAIT); n != len(packet) {
		t.Fatalf("the forged answer did not arrive: %v", err)
	}
	if err := c.do(ruleMessages(t, 1))[0]; err != nil {
		t.Errorf("the forged answer was believed: %v", err)
	}
}

func TestABatchKeepsWithinItsSize(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	var hops []state.Hop
	for i := range 200 {
		hops = append(hops, state.Hop{Via: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+3)), Dev: "em1", Weight: 1})
	}
	w := state.Way{Family: state.IPv4, Table: 1001, Type: state.Unicast, Protocol: state.Protocol, Hops: state.HopsOf(hops...)}
	var msgs []message
	for i := range 512 {
		body, err := appendRoute(nil, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), w, l.index)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, message{unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body})
	}
	for i, err := range c.do(msgs) {
		if err != nil {
			t.Fatalf("route %d: %v", i, err)
		}
	}
	if n := len(observedRoutes(t, c, routeFilter{family: state.IPv4, table: 1001})); n != 512 {
		t.Errorf("%d routes", n)
	}
}

func FuzzAnswers(f *testing.F) {
	body := binary.NativeEndian.AppendUint32(nil, 0xffffffff)
	body = appendMessage(body, unix.RTM_NEWROUTE, 0, 7, nil)
	body = appendString(body, unix.NLMSGERR_ATTR_MSG, "no")
	f.Add(appendMessage(nil, unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED, 7, body))
	f.Add(appendMessage(nil, unix.NLMSG_DONE, 0, 7, []byte{0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		_ = eachMessage(datagram, func(h header, body []byte) error {
			if err := decodeError(h, body); err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
			return nil
		})
	})
}
