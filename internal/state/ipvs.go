package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Timeouts of IPVS connections, in whole seconds; 0 leaves one as it is
// (ipvsadm --set).
type Timeouts struct{ TCP, TCPFin, UDP time.Duration }

// Kind is KindTimeouts.
func (Timeouts) Kind() Kind { return KindTimeouts }

// String is what follows ipvsadm --set.
func (t Timeouts) String() string {
	return fmt.Sprintf("%d %d %d", t.TCP/time.Second, t.TCPFin/time.Second, t.UDP/time.Second)
}

// Spell is String.
func (t Timeouts) Spell(Names) string { return t.String() }

// Commands is one ipvsadm.
func (t Timeouts) Commands(Op, Names) []string { return []string{"ipvsadm --set " + t.String()} }

// over is what the kernel has after t is set over have.
func (t Timeouts) over(have Timeouts) Timeouts {
	return Timeouts{cmp.Or(t.TCP, have.TCP), cmp.Or(t.TCPFin, have.TCPFin), cmp.Or(t.UDP, have.UDP)}
}

// SyncDaemon is one of the kernel's two connection synchronisation daemons.
type SyncDaemon struct {
	Master bool // else backup
	Link   string
	ID     int // 0 to 255; a backup listens to its own alone, 0: to all
	// What follows is zero where it is as the kernel does by itself. No profile
	// asks for anything else.
	MaxLen int // of a message, in bytes
	Group  netip.Addr
	Port   uint16 // UDP
	TTL    uint8
}

// Kind is KindSyncDaemon.
func (SyncDaemon) Kind() Kind { return KindSyncDaemon }

// String is what follows ipvsadm --start-daemon.
func (d SyncDaemon) String() string {
	role := "backup"
	if d.Master {
		role = "master"
	}
	b := fmt.Appendf(nil, "%s --mcast-interface %s --syncid %d", role, d.Link, d.ID)
	if d.MaxLen != 0 {
		b = fmt.Appendf(b, " --sync-maxlen %d", d.MaxLen)
	}
	if d.Group.IsValid() {
		b = fmt.Appendf(b, " --mcast-group %s", d.Group)
	}
	if d.Port != 0 {
		b = fmt.Appendf(b, " --mcast-port %d", d.Port)
	}
	if d.TTL != 0 {
		b = fmt.Appendf(b, " --mcast-ttl %d", d.TTL)
	}
	return string(b)
}

// Spell is String.
func (d SyncDaemon) Spell(Names) string { return d.String() }

// Commands is one ipvsadm.
func (d SyncDaemon) Commands(op Op, _ Names) []string {
	role, _, _ := strings.Cut(d.String(), " ")
	start, stop := "ipvsadm --start-daemon "+d.String(), "ipvsadm --stop-daemon "+role
	switch op {
	case Delete:
		return []string{stop}
	case Replace:
		return []string{stop, start}
	}
	return []string{start}
}
