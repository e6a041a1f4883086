package kernel

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// filterTables is how many tables the kernel's filter tells apart; with more of
// them the routes of all tables come up to be looked at here.
const filterTables = 1000

// attachFilter has the kernel drop what can never be an event, so that a million
// routes written by this process, or a routing daemon's at work, neither wake
// it nor fill its buffer. Whatever passes is judged again here.
func (e *Events) attachFilter(tables []uint32) error {
	program := eventFilter(slices.Sorted(maps.Keys(e.own)), tables)
	var err error
	control := e.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if control != nil {
		return control
	}
	return err
}

func (e *Events) detachFilter() {
	_ = e.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}

// Verdicts of a filter: how many bytes of the message to keep.
const (
	filterDrop = 0
	filterPass = 0xffffffff
)

// skfNLAttr is where a load finds, from the offset in A on, the attribute of
// the type in X (linux/filter.h, SKF_AD_OFF + SKF_AD_NLATTR).
const skfNLAttr = 0xfffff000 + 12

// eventFilter is a classic BPF program over one netlink message: its header of
// 16 bytes, then struct rtmsg, then attributes from offset 28 on. Loads of
// more than a byte are big-endian, so the constants are turned accordingly.
func eventFilter(own, tables []uint32) []unix.SockFilter {
	const (
		kindAt, portAt                            = 4, 12
		lengthAt, tableAt, protocolAt, flagsAt    = 16 + 1, 16 + 4, 16 + 5, 16 + 8
		attributesAt, loadByte, loadHalf, loadAll = 28, unix.BPF_B, unix.BPF_H, unix.BPF_W
	)
	var p []unix.SockFilter
	load := func(size uint16, at uint32) {
		p = append(p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: at})
	}
	verdict := func(v uint32) { p = append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}) }
	// ifEqual gives the verdict when A is k, and goes on otherwise.
	ifEqual := func(k, v uint32) {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: k})
		verdict(v)
	}

	load(loadHalf, kindAt)
	// Anything but a route or a rule passes: jump over the two verdicts below.
	newRoute, delRoute := wire16(unix.RTM_NEWROUTE), wire16(unix.RTM_DELROUTE)
	newRule, delRule := wire16(unix.RTM_NEWRULE), wire16(unix.RTM_DELRULE)
	p = append(p,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 4, K: newRoute},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 3, K: delRoute},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 2, K: newRule},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: delRule},
	)
	verdict(filterPass)
	load(loadAll, portAt)
	for _, port := range own {
		ifEqual(wire32(port), filterDrop)
	}
	load(loadHalf, kindAt)
	ifEqual(newRule, filterPass)
	ifEqual(delRule, filterPass)

	load(loadAll, flagsAt)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 0, Jf: 1, K: wire32(unix.RTM_F_CLONED)})
	verdict(filterDrop)
	load(loadByte, protocolAt)
	ifEqual(state.Protocol, filterPass)
	// Of defaults all of main's, and those of hosts and DHCP clients elsewhere.
	hosts := uint8(len(hostProtocols))
	load(loadByte, lengthAt)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 4 + 2*hosts, K: 0})
	load(loadByte, tableAt)
	ifEqual(state.TableMain, filterPass)
	load(loadByte, protocolAt)
	for _, protocol := range hostProtocols {
		ifEqual(uint32(protocol), filterPass)
	}
	if len(tables) > filterTables {
		verdict(filterPass)
		return p
	}
	// A table of sisod's, whoever wrote there. RTA_TABLE is there always; without
	// it (A is 0) the message is not what this program takes it for.
	p = append(p,
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_IMM, K: attributesAt},
		unix.SockFilter{Code: unix.BPF_LDX | unix.BPF_IMM, K: unix.RTA_TABLE},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_W, K: skfNLAttr},
	)
	ifEqual(0, filterPass)
	p = append(p,
		unix.SockFilter{Code: unix.BPF_MISC | unix.BPF_TAX},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_IND | unix.BPF_W, K: unix.SizeofNlAttr},
	)
	for _, t := range tables {
		ifEqual(wire32(t), filterPass)
	}
	// Of main, what hosts and DHCP clients write; of other tables nothing more.
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: wire32(state.TableMain)})
	verdict(filterDrop)
	load(loadByte, protocolAt)
	for _, protocol := range hostProtocols {
		ifEqual(uint32(protocol), filterPass)
	}
	verdict(filterDrop)
	return p
}

// wire32 is what a big-endian load makes of a number that netlink carries in
// the machine's order.
func wire32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}

func wire16(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}
