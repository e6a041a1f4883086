package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// job is what the guest has to do. It is a file of the initramfs.
type job struct {
	Path string   // of the program, absolute
	Args []string // the first is the program's name
	Env  []string
	Dir  string

	Boot      []string // modules in the initramfs, in the order in which they need each other
	Modules   []string // names for modprobe
	Release   string   // of the kernel, as uname -r has it
	ModuleDir string   // where the machine has the kernel's modules
	Fetch     []string // what to bring back, absolute
}

// The kinds of a message from the guest. After reportExit and reportFailure
// nothing follows.
const (
	reportStarted = 's' // the program runs
	reportStdout  = 'o'
	reportStderr  = 'e'
	reportFile    = 'f' // a file that is brought back begins: mode (4 bytes) and path
	reportData    = 'd' // more of that file
	reportExit    = 'x' // code and signal (4 bytes each)
	reportFailure = '!' // why the program could not be run
)

// reportChunk is the most that the writer puts into one message; reportLimit
// the most that the reader takes.
const (
	reportChunk = 32 << 10
	reportLimit = 1 << 20
)

// reporter sends messages. Its methods may be called at the same time.
type reporter struct {
	mu sync.Mutex
	w  io.Writer
}

func (r *reporter) send(kind byte, data []byte) error {
	message := make([]byte, 5, 5+len(data))
	message[0] = kind
	binary.BigEndian.PutUint32(message[1:], uint32(len(data)))
	message = append(message, data...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.w.Write(message); err != nil {
		return fmt.Errorf("send report: %w", err)
	}
	return nil
}

// copy sends what src has as messages of one kind.
func (r *reporter) copy(kind byte, src io.Reader) error {
	buf := make([]byte, reportChunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if err := r.send(kind, buf[:n]); err != nil {
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

// receive reads one message. The error is io.EOF when there is none.
func receive(r io.Reader) (kind byte, data []byte, err error) {
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

func exitData(code, signal int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(code)), uint32(signal))
}

func parseExit(data []byte) (code, signal int, err error) {
	if len(data) != 8 {
		return 0, 0, fmt.Errorf("receive report: exit of %d bytes", len(data))
	}
	return int(binary.BigEndian.Uint32(data)), int(binary.BigEndian.Uint32(data[4:])), nil
}
