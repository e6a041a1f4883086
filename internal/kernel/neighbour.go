package kernel

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Neighbour is a program on the host that has to do with routing as well.
type Neighbour struct {
	Name string `json:"name"`
	// Deletes is what of others' it deletes when it starts, stops or reconfigures a
	// link.
	Deletes []string `json:"deletes"`
}

// neighbourPrograms are found by their comm (proc(5)), which has 15 bytes at most.
var neighbourPrograms = map[string]string{
	"systemd-network": Networkd,
	"NetworkManager":  "NetworkManager",
	"keepalived":      Keepalived,
	"dockerd":         "docker",
}

// Those of whom it is known what they delete.
const (
	Networkd   = "systemd-networkd"
	Keepalived = "keepalived"
)

// ifupdownState is what ifupdown, which runs no program, has up.
const ifupdownState = "run/network/ifstate"

// Neighbours lists those that run in this network namespace, by name. One whose
// namespace may not be read counts as one in this.
func (h *Host) Neighbours() []Neighbour {
	found := map[string]bool{}
	comms, _ := filepath.Glob(filepath.Join(h.root(), "proc/[0-9]*/comm")) // the pattern is right
	here, _ := os.Readlink(filepath.Join(h.root(), "proc/thread-self/ns/net"))
	for _, file := range comms {
		if there, err := os.Readlink(filepath.Join(filepath.Dir(file), "ns/net")); err == nil && there != here {
			continue
		}
		if comm, err := os.ReadFile(file); err == nil {
			if name := neighbourPrograms[string(bytes.TrimSpace(comm))]; name != "" {
				found[name] = true
			}
		}
	}
	// It has lo up in any case.
	if text, err := os.ReadFile(filepath.Join(h.root(), ifupdownState)); err == nil {
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line != "lo=lo" {
				found["ifupdown"] = true
			}
		}
	}
	list := []Neighbour{}
	for name := range found {
		n := Neighbour{Name: name, Deletes: []string{}}
		switch name {
		case Networkd:
			n.Deletes = networkdDeletes(h.root())
		case Keepalived:
			n.Deletes = keepalivedDeletes(h.root())
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Neighbour) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// networkdKeys are the settings of networkd.conf(5) that decide what it deletes;
// without them it does.
var networkdKeys = map[string]string{
	"ManageForeignRoutingPolicyRules": "rules",
	"ManageForeignRoutes":             "routes",
}

// networkdDeletes reads what networkd is told. One that runs may have been told
// otherwise: it reads its settings when it starts.
func networkdDeletes(root string) []string {
	deletes := map[string]bool{"rules": true, "routes": true}
	for _, file := range networkdFiles(root) {
		content, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		section := ""
		for line := range strings.Lines(string(content)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			key, value, ok := strings.Cut(line, "=")
			what := networkdKeys[strings.TrimSpace(key)]
			if !ok || what == "" || section != "[Network]" {
				continue
			}
			switch strings.ToLower(strings.TrimSpace(value)) {
			case "no", "n", "false", "f", "off", "0":
				deletes[what] = false
			case "yes", "y", "true", "t", "on", "1":
				deletes[what] = true
			}
		}
	}
	list := []string{}
	for _, what := range []string{"rules", "routes"} {
		if deletes[what] {
			list = append(list, what)
		}
	}
	return list
}

// networkdFiles are those that networkd reads, the last word last: the main file
// that is found first, then the drop-ins in the order of their names, of two with
// one name the administrator's.
func networkdFiles(root string) []string {
	var files []string
	dropIns := map[string]string{}
	for _, dir := range []string{"etc", "run", "usr/local/lib", "usr/lib"} {
		main := filepath.Join(root, dir, "systemd/networkd.conf")
		if _, err := os.Stat(main); err == nil && files == nil {
			files = append(files, main)
		}
		found, _ := filepath.Glob(filepath.Join(root, dir, "systemd/networkd.conf.d/*.conf")) // the pattern is right
		for _, file := range found {
			if name := filepath.Base(file); dropIns[name] == "" {
				dropIns[name] = file
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		files = append(files, dropIns[name])
	}
	return files
}

// keepalivedDeletes reads what keepalived is told in its main file. One that may
// not be read, or includes others, may say more.
func keepalivedDeletes(root string) []string {
	content, err := os.ReadFile(filepath.Join(root, "etc/keepalived/keepalived.conf"))
	if err != nil {
		return []string{}
	}
	for line := range strings.Lines(string(content)) {
		if i := strings.IndexAny(line, "#!"); i >= 0 {
			line = line[:i]
		}
		words := strings.Fields(line)
		switch {
		case slices.Contains(words, "lvs_flush"),
			// With VS only its own.
			slices.Contains(words, "lvs_flush_on_stop") && !slices.Contains(words, "VS"):
			return []string{"services"}
		}
	}
	return []string{}
}
