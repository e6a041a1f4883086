// Package lab builds small networks inside this machine: hosts that are a
// network and a mount namespace each, veth pairs between them, servers and
// clients that exchange real packets, and witnesses that say by which
// interface a packet passed.
//
// It knows the kernel's namespaces and nothing of sisod's rules: what a host
// should do with a packet is decided by whoever runs something in it. It must
// never touch the network of the machine it runs on, and nothing of it may
// outlive its process: namespaces have no names, they are held by file
// descriptors and threads alone, and programs die with the thread that
// started them.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Lab is a set of hosts. Several labs can exist at the same time.
type Lab struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	hosts []*Host
	// open is what the lab has to close: captures and servers, in the order in
	// which they were opened.
	open []io.Closer
}

// ErrPrivilege is in the error of a host that this process may not make.
var ErrPrivilege = errors.New("this needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN): run it with sudo")

// New returns an empty lab. When ctx ends, everything that runs in the lab is
// killed; Close has still to be called. It needs CAP_SYS_ADMIN and
// CAP_NET_ADMIN, which the first Host asks for.
func New(ctx context.Context) *Lab {
	ctx, cancel := context.WithCancel(ctx)
	return &Lab{ctx: ctx, cancel: cancel}
}

// Host adds a host: a network namespace with nothing but a loopback, and a
// view of the file system in which /run is empty, /sys belongs to the
// namespace, /etc/iproute2 is a copy, and /etc/sisod and /var/lib/sisod are
// empty folders of its own. The rest of /etc and /var/lib is the machine's,
// read-only.
func (l *Lab) Host(name string) (*Host, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	h, err := newHost(l, name)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Hosts adds several hosts at once. The error is that of the first one that
// could not be made.
func (l *Lab) Hosts(names ...string) ([]*Host, error) {
	hosts, errs := make([]*Host, len(names)), make([]error, len(names))
	var wait sync.WaitGroup
	for i, name := range names {
		wait.Go(func() { hosts[i], errs[i] = l.Host(name) })
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return hosts, nil
}

// keep leaves c to Close.
func (l *Lab) keep(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
}

// Close kills what still runs in the lab, waits for it, and gives the
// namespaces back. It returns the errors of captures that lost packets.
// Closing twice is allowed.
func (l *Lab) Close() error {
	l.cancel()
	l.mu.Lock()
	open, hosts := l.open, l.hosts
	l.open, l.hosts = nil, nil
	l.mu.Unlock()

	var errs []error
	for _, c := range slices.Backward(open) {
		errs = append(errs, c.Close())
	}
	for _, h := range hosts {
		h.close()
	}
	return errors.Join(errs...)
}
