package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// machineFacts is what figures depend on.
type machineFacts struct {
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Memory   int               `json:"memory_mib"`
	Kernel   string            `json:"kernel"`
	Load     string            `json:"load"` // of the last minute, before the first run
	Programs map[string]string `json:"programs"`
}

// networkd is where Debian has it.
const networkd = "/lib/systemd/systemd-networkd"

// peers are the programs beside sisod, where they are needed, and how each tells
// its version.
var peers = []struct {
	name  string
	where []string
	ask   []string
}{
	{"iproute2", []string{onHost, inVM}, []string{"ip", "-V"}},
	{"systemd", []string{onHost, inVM}, []string{networkd, "--version"}},
	{"keepalived", []string{inVM}, []string{"keepalived", "--version"}},
	// It says nothing where there is no IPVS.
	{"ipvsadm", []string{inVM}, []string{"ipvsadm", "--version"}},
}

// machine describes the machine, and is an error when a program is missing.
func (b *bench) machine() (machineFacts, error) {
	m := machineFacts{CPUs: runtime.NumCPU(), Programs: map[string]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("ask for the memory's size: %w", err)
	}
	m.Memory = int(info.Totalram * uint64(info.Unit) >> 20)
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(cpu)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	m.Load, _, _ = strings.Cut(string(load), " ")
	out, err := exec.CommandContext(b.ctx, b.sisod, "version").Output()
	if err != nil {
		return m, fmt.Errorf("run %s version: %w", b.sisod, err)
	}
	m.Programs["sisod"] = version(string(out))
	for _, p := range peers {
		if !slices.Contains(p.where, b.where) {
			continue
		}
		if _, err := exec.LookPath(p.ask[0]); err != nil {
			return m, fmt.Errorf("find %s: not installed: packaging/tools.sh bench installs it", filepath.Base(p.ask[0]))
		}
		// keepalived tells it on its standard error.
		out, err := exec.CommandContext(b.ctx, p.ask[0], p.ask[1:]...).CombinedOutput()
		if m.Programs[p.name] = version(string(out)); m.Programs[p.name] == "" {
			return m, fmt.Errorf("ask %s for its version: it said %q (%v)", p.name, out, err)
		}
	}
	return m, nil
}

// version is the first word of a program's answer that looks like one.
func version(said string) string {
	for word := range strings.FieldsSeq(said) {
		word = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(word, "iproute2-"), "v"), ",")
		if word != "" && word[0] >= '0' && word[0] <= '9' {
			return word
		}
	}
	return ""
}
