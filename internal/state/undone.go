package state

import (
	"fmt"
	"strings"
)

// Undone are the steps of a plan that were not done, and what they keep from
// being done: what would run into an unfinished table, name a link that could
// not be made, or show a VIP to neighbours. The zero value is ready for use.
type Undone struct {
	// unwritten are tables that lack a route that the plan wanted.
	unwritten map[familyTable]bool
	// undeleted are tables that a rule still leads to against the plan.
	undeleted map[familyTable]bool
	// unled are nexthops that could not be made.
	unled map[uint32]bool
	// unserved are services that could not be added.
	unserved map[ServiceKey]bool
	// unmade are links that could not be made.
	unmade map[string]bool
	// unsilenced is the sysctl that would have silenced ARP, "" when it does.
	unsilenced string
}

type familyTable struct {
	family Family
	table  uint32
}

// Add notes a step that was not done.
func (u *Undone) Add(s Step) {
	switch o := s.Object.(type) {
	case Nexthop:
		if s.Op == Add {
			mark(&u.unled, o.ID)
		}
	case RouteSet:
		if !s.Op.Removes() {
			mark(&u.unwritten, familyTable{o.Family, o.Table})
		}
	case Rule:
		if s.Op.Removes() && o.Action == Lookup {
			mark(&u.undeleted, familyTable{o.Family, o.Table})
		}
	case Service:
		if s.Op == Add {
			mark(&u.unserved, o.ServiceKey)
		}
	case Device:
		if s.Op == Add && o.EncapPort == 0 {
			mark(&u.unmade, o.Name)
		}
	case Sysctl:
		if !s.Op.takesBack() && o.silences() {
			u.unsilenced = o.Path
		}
	}
}

func mark[K comparable](set *map[K]bool, key K) {
	if *set == nil {
		*set = map[K]bool{}
	}
	(*set)[key] = true
}

// Holds is why a step has to wait, "" when it has not.
func (u *Undone) Holds(s Step, n Names) string {
	removes := s.Op.Removes()
	link := ""
	switch o := s.Object.(type) {
	case Nexthop:
		if removes && len(u.undeleted) > 0 {
			return "waits for the rules to the routes by it to go"
		}
	case RouteSet:
		if removes && u.undeleted[familyTable{o.Family, o.Table}] {
			return fmt.Sprintf("waits for the rules to table %s to go", n.Table(o.Table))
		}
		if !removes && u.unled[o.Nexthop] {
			return fmt.Sprintf("waits for the nexthop %d", o.Nexthop)
		}
	case Rule:
		if !removes && u.unwritten[familyTable{o.Family, o.Table}] {
			return fmt.Sprintf("waits for the routes of table %s", n.Table(o.Table))
		}
	case Destination:
		if !removes && u.unserved[o.Service] {
			return "waits for the service " + o.Service.Option()
		}
	case VIP:
		if u.unsilenced != "" && !removes && o.Addr.Is4() {
			return fmt.Sprintf("waits for the sysctl %s: neighbours would find the VIP here", u.unsilenced)
		}
		link = o.Link
	case LinkUp:
		link = o.Link
	case Sysctl:
		link = o.link()
	}
	if link != "" && !s.Op.takesBack() && u.unmade[link] {
		return "waits for the device " + link
	}
	return ""
}

// link is the link whose value it is, "" when it is none's.
func (s Sysctl) link() string {
	parts := strings.SplitN(s.Path, "/", 5)
	if len(parts) < 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" {
		return ""
	}
	return parts[3]
}

// silences reports whether it keeps the host from telling neighbours of its VIPs.
func (s Sysctl) silences() bool {
	return strings.HasSuffix(s.Path, "/arp_ignore") || strings.HasSuffix(s.Path, "/arp_announce")
}
