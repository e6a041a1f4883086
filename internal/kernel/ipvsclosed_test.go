package kernel

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// connectionList is as a kernel spells it: a service by nat, one of a mark, one of IPv6 in
// tunnels of IPv4, and a persistent client.
const connectionList = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C633640A D2F0 CB007191 1F40 CB007193 0050 TIME_WAIT       114
TCP C633640A D2F2 CB007191 1F40 CB007193 0050 CLOSE_WAIT       59
TCP C633640A D2F4 CB007191 1F40 CB007193 0050 CLOSE             4
TCP C633640A 0000 CB007191 1F40 CB007193 0050 NONE            290
UDP C633640A D2F4 CB007191 1F40 CB007193 0050 UDP             300
TCP C633640A D2F6 CB007191 1F41 CB007193 0051 TIME_WAIT       114
TCP C633640A D2F8 CB007191 1F40 CB007194 0050 FIN_WAIT        118
TCP 2001:0db8:00c1:0000:0000:0000:0000:0010 D2F0 2001:0db8:0001:0000:0000:0000:0000:0145 0050 0A000107 0050 FIN_WAIT        118
TCP 2001:0db8:00c1:0000:0000:0000:0000:0010 D2F2 2001:0db8:0001:0000:0000:0000:0000:0145 0050 2001:0db8:00a1:0000:0000:0000:0000:0007 0050 TIME_WAIT       114 sip call
`

func TestConnectionsAreCountedByDestination(t *testing.T) {
	vip4, vip6 := netip.MustParseAddr("203.0.113.145"), netip.MustParseAddr("2001:db8:1::145")
	four := func(port uint16) state.ServiceKey {
		return state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: vip4, Port: port}
	}
	six := state.ServiceKey{Family: state.IPv6, Protocol: state.TCP, Addr: vip6, Port: 80}
	for _, c := range []struct {
		name         string
		service      state.ServiceKey
		server       string
		open, closed uint32
	}{
		{"nat", four(8000), "203.0.113.147:80", 1, 2},
		{"another real server", four(8000), "203.0.113.148:80", 1, 0},
		{"another service", four(8001), "203.0.113.147:81", 0, 1},
		{"every port", four(0), "203.0.113.147:0", 1, 3},
		{"a mark", state.ServiceKey{Family: state.IPv4, Mark: 7}, "203.0.113.147:0", 2, 3},
		{"a mark and a port", state.ServiceKey{Family: state.IPv4, Mark: 7}, "203.0.113.147:81", 0, 1},
		{"IPv6 by IPv4", six, "10.0.1.7:80", 1, 0},
		{"IPv6", six, "[2001:db8:a1::7]:80", 0, 1},
		{"none", four(8000), "203.0.113.149:80", 0, 0},
	} {
		server := netip.MustParseAddrPort(c.server)
		asked := tallies{}
		asked.add(state.DestinationKey{Service: c.service, Addr: server.Addr(), Port: server.Port()})
		if err := asked.count(strings.NewReader(connectionList)); err != nil {
			t.Fatal(err)
		}
		for _, list := range asked {
			if len(list) != 1 || list[0].open != c.open || list[0].closed != c.closed {
				t.Errorf("%s: %+v, want %d open and %d closed", c.name, *list[0], c.open, c.closed)
			}
		}
	}
}

func TestAListOfConnectionsIsNotReadForLong(t *testing.T) {
	asked := tallies{}
	asked.add(state.DestinationKey{Service: state.ServiceKey{Protocol: state.TCP, Addr: netip.MustParseAddr("203.0.113.145"), Port: 8000}, Addr: netip.MustParseAddr("203.0.113.147"), Port: 80})
	if err := asked.count(limited{strings.NewReader(connectionList), time.Now()}); !errors.Is(err, errLongCount) {
		t.Errorf("read after its time: %v", err)
	}
}

// Before that a lost segment may be sent again.
func TestAnEndedConnectionIsOverAfterSilence(t *testing.T) {
	for _, c := range []struct {
		state, expires string
		want           bool
	}{
		{"TIME_WAIT", "      119", false},
		{"TIME_WAIT", "      115", false},
		{"TIME_WAIT", "      114", true},
		{"TIME_WAIT", "        0 sip call", true},
		{"TIME_WAIT", "      180", false}, // a backup's
		{"CLOSE", "            9", false},
		{"CLOSE", "            5", false},
		{"CLOSE", "            4", true},
		{"FIN_WAIT", "         0", false},
		{"CLOSE_WAIT", "       0", false},
		{"ESTABLISHED", "      0", false},
		{"TIME_WAIT", "", false},
		{"TIME_WAIT", " later", false},
	} {
		if got := over([]byte(c.state), []byte(c.expires)); got != c.want {
			t.Errorf("%s %s: over is %v", c.state, c.expires, got)
		}
	}
}

func TestWhatTheListDoesNotTellIsOpen(t *testing.T) {
	for _, c := range []struct{ inactive, open, closed, want uint32 }{
		{3, 0, 3, 3},
		{3, 1, 2, 2},
		{3, 0, 2, 2}, // one is in no list: it began while it was read
		{3, 2, 2, 1}, // one of the closed is gone from the counters
		{1, 2, 2, 0},
		{0, 0, 1, 0},
	} {
		if got := (&tally{open: c.open, closed: c.closed}).closedOf(c.inactive); got != c.want {
			t.Errorf("%+v: %d closed", c, got)
		}
	}
}

// The list is read where something drains and has none but inactive connections,
// and not again before it has rested.
func TestTheListIsReadWhereItDecides(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ip_vs_conn")
	if err := os.WriteFile(path, []byte(connectionList), 0o600); err != nil {
		t.Fatal(err)
	}
	key := state.DestinationKey{
		Service: state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: netip.MustParseAddr("203.0.113.145"), Port: 8000},
		Addr:    netip.MustParseAddr("203.0.113.147"), Port: 80,
	}
	datagrams := key
	datagrams.Service.Protocol = state.UDP
	h := &Host{}
	for _, c := range []struct {
		name          string
		key           state.DestinationKey
		drains, there bool
		active        uint32
		rests         time.Duration
		closed        uint32
		read          bool
	}{
		{"it decides", key, true, true, 0, 0, 2, true},
		{"it rests", key, true, true, 0, time.Hour, 0, false},
		{"active ones", key, true, true, 1, 0, 0, false},
		{"nothing drains", key, false, true, 0, 0, 0, false},
		{"it is gone", key, true, false, 0, 0, 0, false},
		{"of UDP", datagrams, true, true, 0, 0, 0, false},
	} {
		s := balancer{destinations: map[state.DestinationKey]state.Destination{}}
		s.facts.Connections = map[state.DestinationKey]state.Connections{c.key: {Active: c.active, Inactive: 3}}
		s.facts.Draining = map[state.DestinationKey]time.Time{}
		if c.there {
			s.destinations[c.key] = state.Destination{DestinationKey: c.key}
		}
		if c.drains {
			s.facts.Draining[c.key] = time.Now()
		}
		begin := time.Now()
		h.countRest = begin.Add(c.rests)
		if err := h.countClosed(&s, path); err != nil {
			t.Fatal(err)
		}
		if got := s.facts.Connections[c.key].Closed; got != c.closed {
			t.Errorf("%s: %d closed, want %d", c.name, got, c.closed)
		}
		if read := !h.countRest.Equal(begin.Add(c.rests)); read != c.read {
			t.Errorf("%s: read %v", c.name, read)
		}
	}
}
