package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// flapped is the work of the rows about a link that goes and comes.
const flapped = "link up to all addresses, routes and rules, ten uplinks with 100 addresses each"

// flapAddresses are on each uplink.
const flapAddresses = 100

// flapLink is the one that goes and comes.
const flapLink = "em3"

// flap sets one of ten uplinks down and up, on a host that sisod keeps and on one
// that systemd-networkd keeps, in turns. Whatever of IPv4 was there before and
// has gone has to be back: addresses, routes and rules.
func (b *bench) flap() error {
	return b.onManyUplinks(tenUplinks, flapAddresses, func(one *many) error {
		return b.onManyUplinks(tenUplinks, flapAddresses, func(other *many) error {
			if err := one.addAddresses(); err != nil {
				return err
			}
			if err := configure(one.host, one.profile()); err != nil {
				return err
			}
			d, _, err := b.startDaemon(one.host)
			if err != nil {
				return err
			}
			defer d.stop()
			n, err := other.startNetworkd()
			if err != nil {
				return err
			}
			defer n.stop()
			for run := range b.runs {
				b.log.Printf("link flap, run %d of %d", run+1, b.runs)
				if err := one.flapOnce(ours, d); err != nil {
					return fmt.Errorf("sisod: %w\n%s", err, d.log)
				}
				if err := other.flapOnce(networkdIs, n); err != nil {
					return fmt.Errorf("networkd: %w\n%s", err, n.log)
				}
			}
			return nil
		})
	})
}

// flapOnce sets the link down, waits until nobody works any more, and sets it up.
func (m *many) flapOnce(program string, d *daemon) error {
	if err := m.settle(d.Pid()); err != nil {
		return err
	}
	before, err := m.standing()
	if err != nil {
		return err
	}
	if err := m.host.Down(flapLink); err != nil {
		return err
	}
	if err := m.settle(d.Pid()); err != nil {
		return err
	}
	after, err := m.standing()
	if err != nil {
		return err
	}
	missing := map[string]bool{}
	for o := range before {
		if !after[o] {
			missing[o] = true
		}
	}
	if len(missing) == 0 {
		return errors.New("nothing went with the link")
	}
	w, err := listen(m.host, nil)
	if err != nil {
		return err
	}
	defer w.close()
	start := time.Now()
	if err := m.host.Up(flapLink); err != nil {
		return err
	}
	at, err := w.until(time.Minute, func(n notice) bool {
		if o, come, ok := object(n); ok && come {
			delete(missing, o)
		} else if ok && before[o] {
			missing[o] = true
		}
		return len(missing) == 0
	})
	if err != nil {
		return fmt.Errorf("set the link up: %w: %d objects are missing", err, len(missing))
	}
	m.took(key{flapped, flapAddresses, m.where, program}, at.Sub(start))
	if err := m.settle(d.Pid()); err != nil {
		return err
	}
	again, err := m.standing()
	if err != nil {
		return err
	}
	for o := range before {
		if !again[o] {
			return errors.New("set the link up: not all that was there is there again")
		}
	}
	return nil
}

// standing is all addresses, routes and rules of IPv4 that a host has.
func (m *many) standing() (map[string]bool, error) {
	all := map[string]bool{}
	err := routeSocket(m.host, func(socket rawSocket) error {
		for _, kind := range []uint16{unix.RTM_GETADDR, unix.RTM_GETROUTE, unix.RTM_GETRULE} {
			notices, err := socket.dump(kind, append([]byte{unix.AF_INET}, make([]byte, unix.SizeofRtMsg-1)...))
			if err != nil {
				return err
			}
			for _, n := range notices {
				if o, _, ok := object(n); ok {
					all[o] = true
				}
			}
		}
		return nil
	})
	return all, err
}

