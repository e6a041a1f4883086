package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Commands and attributes of the generic netlink family IPVS, of linux/ip_vs.h.
const (
	ipvsNewService = 1
	ipvsNewDest    = 5
	ipvsGetDest    = 8

	ipvsService = 1 // attributes of a command
	ipvsDest    = 2

	serviceFamily, serviceProtocol, serviceAddress, servicePort = 1, 2, 3, 4
	serviceScheduler, serviceFlags, serviceTimeout, serviceMask = 6, 7, 8, 9

	destAddress, destPort, destForward, destWeight, destUpper, destLower, destFamily = 1, 2, 3, 4, 5, 6, 11

	forwardDirect = 3
)

// perSendIPVS is how many commands the floor gives the kernel at once.
const perSendIPVS = 64

// ipvs is a socket of the family.
type ipvs struct {
	socket rawSocket
	family uint16
}

// onIPVS runs f on a host with such a socket.
func (b *bench) onIPVS(h *lab.Host, f func(*ipvs) error) error {
	return onRaw(h, unix.NETLINK_GENERIC, func(socket rawSocket) error {
		answers, err := socket.ask(unix.GENL_ID_CTRL, unix.NLM_F_ACK, []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}, func(e *encoder) {
			e.attribute(unix.CTRL_ATTR_FAMILY_NAME, []byte("IPVS\x00"))
		})
		if err != nil {
			return fmt.Errorf("find IPVS: %w", err)
		}
		for _, a := range answers {
			if id := attribute(a.body, unix.GENL_HDRLEN, unix.CTRL_ATTR_FAMILY_ID); len(id) == 2 {
				return f(&ipvs{socket, binary.NativeEndian.Uint16(id)})
			}
		}
		return fmt.Errorf("find IPVS: the kernel does not tell its number")
	})
}

// all encodes services and their real servers.
func (i *ipvs) all(n int) []batch {
	e := &encoder{perSend: perSendIPVS}
	for s := range n {
		i.begin(e, ipvsNewService)
		e.nested(ipvsService, func() { i.service(e, s, true) })
		e.end()
		for k := range realServers {
			i.begin(e, ipvsNewDest)
			e.nested(ipvsService, func() { i.service(e, s, false) })
			e.nested(ipvsDest, func() { i.dest(e, s, k) })
			e.end()
		}
	}
	e.finish()
	return e.batches
}

func (i *ipvs) begin(e *encoder, command byte) {
	e.begin(i.family, 0, []byte{command, 1, 0, 0})
}

func (i *ipvs) service(e *encoder, n int, whole bool) {
	e.short(serviceFamily, unix.AF_INET)
	e.short(serviceProtocol, unix.IPPROTO_TCP)
	e.attribute(serviceAddress, inSixteen(vipOf(n)))
	e.attribute(servicePort, binary.BigEndian.AppendUint16(nil, uint16(portOf(n))))
	if whole {
		e.attribute(serviceScheduler, []byte("rr\x00"))
		e.attribute(serviceFlags, []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
		e.number(serviceTimeout, 0)
		e.number(serviceMask, 0xffffffff)
	}
}

func (i *ipvs) dest(e *encoder, n, k int) {
	e.attribute(destAddress, inSixteen(realOf(k)))
	e.attribute(destPort, binary.BigEndian.AppendUint16(nil, uint16(portOf(n))))
	e.number(destForward, forwardDirect)
	e.number(destWeight, 1)
	e.number(destUpper, 0)
	e.number(destLower, 0)
	e.short(destFamily, unix.AF_INET)
}

// inSixteen is an address in the room of one of IPv6.
func inSixteen(a string) []byte {
	return append(netip.MustParseAddr(a).AsSlice(), make([]byte, 12)...)
}

// whole waits until a service has all its real servers.
func (i *ipvs) whole(ctx context.Context, n int, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return lab.Wait(ctx, func() error {
		// The dump of a service that is not there yet is empty.
		answers, err := i.socket.ask(i.family, unix.NLM_F_DUMP, []byte{ipvsGetDest, 1, 0, 0}, func(e *encoder) {
			e.nested(ipvsService, func() { i.service(e, n, false) })
		})
		if err == nil && len(answers) != realServers {
			err = fmt.Errorf("service %d has %d real servers", n, len(answers))
		}
		return err
	})
}
