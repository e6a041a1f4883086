package vm

import (
	"errors"
	"io"
	"testing"
)

func TestTailKeepsTheEnd(t *testing.T) {
	c := &Tail{Limit: 10}
	for range 5 {
		if n, err := c.Write([]byte("abc\r\n")); n != 5 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got, want := c.String(), "abc\nabc"; got != want {
		t.Errorf("tail is %q, want %q", got, want)
	}
	if _, err := imagePayload([]byte("MZ")); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("payload of no image: %v", err)
	}
}
