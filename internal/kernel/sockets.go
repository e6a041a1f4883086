package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Of linux/inet_diag.h and net/tcp_states.h.
const (
	sockDiagByFamily = 20
	inetDiagOnly6    = 11
	inetDiagOptions  = 22
	sizeofDiagID     = 48
	sizeofDiagMsg    = 72

	tcpSynRecv    = 3
	tcpClose      = 7 // of a UDP socket: not connected
	tcpListen     = 10
	tcpNewSynRecv = 12
	tcpStates     = 1<<(tcpNewSynRecv+1) - 1
	// connected are the states of a connection that somebody of this host began.
	connected = tcpStates &^ (1<<0 | 1<<tcpSynRecv | 1<<tcpClose | 1<<tcpListen | 1<<tcpNewSynRecv)
)

// readSockets looks at the sockets of the ports that are asked about. Nobody is
// told when one comes or goes.
func (h *Host) readSockets() error {
	facts := state.SocketFacts{Asking: map[state.Asking]int{}}
	h.cached.Facts.Sockets = facts
	if len(h.query.Listening)+len(h.query.Asking) == 0 {
		return nil
	}
	c, err := openConn(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("read sockets: %w", err)
	}
	defer c.close()
	own := map[netip.Addr]bool{}
	for _, a := range h.links.addresses() {
		own[a.Prefix.Addr()] = true
	}
	for _, family := range [...]byte{unix.AF_INET, unix.AF_INET6} {
		for _, p := range h.query.Listening {
			states := uint32(1 << tcpListen)
			if p.Protocol == unix.IPPROTO_UDP {
				states = 1 << tcpClose
			}
			var found []state.Listening
			err = errors.Join(err, c.sockets(family, p.Protocol, states, p.Number, 0, func() { found = nil }, func(s diagSocket) {
				found = append(found, state.Listening{Port: p, Addr: s.local.Addr(), Only6: s.only6, Transparent: s.transparent})
			}))
			facts.Listening = append(facts.Listening, found...)
		}
		for _, p := range h.query.Asking {
			found := map[state.Asking]int{}
			err = errors.Join(err, c.sockets(family, p.Protocol, connected, 0, p.Number, func() { clear(found) }, func(s diagSocket) {
				client := s.local.Addr().Unmap()
				if !own[client] && !client.IsLoopback() {
					found[state.Asking{Client: client, Server: netip.AddrPortFrom(s.remote.Addr().Unmap(), s.remote.Port())}]++
				}
			}))
			for k, n := range found {
				facts.Asking[k] += n
			}
		}
	}
	if err != nil {
		// A kernel without inet_diag, mostly: nothing that is wanted depends on it.
		facts = state.SocketFacts{Unknown: err.Error()}
	}
	h.cached.Facts.Sockets = facts
	return nil
}

// diagSocket is what the kernel tells of a socket.
type diagSocket struct {
	local, remote      netip.AddrPort
	only6, transparent bool
}

// sockets lists the sockets of a family and protocol, in some states, with a
// local or a remote port; 0 is any.
func (c *conn) sockets(family, protocol byte, states uint32, sport, dport uint16, restart func(), each func(diagSocket)) error {
	// struct inet_diag_req_v2
	body := binary.NativeEndian.AppendUint32([]byte{family, protocol, 0, 0}, states)
	body = binary.BigEndian.AppendUint16(body, sport)
	body = binary.BigEndian.AppendUint16(body, dport)
	body = append(body, make([]byte, sizeofDiagID-4)...)
	err := c.dump(message{kind: sockDiagByFamily, body: body}, restart, func(_ uint16, body []byte) error {
		s, err := decodeSocket(body)
		if err == nil {
			each(s)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	return nil
}

// decodeSocket reads struct inet_diag_msg and what follows it.
func decodeSocket(b []byte) (diagSocket, error) {
	if len(b) < sizeofDiagMsg {
		return diagSocket{}, fmt.Errorf("read socket: %w", errMalformed)
	}
	id := b[4:]
	read := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }
	if b[0] == unix.AF_INET {
		read = func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
	}
	// A kernel that does not tell of transparency gets the benefit of the doubt.
	s := diagSocket{
		local:       netip.AddrPortFrom(read(id[4:]), binary.BigEndian.Uint16(id)),
		remote:      netip.AddrPortFrom(read(id[20:]), binary.BigEndian.Uint16(id[2:])),
		transparent: true,
	}
	a := attributes{rest: b[sizeofDiagMsg:]}
	for a.next() {
		switch a.kind {
		case inetDiagOnly6:
			s.only6 = a.uint8() != 0
		case inetDiagOptions:
			if len(a.value) == 0 {
				a.err = errMalformed
				break
			}
			s.transparent = a.value[0]&transparentBit() != 0
		}
	}
	if a.err != nil {
		return diagSocket{}, fmt.Errorf("read socket: %w", a.err)
	}
	return s, nil
}

// transparentBit is the sixth of eight bit fields of struct inet_diag_sockopt, which
// compilers lay out from the end that comes first in a word.
func transparentBit() byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return 1 << 5
	}
	return 1 << 2
}
