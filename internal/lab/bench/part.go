package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Where something was measured.
const (
	onHost = "host"
	inVM   = "vm"
)

// part is what -only selects: on this machine, in the virtual machine, or in
// both.
type part struct {
	name, tells string
	host, guest func(*bench) error
}

var parts = []part{
	{"prefixes", "first apply and nothing to do, 1k to 1M prefixes, beside ip -batch and the floor", (*bench).prefixes, nil},
	{"million", "a daemon with 1M prefixes: one line changed, memory, link down and up", (*bench).million, nil},
	{"gateway", "another gateway under 1M prefixes, and the packets on their way", (*bench).gateway, nil},
	{"foreign", "1M routes of somebody else's while the daemon idles", (*bench).foreign, nil},
	{"lookup", "what a lookup of the kernel costs with 10 to 10,000 addresses", (*bench).lookup, nil},
	{"reactions", "start to READY, an address, a rule, a link; what idling costs", (*bench).reactions, nil},
	{"flap", "a link of ten goes and comes, beside systemd-networkd", (*bench).flap, (*bench).flap},
	{"services", "IPVS services, beside ipvsadm -R, keepalived and the floor", nil, (*bench).services},
}

// guestMemory is the virtual machine's, in MiB: what is written there is in it too.
const guestMemory = 4096

// measureInGuest runs parts in the virtual machine and adds what they found.
func (b *bench) measureInGuest(names []string, stockvm string) error {
	b.log.Printf("in the virtual machine: %s", strings.Join(names, ", "))
	result := filepath.Join(b.dir, "guest.json")
	cmd := exec.CommandContext(b.ctx, stockvm, "run", "-memory", strconv.Itoa(guestMemory), "-timeout", "40m", "-fetch", result, "--",
		own(), "-guest", "-sisod", b.sisod, "-runs", strconv.Itoa(b.runs), "-only", strings.Join(names, ","), "-json", result)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// Told, it ends its machine; killed, it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	failed := cmd.Run()
	if failed != nil {
		failed = fmt.Errorf("run in the virtual machine: %w: make stockvm makes its kernel", failed)
	}
	r, err := readReport(result)
	if err != nil {
		return errors.Join(failed, err)
	}
	b.report.merge(r)
	return failed
}
