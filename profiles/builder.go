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

	roles    roles
	captures []rawCapture // first of their name, in the order of the files
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
		roles: newRoles(),
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
	b.addRoles(raw)
	b.addCaptures(raw)
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
	b.finishRoles(c)
	b.finishCaptures(c)
	slices.SortStableFunc(c.Uplinks, func(x, y Uplink) int { return strings.Compare(x.Name, y.Name) })
	c.Files, c.Readings = b.loader.read(), b.loader.readings
	if len(b.loader.errs) > 0 {
		return nil, b.loader.errs.tidy()
	}
	c.thin()
	return c, nil
}

// room complains about the first uplink that follows connections and finds no
// mark left.
func (b *builder) room(c *Config) {
	marks, following := b.marks(), 0
	for i, u := range c.Uplinks {
		if !u.Forward && !u.Masquerade {
			continue
		}
		if following++; following > marks {
			key := b.uplinks[i].Forward.at
			if !u.Forward {
				key = b.uplinks[i].Masquerade.at
			}
			key.badKey(fmt.Sprintf("mark_mask %#08x has marks for %s with forward or masquerade, and this is one more", b.settings.MarkMask, plural(marks, "uplink", "uplinks")),
				"set more bits in mark_mask of sisod.toml: two are room for 1 uplink, three for 3, four for 7")
			return
		}
	}
}

// marks is how many marks there are: one bit tells connections that came in from
// those that went out, and 0 is none.
func (b *builder) marks() int { return 1<<(bits.OnesCount32(b.settings.MarkMask)-1) - 1 }

// overlaps complains when a list of one uplink holds a prefix that another
// uplink wants: a destination can prefer one uplink. Two inline prefixes have
// been compared already.
func (b *builder) overlaps(c *Config) {
	for i, u := range c.Uplinks {
		for j, list := range u.To {
			at := b.uplinks[i].To.items[j].at
			if list.File == "" {
				b.listed(c, i, list, at)
				continue
			}
			for _, other := range c.Uplinks[:i] {
				for _, earlier := range other.To {
					if earlier.File == "" || earlier.File == list.File {
						continue
					}
					both := list.Prefixes.Common(earlier.Prefixes)
					if n := both.Len(); n > 0 {
						at.bad(fmt.Sprintf("%s of this list %s in %s of uplink %s as well (%s), first %s",
							plural(n, "prefix", "prefixes"), isAre(n), earlier.File, other.Name, earlier.Pos, both.At(0)),
							oneUplink+": take it out of one of the two")
					}
				}
			}
		}
	}
}

// listed complains about an inline prefix that is in the list of another uplink.
func (b *builder) listed(c *Config, uplink int, inline PrefixList, at *node) {
	for i, other := range c.Uplinks {
		if i == uplink {
			continue
		}
		for _, list := range other.To {
			if list.File == "" {
				continue
			}
			if both := inline.Prefixes.Common(list.Prefixes); both.Len() > 0 {
				at.bad(fmt.Sprintf("%s is in %s of uplink %s as well (%s)", both.At(0), list.File, other.Name, list.Pos), oneUplink)
			}
		}
	}
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
