package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// batchMessages is the most messages in one send. Beyond 512 nothing is
	// gained, and their errors have to fit into the receive buffer.
	batchMessages = 512
	// batchBytes keeps a send below the default send buffer of the kernel.
	batchBytes = 64 << 10
	// largestRoute is more than one message about a route: 256 next hops do not fit
	// into less.
	largestRoute = 16 << 10
	// receiveBuffer is asked for with SO_RCVBUFFORCE: room for the errors of a
	// whole batch, each with its text.
	receiveBuffer = 2 << 20
	// ackMemory is what one queued error costs of the receive buffer, generously.
	ackMemory = 2 << 10
	// dumpBytes is more than the kernel puts into one datagram of a dump (32 KiB).
	dumpBytes = 64 << 10
	// dumpAttempts bounds the attempts at a list that changes below the reader.
	dumpAttempts = 10
	// answerSeconds is how long an answer may take. The kernel answers within the
	// send; the bound only keeps a lost answer from stopping the program.
	answerSeconds = 30
)

// errInterrupted is a dump that was never consistent in all its attempts.
var errInterrupted = errors.New("the objects changed during every attempt to list them")

// message is one netlink request. NLM_F_REQUEST and acknowledgements are added
// by the conn.
type message struct {
	kind  uint16
	flags uint16
	body  []byte // the family's header and the attributes
}

// conn is a netlink socket. It belongs to the network namespace of the thread
// that opened it, whichever thread uses it later. It is not safe for
// concurrent use.
type conn struct {
	fd     int
	port   uint32
	seq    uint32
	strict bool // the kernel filters dumps
	batch  int  // messages in one send
	out    []byte
	// sending is the batch of do.
	sending batch
	in      []byte
	// received counts the datagrams of the kernel.
	received int
	// linkName spells the interface indices of routes.
	linkName func(index int) string
	// nexthops spells the nexthop objects of routes, as of their last list.
	nexthops nexthopTable
}

// openConn opens a socket of a netlink protocol, such as NETLINK_ROUTE.
func openConn(protocol int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conn{fd: fd, in: make([]byte, dumpBytes)}
	if err := c.configure(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) configure() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	name, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	if address, ok := name.(*unix.SockaddrNetlink); ok {
		c.port = address.Pid
	}
	// Kernels before 4.12 and 5.0 lack these: errors then come without text, with
	// the whole request in them, and dumps come unfiltered.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	c.strict = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1) == nil
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
			return err
		}
	}
	got, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return err
	}
	c.batch = max(1, min(batchMessages, got/ackMemory))
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerSeconds})
}

// close ends the socket.
func (c *conn) close() { _ = unix.Close(c.fd) }

// portID is the socket's address: the kernel names it in the notifications of
// the changes that were asked for here.
func (c *conn) portID() uint32 { return c.port }

// refusal is the kernel's no: an errno, and its words where it gave some.
type refusal struct {
	errno unix.Errno
	text  string
}

func (r *refusal) Error() string {
	if r.text == "" {
		return r.errno.Error()
	}
	return r.text + " (" + r.errno.Error() + ")"
}

// Unwrap returns the errno.
func (r *refusal) Unwrap() error { return r.errno }

// do sends the messages in batches and returns an error for each that failed,
// nil for the others. The messages must bear being done twice.
func (c *conn) do(msgs []message) []error {
	errs := make([]error, len(msgs))
	start := 0
	flush := func() {
		c.deliver(&c.sending, func(i int, err error) { errs[start+i] = err })
		start += c.sending.len()
		c.sending.reset()
	}
	for _, m := range msgs {
		size := alignAttribute(unix.SizeofNlMsghdr + len(m.body))
		if n := c.sending.len(); n > 0 && (n == c.batch || len(c.sending.bytes)+size > batchBytes) {
			flush()
		}
		c.sending.begin(m.kind, m.flags)
		c.sending.bytes = append(c.sending.bytes, m.body...)
		c.sending.end()
	}
	flush()
	return errs
}

// ask sends a batch and reports every answer to its messages. It returns an
// error when the fate of those without an answer is not known.
func (c *conn) ask(b *batch, answer func(i int, err error)) error {
	first := c.seq + 1
	c.seq += uint32(b.len())
	b.address(first)
	if err := c.send(b.bytes); err != nil {
		return fmt.Errorf("send netlink messages: %w", err)
	}
	acknowledged := false
	gather := func(h header, body []byte) error {
		if i := h.seq - first; h.kind == unix.NLMSG_ERROR && i < uint32(b.len()) {
			answer(int(i), decodeError(h, body))
			acknowledged = acknowledged || int(i) == b.len()-1
		}
		return nil
	}
	var lost error
	for !acknowledged {
		flags := 0
		if lost != nil {
			// The queue overran: what is in it is all that will come, and it must be
			// emptied before the kernel queues anything again.
			flags = unix.MSG_DONTWAIT
		}
		data, err := c.receive(flags)
		switch {
		case err == nil:
			if err := eachMessage(data, gather); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOBUFS):
			lost = fmt.Errorf("receive netlink answers: %w", err)
		case lost != nil && errors.Is(err, unix.EAGAIN):
			return lost
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("receive netlink answers: none within %d s: %w", answerSeconds, os.ErrDeadlineExceeded)
		default:
			return fmt.Errorf("receive netlink answers: %w", err)
		}
	}
	return lost
}

