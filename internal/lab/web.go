package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// Web is an HTTP server that says which host it is, whom it saw, and how much
// it was sent.
type Web struct {
	server   *http.Server
	received atomic.Int64
	done     chan struct{}
}

// Page is the answer of a Web.
type Page struct {
	Server string         // name of the host that answered
	Peer   netip.AddrPort // the client, as the server saw it
	Bytes  int            // of the request's body, as the server read it
}

// ServeWeb starts a Web on a port of all the host's addresses, present and
// future, of both families. A client may be silent as long as it likes.
func (h *Host) ServeWeb(port uint16) (*Web, error) {
	w := &Web{done: make(chan struct{})}
	w.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(countBytes{&w.received}, r.Body)
		if err != nil {
			return // the client's to notice
		}
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(rw, "%s %s %d\n", h.Name, unmap(peer), n)
	})}
	var listener net.Listener
	err := h.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		listener, err = lc.Listen(h.lab.ctx, "tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve web on port %d of %s: %w", port, h.Name, err)
	}
	go func() {
		defer close(w.done)
		// It ends with Close, and then has nothing to say.
		_ = w.server.Serve(listener)
	}()
	h.lab.keep(w)
	return w, nil
}

// Received is how many bytes of bodies have arrived so far, those of requests
// that never ended included.
func (w *Web) Received() int64 { return w.received.Load() }

// Close ends the server and its connections.
func (w *Web) Close() error {
	err := w.server.Close()
	<-w.done
	return err
}

type countBytes struct{ n *atomic.Int64 }

func (c countBytes) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// Fetch asks a Web for its page, on a connection of its own, with a body of
// so many bytes. Without an answer before timeout the error is ErrNoReply.
func (h *Host) Fetch(ctx context.Context, to netip.AddrPort, body int, timeout time.Duration) (Page, error) {
	start := time.Now()
	v, err := h.Visit(ctx, to, timeout)
	if err != nil {
		return Page{}, err
	}
	defer v.Close()
	return v.fetch(ctx, body, timeout-time.Since(start), true)
}
