package kernel

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// forwardSwitch is a sysctl that sets another one to its opposite when it is
// written (net/ipv4/devinet.c, inet_forward_change).
const (
	forwardSwitch   = "net/ipv4/ip_forward"
	forwardSwitched = "net/ipv4/conf/all/accept_redirects"
)

// forwardSwitches are sysctls that write their value into every interface's own
// forwarding, and into that of interfaces to come (inet_forward_change;
// net/ipv6/addrconf.c, addrconf_forward_change).
var forwardSwitches = map[string]string{
	forwardSwitch:                  "net/ipv4/conf/",
	"net/ipv6/conf/all/forwarding": "net/ipv6/conf/",
}

// alongEntry is a value that the kernel overwrote along with a switch, and that
// was not the switch's own before.
type alongEntry struct {
	sysctlPlace
	Switch string `json:"switch"` // path
	Found  string `json:"found"`
}

// forwarding reads what a switch overwrites.
func (h *Host) forwarding(path string) map[sysctlPlace]string {
	under, ok := forwardSwitches[path]
	if !ok {
		return nil
	}
	names := []string{"default"}
	for _, l := range h.links.all() {
		names = append(names, l.Name)
	}
	values := map[sysctlPlace]string{}
	for _, name := range names {
		own := under + name + "/forwarding"
		value, err := readSysctl(own)
		if err != nil {
			continue // it does not have the family
		}
		if place, err := h.links.place(own); err == nil {
			values[place] = value
		}
	}
	return values
}

// noteAlong records what a switch that is about to be written overwrites. It is
// called before noteSysctl: what sisod itself has overwritten was noted then.
func (h *Host) noteAlong(path, found string) {
	g := h.ledger
	if i := g.sysctlAt(sysctlPlace{Path: path}); i >= 0 && g.page.Sysctls[i].owns(found) {
		return
	}
	g.forgetAlong(path)
	for place, value := range h.forwarding(path) {
		if i := g.sysctlAt(place); i >= 0 && g.page.Sysctls[i].owns(value) {
			value = g.page.Sysctls[i].Found // a killed process was about to give it back
			g.forgetSysctl(place)
		}
		if value != found {
			g.page.Along = append(g.page.Along, alongEntry{place, path, value})
			g.dirty = true
		}
	}
	slices.SortFunc(g.page.Along, func(a, b alongEntry) int { return cmp.Or(strings.Compare(a.Path, b.Path), a.Link-b.Link) })
}

// giveBackAlong tells what to write after a switch is given back, whose value is
// now and will be next: what was found, and what somebody else has set since.
// Until that is done the ledger has it as values of sisod's.
func (h *Host) giveBackAlong(path, now, next string) (after []state.Sysctl) {
	found := map[sysctlPlace]string{}
	for _, e := range h.ledger.page.Along {
		if e.Switch == path {
			found[e.sysctlPlace] = e.Found
		}
	}
	for place, value := range h.forwarding(path) {
		if was, differed := found[place]; differed && value == now {
			value = was
		} else if value == now {
			continue
		}
		if value == next {
			continue
		}
		h.ledger.forgetSysctl(place)
		h.ledger.page.Sysctls = append(h.ledger.page.Sysctls, sysctlEntry{sysctlPlace: place, Found: value, Set: next})
		h.ledger.dirty = true
		after = append(after, state.Sysctl{Path: h.links.path(place), Value: value})
	}
	return after
}

// restoreSysctl writes a value as it was found, without what the kernel changes
// along. A host that obeyed no redirects before it forwarded must obey none
// after, and an interface that forwarded by itself must go on.
func (h *Host) restoreSysctl(s state.Sysctl, after []state.Sysctl) error {
	if s.Path != forwardSwitch {
		return errors.Join(writeSysctl(s.Path, s.Value), h.restoreAlong(s.Path, after))
	}
	redirects, err := readSysctl(forwardSwitched)
	if err != nil {
		return err
	}
	turned := "1"
	if s.Value != "0" {
		turned = "0"
	}
	place := sysctlPlace{Path: forwardSwitched}
	known := h.ledger.sysctlAt(place) >= 0
	if redirects != turned {
		// The ledger has it until it is put back, should this process be killed.
		h.ledger.noteSysctl(place, redirects, turned)
		if err := h.ledger.save(); err != nil {
			return err
		}
	}
	if err := errors.Join(writeSysctl(s.Path, s.Value), writeSysctl(forwardSwitched, redirects), h.restoreAlong(s.Path, after)); err != nil {
		return err
	}
	switch {
	case redirects == turned:
	case known:
		h.ledger.noteSysctl(place, turned, redirects)
	default:
		h.ledger.forgetSysctl(place)
	}
	return nil
}

func (h *Host) restoreAlong(path string, after []state.Sysctl) error {
	var errs []error
	for _, s := range after {
		err := writeSysctl(s.Path, s.Value)
		if errors.Is(err, unix.ENOENT) {
			err = nil // gone with its link
		}
		if err == nil {
			if place, err := h.links.place(s.Path); err == nil {
				h.ledger.forgetSysctl(place)
			}
		}
		errs = append(errs, err)
	}
	h.ledger.forgetAlong(path)
	return errors.Join(errs...)
}

func (g *ledger) forgetAlong(path string) {
	before := len(g.page.Along)
	g.page.Along = slices.DeleteFunc(g.page.Along, func(e alongEntry) bool { return e.Switch == path })
	g.dirty = g.dirty || len(g.page.Along) < before
}
