package lvs

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// drainInterval is how often a draining destination is looked at.
const drainInterval = time.Second

// limit is how long a removed destination keeps its connections: as the
// director of its service says, or said when it was last there.
func (b *builder) limit(key state.ServiceKey) time.Duration {
	if limit, known := b.limits[key]; known {
		return limit
	}
	if limit, known := b.facts.IPVS.Limits[key]; known {
		return limit
	}
	return profiles.DefaultDrain
}

// rememberLimits keeps the limits for when no profile tells them any more.
func (b *builder) rememberLimits() {
	for key, limit := range b.limits {
		if limit != profiles.DefaultDrain {
			b.Limits[key] = limit
		}
	}
	for key, limit := range b.facts.IPVS.Limits {
		_, wanted := b.limits[key]
		if _, there := b.observed.Services[key]; there && !wanted {
			b.Limits[key] = limit
		}
	}
}

// drain keeps destinations that were removed from the profiles until their
// connections are over: at weight 0 they take no new ones. Deleting them at
// once would cut those that they have, and among the inactive ones are those of
// clients that have said all and wait for the answer.
func (b *builder) drain() {
	if b.facts.IPVS.Missing != "" {
		return
	}
	var removed []state.Destination
	for key, have := range b.observed.Destinations {
		if _, wanted := b.Destinations[key]; !wanted {
			removed = append(removed, have)
		}
	}
	slices.SortFunc(removed, func(x, y state.Destination) int { return strings.Compare(x.String(), y.String()) })
	deputies := map[state.ServiceKey]string{}
	var translated []state.ServiceKey // that are no longer wanted
	for _, have := range removed {
		key := have.DestinationKey
		_, wanted := b.limits[key.Service]
		since, begun := b.facts.IPVS.Draining[key]
		since = b.sinceOrNow(since)
		count := b.facts.IPVS.Connections[key]
		end := since.Add(b.limit(key.Service))
		left := end.Sub(b.facts.Now)
		idle := count.Active == 0 && count.Inactive <= count.Closed
		over := left <= 0 || begun && idle
		deputy := ""
		if wanted && (begun || !over) {
			if _, passed := deputies[key.Service]; !passed {
				deputies[key.Service] = b.passOver(key.Service)
			}
			deputy = deputies[key.Service]
		}
		if over {
			if deputy != "" {
				b.later(drainInterval) // it goes after the real server
			}
			continue
		}
		have.Weight = 0
		b.Destinations[key] = have
		b.Draining[key] = since
		if _, there := b.Services[key.Service]; !there {
			b.Services[key.Service] = b.observed.Services[key.Service]
		}
		b.keepFor(key.Service.Addr)
		if !wanted && !slices.Contains(translated, key.Service) {
			translated = append(translated, key.Service)
		}
		b.later(min(left, drainInterval))
		if begun {
			b.Problems = append(b.Problems, state.Problem{
				Subject: "service " + key.Service.Option(),
				// How many and how long would be another problem every second; status
				// shows the connections.
				Text: fmt.Sprintf("real server %s was removed and drains: it goes with its last connection, or at %s%s",
					netip.AddrPortFrom(key.Addr, key.Port), end.UTC().Format(time.RFC3339), deputy),
			})
		}
	}
	b.keepTranslating(translated)
}

// keepMarked keeps the VIPs of services by mark that were removed: as long as
// anything of the service drains, or, of a service that stays and whose
// connections nobody counts by VIP, for as long as its real servers may drain.
func (b *builder) keepMarked() {
	for _, m := range slices.SortedFunc(maps.Keys(b.facts.IPVS.MarkedVIPs), func(x, y state.MarkedVIP) int {
		return cmp.Or(cmp.Compare(x.Mark, y.Mark), x.Addr.Compare(y.Addr))
	}) {
		key, since := m.Service(), b.facts.IPVS.MarkedVIPs[m]
		_, asked := b.MarkedVIPs[m]
		if _, there := b.Services[key]; asked || !there {
			continue
		}
		begun := !since.IsZero()
		since = b.sinceOrNow(since)
		_, wanted := b.limits[key]
		end := since.Add(b.limit(key))
		if wanted && !end.After(b.facts.Now) || !b.keepFor(m.Addr) {
			continue
		}
		b.MarkedVIPs[m] = since
		if wanted {
			b.later(end.Sub(b.facts.Now))
		}
		if wanted && begun {
			b.Problems = append(b.Problems, state.Problem{
				Subject: "service " + key.Option(),
				Text:    fmt.Sprintf("VIP %s was removed and stays for the connections that it has: it goes at %s", m.Addr, end.UTC().Format(time.RFC3339)),
			})
		}
	}
}

// reserve keeps real servers that profiles give the weight 0 from getting new
// connections, also by a hash, and those that are to have another one again until
// they have it: schedulers are changed before weights.
func (b *builder) reserve() {
	for key, d := range b.Destinations {
		if d.Weight == 0 {
			b.passOver(key.Service)
		}
	}
	for key, have := range b.observed.Destinations {
		if have.Weight == 0 && b.Destinations[key].Weight > 0 && b.passOver(key.Service) != "" {
			b.later(drainInterval) // the profile's own scheduler comes back after the weight
		}
	}
}

// passOver has a service's scheduler give nothing to a real server of weight 0,
// and tells what that takes. Hashes go on choosing one of weight 0 for its share
// of clients, who are then refused: sh unless it may fall back
// (net/netfilter/ipvs/ip_vs_sh.c), and dh in any case (ip_vs_dh.c). lblc keeps
// together what is for one address too, and heeds weights.
func (b *builder) passOver(key state.ServiceKey) (deputy string) {
	s := b.Services[key]
	switch {
	case s.Scheduler == "sh" && s.Flags&state.ServiceSched1 == 0:
		s.Flags |= state.ServiceSched1
		deputy = "; until then sh falls back to others"
		b.Deputies[key] = "sh falls back to others: a real server is to get no new connections"
	case s.Scheduler == "dh":
		s.Scheduler = "lblc"
		deputy = "; until then lblc stands in for dh, which would go on choosing it"
		b.Deputies[key] = "lblc stands in for dh: a real server is to get no new connections"
	}
	b.Services[key] = s
	return deputy
}

// keepFor keeps what the connections of a draining service stand on: its VIP,
// the way of its replies, and the sysctls of its mode. It tells whether the VIP
// or its way is kept.
func (b *builder) keepFor(vip netip.Addr) (kept bool) {
	placed := slices.ContainsFunc(slices.Collect(maps.Keys(b.VIPs)), func(v state.VIP) bool { return v.Addr == vip })
	for v := range b.observed.VIPs {
		if v.Addr == vip && !placed {
			b.VIPs[v], kept = true, true
		}
	}
	if vip.IsValid() && !slices.Contains(b.config.VIPs(), vip) {
		for r := range b.observed.Rules {
			if r.From == netip.PrefixFrom(vip, vip.BitLen()) && b.active(r.Table, r.Family) {
				b.fromVIP(vip, r.Table, b.Origins[r])
				kept = true
			}
		}
	}
	for path := range b.observed.Before.Sysctls {
		now, there := b.observed.Sysctls[path]
		if _, wanted := b.Sysctls[path]; !wanted && there && directs(path) {
			b.Sysctls[path] = now
		}
	}
	return kept
}

// directs reports whether a sysctl is one of those that directors need.
func directs(path string) bool {
	switch name := path[strings.LastIndexByte(path, '/')+1:]; name {
	case "ip_forward", "forwarding", "accept_ra", "send_redirects", "accept_redirects":
		return true
	}
	return strings.HasPrefix(path, vsParameters)
}
