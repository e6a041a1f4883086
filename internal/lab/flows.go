package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// AskFromPorts sends a datagram from every one of a host's ports, first to last, to
// a Server and waits for each answer: so many flows are established, or still
// there. Without an answer before timeout the error is ErrNoReply.
func (h *Host) AskFromPorts(ctx context.Context, to netip.AddrPort, first, last uint16, timeout time.Duration) error {
	return h.Do(func() error {
		buf := make([]byte, 256)
		for port := int(first); port <= int(last); port++ {
			d := net.Dialer{LocalAddr: &net.UDPAddr{Port: port}, Timeout: timeout}
			conn, err := d.DialContext(ctx, "udp", to.String())
			if err != nil {
				return fmt.Errorf("ask from port %d of %s: %w", port, h.Name, err)
			}
			err = roundTrip(conn, buf, timeout)
			conn.Close()
			if err != nil {
				return fmt.Errorf("ask %s from port %d of %s: %w", to, port, h.Name, err)
			}
		}
		return nil
	})
}

func roundTrip(conn net.Conn, buf []byte, timeout time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("who am I\n")); err != nil {
		return err
	}
	_, err := conn.Read(buf)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return ErrNoReply
	}
	return err
}

// PingPong is a flow of datagrams: the next one is sent when the one before is
// answered, so that one that is lost ends it.
type PingPong struct {
	conn  net.Conn
	count atomic.Int64
	done  chan struct{}
	err   error // valid when done is closed
}

// PingPong starts a flow to a Server. A datagram without an answer for so long is lost.
func (h *Host) PingPong(ctx context.Context, to netip.AddrPort, timeout time.Duration) (*PingPong, error) {
	p := &PingPong{done: make(chan struct{})}
	err := h.Do(func() (err error) {
		p.conn, err = dial(ctx, Request{Protocol: UDP, To: to})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start datagrams to %s on %s: %w", to, h.Name, err)
	}
	go func() {
		defer close(p.done)
		buf := make([]byte, 256)
		for {
			if err := roundTrip(p.conn, buf, timeout); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					p.err = fmt.Errorf("datagram %d to %s on %s: %w", p.count.Load()+1, to, h.Name, err)
				}
				return
			}
			p.count.Add(1)
		}
	}()
	h.lab.keep(p)
	return p, nil
}

// Count is how many datagrams have been answered.
func (p *PingPong) Count() int64 { return p.count.Load() }

// Stop ends the flow and tells of a datagram that was lost.
func (p *PingPong) Stop() error {
	_ = p.conn.Close() // the goroutine tells what counts
	<-p.done
	return p.err
}

// Close is Stop.
func (p *PingPong) Close() error { return p.Stop() }
