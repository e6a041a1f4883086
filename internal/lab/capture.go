package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// snap is how much of a packet is looked at: the largest IPv4 header or an
	// IPv6 header with extensions, and the transport header, in bytes.
	snap = 256
	// room is the receive buffer of a capture in bytes.
	room = 4 << 20
)

// Capture is a witness: it records every IPv4 and IPv6 packet that passes a
// host's interfaces, loopback excepted.
type Capture struct {
	host *Host
	// links are the only ones recorded; none means all.
	links []string
	// Sample: a packet or two are enough, and losing others is no error of Close.
	Sample bool
	file   *os.File
	done   chan struct{}

	mu      sync.Mutex
	packets []Packet
	// grown is closed, and replaced, when a packet is added.
	grown chan struct{}
	names map[int]string

	err     error // why record ended, valid when done is closed
	closing sync.Once
	closed  error
}

// Capture starts to record at the given links, or at all without any. It
// sees every packet sent after it has returned.
func (h *Host) Capture(links ...string) (*Capture, error) {
	c := &Capture{host: h, links: links, done: make(chan struct{}), grown: make(chan struct{}), names: map[int]string{}}
	for _, name := range links {
		if _, err := h.link(name); err != nil {
			return nil, fmt.Errorf("capture: %w", err)
		}
	}
	var fd int
	err := h.Do(func() (err error) {
		// ETH_P_ALL, because a socket for one protocol does not see what leaves;
		// cooked (SOCK_DGRAM), so that a packet begins with its IP header.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", h.Name, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set receive buffer of packet socket: %w", err)
	}
	c.file = os.NewFile(uintptr(fd), "packet socket of "+h.Name)
	go c.record()
	h.lab.keep(c)
	return c, nil
}

// record reads until Close sets a deadline, and then what is left.
func (c *Capture) record() {
	defer close(c.done)
	socket, err := c.file.SyscallConn()
	if err != nil {
		c.err = fmt.Errorf("read packet socket of %s: %w", c.host.Name, err)
		return
	}
	buf := make([]byte, snap)
	var n int
	var from unix.Sockaddr
	var failure error
	receive := func(fd uintptr) bool {
		n, from, failure = unix.Recvfrom(int(fd), buf, 0)
		return failure != unix.EAGAIN
	}
	for {
		err := socket.Read(receive)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = socket.Control(func(fd uintptr) { receive(fd) })
			if failure == unix.EAGAIN {
				return
			}
		}
		switch err := errors.Join(err, failure); {
		case err == nil:
			if ll, ok := from.(*unix.SockaddrLinklayer); ok {
				c.add(buf[:n], ll)
			}
		case errors.Is(err, unix.EINTR):
		default:
			c.err = fmt.Errorf("read packet socket of %s: %w", c.host.Name, err)
			return
		}
	}
}

func (c *Capture) add(b []byte, from *unix.SockaddrLinklayer) {
	// PACKET_OTHERHOST is not this host's; PACKET_LOOPBACK is a copy.
	if from.Hatype == unix.ARPHRD_LOOPBACK || from.Pkttype == unix.PACKET_OTHERHOST || from.Pkttype == unix.PACKET_LOOPBACK {
		return
	}
	if t := ntohs(from.Protocol); t != unix.ETH_P_IP && t != unix.ETH_P_IPV6 {
		return
	}
	p, ok := decode(b)
	if !ok {
		return
	}
	p.Time, p.Link, p.Out = time.Now(), c.name(from.Ifindex), from.Pkttype == unix.PACKET_OUTGOING
	if len(c.links) > 0 && !slices.Contains(c.links, p.Link) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.packets = append(c.packets, p)
	close(c.grown)
	c.grown = make(chan struct{})
}

// name is the name that a link had when its first packet was seen.
func (c *Capture) name(index int) string {
	if name, ok := c.names[index]; ok {
		return name
	}
	name := fmt.Sprintf("if%d", index) // gone before it could be asked
	if dev, err := c.host.links.LinkByIndex(index); err == nil {
		name = dev.Attrs().Name
	}
	c.names[index] = name
	return name
}

// Packets are all packets recorded so far, in the order of their arrival.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.packets)
}

// Count is how many of the packets recorded so far match.
func (c *Capture) Count(match func(Packet) bool) int {
	n := 0
	for _, p := range c.Packets() {
		if match(p) {
			n++
		}
	}
	return n
}

// Reset forgets what was recorded.
func (c *Capture) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.packets = nil
}

// Wait returns the first packet recorded that matches, and waits for one
// until ctx ends, or five seconds when ctx has no deadline.
func (c *Capture) Wait(ctx context.Context, match func(Packet) bool) (Packet, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	for {
		c.mu.Lock()
		i, grown := slices.IndexFunc(c.packets, match), c.grown
		if i >= 0 {
			defer c.mu.Unlock()
			return c.packets[i], nil
		}
		c.mu.Unlock()
		select {
		case <-grown:
		case <-c.done:
			return Packet{}, fmt.Errorf("wait for packet on %s: %w", c.host.Name, os.ErrClosed)
		case <-ctx.Done():
			return Packet{}, fmt.Errorf("wait for packet on %s: %w", c.host.Name, context.Cause(ctx))
		}
	}
}

// Close ends the recording; what was recorded stays readable. It is an error
// when the kernel had to drop packets, because then the record proves nothing.
func (c *Capture) Close() error {
	c.closing.Do(func() {
		err := c.file.SetReadDeadline(time.Unix(1, 0))
		if err == nil {
			<-c.done
		}
		lost := c.lost()
		err = errors.Join(err, c.file.Close())
		<-c.done
		c.closed = errors.Join(c.err, lost, err)
	})
	return c.closed
}

// lost is an error when packets did not fit into the receive buffer.
func (c *Capture) lost() error {
	socket, err := c.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("count lost packets on %s: %w", c.host.Name, err)
	}
	var stats *unix.TpacketStats
	var failure error
	err = socket.Control(func(fd uintptr) {
		stats, failure = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("count lost packets on %s: %w", c.host.Name, err)
	}
	if stats.Drops > 0 {
		if c.Sample {
			return nil
		}
		return fmt.Errorf("capture on %s: %d packets lost", c.host.Name, stats.Drops)
	}
	return nil
}

// htons and ntohs turn a 16-bit number between the host's and the network's
// byte order.
func htons(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func ntohs(n uint16) uint16 { return htons(n) }
