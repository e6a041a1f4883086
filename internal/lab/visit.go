package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Visit is a connection to a Web, for one page after the other. Its methods are
// for one caller at a time.
type Visit struct {
	Local netip.AddrPort // the client, as itself knows

	host *Host
	conn net.Conn
	in   *bufio.Reader
}

// Visit connects to a Web; the caller closes the visit. Without an answer before
// timeout the error is ErrNoReply.
func (h *Host) Visit(ctx context.Context, to netip.AddrPort, timeout time.Duration) (*Visit, error) {
	return h.VisitFrom(ctx, netip.Addr{}, to, timeout)
}

// VisitFrom is Visit from one of the host's addresses; the zero Addr lets the
// kernel choose.
func (h *Host) VisitFrom(ctx context.Context, own netip.Addr, to netip.AddrPort, timeout time.Duration) (*Visit, error) {
	var conn net.Conn
	err := inTime(ctx, timeout, func(ctx context.Context) error {
		d := net.Dialer{}
		if own.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))
		}
		d.SetMultipathTCP(false)
		return h.Do(func() (err error) {
			conn, err = d.DialContext(ctx, "tcp", to.String())
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s on %s: %w", to, h.Name, err)
	}
	return &Visit{Local: local(conn), host: h, conn: conn, in: bufio.NewReader(conn)}, nil
}

// Fetch asks for a page, with a body of so many bytes, and leaves the connection
// open. Without an answer before timeout the error is ErrNoReply.
func (v *Visit) Fetch(ctx context.Context, body int, timeout time.Duration) (Page, error) {
	return v.fetch(ctx, body, timeout, false)
}

func (v *Visit) fetch(ctx context.Context, body int, timeout time.Duration, last bool) (page Page, err error) {
	err = inTime(ctx, timeout, func(ctx context.Context) (err error) {
		// A context that ends early ends the exchange too.
		defer context.AfterFunc(ctx, func() { _ = v.conn.SetDeadline(time.Unix(1, 0)) })()
		page, err = v.exchange(body, last)
		return err
	})
	if err != nil {
		return page, fmt.Errorf("fetch from %s on %s, port %d: %w", v.conn.RemoteAddr(), v.host.Name, v.Local.Port(), err)
	}
	return page, nil
}

// exchange is one request and its answer, the last one that the server gives on
// this connection or not.
func (v *Visit) exchange(body int, last bool) (Page, error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+v.conn.RemoteAddr().String()+"/", strings.NewReader(strings.Repeat("x", body)))
	if err != nil {
		return Page{}, err
	}
	request.Close = last
	if err := request.Write(v.conn); err != nil {
		return Page{}, err
	}
	response, err := http.ReadResponse(v.in, request)
	if err != nil {
		return Page{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return Page{}, err
	}
	var page Page
	var peer string
	if _, err := fmt.Sscan(string(text), &page.Server, &peer, &page.Bytes); err != nil {
		return page, fmt.Errorf("read page %q: %w", text, err)
	}
	page.Peer, err = netip.ParseAddrPort(peer)
	return page, err
}

// Close ends the connection.
func (v *Visit) Close() error { return v.conn.Close() }

// inTime gives f a context that ends after timeout; when it did, the error is
// ErrNoReply.
func inTime(ctx context.Context, timeout time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := f(ctx)
	// A dialer may know before the context does.
	if err != nil && (errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)) {
		err = fmt.Errorf("%w in %v: %w", ErrNoReply, timeout, err)
	}
	return err
}
