package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/profiles"
)

// notice is one message of the kernel, and when it was received.
type notice struct {
	at   time.Time
	kind uint16
	body []byte
}

// listen hands out what the kernel tells of links, addresses, routes and rules
// of a host.
func listen(b *testing.B, h *lab.Host) <-chan notice {
	b.Helper()
	var file *os.File
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "witness")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		groups := uint32(0)
		for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE} {
			groups |= 1 << (g - 1)
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	notices := make(chan notice, 1<<16)
	go func() {
		defer close(notices)
		buffer := make([]byte, 1<<16)
		for {
			n, err := file.Read(buffer)
			now := time.Now()
			if err != nil {
				return
			}
			messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buffer[:n]))
			if err != nil {
				return
			}
			for _, m := range messages {
				notices <- notice{now, m.Header.Type, m.Data}
			}
		}
	}()
	return notices
}

// stretch makes a change and returns the time from the first notice of it to
// the notice of what has to follow.
func stretch(b *testing.B, notices <-chan notice, change func(), begins func(notice) bool, follows func(first, n notice) bool) time.Duration {
	b.Helper()
	for len(notices) > 0 {
		<-notices
	}
	change()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	var first notice
	for {
		select {
		case n := <-notices:
			switch {
			case first.body == nil && begins(n):
				first = n
			case first.body != nil && follows(first, n):
				return n.at.Sub(first.at)
			}
		case <-deadline.C:
			b.Fatal("the daemon did not react")
		}
	}
}

// attribute finds an attribute of a message behind a header of the given length.
func attribute(body []byte, header int, kind uint16) []byte {
	for rest := body[header:]; len(rest) >= 4; {
		length := int(rest[0]) | int(rest[1])<<8
		if length < 4 || length > len(rest) {
			return nil
		}
		if uint16(rest[2])|uint16(rest[3])<<8 == kind {
			return rest[4:length]
		}
		rest = rest[min((length+3)&^3, len(rest)):]
	}
	return nil
}

// reactions makes events on a host and measures what the daemon makes of them.
type reactions struct {
	*testing.B
	host    *lab.Host
	notices <-chan notice
	random  *rand.Rand
	// added are addresses of newAddress that are still there.
	added []addedAddress
	// serial, rules and routes count what was made and undone.
	serial, rules, routes int
}

type addedAddress struct {
	netip.Prefix
	link string
}

// idle lets a time pass in which nothing happens: events that follow each
// other closely are gathered, and that is another measurement.
func (r *reactions) idle(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// ruleMessage matches a message about the rule for an address.
func ruleMessage(kind uint16, a netip.Addr) func(_, n notice) bool {
	return func(_, n notice) bool {
		return n.kind == kind && bytes.Equal(attribute(n.body, unix.SizeofRtMsg, unix.FRA_SRC), a.AsSlice())
	}
}

// addressMessage matches a message about an address.
func addressMessage(kind uint16, a netip.Addr) func(notice) bool {
	return func(n notice) bool {
		return n.kind == kind && bytes.Equal(attribute(n.body, unix.SizeofIfAddrmsg, unix.IFA_ADDRESS), a.AsSlice())
	}
}

// newAddress: from RTM_NEWADDR to the source rule, which is written after the routes.
func (r *reactions) newAddress() time.Duration {
	r.serial++
	i := r.random.IntN(benchUplinks)
	a := addedAddress{link: fmt.Sprintf("em%d", i), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(100 + r.serial>>8), byte(r.serial)}), 16)}
	if r.random.IntN(2) == 0 {
		a.Prefix = netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1:%x/64", i, r.serial))
	}
	r.added = append(r.added, a)
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "address", "add", a.String(), "dev", a.link) },
		addressMessage(unix.RTM_NEWADDR, a.Addr()), ruleMessage(unix.RTM_NEWRULE, a.Addr()))
}

// oldAddress: from RTM_DELADDR to the end of the source rule. Many addresses
// would become one rule.
func (r *reactions) oldAddress() time.Duration {
	if len(r.added) == 0 {
		return r.newAddress()
	}
	a := r.added[0]
	r.added = r.added[1:]
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "address", "del", a.String(), "dev", a.link) },
		addressMessage(unix.RTM_DELADDR, a.Addr()), ruleMessage(unix.RTM_DELRULE, a.Addr()))
}

// linkUp: from RTM_NEWLINK with the carrier to the last route of IPv4, which
// went with the link.
func (r *reactions) linkUp() time.Duration {
	i := r.random.IntN(benchUplinks)
	link, table := fmt.Sprintf("em%d", i), uint32(profiles.DefaultSettings.Table)+uint32(i)
	ip(r, r.host, "link", "set", link, "down")
	wait(r, func() error {
		if strings.Contains(ip(r, r.host, "route", "show", "table", strconv.Itoa(int(table))), "default via") {
			return errors.New("the default is there without its link")
		}
		return nil
	})
	r.idle(100 * time.Millisecond)
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "link", "set", link, "up") },
		func(n notice) bool {
			return n.kind == unix.RTM_NEWLINK && string(bytes.TrimRight(attribute(n.body, unix.SizeofIfInfomsg, unix.IFLA_IFNAME), "\x00")) == link &&
				n.body[8]&unix.IFF_UP != 0 && n.body[10]&(unix.IFF_LOWER_UP>>16) != 0
		},
		func(_, n notice) bool {
			return n.kind == unix.RTM_NEWROUTE && n.body[0] == unix.AF_INET && n.body[1] == 0 &&
				bytes.Equal(attribute(n.body, unix.SizeofRtMsg, unix.RTA_TABLE), []byte{byte(table), byte(table >> 8), 0, 0})
		})
}

// ruleDeleted: from RTM_DELRULE to the same rule.
func (r *reactions) ruleDeleted() time.Duration {
	r.rules++
	rules := strings.Split(strings.TrimSpace(ownRules(r, r.host, "-4")), "\n")
	// One after the other: what is undone too often is repaired more slowly.
	priority, selector, _ := strings.Cut(rules[r.rules%len(rules)], ":")
	return stretch(r.B, r.notices,
		func() {
			ip(r, r.host, append([]string{"rule", "del", "priority", priority}, strings.Fields(strings.Replace(selector, " proto ", " protocol ", 1))...)...)
		},
		func(n notice) bool { return n.kind == unix.RTM_DELRULE },
		func(first, n notice) bool { return n.kind == unix.RTM_NEWRULE && bytes.Equal(n.body, first.body) })
}

// routeDeleted: from RTM_DELROUTE to the same route.
func (r *reactions) routeDeleted() time.Duration {
	r.routes++
	i := r.routes % benchUplinks
	table := strconv.Itoa(int(profiles.DefaultSettings.Table) + i)
	dst := []string{"default", fmt.Sprintf("10.%d.0.0/16", i)}[r.routes/benchUplinks%2]
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "route", "del", dst, "table", table, "metric", "0") },
		func(n notice) bool { return n.kind == unix.RTM_DELROUTE },
		func(first, n notice) bool { return n.kind == unix.RTM_NEWROUTE && bytes.Equal(n.body, first.body) })
}
