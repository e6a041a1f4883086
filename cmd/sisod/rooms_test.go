package main

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sisod/sisod/"

// rooms says what of ours each room may import, and whether it is pure.
var rooms = map[string]struct {
	may  []string
	pure bool
}{
	"internal/prefix":      {nil, true},
	"profiles":             {[]string{"internal/prefix"}, true},
	"internal/state":       {[]string{"internal/prefix"}, true},
	"routing":              {[]string{"profiles", "internal/prefix", "internal/state"}, true},
	"lvs":                  {[]string{"profiles", "internal/state"}, true},
	"internal/golden":      {[]string{"profiles", "routing", "lvs", "internal/state"}, true},
	"internal/kernel":      {[]string{"internal/prefix", "internal/state"}, false},
	"internal/daemon":      {[]string{"profiles", "routing", "lvs", "internal/kernel", "internal/prefix", "internal/state"}, false},
	"internal/lab":         {nil, false},
	"internal/lab/bench":   {[]string{"internal/lab", "internal/prefix"}, false},
	"internal/lab/vm":      {nil, false},
	"internal/lab/stockvm": {[]string{"internal/lab/vm"}, false},
	"packaging/boot/guest": {[]string{"internal/lab/vm", "packaging/boot/order"}, false},
	"packaging/boot/order": {nil, true},
	"cmd/sisod":            {[]string{"profiles", "routing", "lvs", "internal/daemon", "internal/kernel", "internal/lab", "internal/state"}, false},
}

// impure are packages that reach the kernel or another program. The standard
// library's own use of syscall does not count: what a room imports itself does.
var impure = []string{"syscall", "os/exec", "net", "os/signal", "github.com/vishvananda/netlink", "golang.org/x/sys"}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p struct {
			ImportPath    string
			Imports, Deps []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		room, known := rooms[name]
		if !known {
			t.Errorf("package %s is no room: say in this table what it may import", name)
			continue
		}
		seen++
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module); ok && !slices.Contains(room.may, ours) {
				t.Errorf("%s imports %s", name, ours)
			}
			if room.pure && slices.ContainsFunc(impure, func(bad string) bool { return i == bad || strings.HasPrefix(i, bad+"/") && bad != "net" }) {
				t.Errorf("%s is pure and imports %s", name, i)
			}
		}
		for _, d := range p.Deps {
			if room.pure && (strings.HasPrefix(d, "github.com/vishvananda/") || strings.HasPrefix(d, "golang.org/x/sys") || d == "os/exec") {
				t.Errorf("%s is pure and depends on %s", name, d)
			}
		}
	}
	if seen != len(rooms) {
		t.Errorf("go list shows %d rooms, the table has %d", seen, len(rooms))
	}
}
