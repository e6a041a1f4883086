//go:build stock

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// guests are what a client asks of a service while the service changes: visits
// that stay, and one short connection after the other.
type guests struct {
	service netip.AddrPort
	visits  []*visit
	rounds  atomic.Int64 // every visit had a page
	shorts  atomic.Int64
	lost    func(what string, err error)

	client *lab.Host
	turn   chan struct{} // for a short connection
	mu     sync.Mutex    // of the visits
}

// visit is a connection that stays.
type visit struct {
	*lab.Visit
	server netip.AddrPort // as the director knows
	gone   error
}

// load is all guests of a client.
type load struct {
	services []*guests
	director *lab.Host
	stop     func() // the guests go, and are waited for

	mu     sync.Mutex
	change string // in force, or on its way
	losses []string
}

// newLoad has a client visit services so often each, and ask on without end.
func newLoad(t *testing.T, l *lab.LVS, visits int, services ...netip.AddrPort) *load {
	t.Helper()
	d := &load{director: l.Director, change: "before the first change"}
	for _, s := range services {
		g := &guests{service: s, client: l.Client, lost: d.note, turn: make(chan struct{})}
		for range visits {
			v := &visit{}
			if err := g.begin(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			g.visits = append(g.visits, v)
		}
		d.services = append(d.services, g)
	}
	d.kept(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, g := range d.services {
		running.Go(func() { g.stay(ctx) })
		running.Go(func() { g.comeAndGo(ctx) })
	}
	d.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		for _, g := range d.services {
			for _, v := range g.visits {
				if v.Visit != nil {
					_ = v.Close() // nobody asks any more
				}
			}
		}
	})
	t.Cleanup(d.stop)
	return d
}

// begin connects, and has a first page.
func (g *guests) begin(ctx context.Context, v *visit) (err error) {
	if v.Visit, err = g.client.Visit(ctx, g.service, patient); err != nil {
		return err
	}
	_, err = v.Fetch(ctx, 0, patient)
	return err
}

// stay keeps the visits asking, one by one, until ctx ends.
func (g *guests) stay(ctx context.Context) {
	for ctx.Err() == nil {
		for _, v := range g.visits {
			g.mu.Lock()
			if v.gone == nil {
				_, v.gone = v.Fetch(ctx, 0, patient)
				if v.gone != nil && ctx.Err() == nil {
					g.lost("a visit of "+v.server.String(), v.gone)
				}
			}
			g.mu.Unlock()
			select {
			case g.turn <- struct{}{}:
			default:
			}
		}
		g.rounds.Add(1)
	}
}

// comeAndGo makes one short connection after the other, in turn with the visits
// so that these are not crowded out, until ctx ends.
func (g *guests) comeAndGo(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.turn:
		}
		if _, err := g.client.Fetch(ctx, g.service, 0, patient); err != nil && ctx.Err() == nil {
			g.lost("a short connection", err)
		}
		g.shorts.Add(1)
	}
}

// note records a loss.
func (d *load) note(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.losses = append(d.losses, fmt.Sprintf("%s: %s: %v", d.change, what, err))
}

// during tells what losses from now on are to be put down to.
func (d *load) during(change string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.change = change
}

// lost returns the losses so far.
func (d *load) lost() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.losses)
}

// served waits until every visit and a short connection to each service began to
// ask after this, and had an answer or were lost.
func (d *load) served(t *testing.T) {
	t.Helper()
	for _, g := range d.services {
		rounds, shorts := g.rounds.Load()+2, g.shorts.Load()+2
		patiently(t, func() error {
			if r, s := g.rounds.Load(), g.shorts.Load(); r < rounds || s < shorts {
				return fmt.Errorf("%s: %d rounds of visits to go, %d short connections", g.service, rounds-r, shorts-s)
			}
			return nil
		})
	}
}

// entry is a connection as both ends of it know it: the service and the client.
type entry struct{ service, client netip.AddrPort }

// entries are the director's connections, with the real server that each is with.
func entries(t *testing.T, director *lab.Host) map[entry]netip.AddrPort {
	t.Helper()
	found := map[entry]netip.AddrPort{}
	for line := range strings.Lines(run(t, director, "ipvsadm", "-Lnc")) {
		// TCP 14:59  ESTABLISHED 198.51.100.10:41234 203.0.113.145:8000 203.0.113.151:80
		words := strings.Fields(line)
		if len(words) != 6 || words[0] != "TCP" {
			continue
		}
		var ends [3]netip.AddrPort
		for i, w := range words[3:] {
			end, err := netip.ParseAddrPort(w)
			if err != nil {
				t.Fatalf("ipvsadm -Lnc: %q: %v", line, err)
			}
			ends[i] = end
		}
		found[entry{ends[1], ends[0]}] = ends[2]
	}
	return found
}

// kept waits until the director's list has every visit that is not lost, with
// the real server that it began with; those that are new learn it. The kernel
// may leave an entry out of a list while others come and go.
func (d *load) kept(t *testing.T) {
	t.Helper()
	patiently(t, func() error {
		list := entries(t, d.director)
		for _, g := range d.services {
			if err := g.keptIn(list); err != nil {
				return err
			}
		}
		return nil
	})
}

func (g *guests) keptIn(list map[entry]netip.AddrPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range g.visits {
		if v.gone != nil {
			continue
		}
		server := list[entry{g.service, v.Local}]
		if !v.server.IsValid() {
			v.server = server
		}
		if server != v.server || !server.IsValid() {
			return fmt.Errorf("%s: the entry of the visit by %s, which is with %s, is with %s", g.service, v.Local, v.server, server)
		}
	}
	return nil
}

// with are the visits that are with a real server and not lost.
func (g *guests) with(server netip.AddrPort) []*visit {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.visits), func(v *visit) bool { return v.server != server || v.gone != nil })
}

// leave ends the visits of a real server; their clients come again. It reports
// whether there were any.
func (g *guests) leave(t *testing.T, server netip.AddrPort) bool {
	t.Helper()
	going := g.with(server)
	for _, v := range going {
		g.mu.Lock()
		_ = v.Close() // it was lost if that fails, and stay has said so
		*v = visit{}
		if v.gone = g.begin(t.Context(), v); v.gone != nil {
			g.lost("a visit that was to begin", v.gone)
		}
		g.mu.Unlock()
	}
	return len(going) > 0
}
