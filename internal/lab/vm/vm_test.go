package vm

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
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

// A guest that says nothing is started anew, and one that ends is not waited for.
func TestSilentMachinesAreStartedAnew(t *testing.T) {
	for _, c := range []struct {
		name, script string
		starts       string
		silence      time.Duration
		refused      bool
	}{
		{"speaks", "printf x >&3; exec sleep 100", "1", time.Minute, false},
		{"ends", "exit 1", "1", time.Minute, false},
		{"speaks the second time", "test $n = 2 && printf x >&3; exec sleep 100", "11", 5 * time.Second, false},
		{"never speaks", "exec sleep 100", "111", time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			for name, script := range map[string]string{
				Qemu:       "cd " + dir + "; printf 1 >>starts; n=$(wc -c <starts)\n" + c.script,
				"modprobe": "true", // there are no modules
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			m := Machine{Kernel: Kernel{Root: dir, Modules: dir}, Initramfs: Initramfs{Init: "/bin/true"}, Silence: c.silence}
			ctx, cancel := context.WithCancel(t.Context())
			r, err := m.Start(ctx)
			if (err != nil) != c.refused {
				t.Errorf("start: %v", err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "starts")); string(got) != c.starts {
				t.Errorf("qemu was started %d times (%v), want %d", len(got), err, len(c.starts))
			}
			cancel()
			if r != nil {
				_ = r.Wait()
			}
		})
	}
}