// dump sends a request for a list and hands every message of it to each as it
// comes. When the list changed meanwhile it starts again, after a call of
// restart: what each saw before is void. An error of each ends the dump.
func (c *conn) dump(request message, restart func(), each func(kind uint16, body []byte) error) error {
	request.flags |= unix.NLM_F_DUMP
	for attempt := range dumpAttempts {
		if attempt > 0 {
			restart()
		}
		consistent, err := c.list(request, each)
		if err != nil || consistent {
			return err
		}
	}
	return errInterrupted
}

// list is one attempt of dump. It reports whether the list is consistent.
func (c *conn) list(request message, each func(kind uint16, body []byte) error) (consistent bool, err error) {
	c.seq++
	c.out = appendMessage(c.out[:0], request.kind, request.flags|unix.NLM_F_REQUEST, c.seq, request.body)
	if err := c.send(c.out); err != nil {
		return false, fmt.Errorf("send netlink request: %w", err)
	}
	var failed error
	done, interrupted := false, false
	gather := func(h header, body []byte) error {
		if h.seq != c.seq {
			return nil
		}
		interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
		switch h.kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			done = true
			if err := decodeError(h, body); err != nil && failed == nil {
				failed = err
			}
		default:
			// After an error, and in a list that will be read again, the rest is
			// taken off the socket and not looked at.
			if failed == nil && !interrupted {
				failed = each(h.kind, body)
			}
		}
		return nil
	}
	for !done {
		data, err := c.receive(0)
		if err == nil {
			err = eachMessage(data, gather)
		}
		if err != nil {
			c.drain()
			return false, fmt.Errorf("receive netlink list: %w", err)
		}
	}
	return !interrupted, failed
}

// drain empties the socket, so that the kernel ends a dump that was given up.
func (c *conn) drain() {
	for {
		_, err := c.receive(unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, errTruncated) {
			return
		}
	}
}

func (c *conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// errTruncated is a datagram larger than the buffer for it.
var errTruncated = errors.New("the kernel's message is longer than the buffer")

// receive returns the kernel's next datagram. It is valid until the next call.
func (c *conn) receive(flags int) ([]byte, error) {
	for {
		n, _, got, from, err := unix.Recvmsg(c.fd, c.in, nil, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if address, ok := from.(*unix.SockaddrNetlink); !ok || address.Pid != 0 {
			// Any process may send to a netlink socket; only port 0 is the kernel.
			continue
		}
		if got&unix.MSG_TRUNC != 0 {
			return nil, errTruncated
		}
		c.received++
		return c.in[:n], nil
	}
}

// header is what of a message's header an answer is told by.
type header struct {
	kind  uint16
	flags uint16
	seq   uint32
}

// appendMessage appends a message with its header and padding.
func appendMessage(b []byte, kind, flags uint16, seq uint32, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	return pad(b, len(body))
}

// eachMessage walks the messages of a datagram.
func eachMessage(b []byte, each func(h header, body []byte) error) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return errMalformed
		}
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errMalformed
		}
		h := header{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
		}
		if err := each(h, b[unix.SizeofNlMsghdr:length]); err != nil {
			return err
		}
		b = b[min(alignAttribute(length), len(b)):]
	}
	return nil
}

// decodeError reads NLMSG_ERROR and the status that NLMSG_DONE carries. It
// returns nil for an acknowledgement.
func decodeError(h header, body []byte) error {
	if len(body) < 4 {
		if h.kind == unix.NLMSG_DONE {
			return nil
		}
		return errMalformed
	}
	status := int32(binary.NativeEndian.Uint32(body))
	if status >= 0 {
		return nil
	}
	r := &refusal{errno: unix.Errno(-int64(status))}
	if h.flags&unix.NLM_F_ACK_TLVS == 0 {
		return r
	}
	rest := body[4:]
	if h.kind == unix.NLMSG_ERROR {
		// The header of the request follows, and its body unless it was capped.
		if len(rest) < unix.SizeofNlMsghdr {
			return r
		}
		length := unix.SizeofNlMsghdr
		if h.flags&unix.NLM_F_CAPPED == 0 {
			length = max(length, int(min(binary.NativeEndian.Uint32(rest), uint32(len(rest)))))
		}
		rest = rest[min(alignAttribute(length), len(rest)):]
	}
	for a := (attributes{rest: rest}); a.next(); {
		if a.kind == unix.NLMSGERR_ATTR_MSG {
			r.text = a.text()
		}
	}
	return r
}
