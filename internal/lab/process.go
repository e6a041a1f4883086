package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// drain is how long output is waited for after a program has ended, when a
// child of the program still holds its pipes.
const drain = time.Second

// Process is a program that runs on a host. It is killed when the lab is
// closed or its process ends, however that ends.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // the result of Wait, valid when done is closed
}

// Start starts cmd in the host's namespaces, as leader of a process group of
// its own, so that Ctrl-C on the terminal does not reach it. Cmd must not
// have been started; the caller waits with Process.Wait, never with cmd.Wait.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = drain
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("start %s on %s: %w", cmd.Path, h.Name, os.ErrClosed)
	}
	// A child has the namespaces of the thread that starts it, and the
	// parent-death signal is for the end of that thread.
	if err := h.thread.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start on %s: %w", h.Name, err)
	}
	h.processes[p] = true
	go func() {
		p.err = cmd.Wait()
		h.mu.Lock()
		delete(h.processes, p)
		h.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// Pid is the number of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the program to end, and returns what exec.Cmd.Wait says.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the program alone.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills the program and what it has started in its process group. It
// does not wait.
func (p *Process) Kill() {
	select {
	case <-p.done:
		// The number may be somebody else's by now.
	default:
		// Nothing is left to kill when it fails.
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
}

// ExitError is a program that ended with another code than 0.
type ExitError struct {
	Command string
	Code    int // -1: killed by a signal
	Stderr  string
	err     error
}

// Error is the command, how it ended, and what it said.
func (e *ExitError) Error() string {
	s := fmt.Sprintf("run %s: %v", e.Command, e.err)
	if text := strings.TrimSpace(e.Stderr); text != "" {
		s += ": " + text
	}
	return s
}

// Unwrap is the error of package exec.
func (e *ExitError) Unwrap() error { return e.err }

// Run runs a program on the host to its end and returns what it wrote to its
// standard output. A program that does not end with code 0 is an *ExitError;
// one that ctx or the end of the lab has stopped carries the cause of that.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.lab.ctx, func() { cancel(context.Cause(h.lab.ctx)) })()

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	p, err := h.Start(cmd)
	if err != nil {
		return "", err
	}
	cmdline := strings.Join(append([]string{name}, args...), " ")
	err = p.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.String(), nil
	case ctx.Err() != nil:
		return stdout.String(), fmt.Errorf("run %s on %s: %w", cmdline, h.Name, context.Cause(ctx))
	case errors.As(err, &exit):
		err = &ExitError{Command: cmdline, Code: exit.ExitCode(), Stderr: stderr.String(), err: err}
	}
	return stdout.String(), fmt.Errorf("%s: %w", h.Name, err)
}

// Lines is a writer that gathers what a program says while it runs, for a
// test that waits for a line.
type Lines struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write adds to the text.
func (l *Lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String is everything written so far.
func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
