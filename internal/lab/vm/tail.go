package vm

import (
	"strings"
	"sync"
)

// Tail keeps the end of what is written to it. Its methods may be called at
// the same time.
type Tail struct {
	Limit int // bytes

	mu   sync.Mutex
	text []byte
}

// Write never fails.
func (t *Tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, data...)
	if over := len(t.text) - t.Limit; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(data), nil
}

// String is the text without the carriage returns of a console.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ReplaceAll(string(t.text), "\r", ""))
}
