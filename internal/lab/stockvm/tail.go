package main

import (
	"strings"
	"sync"
)

// tail keeps the end of what is written to it. Its methods may be called at
// the same time.
type tail struct {
	limit int // bytes

	mu   sync.Mutex
	text []byte
}

// Write never fails.
func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, data...)
	if over := len(t.text) - t.limit; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(data), nil
}

// String is the text without the carriage returns of a console.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ReplaceAll(string(t.text), "\r", ""))
}
