package kernel

import (
	"errors"

	"github.com/sisod/sisod/internal/state"
)

// hush is a time between two ICMP errors to one peer that never passes, in
// milliseconds: the kernel multiplies it by 6 and divides it by 16 in an int of
// jiffies (net/ipv4/inetpeer.c, inet_peer_xrlim_allow; net/ipv6/icmp.c).
const hush = "300000000"

// hushed runs f while the host tells no peer that it cannot be reached, and
// gives back what it set for that. "Fragmentation needed" and "packet too big"
// are not held back by these limits. A process that ends in between leaves
// the record in the ledger, and the next pass gives back.
//
// Between two schedulers a service has none for as long as the kernel waits for
// its readers (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_edit_service), and a
// connection that begins then would be refused with an ICMP error. A client
// that hears nothing asks again.
func (h *Host) hushed(families map[state.Family]bool, f func()) error {
	limits := map[state.Family]string{state.IPv4: "net/ipv4/icmp_ratelimit", state.IPv6: "net/ipv6/icmp/ratelimit"}
	var quiet []state.Step
	for _, family := range state.Families {
		if families[family] {
			quiet = append(quiet, state.Step{Op: state.Replace, Object: state.Sysctl{Path: limits[family], Value: hush}})
		}
	}
	// Where it cannot be, new connections of this moment are refused, and no others.
	_ = h.applySysctls(quiet)
	f()
	var back []state.Step
	for _, s := range quiet {
		path := s.Object.(state.Sysctl).Path
		if found, ok := h.ledger.sysctlFound(sysctlPlace{Path: path}); ok {
			back = append(back, state.Step{Op: state.Restore, Object: state.Sysctl{Path: path, Value: found}})
		}
	}
	return errors.Join(h.applySysctls(back)...)
}
