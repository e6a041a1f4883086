package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// procConnections lists the connections of IPVS in the calling thread's network
// namespace (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_seq_show).
const procConnections = "/proc/thread-self/net/ip_vs_conn"

const (
	// longestCount is how long the list of connections is read. Kernels whose every
	// read begins to search at its first line take four times as long for twice as
	// many: 1.2 s for 40,000 on an emulated 6.1. What drains then waits until the
	// kernel has forgotten all that it had.
	longestCount = 250 * time.Millisecond
	// countShare is how many times as long as it was read it is left alone.
	countShare = 20
)

// errLongCount is a list of connections that is longer than longestCount.
var errLongCount = errors.New("too long")

// countClosed learns how many inactive connections of what drains carry nothing
// any more. It reads the list of connections, a file such as procConnections,
// where that decides, and then only.
func (h *Host) countClosed(s *balancer, path string) error {
	now := time.Now()
	if now.Before(h.countRest) {
		return nil
	}
	asked := tallies{}
	for key := range s.facts.Draining {
		if _, there := s.destinations[key]; !there || key.Service.Protocol != state.TCP && key.Service.Mark == 0 {
			continue
		}
		if c := s.facts.Connections[key]; c.Active == 0 && c.Inactive > 0 {
			asked.add(key)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer f.Close()
		err = asked.count(limited{f, now.Add(longestCount)})
	}
	h.countRest = time.Now().Add(countShare * time.Since(now))
	switch {
	case errors.Is(err, errLongCount):
		return nil
	case err != nil:
		return fmt.Errorf("list connections: %w", err)
	}
	for _, list := range asked {
		for _, t := range list {
			c := s.facts.Connections[t.key]
			c.Closed = t.closedOf(c.Inactive)
			s.facts.Connections[t.key] = c
		}
	}
	return nil
}

// limited is a reader that ends with errLongCount.
type limited struct {
	io.Reader
	end time.Time
}

func (l limited) Read(b []byte) (int, error) {
	if time.Now().After(l.end) {
		return 0, errLongCount
	}
	return l.Reader.Read(b)
}

// tally counts the connections of a destination. Its texts are as the list of
// connections writes them; an empty one is any.
type tally struct {
	key                state.DestinationKey
	vip, service, port string
	open, closed       uint32
}

// tallies are those of destinations by the texts of their addresses.
type tallies map[string][]*tally

func (t tallies) add(key state.DestinationKey) {
	one := &tally{key: key, service: listedPort(key.Service.Port), port: listedPort(key.Port)}
	if key.Service.Mark == 0 {
		one.vip = listedAddr(key.Service.Addr)
	}
	addr := listedAddr(key.Addr)
	t[addr] = append(t[addr], one)
}

func listedAddr(a netip.Addr) string {
	if a.Is4() {
		return fmt.Sprintf("%08X", a.As4())
	}
	return a.StringExpanded()
}

func listedPort(port uint16) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf("%04X", port)
}

// count goes through a list of connections:
//
//	"Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"
//	"TCP C633640A D2F0 CB007191 1F40 CB007193 0050 FIN_WAIT        119"
//
// What remembers a persistent client is in it too, without a port of the
// client's, and counts nowhere. Of marks, whose services the list does not tell,
// all that may be theirs counts.
func (t tallies) count(list io.Reader) error {
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		// Protocol, from, its port, to, its port, destination, its port, state; then
		// spaces, and what begins with Expires.
		var words [8][]byte
		rest := lines.Bytes()
		for i := range words {
			words[i], rest, _ = bytes.Cut(rest, []byte(" "))
		}
		tcp := string(words[0]) == "TCP"
		for _, one := range t[string(words[5])] {
			switch {
			case string(words[2]) == "0000" || !one.has(tcp, words[3], words[4], words[6]):
			case tcp && over(words[7], rest):
				one.closed++
			default:
				one.open++
			}
		}
	}
	return lines.Err()
}

func (t *tally) has(tcp bool, vip, service, port []byte) bool {
	return (t.vip == "" || tcp && t.vip == string(vip)) && (t.service == "" || t.service == string(service)) && (t.port == "" || t.port == string(port))
}

// closedOf is how many of so many inactive connections carry nothing any more.
// Those that the list tells to be open are not, and what it does not tell of may
// be.
func (t *tally) closedOf(inactive uint32) uint32 {
	return min(t.closed, inactive-min(t.open, inactive))
}

// silence is how long, in seconds, an ended connection has no packet before it
// counts as one that carries nothing any more: the director has seen both ends
// say that they end, but not that what came before was received, and a lost
// segment is sent again.
const silence = 5

// ended are the states of connections whose two ends have said that they end, or
// one of which has reset it, and how many seconds after its last packet the
// kernel forgets one (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_states and
// tcp_timeouts). In CLOSE_WAIT the client alone has ended, and in FIN_WAIT one end
// has, where the director sees both; where it sees the client alone, dr and tun,
// this is FIN_WAIT, whatever the real server has done.
var ended = map[string]int{"TIME_WAIT": 120, "CLOSE": 10}

// over reports whether a connection in a state carries nothing any more. expires
// begins with the seconds, rounded down, until the kernel forgets it.
func over(state, expires []byte) bool {
	timeout, is := ended[string(state)]
	word, _, _ := bytes.Cut(bytes.TrimLeft(expires, " "), []byte(" "))
	left, err := strconv.Atoi(string(word))
	return is && err == nil && left < timeout-silence
}
