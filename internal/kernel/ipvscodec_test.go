package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// wellFormed makes of any values a service that the kernel could have.
func wellFormed(ipv6 bool, mark uint32, protocol uint8, addr []byte, port uint16, scheduler string, flags, timeout uint32, mask uint8, engine string) state.Service {
	s := state.Service{Scheduler: scheduler, Engine: engine, Flags: flags &^ hashedService, Timeout: time.Duration(timeout) * time.Second}
	s.Family, s.Netmask = state.IPv4, int(mask)%33
	if ipv6 {
		s.Family, s.Netmask = state.IPv6, int(mask)%129
	}
	if s.Mark = mark; mark == 0 {
		s.Protocol, s.Port, s.Addr = state.Transport(protocol), port, anyAddr(ipv6, addr)
	}
	return s
}

func anyAddr(ipv6 bool, b []byte) netip.Addr {
	var a16 [16]byte
	copy(a16[:], b)
	if ipv6 {
		return netip.AddrFrom16(a16)
	}
	return netip.AddrFrom4([4]byte(a16[:4]))
}

// spoken is what of a string is sent: up to its first zero byte.
func spoken(s string) string {
	s, _, _ = strings.Cut(s, "\x00")
	return s[:min(len(s), 1000)]
}

// FuzzServiceRoundTrip: what is asked for is what is read.
func FuzzServiceRoundTrip(f *testing.F) {
	f.Add(false, uint32(0), uint8(6), []byte{192, 0, 2, 1}, uint16(80), "wrr", uint32(1), uint32(300), uint8(24), "")
	f.Add(true, uint32(0), uint8(132), []byte{0x20, 1, 0xd, 0xb8}, uint16(0), "mh", uint32(0x1f), uint32(360), uint8(128), "sip")
	f.Add(true, uint32(1), uint8(0), []byte{}, uint16(7), "rr", ^uint32(0), ^uint32(0), uint8(64), "sip")
	f.Add(false, uint32(1), uint8(0), []byte{}, uint16(0), "rr", uint32(1), uint32(300), uint8(64), "")
	f.Fuzz(func(t *testing.T, ipv6 bool, mark uint32, protocol uint8, addr []byte, port uint16, scheduler string, flags, timeout uint32, netmask uint8, engine string) {
		s := wellFormed(ipv6, mark, protocol, addr, port, spoken(scheduler), flags, timeout, netmask, spoken(engine))
		m := genericMessage(20, ipvsNewService, appendService(nil, s))
		got, err := decodeService(m.body)
		if err != nil || got != s {
			t.Errorf("%+v came back as %+v, %v", s, got, err)
		}
		// A mask longer than an address is all of it, and can be spelled.
		long := s
		long.Netmask = int(netmask)
		s.Netmask = min(long.Netmask, s.Family.Bits())
		if long.Family == state.IPv6 {
			return // the kernel refuses it, and has none
		}
		if got, err := decodeService(genericMessage(20, ipvsNewService, appendService(nil, long)).body); err != nil || got != s || long.String() == "" {
			t.Errorf("%+v came back as %+v, %v", long, got, err)
		}
	})
}

// FuzzDestinationRoundTrip: what is asked for is what is read.
func FuzzDestinationRoundTrip(f *testing.F) {
	f.Add(false, []byte{10, 0, 0, 7}, uint16(8080), uint8(0), uint32(2), uint32(9), uint32(4), uint8(0), uint16(0), uint16(0))
	f.Add(true, []byte{0x20, 1, 0xd, 0xb8}, uint16(80), uint8(2), ^uint32(0), uint32(0), uint32(0), uint8(1), uint16(6080), uint16(1))
	f.Fuzz(func(t *testing.T, ipv6 bool, addr []byte, port uint16, forward uint8, weight, upper, lower uint32, tunnel uint8, tunnelPort, tunnelFlags uint16) {
		d := state.Destination{
			DestinationKey: state.DestinationKey{Service: state.ServiceKey{Family: state.IPv4, Mark: 1}, Addr: anyAddr(ipv6, addr), Port: port},
			Forward:        state.Forward(forward & forwardMask), Weight: int(weight), Upper: upper, Lower: lower,
		}
		if d.Forward == state.TunnelTo {
			if d.TunnelType = state.TunnelType(tunnel); tunnel != 0 {
				d.TunnelFlags = tunnelFlags
			}
			if d.TunnelType == state.TunnelGUE {
				d.TunnelPort = tunnelPort
			}
		}
		m := genericMessage(20, ipvsNewDest, appendDestination(nil, d))
		got, n, err := decodeDestination(d.Service, m.body)
		if err != nil || got != d || n != (state.Connections{}) {
			t.Errorf("%+v came back as %+v, %v", d, got, err)
		}
	})
}

