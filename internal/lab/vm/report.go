package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// The kinds of a message from the guest. After ReportExit and ReportFailure
// nothing follows.
const (
	ReportStarted = 's' // the program runs
	ReportStdout  = 'o'
	ReportStderr  = 'e'
	ReportFile    = 'f' // a file that is brought back begins: mode (4 bytes) and path
	ReportData    = 'd' // more of that file
	ReportExit    = 'x' // code and signal (4 bytes each)
	ReportFailure = '!' // why the program could not be run
)

// reportChunk is the most that the writer puts into one message; reportLimit
// the most that the reader takes.
const (
	reportChunk = 32 << 10
	reportLimit = 1 << 20
)

// Reporter sends messages to W. Its methods may be called at the same time.
type Reporter struct {
	W io.Writer

	mu sync.Mutex
}

func (r *Reporter) Send(kind byte, data []byte) error {
	message := make([]byte, 5, 5+len(data))
	message[0] = kind
	binary.BigEndian.PutUint32(message[1:], uint32(len(data)))
	message = append(message, data...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.W.Write(message); err != nil {
		return fmt.Errorf("send report: %w", err)
	}
	return nil
}

// Copy sends what src has as messages of one kind.
func (r *Reporter) Copy(kind byte, src io.Reader) error {
	buf := make([]byte, reportChunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if err := r.Send(kind, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Receive reads one message. The error is io.EOF when there is none.
func Receive(r io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > reportLimit {
		return 0, nil, fmt.Errorf("receive report: message of %d bytes", n)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("receive report: %w", io.ErrUnexpectedEOF)
	}
	return head[0], data, nil
}

// ExitData is the content of ReportExit.
func ExitData(code, signal int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(code)), uint32(signal))
}

// ParseExit reads it.
func ParseExit(data []byte) (code, signal int, err error) {
	if len(data) != 8 {
		return 0, 0, fmt.Errorf("receive report: exit of %d bytes", len(data))
	}
	return int(binary.BigEndian.Uint32(data)), int(binary.BigEndian.Uint32(data[4:])), nil
}
