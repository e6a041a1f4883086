package kernel

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// Traffic is what IPVS counts of sisod's services.
type Traffic struct {
	Services     map[state.ServiceKey]state.Traffic
	Destinations map[state.DestinationKey]state.Traffic
}

// Traffic reads what IPVS has counted of the services that the last Read saw.
func (h *Host) Traffic() (Traffic, error) {
	t := Traffic{map[state.ServiceKey]state.Traffic{}, map[state.DestinationKey]state.Traffic{}}
	services := h.cached.Observed.Services
	if len(services) == 0 {
		return t, nil
	}
	number, err := h.ipvsNumber()
	if err != nil {
		return t, fmt.Errorf("read ipvs traffic: %w", err)
	}
	err = h.generic.dump(genericMessage(number, ipvsGetService, nil), func() {}, func(_ uint16, body []byte) error {
		s, err := decodeService(body)
		if err == nil {
			t.Services[s.ServiceKey], err = decodeTraffic(body, ipvsService, serviceStats, serviceStats64)
		}
		return err
	})
	if err != nil {
		return t, fmt.Errorf("read ipvs traffic of services: %w", err)
	}
	for key := range services {
		message := genericMessage(number, ipvsGetDest, appendServiceName(nil, key))
		err := h.generic.dump(message, func() {}, func(_ uint16, body []byte) error {
			d, _, err := decodeDestination(key, body)
			if err == nil {
				t.Destinations[d.DestinationKey], err = decodeTraffic(body, ipvsDest, destStats, destStats64)
			}
			return err
		})
		if err != nil {
			return t, fmt.Errorf("read ipvs traffic of service %s: %w", key.Option(), err)
		}
	}
	return t, nil
}

// decodeTraffic reads what a message about a service or a destination says of
// its traffic: in 64 bits, or in 32 that wrap, by kernels before 4.1.
func decodeTraffic(body []byte, object, stats, stats64 uint16) (state.Traffic, error) {
	nest, err := ipvsNest(body, object)
	if err != nil {
		return state.Traffic{}, fmt.Errorf("decode ipvs traffic: %w", err)
	}
	var wide, narrow []byte
	all := attributes{rest: nest}
	for all.next() {
		switch all.kind {
		case stats64:
			wide = all.value
		case stats:
			narrow = all.value
		}
	}
	if wide == nil {
		wide = narrow
	}
	var t state.Traffic
	// In the order of IPVS_STATS_ATTR_* (linux/ip_vs.h), from 1.
	counters := [...]*uint64{
		&t.Total.Connections, &t.Total.PacketsIn, &t.Total.PacketsOut, &t.Total.BytesIn, &t.Total.BytesOut,
		&t.PerSecond.Connections, &t.PerSecond.PacketsIn, &t.PerSecond.PacketsOut, &t.PerSecond.BytesIn, &t.PerSecond.BytesOut,
	}
	a := attributes{rest: wide, err: all.err}
	for a.next() {
		if i := int(a.kind) - 1; i >= 0 && i < len(counters) && counters[i] != nil {
			*counters[i], counters[i] = a.counter(), nil
		}
	}
	if a.err == nil && slices.ContainsFunc(counters[:], func(missing *uint64) bool { return missing != nil }) {
		a.err = errMalformed
	}
	if a.err != nil {
		return state.Traffic{}, fmt.Errorf("decode ipvs traffic: %w", a.err)
	}
	return t, nil
}

// counter reads a value of 4 or 8 bytes.
func (a *attributes) counter() uint64 {
	if len(a.value) == 8 {
		return binary.NativeEndian.Uint64(a.value)
	}
	return uint64(a.uint32())
}
