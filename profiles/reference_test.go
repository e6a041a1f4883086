package profiles

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// loaded checks a file of this room as `sisod check` would, with the list that
// the reference names beside it.
func loaded(t *testing.T, path, as string) *Config {
	t.Helper()
	source, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	copyIn(t, filepath.Join(source, path), as)
	copyIn(t, filepath.Join(source, "reference.zone"), "reference.zone")
	c, err := LoadFile(as)
	if err != nil {
		t.Fatalf("%s:\n%v", path, err)
	}
	return c
}

// written lists the keys of a file as kind.key, where the kind is the raw type
// that takes them.
func written(t *testing.T, path string, settings bool) []string {
	t.Helper()
	var keys []string
	eachKey(t, path, settings, func(key string, _ *node) { keys = append(keys, key) })
	slices.Sort(keys)
	return slices.Compact(keys)
}

// eachKey visits the keys of a file.
func eachKey(t *testing.T, path string, settings bool, visit func(key string, n *node)) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var errs Errors
	root := parse(path, text, settings, &errs)
	if root == nil {
		t.Fatal(errs)
	}
	var walk func(n *node, of reflect.Type)
	walk = func(n *node, of reflect.Type) {
		for _, name := range n.keys {
			child := n.children[name]
			visit(of.Name()+"."+name, child)
			field, ok := fieldNamed(of, name)
			if !ok {
				t.Errorf("%s: the types know no %s in %s", path, name, of.Name())
				continue
			}
			for _, e := range append(child.elements, child) {
				if next, isTable := inner(field); isTable && e.shape == table {
					if top := of == reflect.TypeFor[rawProfile](); top && called[name] != "" {
						for _, u := range e.keys {
							walk(e.children[u], next)
						}
						continue
					}
					walk(e, next)
				}
			}
		}
	}
	top := reflect.TypeFor[rawProfile]()
	if settings {
		top = reflect.TypeFor[rawSettings]()
	}
	walk(root, top)
}

func fieldNamed(of reflect.Type, name string) (reflect.Type, bool) {
	for _, f := range reflect.VisibleFields(of) {
		if f.Tag.Get("toml") == name {
			return f.Type, true
		}
	}
	return nil, false
}

// inner is the raw type of the tables that a field takes.
func inner(field reflect.Type) (reflect.Type, bool) {
	if f, ok := field.FieldByName("items"); ok {
		field = f.Type.Elem()
	}
	return field, field.Kind() == reflect.Struct && len(tagged(reflect.New(field).Elem(), nil)) > 0
}

// tags lists the keys of a raw type and of all types within.
func tags(of reflect.Type) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(of) {
		name := f.Tag.Get("toml")
		if name == "" {
			continue
		}
		keys = append(keys, of.Name()+"."+name)
		if next, isTable := inner(f.Type); isTable {
			keys = append(keys, tags(next)...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func TestReferenceAndTypesKnowTheSameKeys(t *testing.T) {
	for _, c := range []struct {
		path     string
		settings bool
		types    reflect.Type
	}{
		{"reference.toml", false, reflect.TypeFor[rawProfile]()},
		{"reference-settings.toml", true, reflect.TypeFor[rawSettings]()},
	} {
		want := tags(c.types)
		got := written(t, c.path, c.settings)
		// An uplink's routes are spelled out under [[route]].
		got = append(got, sharedWith(got, "rawRoute.", "rawWay.", want)...)
		slices.Sort(got)
		got = slices.Compact(got)
		for _, k := range want {
			if !slices.Contains(got, k) {
				t.Errorf("%s does not document %s", c.path, k)
			}
		}
		for _, k := range got {
			if !slices.Contains(want, k) {
				t.Errorf("%s documents %s, which no type has", c.path, k)
			}
		}
	}
}

// sharedWith returns the keys of one type, in the words of another that has them too.
func sharedWith(keys []string, from, to string, known []string) []string {
	var out []string
	for _, k := range keys {
		if len(k) > len(from) && k[:len(from)] == from && slices.Contains(known, to+k[len(from):]) {
			out = append(out, to+k[len(from):])
		}
	}
	return out
}

func TestReferenceLoads(t *testing.T) {
	c := loaded(t, "reference.toml", "reference.toml")
	if len(c.Uplinks) != 1 || len(c.Rules) != 2 || len(c.Routes) != 3 {
		t.Errorf("%d uplinks, %d rules, %d routes", len(c.Uplinks), len(c.Rules), len(c.Routes))
	}
	if len(c.RealServers) != 3 || len(c.Directors) != 3 || c.IPVS == nil || len(c.Captures) != 1 {
		t.Errorf("%d real servers, %d directors, %v, %d captures", len(c.RealServers), len(c.Directors), c.IPVS, len(c.Captures))
	}
	if list := c.Uplinks[0].To[1]; list.Prefixes.IPv4().Len() != 3 || list.Prefixes.IPv6().Len() != 1 {
		t.Errorf("list of the reference: %v", list)
	}
}

func TestSettingsReferenceShowsTheDefaults(t *testing.T) {
	c := loaded(t, "reference-settings.toml", SettingsFile)
	if c.Settings != DefaultSettings {
		t.Errorf("the reference has %+v, the defaults are %+v", c.Settings, DefaultSettings)
	}
}

func TestExamplesLoad(t *testing.T) {
	examples := map[string]struct{ uplinks, realServers, directors, captures int }{
		"two-providers": {uplinks: 2}, "router-two-providers": {uplinks: 2}, "management-and-service": {uplinks: 2}, "cloud-two-nics": {uplinks: 2},
		"vpn-point-to-point": {uplinks: 2}, "ipv6-by-ra": {uplinks: 2},
		"real-server-tun": {uplinks: 1, realServers: 1}, "real-server-dr": {realServers: 1}, "real-server-nat": {realServers: 1}, "real-server-fullnat": {realServers: 1},
		"director-tun": {uplinks: 1, directors: 1}, "director-dr": {directors: 1}, "director-nat": {uplinks: 1, directors: 1}, "director-fullnat": {uplinks: 1, directors: 1},
		"transparent-proxy": {uplinks: 1, captures: 1},
	}
	for name, want := range examples {
		t.Run(name, func(t *testing.T) {
			c := loaded(t, "examples/"+name+".toml", name+".toml")
			if len(c.Uplinks) != want.uplinks || len(c.RealServers) != want.realServers || len(c.Directors) != want.directors || len(c.Captures) != want.captures {
				t.Errorf("%d uplinks, %d real servers, %d directors, %d captures; want %+v", len(c.Uplinks), len(c.RealServers), len(c.Directors), len(c.Captures), want)
			}
		})
	}
	files, err := filepath.Glob("examples/*.toml")
	if err != nil || len(files) != len(examples) {
		t.Errorf("examples: %v, %v", files, err)
	}
}

// globbed lists the files of a pattern, of which there is one at least.
func globbed(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	return files
}
