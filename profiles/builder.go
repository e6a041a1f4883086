package profiles

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// builder judges raw profiles one after the other and collects what they ask
// for; what can only be judged together waits for finish.
type builder struct {
	loader   *loader
	settings Settings

	uplinks []rawUplink // first of their name, in the order of the files
	names   map[string]owner
	rules   []rawRule
	routes  []rawRoute

	interfaces map[string]owner
	tables     map[uint32]owner
	addresses  map[netip.Addr]owner
	sources    map[netip.Prefix]owner
	inline     map[netip.Prefix]owner
	lists      map[string]owner
	allRules   map[string]Position
	allRoutes  map[routeKey]Position
}

// owner is the uplink that has something, and where it says so.
type owner struct {
	uplink string
	at     Position
}

func newBuilder(l *loader) *builder {
	return &builder{
		loader: l, settings: DefaultSettings,
		names: map[string]owner{}, interfaces: map[string]owner{}, tables: map[uint32]owner{},
		addresses: map[netip.Addr]owner{}, sources: map[netip.Prefix]owner{}, inline: map[netip.Prefix]owner{},
		lists: map[string]owner{}, allRules: map[string]Position{}, allRoutes: map[routeKey]Position{},
	}
}

// claim records that an uplink has something. It returns the earlier owner,
// and false, when there is one.
func claim[K comparable](m map[K]owner, key K, o owner) (owner, bool) {
	if earlier, taken := m[key]; taken {
		return earlier, false
	}
	m[key] = o
	return o, true
}

// add takes one profile.
func (b *builder) add(raw rawProfile) {
	for _, name := range raw.Uplink.names {
		u := raw.Uplink.items[name]
		if bad := tableName(name); bad != nil {
			u.at.badKey(fmt.Sprintf("uplink %q: %s", name, bad.text), bad.hint)
			continue
		}
		if why := reserved(name); why != "" {
			u.at.badKey(fmt.Sprintf("an uplink cannot be named %q, which %s", name, why), "take another name, such as the provider's")
			continue
		}
		if earlier, ok := claim(b.names, name, owner{name, u.at.pos()}); !ok {
			u.at.badKey(fmt.Sprintf("uplink %s is defined already, at %s", name, earlier.at),
				"all keys of one uplink stand in one file; give this one another name, or join the two")
			continue
		}
		b.uplinks = append(b.uplinks, u)
	}
	b.rules = append(b.rules, raw.Rule.items...)
	b.routes = append(b.routes, raw.Route.items...)
}

// finish judges everything and returns the configuration, or all complaints.
func (b *builder) finish() (*Config, error) {
	c := &Config{Settings: b.settings}
	for _, raw := range b.uplinks {
		c.Uplinks = append(c.Uplinks, b.uplink(raw))
	}
	for _, raw := range b.rules {
		if r, ok := b.rule(raw); ok {
			c.Rules = append(c.Rules, r)
		}
	}
	for _, raw := range b.routes {
		if r, ok := b.tableRoute(raw); ok {
			c.Routes = append(c.Routes, r)
		}
	}
	b.room(c)
	b.overlaps(c)
	slices.SortStableFunc(c.Uplinks, func(x, y Uplink) int { return strings.Compare(x.Name, y.Name) })
	c.Files = b.loader.read()
	if len(b.loader.errs) > 0 {
		b.loader.errs.sort()
		return nil, b.loader.errs
	}
	return c, nil
}

// room complains about the first uplink that follows connections and finds no
// mark left.
func (b *builder) room(c *Config) {
	marks := uint64(1)<<bits.OnesCount32(b.settings.MarkMask) - 1
	following := uint64(0)
	for i, u := range c.Uplinks {
		if !u.Forward {
			continue
		}
		if following++; following > marks {
			b.uplinks[i].Forward.at.badKey(fmt.Sprintf("mark_mask %#08x has marks for %s with forward, and this is one more", b.settings.MarkMask, plural(int(marks), "uplink", "uplinks")),
				"set more bits in mark_mask of sisod.toml")
			return
		}
	}
}

// overlaps complains when lists of two uplinks hold the same prefix: a
// destination can prefer one uplink. Inline prefixes are compared as well, for
// a list may hold them.
func (b *builder) overlaps(c *Config) {
	for i, u := range c.Uplinks {
		for j, list := range u.To {
			for _, other := range c.Uplinks[:i] {
				for _, earlier := range other.To {
					if list.File == "" && earlier.File == "" || list.File == earlier.File {
						continue
					}
					n4, first4 := common(list.IPv4, earlier.IPv4)
					n6, first6 := common(list.IPv6, earlier.IPv6)
					if n4+n6 == 0 {
						continue
					}
					if n4 == 0 {
						first4 = first6
					}
					raw := b.uplinks[i].To.items[j].at
					raw.bad(fmt.Sprintf("%s of this list %s in `to` of uplink %s as well (%s), first %s",
						plural(n4+n6, "prefix", "prefixes"), isAre(n4+n6), other.Name, earlier.Pos, first4),
						oneUplink+": take it out of one of the two")
				}
			}
		}
	}
}

// common counts the members of two sorted lists that are in both, and returns
// the first.
func common(a, b []netip.Prefix) (n int, first netip.Prefix) {
	for len(a) > 0 && len(b) > 0 {
		switch c := a[0].Compare(b[0]); {
		case c < 0:
			a = a[1:]
		case c > 0:
			b = b[1:]
		default:
			if n++; n == 1 {
				first = a[0]
			}
			a, b = a[1:], b[1:]
		}
	}
	return n, first
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
