package kernel

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// batch is messages with their headers, one behind the other as they are sent.
// Its memory serves one batch after the other.
type batch struct {
	bytes []byte
	at    []int // where each message begins
	// answered tells which messages an answer has come to.
	answered []bool
}

func (b *batch) len() int { return len(b.at) }

// reset makes the batch empty.
func (b *batch) reset() { b.bytes, b.at = b.bytes[:0], b.at[:0] }

// begin starts a message. Its body is appended to bytes until end, or drop.
func (b *batch) begin(kind, flags uint16) {
	b.at = append(b.at, len(b.bytes))
	b.bytes = appendMessage(b.bytes, kind, flags|unix.NLM_F_REQUEST, 0, nil)
}

// end completes the message.
func (b *batch) end() {
	start := b.at[len(b.at)-1]
	n := len(b.bytes) - start
	binary.NativeEndian.PutUint32(b.bytes[start:], uint32(n))
	b.bytes = pad(b.bytes, n)
}

// drop takes the message back.
func (b *batch) drop() {
	last := len(b.at) - 1
	b.bytes, b.at = b.bytes[:b.at[last]], b.at[:last]
}

// only is a batch of one message of this one.
func (b *batch) only(i int) *batch {
	end := len(b.bytes)
	if i+1 < len(b.at) {
		end = b.at[i+1]
	}
	return &batch{bytes: append([]byte(nil), b.bytes[b.at[i]:end]...), at: []int{0}}
}

// address numbers the messages from first on, and asks for an acknowledgement of
// the last alone.
func (b *batch) address(first uint32) {
	for i, start := range b.at {
		m := b.bytes[start:]
		binary.NativeEndian.PutUint32(m[8:], first+uint32(i))
		flags := binary.NativeEndian.Uint16(m[6:]) &^ unix.NLM_F_ACK
		if i == len(b.at)-1 {
			flags |= unix.NLM_F_ACK
		}
		binary.NativeEndian.PutUint16(m[6:], flags)
	}
}

// deliver sends a batch and tells failed of each message that the kernel refused.
// The messages must bear being done twice: when the kernel could not deliver its
// answers, those without one are sent again.
func (c *conn) deliver(b *batch, failed func(i int, err error)) {
	if b.len() == 0 {
		return
	}
	b.answered = append(b.answered[:0], make([]bool, b.len())...)
	lost := c.ask(b, func(i int, err error) {
		b.answered[i] = true
		if err != nil {
			failed(i, err)
		}
	})
	if lost == nil {
		return
	}
	for i, answered := range b.answered {
		switch {
		case answered:
		case errors.Is(lost, unix.ENOBUFS) && b.len() > 1:
			c.deliver(b.only(i), func(_ int, err error) { failed(i, err) })
		default:
			failed(i, lost)
		}
	}
}
