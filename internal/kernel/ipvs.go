package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// errNoIPVS is a kernel without IPVS, in its own words.
type errNoIPVS struct{ err error }

func (e errNoIPVS) Error() string {
	return "no IPVS in this kernel: " + e.err.Error() + ": " + moduleCure("ip_vs")
}
func (e errNoIPVS) Unwrap() error { return e.err }

// ipvsNumber is the number of the IPVS family; asking for it loads ip_vs. It is
// asked for anew before every use: with the module the number goes.
func (h *Host) ipvsNumber() (uint16, error) {
	number, err := h.generic.genericFamily(ipvsFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, errNoIPVS{err}
	}
	return number, err
}

// readIPVS reads what the kernel's balancer has. It tells of nothing when
// nobody asks and nothing in it is sisod's, and does not load the module then.
func (h *Host) readIPVS() error {
	h.ledger.reload()
	s := balancer{
		services: map[state.ServiceKey]state.Service{}, destinations: map[state.DestinationKey]state.Destination{},
		syncs: map[bool]state.SyncDaemon{},
		facts: state.IPVSFacts{
			Foreign: map[state.ServiceKey]state.Service{}, Connections: map[state.DestinationKey]state.Connections{},
			Draining: h.ledger.drains(), Limits: h.ledger.limits(), MarkedVIPs: h.ledger.markedVIPs(),
		},
	}
	if h.query.IPVS || h.ledger.balances() {
		number, err := h.ipvsNumber()
		switch {
		case errors.As(err, new(errNoIPVS)):
			s.facts.Missing = err.Error()
			h.ledger.missBalancer()
		case err != nil:
			return fmt.Errorf("read ipvs: %w", err)
		default:
			// What changes below the read differs from this, and is found by the next look.
			if h.seenIPVS.print, err = h.fingerprint(); err != nil {
				return fmt.Errorf("read ipvs: %w", err)
			}
			if err := s.read(h, number); err != nil {
				return fmt.Errorf("read ipvs: %w", err)
			}
			if err := h.countClosed(&s, procConnections); err != nil {
				return fmt.Errorf("read ipvs: %w", err)
			}
		}
	}
	h.seenIPVS.take(s.services)
	h.cached.Observed.Services, h.cached.Observed.Destinations = s.services, s.destinations
	h.cached.Observed.Timeouts, h.cached.Observed.Syncs = s.timeouts, s.syncs
	h.cached.Observed.Before.Timeouts = h.ledger.timeoutsBefore(s.timeouts)
	h.cached.Facts.IPVS = s.facts
	return nil
}

// balancer is what one read of IPVS saw.
type balancer struct {
	services     map[state.ServiceKey]state.Service
	destinations map[state.DestinationKey]state.Destination
	timeouts     state.Timeouts
	syncs        map[bool]state.SyncDaemon
	facts        state.IPVSFacts
}

func (s *balancer) read(h *Host, number uint16) error {
	err := h.generic.services(number, func(v state.Service) { s.take(h, v) })
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	// The kernel does not say when services came and went during a list of many,
	// and one that was passed over would be taken for gone.
	for _, key := range h.ledger.services() {
		if _, seen := s.services[key]; seen {
			continue
		}
		v, found, err := h.generic.service(number, key)
		if err != nil {
			return fmt.Errorf("look for service %s: %w", key.Option(), err)
		}
		if found {
			s.services[key] = v
		} else {
			h.ledger.missService(key)
		}
	}
	for key := range s.services {
		if err := h.generic.destinations(number, key, s.takeDestination); err != nil {
			return fmt.Errorf("list destinations of service %s: %w", key.Option(), err)
		}
	}
	if s.timeouts, err = h.generic.timeouts(number); err != nil {
		return fmt.Errorf("read timeouts: %w", err)
	}
	running, err := h.generic.syncDaemons(number)
	if err != nil {
		return fmt.Errorf("list sync daemons: %w", err)
	}
	h.seenIPVS.syncs = running
	for _, master := range []bool{true, false} {
		d, runs := running[master]
		switch {
		case !runs:
			h.ledger.missSync(master)
		case h.ledger.ownsSync(master):
			s.syncs[master] = d
		}
	}
	return nil
}

func (s *balancer) take(h *Host, v state.Service) {
	if h.ledger.ownsService(v.ServiceKey) {
		s.services[v.ServiceKey] = v
	} else {
		s.facts.Foreign[v.ServiceKey] = v
	}
}

func (s *balancer) takeDestination(d state.Destination, c state.Connections) {
	s.destinations[d.DestinationKey] = d
	if c != (state.Connections{}) {
		s.facts.Connections[d.DestinationKey] = c
	}
}

// services lists all services. What each is told twice is the same service.
func (c *conn) services(number uint16, each func(state.Service)) error {
	return c.dump(genericMessage(number, ipvsGetService, nil), func() {}, func(_ uint16, body []byte) error {
		s, err := decodeService(body)
		if err == nil {
			each(s)
		}
		return err
	})
}

// service asks for one service.
func (c *conn) service(number uint16, k state.ServiceKey) (s state.Service, found bool, err error) {
	err = c.get(genericMessage(number, ipvsGetService, appendServiceName(nil, k)), func(_ uint16, body []byte) error {
		var err error
		s, err = decodeService(body)
		found = err == nil
		return err
	})
	if gone(err) {
		return state.Service{}, false, nil
	}
	return s, found, err
}

// destinations lists the real servers of a service; of one that is gone, none.
func (c *conn) destinations(number uint16, k state.ServiceKey, each func(state.Destination, state.Connections)) error {
	return c.dump(genericMessage(number, ipvsGetDest, appendServiceName(nil, k)), func() {}, func(_ uint16, body []byte) error {
		d, n, err := decodeDestination(k, body)
		if err == nil {
			each(d, n)
		}
		return err
	})
}

func (c *conn) timeouts(number uint16) (t state.Timeouts, err error) {
	err = c.get(genericMessage(number, ipvsGetConfig, nil), func(_ uint16, body []byte) error {
		var err error
		t, err = decodeTimeouts(body)
		return err
	})
	return t, err
}

// syncDaemons are the daemons that run, by Master.
func (c *conn) syncDaemons(number uint16) (map[bool]state.SyncDaemon, error) {
	running := map[bool]state.SyncDaemon{}
	err := c.dump(genericMessage(number, ipvsGetDaemon, nil), func() {}, func(_ uint16, body []byte) error {
		d, err := decodeSyncDaemon(body)
		if err == nil {
			running[d.Master] = d
		}
		return err
	})
	return running, err
}
