package state

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Transport is an IP protocol number of a service.
type Transport uint8

// The transports that IPVS balances.
const (
	TCP  Transport = 6
	UDP  Transport = 17
	SCTP Transport = 132
)

// TransportNamed is the transport that a profile and ipvsadm call name; 0: none is.
func TransportNamed(name string) Transport {
	switch name {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	case "sctp":
		return SCTP
	}
	return 0
}

// ServiceKey is the identity of a service in the kernel
// (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_service_find).
type ServiceKey struct {
	Family   Family
	Protocol Transport  // 0 with Mark
	Addr     netip.Addr // zero Addr with Mark
	Port     uint16     // 0: every port
	Mark     uint32     // 0: by address
}

// Option is what ipvsadm writes for the key.
func (k ServiceKey) Option() string { return string(k.appendOption(make([]byte, 0, spelling))) }

// spelling is more than most spellings of services and destinations need.
const spelling = 96

func (k ServiceKey) appendOption(b []byte) []byte {
	if k.Mark != 0 {
		b = strconv.AppendUint(append(b, "-f "...), uint64(k.Mark), 10)
		if k.Family == IPv6 {
			b = append(b, " -6"...)
		}
		return b
	}
	switch k.Protocol {
	case TCP:
		b = append(b, "-t "...)
	case UDP:
		b = append(b, "-u "...)
	case SCTP:
		b = append(b, "--sctp-service "...)
	}
	return netip.AddrPortFrom(k.Addr, k.Port).AppendTo(b)
}

// Flags of a service (linux/ip_vs.h, IP_VS_SVC_F_*). Hashed (0x2) is the
// kernel's own and never part of a Service.
const (
	ServicePersistent = 0x1
	ServiceOnePacket  = 0x4
	ServiceSched1     = 0x8  // sh-fallback, mh-fallback
	ServiceSched2     = 0x10 // sh-port, mh-port
	ServiceSched3     = 0x20 // no scheduler's so far
)

// Service is an IPVS virtual service.
type Service struct {
	ServiceKey
	Scheduler string
	Flags     uint32
	Timeout   time.Duration // of persistence, whole seconds
	Netmask   int           // prefix length of persistence; the family's length: whole addresses
	// Engine tells what persists by more than the address (sip: by the Call-ID), "":
	// none. No profile asks for one.
	Engine string
}

// Kind is KindService.
func (Service) Kind() Kind { return KindService }

// String is the service as ipvsadm -Sn prints it, without the leading -A.
func (s Service) String() string {
	b := append(s.appendOption(make([]byte, 0, spelling)), " -s "...)
	b = append(b, s.Scheduler...)
	if s.Flags&ServicePersistent != 0 {
		b = fmt.Appendf(b, " -p %d", s.Timeout/time.Second)
		if s.Netmask != s.Family.Bits() {
			if s.Family == IPv6 {
				b = fmt.Appendf(b, " -M %d", s.Netmask)
			} else {
				b = fmt.Appendf(b, " -M %s", dottedMask(s.Netmask))
			}
		}
	}
	if s.Engine != "" {
		b = append(b, " --pe "+s.Engine...)
	}
	if s.Flags&ServiceOnePacket != 0 {
		b = append(b, " -o"...)
	}
	if flags := schedulerFlags(s.Scheduler, s.Flags); flags != "" {
		b = append(b, " -b "+flags...)
	}
	return string(b)
}

func dottedMask(bits int) string {
	m := ^uint32(0) << max(0, 32-bits)
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// schedulerFlags spells the scheduler's own flags as ipvsadm does.
func schedulerFlags(scheduler string, flags uint32) string {
	if flags&(ServiceSched1|ServiceSched2|ServiceSched3) == 0 {
		return ""
	}
	names := [...]string{"flag-1", "flag-2", "flag-3"}
	if scheduler == "sh" || scheduler == "mh" {
		names = [...]string{scheduler + "-fallback", scheduler + "-port", ""}
	}
	var words []string
	for i, bit := range [...]uint32{ServiceSched1, ServiceSched2, ServiceSched3} {
		if flags&bit != 0 && names[i] != "" {
			words = append(words, names[i])
		}
	}
	return strings.Join(words, ",")
}

// Spell is String.
func (s Service) Spell(Names) string { return s.String() }

// Commands is one ipvsadm. A change is made in place: it keeps every connection.
func (s Service) Commands(op Op, _ Names) []string {
	switch op {
	case Delete:
		return []string{"ipvsadm -D " + s.Option()}
	case Replace:
		return []string{"ipvsadm -E " + s.String()}
	}
	return []string{"ipvsadm -A " + s.String()}
}
