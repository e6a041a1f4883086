package state

import "fmt"

// LinkGroup puts a link into a group (IFLA_GROUP), which
// suppress_ifgroup rules look at.
type LinkGroup struct {
	Link  string
	Group uint32
}

// Kind is KindLinkGroup.
func (LinkGroup) Kind() Kind { return KindLinkGroup }

// String is what follows "ip link set".
func (g LinkGroup) String() string { return fmt.Sprintf("dev %s group %d", g.Link, g.Group) }

// Spell is String.
func (g LinkGroup) Spell(Names) string { return g.String() }

// Commands is one ip link set.
func (g LinkGroup) Commands(Op, Names) []string { return []string{"ip link set " + g.String()} }
