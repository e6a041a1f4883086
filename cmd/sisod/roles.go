package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
)

// roleStatus is one [real_server.NAME], [director.NAME] or [tproxy.NAME].
type roleStatus struct {
	// Name is "" for what is left of directors and services that were removed from
	// the profiles, and drains.
	Name      string          `json:"name"`
	Role      string          `json:"role"` // "real server", "director" or "tproxy"
	Mode      string          `json:"mode,omitempty"`
	VIPs      []vipStatus     `json:"vips"`
	Directors []netip.Addr    `json:"directors,omitempty"` // of a real server
	Services  []serviceStatus `json:"services,omitempty"`  // of a director
	Captures  *captureStatus  `json:"captures,omitempty"`  // of a tproxy
	// Capacity is that of a fullnat director, or of a tproxy with TCP.
	Capacity *capacityStatus `json:"capacity,omitempty"`
}

// vipStatus is one VIP of a role.
type vipStatus struct {
	Address netip.Addr `json:"address"`
	// Link is where it is, "" when it is not on this host.
	Link string `json:"link,omitempty"`
}

// serviceStatus is one IPVS service, as the kernel has it.
type serviceStatus struct {
	Service   string `json:"service"` // as ipvsadm names it
	Scheduler string `json:"scheduler"`
	// Options are the scheduler and all else of the service as ipvsadm spells it.
	Options string `json:"options"`
	// Deputy is why these are not the profile's.
	Deputy       string              `json:"deputy,omitempty"`
	Present      bool                `json:"present"`
	Destinations []destinationStatus `json:"destinations"`
	Traffic      state.Traffic       `json:"traffic"`
}

// destinationStatus is one real server of a service.
type destinationStatus struct {
	Address  netip.AddrPort `json:"address"`
	Weight   int            `json:"weight"`
	Present  bool           `json:"present"`
	Draining bool           `json:"draining,omitempty"`
	Active   uint32         `json:"active_connections"`
	Inactive uint32         `json:"inactive_connections"`
	// Persistent counts the clients that persistence leads here.
	Persistent uint32        `json:"persistent_connections"`
	Traffic    state.Traffic `json:"traffic"`
}

// words are those that stand below each other.
func (d destinationStatus) words() [3]string {
	return [3]string{d.Address.String(), strconv.Itoa(d.Weight), strconv.FormatUint(uint64(d.Active), 10)}
}

// roles tells how the roles of the profiles stand in the kernel.
func roles(c *profiles.Config, pass daemon.Pass, traffic kernel.Traffic) []roleStatus {
	list := []roleStatus{}
	for _, r := range c.RealServers {
		one := roleStatus{Name: r.Name, Role: "real server", Mode: string(r.Mode), VIPs: vips(r.VIPs, pass)}
		for _, d := range r.Directors {
			one.Directors = append(one.Directors, d.Value)
		}
		list = append(list, one)
	}
	shown := map[state.ServiceKey]bool{}
	dests := map[state.ServiceKey][]state.Destination{}
	for key, d := range pass.Desired.Destinations {
		dests[key.Service] = append(dests[key.Service], d)
	}
	for _, d := range c.Directors {
		one := roleStatus{Name: d.Name, Role: "director", Mode: string(d.Mode), VIPs: vips(d.VIPs, pass)}
		keys := lvs.ServicesOf(&d)
		slices.SortFunc(keys, compareServices)
		for _, key := range keys {
			if _, is := pass.Desired.Services[key]; is {
				one.Services = append(one.Services, service(key, dests[key], pass, traffic))
				shown[key] = true
			}
		}
		if d.Mode == profiles.FullNAT {
			all := lvs.CapacityOf(&d, c, pass.Desired.State, pass.Facts)
			one.Capacity = &capacityStatus{Tuples: int(all.Tuples), InUse: int(all.InUse), Percent: int(all.Fullest * 100), Rate: int(all.Rate), text: all.String()}
		}
		list = append(list, one)
	}
	removed := roleStatus{Role: "director", VIPs: []vipStatus{}}
	for _, key := range slices.SortedFunc(maps.Keys(pass.Desired.Services), compareServices) {
		if !shown[key] {
			removed.Services = append(removed.Services, service(key, dests[key], pass, traffic))
		}
	}
	if len(removed.Services) > 0 {
		list = append(list, removed)
	}
	return append(list, proxies(c, pass)...)
}

func compareServices(a, b state.ServiceKey) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Option(), b.Option()))
}

func vips(asked []profiles.At[netip.Addr], pass daemon.Pass) []vipStatus {
	list := []vipStatus{}
	for _, v := range asked {
		one := vipStatus{Address: v.Value}
		for _, a := range pass.Facts.Addresses {
			if a.Prefix.Addr() == v.Value {
				one.Link = a.Link
			}
		}
		list = append(list, one)
	}
	return list
}

