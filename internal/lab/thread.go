package lab

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// errGoexit is what is left of a function that ended its goroutine, as
// FailNow of a test does.
var errGoexit = errors.New("function ended its goroutine")

// onThread starts f on an operating system thread that nobody else uses and
// that ends with f: whatever namespaces it has entered go with it.
func onThread(f func()) {
	started := make(chan struct{})
	go startOnThread(f, started)
	<-started
}

func startOnThread(f func(), started chan<- struct{}) {
	// Never unlocked on the way through f: the runtime ends the thread of a
	// goroutine that returns while it is locked.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The runtime cannot end the process's first thread, and /proc/self is
		// that thread's. It is held here until f has another one.
		onThread(f)
		close(started)
		runtime.UnlockOSThread()
		return
	}
	close(started)
	f()
}

// thread is a long-lived thread that runs functions one after the other.
type thread struct {
	work chan func()
	done chan struct{}
}

// newThread starts a thread and runs enter on it; without an error it serves
// until close.
func newThread(enter func() error) (*thread, error) {
	t := &thread{work: make(chan func()), done: make(chan struct{})}
	entered := make(chan error, 1)
	onThread(func() {
		defer close(t.done)
		err := enter()
		entered <- err
		if err != nil {
			return
		}
		for f := range t.work {
			f()
		}
	})
	if err := <-entered; err != nil {
		<-t.done
		return nil, err
	}
	return t, nil
}

// do runs f on the thread and waits for it.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	t.work <- func() { result <- f() }
	return <-result
}

// close ends the thread. Children that were started on it with a parent-death
// signal get it now.
func (t *thread) close() {
	close(t.work)
	<-t.done
}
