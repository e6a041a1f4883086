package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errTimeout and errParent are causes for which a run ends early.
var (
	errTimeout = errors.New("time is up")
	errParent  = errors.New("the process that started stockvm has ended")
)

// signalError is the cause when a signal ends a run.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return "ended by " + unix.SignalName(e.signal) }

// watch returns a context that ends, and says why, when the process is told
// to end by a signal, when its parent is gone, or after timeout, if there is
// one.
func watch(ctx context.Context, timeout *time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	var after <-chan time.Time
	if timeout != nil {
		after = time.After(*timeout)
	}
	// The parent-death signal of prctl is of no use here: it is for the end of
	// the parent's thread, and Go programs have threads that end.
	go waitForParent(cancel)
	go func() {
		select {
		case <-ctx.Done():
		case s := <-told:
			cancel(signalError{s.(syscall.Signal)})
		case <-after:
			cancel(fmt.Errorf("%w after %v", errTimeout, *timeout))
		}
	}()
	return ctx, func() { cancel(nil); signal.Stop(told) }
}

// waitForParent waits as long as the process's parent lives.
func waitForParent(gone context.CancelCauseFunc) {
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if errors.Is(err, unix.ESRCH) || err == nil && os.Getppid() != parent {
		gone(errParent)
		return
	}
	if err != nil {
		return // a kernel before 5.3, or a parent in another namespace
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err == nil {
			gone(errParent)
			return
		}
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