// object tells one address, route or rule of IPv4 from all others, and whether a
// message says that it is there. What changes with a link's state does not
// count, nor does which of several addresses the kernel's own routes prefer.
func object(n notice) (o string, come, ok bool) {
	if len(n.body) < unix.SizeofIfAddrmsg || n.body[0] != unix.AF_INET {
		return "", false, false
	}
	var key strings.Builder
	var rest []byte
	var without []uint16
	switch n.kind {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		fmt.Fprintf(&key, "address %x", n.body[4:8])
		rest, without = n.body[unix.SizeofIfAddrmsg:], []uint16{unix.IFA_CACHEINFO, unix.IFA_FLAGS}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		fmt.Fprintf(&key, "route %x", n.body[:8])
		rest = n.body[unix.SizeofRtMsg:]
		if n.body[5] == unix.RTPROT_KERNEL {
			without = []uint16{unix.RTA_PREFSRC}
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		fmt.Fprintf(&key, "rule %x", n.body[:unix.SizeofRtMsg])
		rest = n.body[unix.SizeofRtMsg:]
	default:
		return "", false, false
	}
	for kind, value := range attributes(rest) {
		if !slices.Contains(without, kind) {
			fmt.Fprintf(&key, " %d=%x", kind, value)
		}
	}
	return key.String(), n.kind == unix.RTM_NEWADDR || n.kind == unix.RTM_NEWROUTE || n.kind == unix.RTM_NEWRULE, true
}

// startNetworkd starts systemd-networkd with the same addresses, and for each the
// rule and table that sisod would make, and waits until they are there.
func (m *many) startNetworkd() (*daemon, error) {
	const folder = "/run/systemd/network"
	err := m.host.Do(func() error {
		// Where it is read-only, networkd expects no udev.
		if err := unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("mount /sys read-only: %w", err)
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for i := range m.uplinks {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("em%d.network", i)), []byte(m.network(i)), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	d := &daemon{log: &lab.Lines{}}
	cmd := exec.Command(networkd)
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_TARGET=console")
	cmd.Stdout, cmd.Stderr = io.Discard, d.log
	if d.Process, err = m.host.Start(cmd); err != nil {
		return nil, err
	}
	for range 240 {
		if err := m.pause(250 * time.Millisecond); err != nil {
			break
		}
		rules, _ := m.lines(m.host, "-4", "rule")
		ways, _ := m.lines(m.host, "-4", "route", "show", "table", "all", "proto", "static", "default")
		if rules >= m.uplinks*m.addresses && ways >= m.uplinks {
			return d, nil
		}
	}
	d.stop()
	return nil, fmt.Errorf("start networkd: its rules and routes do not come:\n%s", d.log)
}

// network is the configuration of one uplink.
func (m *many) network(i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Match]\nName=em%d\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n", i)
	for _, a := range m.addressesOf(i) {
		fmt.Fprintf(&b, "Address=%s\n", a)
	}
	fmt.Fprintf(&b, "[Route]\nGateway=10.%[1]d.0.1\nTable=%[2]d\n[Route]\nDestination=10.%[1]d.0.0/16\nScope=link\nTable=%[2]d\n", i, 100+i)
	for _, a := range m.addressesOf(i) {
		fmt.Fprintf(&b, "[RoutingPolicyRule]\nFrom=%s\nTable=%d\nPriority=1000\n", a.Addr(), 100+i)
	}
	return b.String()
}

// addressesOf are those of one uplink, the lab's own first.
func (m *many) addressesOf(i int) []netip.Prefix {
	var list []netip.Prefix
	for k := range m.addresses {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, byte(2 + k)}), 16))
	}
	return list
}

// addAddresses adds those that the lab has not.
func (m *many) addAddresses() error {
	for i := range m.uplinks {
		file := filepath.Join(m.dir, "addresses")
		if err := writeLines(file, m.addressesOf(i)[1:], fmt.Sprintf("address add %%s dev em%d", i)); err != nil {
			return err
		}
		if _, err := m.must(m.host, "ip", "-batch", file); err != nil {
			return err
		}
	}
	return nil
}