// FuzzSyncDaemonRoundTrip: what is asked for is what is read, and what the kernel
// does by itself is nothing that was asked for.
func FuzzSyncDaemonRoundTrip(f *testing.F) {
	f.Add(true, "eth0", uint8(1), uint16(0), []byte{}, uint16(0), uint8(0))
	f.Add(true, "eth0", uint8(1), uint16(1472), []byte{224, 0, 0, 81}, uint16(8848), uint8(1))
	f.Add(true, "eth0", uint8(1), uint16(1452), netip.MustParseAddr("ff02::5").AsSlice(), uint16(99), uint8(5))
	f.Add(false, "eth0", uint8(1), uint16(8972), []byte{239, 0, 0, 1}, uint16(8848), uint8(1))
	f.Add(false, "eth0", uint8(1), uint16(1300), netip.MustParseAddr("ff02::5").AsSlice(), uint16(99), uint8(5))
	f.Fuzz(func(t *testing.T, master bool, link string, id uint8, maxLen uint16, group []byte, port uint16, ttl uint8) {
		d := state.SyncDaemon{Master: master, Link: spoken(link), ID: int(id), MaxLen: int(maxLen), Port: port, TTL: ttl}
		if d.Group, _ = netip.AddrFromSlice(group); d.Link == "" {
			return
		}
		got, err := decodeSyncDaemon(genericMessage(20, ipvsNewDaemon, appendSyncDaemon(nil, d)).body)
		most := 1472
		if d.Group.Is6() {
			most = 1452
		}
		if d.MaxLen == most || !master && d.MaxLen > most {
			d.MaxLen = 0
		}
		if d.Group.String() == "224.0.0.81" {
			d.Group = netip.Addr{}
		}
		if d.Port == 8848 {
			d.Port = 0
		}
		if d.TTL == 1 {
			d.TTL = 0
		}
		if err != nil || got != d || got.String() == "" {
			t.Errorf("%+v came back as %+v, %v", d, got, err)
		}
	})
}

// appendTraffic appends a service or destination that says of itself no more than
// its counters, of 4 or 8 bytes each.
func appendTraffic(b []byte, object, kind uint16, wide bool, counters []uint64) []byte {
	b, outer := openNest(b, object)
	b, inner := openNest(b, kind)
	for i, n := range counters {
		if wide {
			b = appendAttribute(b, uint16(i+1), binary.NativeEndian.AppendUint64(nil, n)...)
		} else {
			b = appendUint32(b, uint16(i+1), uint32(n))
		}
	}
	closeNest(b, inner)
	closeNest(b, outer)
	return b
}

func trafficOf(n []uint64) state.Traffic {
	return state.Traffic{
		Total:     state.Counts{Connections: n[0], PacketsIn: n[1], PacketsOut: n[2], BytesIn: n[3], BytesOut: n[4]},
		PerSecond: state.Counts{Connections: n[5], PacketsIn: n[6], PacketsOut: n[7], BytesIn: n[8], BytesOut: n[9]},
	}
}

// FuzzTraffic: counters of both widths read as themselves, the wide ones where
// there are both, and ten of them or none.
func FuzzTraffic(f *testing.F) {
	f.Add(make([]byte, 80))
	f.Add([]byte("\x01\x02\x03\x04\x05\x06\x07\x08"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		counters, short := make([]uint64, 10), make([]uint64, 10)
		for i := range counters {
			var b [8]byte
			copy(b[:], raw[min(len(raw), 8*i):])
			counters[i] = binary.NativeEndian.Uint64(b[:]) + uint64(i)
			short[i] = uint64(uint32(counters[i]))
		}
		for _, o := range []struct{ object, stats, stats64 uint16 }{{ipvsService, serviceStats, serviceStats64}, {ipvsDest, destStats, destStats64}} {
			for _, c := range []struct {
				kind uint16
				wide bool
				want []uint64
			}{{o.stats, false, short}, {o.stats64, true, counters}} {
				body := genericMessage(20, 1, appendTraffic(nil, o.object, c.kind, c.wide, counters)).body
				if got, err := decodeTraffic(body, o.object, o.stats, o.stats64); err != nil || got != trafficOf(c.want) {
					t.Errorf("%v came back as %+v, %v", c.want, got, err)
				}
			}
			both, n := openNest(nil, o.object)
			for _, kind := range []uint16{o.stats64, o.stats} {
				one := appendTraffic(nil, o.object, kind, kind == o.stats64, counters)
				both = append(both, one[unix.SizeofNlAttr:]...)
			}
			closeNest(both, n)
			if got, err := decodeTraffic(genericMessage(20, 1, both).body, o.object, o.stats, o.stats64); err != nil || got != trafficOf(counters) {
				t.Errorf("%v in both widths came back as %+v, %v", counters, got, err)
			}
			for have := range 10 {
				body := genericMessage(20, 1, appendTraffic(nil, o.object, o.stats64, true, counters[:have])).body
				if got, err := decodeTraffic(body, o.object, o.stats, o.stats64); err == nil {
					t.Errorf("%d counters came back as %+v", have, got)
				}
			}
		}
	})
}

