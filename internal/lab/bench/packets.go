package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

const (
	flowPort = 9000
	// pace is the time between two packets, at least.
	pace = 100 * time.Microsecond
	// quietly is how long no packet may take the old way for the new one to be
	// the way of all, and how long late packets are waited for.
	quietly = 500 * time.Millisecond
)

// flow is numbered packets from a host to many destinations in turn, and the
// two gateways where they arrive.
type flow struct {
	ended    atomic.Bool
	sent     []time.Time // of each number; valid when the sender has ended
	count    atomic.Int64
	sender   chan error
	counters [2]*counter
}

// counter takes the packets of a gateway.
type counter struct {
	ended   atomic.Bool
	n       atomic.Int64
	done    chan error
	numbers []uint32 // valid when it has ended
}

func startFlow(s *segment, targets []netip.Addr) (*flow, error) {
	f := &flow{sender: make(chan error, 1)}
	domain := unix.AF_INET
	if targets[0].Is6() {
		domain = unix.AF_INET6
	}
	for i, g := range s.gateways {
		f.counters[i] = &counter{done: make(chan error, 1)}
		fd, err := f.counters[i].open(g, domain)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("count packets on %s: %w", g.Name, err), f.stopCounters())
		}
		go func() { f.counters[i].done <- f.counters[i].read(fd) }()
	}
	go func() {
		f.sender <- s.host.Do(func() error { return f.send(domain, targets) })
	}()
	return f, nil
}

// send sends until the flow is stopped.
func (f *flow) send(domain int, targets []netip.Addr) error {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("send packets: %w", err)
	}
	defer unix.Close(fd)
	to := make([]unix.Sockaddr, len(targets))
	for i, t := range targets {
		if t.Is4() {
			to[i] = &unix.SockaddrInet4{Port: flowPort, Addr: t.As4()}
		} else {
			to[i] = &unix.SockaddrInet6{Port: flowPort, Addr: t.As16()}
		}
	}
	var payload [4]byte
	// A sender that waits busily would take a processor from those who are measured.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("send packets: set timer slack: %w", err)
	}
	wait := unix.NsecToTimespec(int64(pace))
	for !f.ended.Load() {
		// Interrupted, it sends a little earlier.
		_ = unix.Nanosleep(&wait, nil)
		binary.NativeEndian.PutUint32(payload[:], uint32(len(f.sent)))
		now := time.Now()
		// What cannot be sent does not arrive, and counts as lost.
		_ = unix.Sendto(fd, payload[:], 0, to[len(f.sent)%len(to)])
		f.sent = append(f.sent, now)
		f.count.Add(1)
	}
	return nil
}

// open opens a socket for what arrives for flowPort of any address of a gateway's.
func (c *counter) open(g *lab.Host, domain int) (fd int, err error) {
	err = g.Do(func() error {
		if fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		var all unix.Sockaddr = &unix.SockaddrInet4{Port: flowPort}
		if domain == unix.AF_INET6 {
			all = &unix.SockaddrInet6{Port: flowPort}
		}
		// The reader looks now and then whether it is to end.
		now := unix.NsecToTimeval(int64(quietly / 10))
		err := errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &now),
			unix.Bind(fd, all))
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}

func (c *counter) read(fd int) error {
	defer unix.Close(fd)
	buffer := make([]byte, 64)
	for {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) && c.ended.Load():
			return nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("count packets: %w", err)
		case n == 4:
			c.numbers = append(c.numbers, binary.NativeEndian.Uint32(buffer))
			c.n.Add(1)
		}
	}
}

// arrived is how many packets a gateway has seen.
func (f *flow) arrived(gateway int) int64 { return f.counters[gateway].n.Load() }

// moved waits until the packets take another way than by the gateway from, all
// of them.
func (f *flow) moved(b *bench, from int) error {
	for range 240 {
		sent, before, after := f.count.Load(), f.arrived(from), f.arrived(1-from)
		if err := b.pause(quietly); err != nil {
			return err
		}
		if f.arrived(from) == before && (f.arrived(1-from)-after)*10 > (f.count.Load()-sent)*9 {
			return nil
		}
	}
	return fmt.Errorf("the packets do not take the new way: %d by the old gateway, %d by the new one", f.arrived(from), f.arrived(1-from))
}

// stop ends the flow. It returns when the last packet that arrived at the old
// gateway was sent, and how many arrived nowhere.
func (f *flow) stop(from int) (last time.Time, lost int, err error) {
	f.ended.Store(true)
	if err := errors.Join(<-f.sender, f.stopCounters()); err != nil {
		return last, 0, err
	}
	seen := make([]bool, len(f.sent))
	for i, c := range f.counters {
		for _, n := range c.numbers {
			seen[n] = true
			if i == from && f.sent[n].After(last) {
				last = f.sent[n]
			}
		}
	}
	for _, s := range seen {
		if !s {
			lost++
		}
	}
	return last, lost, nil
}

// stopCounters ends the counters when nothing more arrives.
func (f *flow) stopCounters() error {
	var errs []error
	for _, c := range f.counters {
		if c != nil {
			c.ended.Store(true)
			errs = append(errs, <-c.done)
		}
	}
	return errors.Join(errs...)
}
