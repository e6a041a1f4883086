package state

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// sortKey is where a step belongs in the order of apply.
type sortKey struct {
	phase int
	index int // among the steps as they were
	// text is compared byte by byte: the object's spelling, or, where thousands are
	// sorted, what identifies it. Empty where compareObjects has the only say.
	text string
}

// sortSteps puts steps into the order of apply.
func sortSteps(steps []Step) {
	keys := make([]sortKey, len(steps))
	// All texts are parts of one: a string each would cost more than the sorting.
	var all []byte
	ends := make([]int, len(steps))
	long := filling(steps)
	for i, s := range steps {
		keys[i] = sortKey{phase: phaseOf(s, long), index: i}
		switch o := s.Object.(type) {
		case TableName, RouteSet, Rule, Sysctl:
			// compareObjects orders them.
		case Service:
			all = o.appendOrder(all)
		case Destination:
			// Whoever takes over comes before the last one stops taking connections.
			all = append(all, o.rank())
			all = o.DestinationKey.appendOrder(all)
		default:
			all = append(all, o.Spell(nil)...)
		}
		ends[i] = len(all)
	}
	text, start := string(all), 0
	for i, end := range ends {
		keys[i].text, start = text[start:end], end
	}
	slices.SortFunc(keys, func(a, b sortKey) int {
		if a.phase != b.phase {
			return a.phase - b.phase
		}
		c := strings.Compare(a.text, b.text)
		if c == 0 {
			c = compareObjects(steps[a.index].Object, steps[b.index].Object)
		}
		switch {
		case c == 0:
			return a.index - b.index
		case a.phase < len(phases) && phases[a.phase].descending:
			return -c
		}
		return c
	})
	sorted := make([]Step, len(steps))
	for i, k := range keys {
		sorted[i] = steps[k.index]
	}
	copy(steps, sorted)
}

// compareObjects orders two objects of one kind that no text orders.
func compareObjects(a, b Object) int {
	switch a := a.(type) {
	case TableName:
		return cmp.Compare(a.Number, b.(TableName).Number)
	case RouteSet:
		b := b.(RouteSet)
		// On-link routes of every table come first: a gateway is looked up among them.
		return cmp.Or(cmp.Compare(a.gateways(), b.gateways()), compareSets(a, b))
	case Rule:
		// A goto leads to rules that stand, and goes before they do.
		return cmp.Or(cmp.Compare(a.rank(), b.(Rule).rank()), CompareRules(a, b.(Rule)))
	case Sysctl:
		// accept_ra before forwarding, which would take learned gateways away.
		return cmp.Or(cmp.Compare(a.rank(), b.(Sysctl).rank()), strings.Compare(a.Path, b.(Sysctl).Path))
	}
	return 0
}

// CompareServices orders services by family, address, port and protocol, those
// of firewall marks after all others of their family.
func CompareServices(a, b ServiceKey) int {
	return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Mark, b.Mark), a.Addr.Compare(b.Addr),
		cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// appendOrder appends bytes that compare as CompareServices does.
func (k ServiceKey) appendOrder(b []byte) []byte {
	b = append(b, byte(k.Family))
	b = binary.BigEndian.AppendUint32(b, k.Mark)
	if k.Mark == 0 {
		b = appendAddrOrder(b, k.Addr)
	}
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return append(b, byte(k.Protocol))
}

func (k DestinationKey) appendOrder(b []byte) []byte {
	b = k.Service.appendOrder(b)
	b = appendAddrOrder(b, k.Addr)
	return binary.BigEndian.AppendUint16(b, k.Port)
}

func appendAddrOrder(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(append(b, 4), v[:]...)
	}
	v := a.As16()
	return append(append(b, 16), v[:]...)
}