// ipvsMessages is one message of each kind.
func ipvsMessages() map[string][]byte {
	key := state.ServiceKey{Family: state.IPv6, Protocol: state.TCP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 80}
	s := state.Service{ServiceKey: key, Scheduler: "wlc", Netmask: 128}
	d := state.Destination{DestinationKey: state.DestinationKey{Service: key, Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, Forward: state.TunnelTo}
	return map[string][]byte{
		"service":     genericMessage(20, ipvsNewService, appendService(nil, s)).body,
		"destination": genericMessage(20, ipvsNewDest, appendDestination(nil, d)).body,
		"sync daemon": genericMessage(20, ipvsNewDaemon, appendSyncDaemon(nil, state.SyncDaemon{Master: true, Link: "eth0", ID: 1, Group: netip.MustParseAddr("ff02::5"), Port: 99, TTL: 5, MaxLen: 1300})).body,
		"traffic":     genericMessage(20, ipvsNewDest, appendTraffic(nil, ipvsDest, destStats64, true, make([]uint64, 10))).body,
		"timeouts":    genericMessage(20, ipvsSetConfig, appendTimeouts(nil, state.Timeouts{TCP: time.Second})).body,
		"fou port":    genericMessage(20, fouAdd, appendEncapPort(nil, encapPort{state.IPv6, 6080})).body,
	}
}

// FuzzDecodeIPVS: no answer makes a decoder panic, and what it makes of one can
// be spelled and sent.
func FuzzDecodeIPVS(f *testing.F) {
	for _, body := range ipvsMessages() {
		for n := range len(body) + 1 {
			f.Add(body[:n])
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if s, err := decodeService(body); err == nil {
			_ = s.String()
			if s.Mark == 0 && s.Addr.Is4() != (s.Family == state.IPv4) {
				t.Errorf("%+v", s)
			}
			appendService(nil, s)
		}
		for _, f := range state.Families {
			if d, _, err := decodeDestination(state.ServiceKey{Family: f, Mark: 1}, body); err == nil {
				_ = d.String()
				appendDestination(nil, d)
			}
		}
		if d, err := decodeSyncDaemon(body); err == nil {
			_ = d.String()
			appendSyncDaemon(nil, d)
		}
		_, _ = decodeTraffic(body, ipvsService, serviceStats, serviceStats64)
		_, _ = decodeTraffic(body, ipvsDest, destStats, destStats64)
		if ts, err := decodeTimeouts(body); err == nil {
			_ = ts.String()
		}
		_, _, _ = decodeEncapPort(body)
	})
}

func TestForeignValuesReadAsThemselves(t *testing.T) {
	nest := func(kind uint16, attributes []byte) []byte {
		b, n := openNest(nil, kind)
		b = append(b, attributes...)
		closeNest(b, n)
		return genericMessage(20, 1, b).body
	}
	// A netmask with holes is nobody's wish, and an address may come in 16 bytes.
	b := appendUint16(nil, serviceFamily, unix.AF_INET)
	b = appendUint16(b, serviceProtocol, unix.IPPROTO_TCP)
	b = appendAttribute(b, serviceAddr, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendPort(b, servicePort, 80)
	b = appendString(b, serviceScheduler, "none")
	b = appendUint32(b, serviceTimeout, 0)
	b = appendAttribute(b, serviceNetmask, 0xff, 0, 0xff, 0)
	b = appendAttribute(b, serviceFlags, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
	s, err := decodeService(nest(ipvsService, b))
	if err != nil || s.Netmask != -1 || s.Addr != netip.MustParseAddr("192.0.2.1") || s.Flags != 0xfd {
		t.Errorf("%+v %v", s, err)
	}
	_ = s.String()
	// Without a family a destination is of its service's.
	rest := appendUint32(appendUint32(appendPort(nil, destPort, 80), destForward, 0), destWeight, 1)
	b = appendAttribute(slices.Clone(rest), destAddr, 10, 0, 0, 1)
	d, _, err := decodeDestination(state.ServiceKey{Family: state.IPv4, Mark: 1}, nest(ipvsDest, b))
	if err != nil || d.Addr != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("%+v %v", d, err)
	}
	for name, body := range map[string][]byte{
		"nothing":           nil,
		"a header":          {1, 1, 0, 0},
		"no family":         nest(ipvsService, appendAttribute(nil, serviceNetmask, 1, 2, 3, 4)),
		"an unknown family": nest(ipvsService, appendAttribute(appendUint16(nil, serviceFamily, 7), serviceNetmask, 1, 2, 3, 4)),
		"a short address":   nest(ipvsDest, appendAttribute(slices.Clone(rest), destAddr, 10, 0, 0)),
		"no weight":         nest(ipvsDest, appendUint32(appendPort(appendAttribute(nil, destAddr, 10, 0, 0, 1), destPort, 80), destForward, 0)),
		"a long port":       nest(ipvsDest, appendAttribute(appendAttribute(nil, destAddr, 1, 2, 3, 4), destPort, 1, 2, 3)),
	} {
		if s, err := decodeService(body); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
		if d, _, err := decodeDestination(state.ServiceKey{Family: state.IPv4, Mark: 1}, body); err == nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestCutMessagesAreNotTaken: what is left of a message that was cut, and of a
// nest whose own length was cut with it, is an error or says nothing wrong.
func TestCutMessagesAreNotTaken(t *testing.T) {
	messages := ipvsMessages()
	whole, _, err := decodeDestination(state.ServiceKey{Family: state.IPv6, Mark: 1}, messages["destination"])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"service", "destination", "sync daemon"} {
		body := messages[name]
		for n := range body {
			if s, err := decodeService(body[:n]); err == nil && name == "service" {
				t.Errorf("%d bytes of a service: %s", n, s)
			}
			// The nest of a destination comes after its service's.
			if d, _, err := decodeDestination(whole.Service, body[:n]); err == nil && name == "destination" {
				t.Errorf("%d bytes of a destination: %s", n, d)
			}
			if d, err := decodeSyncDaemon(body[:n]); err == nil && name == "sync daemon" {
				t.Errorf("%d bytes of a sync daemon: %s", n, d)
			}
		}
	}
	daemon := messages["sync daemon"]
	for n := sizeofGenericHeader + unix.SizeofNlAttr; n < len(daemon); n++ {
		cut := slices.Clone(daemon[:n])
		closeNest(cut, sizeofGenericHeader)
		if d, err := decodeSyncDaemon(cut); err == nil && (!d.Master || d.Link != "eth0") {
			t.Errorf("a nest of %d bytes: %+v", n, d)
		}
	}
	for kind, body := range map[uint16][]byte{ipvsService: messages["service"], ipvsDest: messages["destination"]} {
		nest, err := ipvsNest(body, kind)
		if err != nil {
			t.Fatal(err)
		}
		all := attributes{rest: nest}
		for from := 0; all.next(); {
			to := len(nest) - len(all.rest)
			b, start := openNest(nil, kind)
			b = append(append(b, nest[:from]...), nest[to:]...)
			closeNest(b, start)
			without := genericMessage(20, ipvsNewService, b).body
			_, serviceErr := decodeService(without)
			_, _, destErr := decodeDestination(whole.Service, without)
			if needed := slices.Contains([]uint16{destAddr, destPort, destForward, destWeight}, all.kind); serviceErr == nil || destErr == nil && needed {
				t.Errorf("without attribute %d it was taken", all.kind)
			}
			from = to
		}
		for n := range nest {
			b, start := openNest(nil, kind)
			b = append(b, nest[:n]...)
			closeNest(b, start)
			cut := genericMessage(20, ipvsNewService, b).body
			if s, err := decodeService(cut); err == nil {
				t.Errorf("a nest of %d bytes: %s", n, s)
			}
			if d, _, err := decodeDestination(whole.Service, cut); err == nil && (d.DestinationKey != whole.DestinationKey || d.Forward != whole.Forward) {
				t.Errorf("a nest of %d bytes: %s", n, d)
			}
		}
	}
}
