// Package golden plays the written cases of the pure rooms: the facts of a host,
// moment by moment, and beside each what is made of them. It is for their tests
// alone.
//
// A case is a folder. It has profiles as the daemon loads them, facts in
// NAME.facts and what they come to in NAME.txt, in the order of their names. A
// folder NAME holds the profiles from that moment on, where they change.
package golden

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

var update = flag.Bool("update", false, "write the golden files from what the code says now")

// Moment is one look at a host: its facts, and what is made of them.
type Moment struct {
	Name    string
	Facts   state.Facts
	Desired state.Desired
	Exits   []*routing.Exit
}

// Cases returns every case in a folder.
func Cases(t *testing.T, dir string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in %s: %v", dir, err)
	}
	return dirs
}

// Moments plays a case: its facts in order, with what a daemon carries from
// one pass to the next.
func Moments(t *testing.T, dir string) []Moment {
	t.Helper()
	c, err := profiles.Load("", abs(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.facts"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no facts in %s: %v", dir, err)
	}
	var out []Moment
	known := map[state.GatewayKey]netip.Addr{}
	own := map[string]uint32{}
	marks := map[state.Mark]bool{}
	before := state.Observed{State: state.New()}
	draining := map[state.DestinationKey]time.Time{}
	awaited := map[string]time.Time{}
	limits, marked := map[state.ServiceKey]time.Duration{}, map[state.MarkedVIP]time.Time{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".facts")
		if changed := filepath.Join(dir, name); exists(changed) {
			if c, err = profiles.Load("", abs(t, changed)); err != nil {
				t.Fatal(err)
			}
		}
		f := parseFacts(t, file)
		for link := range f.Awaited {
			f.Awaited[link] = awaited[link]
		}
		f.IPVS.Draining, f.IPVS.Limits, f.IPVS.MarkedVIPs = draining, limits, marked
		asked := append(routing.Sysctls(c), lvs.Sysctls(c, f)...)
		maps.DeleteFunc(f.Sysctls, func(path, _ string) bool { return !slices.Contains(asked, path) })
		for k, v := range known {
			if _, ok := f.Known[k]; !ok {
				f.Known[k] = v
			}
		}
		for k, v := range own {
			f.OwnTables[k] = v
		}
		f.Marks = marks
		tables := routing.Assign(c, f)
		d, exits := routing.Desired(c, tables, f)
		lvs.Add(&d, c, tables.ByName(), f, before)
		before = observedFrom(d)
		known, draining, awaited, marks = d.Known, d.Draining, d.Awaited, d.Marks
		limits, marked = d.Limits, d.MarkedVIPs
		for n := range d.Names {
			own[n.Name] = n.Number
		}
		out = append(out, Moment{name, f, d, exits})
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func abs(t *testing.T, path string) string {
	t.Helper()
	a, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Written checks that what the cases in a folder come to is as written.
func Written(t *testing.T, folder string) {
	for _, dir := range Cases(t, folder) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			before := state.Observed{State: state.New()}
			for _, m := range Moments(t, dir) {
				var b strings.Builder
				for _, e := range m.Exits {
					fmt.Fprintf(&b, "uplink %s %s: %s\n", e.Uplink, e.Family, e.State())
				}
				for _, p := range m.Desired.Problems {
					fmt.Fprintf(&b, "problem %s\n", p)
				}
				plan := state.Diff(before, m.Desired)
				for _, s := range plan.Steps {
					for line := range strings.SplitSeq(s.Object.Spell(plan.Names), "\n") {
						if r, ok := s.Object.(state.Rule); ok && r.Family == state.IPv6 {
							line = "-6 " + line
						}
						fmt.Fprintf(&b, "%s %s %s", s.Op.Sign(), s.Object.Kind(), line)
						if s.Origin != "" {
							fmt.Fprintf(&b, "  # %s", s.Origin)
						}
						b.WriteByte('\n')
					}
					for _, l := range s.Lines {
						fmt.Fprintf(&b, "  %s %s", l.Op.Sign(), l.Text)
						if l.Origin != "" {
							fmt.Fprintf(&b, "  # %s", l.Origin)
						}
						b.WriteByte('\n')
					}
				}
				if m.Desired.Recheck > 0 {
					fmt.Fprintf(&b, "again in %s\n", m.Desired.Recheck)
				}
				golden(t, filepath.Join(dir, m.Name+".txt"), b.String())
				before = observedFrom(m.Desired)
			}
		})
	}
}

// observedFrom is what the kernel has after a desired state was applied.
func observedFrom(d state.Desired) state.Observed {
	o := state.Observed{State: d.State, Before: state.Before{Groups: map[string]uint32{}, Sysctls: map[string]string{}, Up: map[string]bool{}}}
	for link := range d.Groups {
		o.Before.Groups[link] = 0
	}
	for link := range d.Up {
		o.Before.Up[link] = false
	}
	for path := range d.Sysctls {
		o.Before.Sysctls[path] = "7"
	}
	return o
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs\n--- got\n%s--- want\n%s", file, got, want)
	}
}