// options is what ipvsadm writes after the name of a service.
func options(s state.Service) string {
	return strings.TrimPrefix(s.String(), s.Option()+" ")
}

func service(key state.ServiceKey, dests []state.Destination, pass daemon.Pass, traffic kernel.Traffic) serviceStatus {
	have, present := pass.Observed.Services[key]
	if !present {
		have = pass.Desired.Services[key]
	}
	s := serviceStatus{Service: key.Option(), Scheduler: have.Scheduler, Options: options(have), Deputy: pass.Desired.Deputies[key], Present: present, Destinations: []destinationStatus{}, Traffic: traffic.Services[key]}
	for _, want := range dests {
		dest := want.DestinationKey
		have, present := pass.Observed.Destinations[dest]
		if !present {
			have = want
		}
		_, draining := pass.Desired.Draining[dest]
		count := pass.Facts.IPVS.Connections[dest]
		s.Destinations = append(s.Destinations, destinationStatus{
			Address: netip.AddrPortFrom(dest.Addr, dest.Port), Weight: have.Weight, Present: present, Draining: draining,
			Active: count.Active, Inactive: count.Inactive, Persistent: count.Persistent, Traffic: traffic.Destinations[dest],
		})
	}
	slices.SortFunc(s.Destinations, func(a, b destinationStatus) int { return a.Address.Compare(b.Address) })
	return s
}

// roleLines is what a person reads of the roles.
func roleLines(pal palette, list []roleStatus) []string {
	var lines []string
	for _, r := range list {
		line := fmt.Sprintf("%s %s, %s", r.Role, pal.bold(r.Name), r.Mode)
		if r.Name == "" {
			line = pal.warn("removed from the profiles")
		}
		for _, v := range r.VIPs {
			where := pal.warn("not on this host")
			if v.Link != "" {
				where = "on " + v.Link
			}
			line += fmt.Sprintf(", %s %s", v.Address, where)
		}
		for i, d := range r.Directors {
			line += map[bool]string{true: ", director ", false: " "}[i == 0] + d.String()
		}
		if r.Captures != nil {
			line = r.line(pal)
		}
		lines = append(lines, line)
		if r.Capacity != nil {
			lines = append(lines, r.Capacity.lines(pal)...)
		}
		width := [3]int{}
		for _, s := range r.Services {
			for _, d := range s.Destinations {
				for i, word := range d.words() {
					width[i] = max(width[i], len(word))
				}
			}
		}
		for _, s := range r.Services {
			lines = append(lines, "  "+presence(pal, s.Present, false, s.Service+" "+s.Options))
			if s.Deputy != "" {
				lines = append(lines, "    "+s.Deputy)
			}
			if text := trafficText(s.Traffic); text != "" {
				lines = append(lines, "    in all"+text)
			}
			for _, d := range s.Destinations {
				w := d.words()
				text := fmt.Sprintf("%-*s  weight %-*s  %*s active  %d inactive", width[0], w[0], width[1], w[1], width[2], w[2], d.Inactive)
				if d.Persistent > 0 {
					text += fmt.Sprintf("  %d persistent", d.Persistent)
				}
				text += trafficText(d.Traffic)
				lines = append(lines, "    "+presence(pal, d.Present, d.Draining, text))
			}
			if len(s.Destinations) == 0 {
				lines = append(lines, "    "+pal.warn("no real server"))
			}
		}
	}
	return lines
}

// trafficText is what was balanced so far and, in brackets, in a second of late;
// "" when it is nothing.
func trafficText(t state.Traffic) string {
	text := ""
	for _, c := range []struct {
		total, now uint64
		spell      func(uint64) string
		noun       string
	}{
		{t.Total.Connections, t.PerSecond.Connections, decimal, " connections"},
		{t.Total.BytesIn, t.PerSecond.BytesIn, bytesText, " in"},
		{t.Total.BytesOut, t.PerSecond.BytesOut, bytesText, " out"},
	} {
		if c.total == 0 {
			continue
		}
		text += "  " + c.spell(c.total) + c.noun
		if c.now > 0 {
			text += " (" + c.spell(c.now) + "/s)"
		}
	}
	return text
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

// bytesText is a number of bytes in three digits, with a decimal prefix.
func bytesText(n uint64) string {
	if n < 1000 {
		return decimal(n) + " B"
	}
	f, prefix := float64(n)/1000, 0
	for ; f >= 999.5; prefix++ {
		f /= 1000
	}
	digits := 0
	switch {
	case f < 9.995:
		digits = 2
	case f < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, f, "kMGTPE"[prefix])
}

func presence(pal palette, present, draining bool, text string) string {
	text = strings.TrimRight(text, " ")
	switch {
	case !present:
		return text + "  " + pal.bad("not in the kernel")
	case draining:
		return text + "  " + pal.warn("draining")
	}
	return text
}
