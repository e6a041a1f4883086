package routing

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Names of the tables that are nobody's uplink.
const (
	DestinationsTable = "destinations"
	DefaultsTable     = "default-uplinks"
)

// Tables is the numbering of routing tables: what profiles fix, what the
// system's rt_tables fixes, and what was given earlier, before anything new.
type Tables struct {
	Problems []state.Problem
	// Owned are the names that sisod writes into rt_tables.
	Owned []state.TableName

	numbers map[string]uint32
	origins map[string]string
	spelled state.Names
}

// Assign numbers every table that the profiles name. Of the facts it reads
// SystemTables and OwnTables only, so that it can run before the tables
// themselves are read.
func Assign(c *profiles.Config, f state.Facts) Tables {
	t := Tables{numbers: map[string]uint32{}, origins: map[string]string{}, spelled: state.Names{}}
	asked := t.asked(c)
	taken := map[uint32]string{state.TableUnspec: "unspec", state.TableDefault: "default", state.TableMain: "main", state.TableLocal: "local"}
	system := map[uint32]string{}
	for _, name := range slices.Sorted(maps.Keys(f.SystemTables)) {
		system[f.SystemTables[name]] = name
		taken[f.SystemTables[name]] = name
	}
	for name, number := range asked {
		if number != 0 {
			taken[number] = name
		}
	}
	names := slices.Sorted(maps.Keys(asked))
	// Numbers given earlier are kept before a newcomer can take one.
	for _, name := range names {
		number, recorded := f.OwnTables[name]
		if _, fixed := f.SystemTables[name]; asked[name] == 0 && recorded && !fixed && (taken[number] == "" || taken[number] == name) {
			asked[name] = number
			taken[number] = name
		}
	}
	// A recorded number that nobody asks for any more stays taken until its record
	// is gone: rules still lead to it while the plan is carried out.
	for name, number := range f.OwnTables {
		if taken[number] == "" {
			taken[number] = name
		}
	}
	next := c.Settings.Table
	for _, name := range names {
		number := asked[name]
		fixed, inSystem := f.SystemTables[name]
		switch {
		case inSystem && (number == 0 || number == fixed):
			t.numbers[name] = fixed
			continue
		case inSystem:
			t.problem(name, fmt.Sprintf("rt_tables already gives the name %s to table %d; table %d is used and stays without a name; remove the line there, or the key table", name, fixed, number))
			t.numbers[name] = number
			continue
		case number != 0 && system[number] != "":
			t.problem(name, fmt.Sprintf("table %d is called %s in rt_tables and may be in use by somebody else; choose another number, or leave the key table out", number, system[number]))
			t.numbers[name] = number
			continue
		case number == 0:
			for taken[next] != "" {
				next++
			}
			number = next
			taken[number] = name
		}
		t.numbers[name] = number
		t.Owned = append(t.Owned, state.TableName{Number: number, Name: name})
	}
	for name, number := range f.SystemTables {
		t.spelled[number] = name
	}
	for _, o := range t.Owned {
		t.spelled[o.Number] = o.Name
	}
	return t
}

// asked lists the names that need a table, each with its fixed number or 0.
func (t *Tables) asked(c *profiles.Config) map[string]uint32 {
	asked := map[string]uint32{}
	want := func(name string, number uint32, pos profiles.Position) {
		asked[name] = max(number, asked[name])
		if t.origins[name] == "" {
			t.origins[name] = pos.Short()
		}
	}
	for _, u := range c.Uplinks {
		want(u.Name, u.Table, u.Pos)
		if len(u.To) > 0 {
			want(DestinationsTable, 0, u.To[0].Pos)
		}
		if u.Default != nil {
			want(DefaultsTable, 0, u.Default.Pos)
		}
	}
	for _, r := range c.RealServers {
		if name := r.Table(); name != "" {
			want(name, 0, r.Pos)
		}
	}
	for _, p := range c.Captures {
		want(p.Table(), 0, p.Pos)
	}
	for _, r := range c.Routes {
		if r.Table.Name != "" {
			want(r.Table.Name, 0, r.Pos)
		}
	}
	return asked
}

func (t *Tables) problem(name, text string) {
	t.Problems = append(t.Problems, state.Problem{Subject: "table " + name, Text: text, Origin: t.origins[name]})
}

// Number is the number of a named table: one of sisod's, one of the kernel's.
func (t Tables) Number(name string) (uint32, bool) {
	switch name {
	case "main":
		return state.TableMain, true
	case "local":
		return state.TableLocal, true
	case "default":
		return state.TableDefault, true
	}
	n, ok := t.numbers[name]
	return n, ok
}

// ByName maps the names to the numbers.
func (t Tables) ByName() map[string]uint32 { return t.numbers }

// Names spells every table that has a name here.
func (t Tables) Names() state.Names { return t.spelled }

// Numbers are the tables that sisod writes routes into, for reading them.
func (t Tables) Numbers(c *profiles.Config) []uint32 {
	set := map[uint32]bool{}
	for _, n := range t.numbers {
		set[n] = true
	}
	for _, r := range c.Routes {
		if r.Table.Name == "" {
			set[r.Table.Number] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}
