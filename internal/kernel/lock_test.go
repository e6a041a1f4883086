package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// lockable is as much of a host as locks need.
func lockable(t *testing.T, runDir string) *Host {
	t.Helper()
	g, err := openLedger(runDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Host{options: Options{RunDir: runDir}, ledger: g}
}

func TestLockKeepsASecondApplierOut(t *testing.T) {
	h := lockable(t, t.TempDir()+"/new")
	other := lockable(t, h.options.RunDir)
	unlock, err := h.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = other.Lock(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("held by pid %d, ", os.Getpid())) {
		t.Errorf("second lock: %v", err)
	}
	// Whoever waits gets it as soon as it is free.
	got := make(chan error)
	go func() {
		unlock, err := other.Lock(context.Background())
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
	again, err := h.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestSecondDaemonIsRefused(t *testing.T) {
	h := lockable(t, t.TempDir())
	other := lockable(t, h.options.RunDir)
	release, err := h.ClaimDaemon()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.ClaimDaemon(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another sisod run (pid %d", os.Getpid())) {
		t.Errorf("second daemon: %v", err)
	}
	if dir := h.options.RunDir; !DaemonRuns(dir, os.Getpid()) || DaemonRuns(dir, os.Getppid()) || DaemonRuns(t.TempDir(), os.Getpid()) {
		t.Error("the daemon is not told from other processes")
	}
	// A daemon does not keep appliers out.
	unlock, err := other.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	release()
	if DaemonRuns(h.options.RunDir, os.Getpid()) {
		t.Error("a daemon that has ended runs")
	}
	release, err = other.ClaimDaemon()
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestHoldLastsUntilRelease(t *testing.T) {
	h := lockable(t, t.TempDir()+"/new")
	other := lockable(t, h.options.RunDir)
	if err := h.Release(); err != nil || h.Held() {
		t.Fatalf("before: %v, held %t", err, h.Held())
	}
	for range 2 {
		if err := h.Hold(); err != nil {
			t.Fatal(err)
		}
	}
	if !other.Held() {
		t.Error("another process is not held")
	}
	if err := other.Release(); err != nil || h.Held() {
		t.Errorf("after: %v, held %t", err, h.Held())
	}
}
