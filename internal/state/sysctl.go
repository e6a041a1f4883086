package state

import "strings"

// Sysctl is one value below /proc/sys, its path with slashes because link
// names may contain dots: net/ipv4/conf/em1/rp_filter.
type Sysctl struct {
	Path  string
	Value string
}

// Kind is KindSysctl.
func (Sysctl) Kind() Kind { return KindSysctl }

// String is the argument of sysctl -w.
func (s Sysctl) String() string { return s.Path + "=" + s.Value }

// Spell is String.
func (s Sysctl) Spell(Names) string { return s.String() }

// Commands is one sysctl -w.
func (s Sysctl) Commands(Op, Names) []string { return []string{"sysctl -qw " + s.String()} }

// rank orders sysctls of which one has to be there before another.
func (s Sysctl) rank() int {
	if strings.HasSuffix(s.Path, "/accept_ra") {
		return 0
	}
	return 1
}
