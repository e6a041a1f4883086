package profiles

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// decoder takes a value of a document, or complains about it.
type decoder interface{ decode(n *node) }

// field is one value. at is nil when the key is not written, and ok is false
// as well when it has the wrong type, which is complained about already.
type field[T any] struct {
	at *node
	ok bool
	v  T
}

func (f *field[T]) decode(n *node) {
	f.at = n
	v, ok := n.value.(T)
	if !ok {
		n.mistyped(wanted[reflect.TypeFor[T]()])
		return
	}
	f.v, f.ok = v, true
}

// scalar tells fields from tables.
func (field[T]) scalar() {}

// list is a list of fields or tables.
type list[T any] struct {
	at    *node
	items []T
}

func (l *list[T]) decode(n *node) {
	l.at = n
	if n.shape != array {
		switch {
		case n.shape == table && len(n.path) == 1 && n.doc.text[n.val.start] != '{':
			n.badKey(fmt.Sprintf("%s must be a list of tables, not one table", n.name),
				fmt.Sprintf("two brackets begin each element: [[%s]]", n.name))
		case n.shape == table:
			n.mistyped(want{"a list of tables", "list"})
		default:
			n.mistyped(want{"a list", "list"})
		}
		return
	}
	for _, e := range n.elements {
		var item T
		if _, isField := any(&item).(interface{ scalar() }); !isField && e.shape != table {
			e.mistyped(want{"a table", ""})
			continue
		}
		any(&item).(decoder).decode(e)
		l.items = append(l.items, item)
	}
}

// tables are the [outer.NAME] of a document, by name in the order of the file.
type tables[T any] struct {
	names []string
	items map[string]T
}

func (t *tables[T]) decode(n *node) {
	t.items = map[string]T{}
	if n.shape != table {
		n.badKey(fmt.Sprintf("%s must be a table with a name", n.name), fmt.Sprintf("the header is [%s.NAME]", n.name))
		return
	}
	for _, name := range n.keys {
		c := n.children[name]
		switch c.shape {
		case array:
			c.badKey(fmt.Sprintf("%s is a list", dotted(c.path)), fmt.Sprintf("one pair of brackets: [%s]", dotted(c.path)))
			continue
		case scalar:
			c.badKey(fmt.Sprintf("%s stands in [%s], which needs a name", name, n.name),
				fmt.Sprintf("write the header [%s.NAME] above it, with a name of your choice", n.name))
			continue
		}
		var item T
		any(&item).(decoder).decode(c)
		t.names = append(t.names, name)
		t.items[name] = item
	}
}

// decodeTable fills a raw struct from a table, and complains about keys that
// the struct has no tag for.
func decodeTable(n *node, into any) {
	if n.shape != table {
		n.mistyped(want{"a table", "table"})
		return
	}
	fields := map[string]decoder{}
	known := tagged(reflect.ValueOf(into).Elem(), fields)
	for _, name := range n.keys {
		child := n.children[name]
		if f, ok := fields[name]; ok {
			f.decode(child)
			continue
		}
		child.badKey(fmt.Sprintf("unknown key %q in %s", name, n.label()), unknownHint(n, child, known))
	}
}

// tagged lists the keys of a raw struct in their order, and, in fields, what takes them.
func tagged(v reflect.Value, fields map[string]decoder) []string {
	var names []string
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			names = append(names, tagged(v.Field(i), fields)...)
		} else if name := f.Tag.Get("toml"); name != "" {
			names = append(names, name)
			if fields != nil {
				fields[name] = v.Field(i).Addr().Interface().(decoder)
			}
		}
	}
	return names
}

// keysOf lists the keys of a raw type.
func keysOf[T any]() []string { return tagged(reflect.ValueOf(new(T)).Elem(), nil) }

// called is what a named table stands for.
var called = map[string]string{"uplink": "An uplink", "real_server": "A real server", "director": "A director", "tproxy": "A tproxy"}

// homes lists the headers of the tables that have a key.
func homes(key string) string {
	var out []string
	for _, k := range []struct {
		header string
		keys   []string
	}{
		{"[uplink.NAME]", keysOf[rawUplink]()}, {"[real_server.NAME]", keysOf[rawRealServer]()},
		{"[director.NAME]", keysOf[rawDirector]()}, {"[ipvs]", keysOf[rawIPVS]()},
		{"[tproxy.NAME]", keysOf[rawCapture]()},
	} {
		if slices.Contains(k.keys, key) {
			out = append(out, k.header)
		}
	}
	return strings.Join(out, " and ")
}

// unknownHint says what an unknown key of n may have been meant to be.
func unknownHint(n, child *node, known []string) string {
	name := child.name
	inDefault := len(n.path) == 3 && n.path[0] == "uplink" && n.path[2] == "default"
	named := len(n.path) == 2 && called[n.path[0]] != ""
	atTop := len(n.path) == 0
	switch {
	case inDefault && slices.Contains(keysOf[rawUplink](), name):
		return fmt.Sprintf("%s is a key of [%s], but all keys below the line [%s] belong to that: move it above line %d",
			name, dotted(n.path[:2]), dotted(n.path), n.pos().Line)
	case named && n.path[0] == "tproxy" && slices.Contains(known, name+"s"):
		return fmt.Sprintf("did you mean %q? It is a list", name+"s")
	case named && homes(name) != "":
		return fmt.Sprintf("%s is a key of %s", name, homes(name))
	case named && child.shape == table && child.name != "" && near(name, known) == "":
		whole := n.path[1] + "." + name
		return fmt.Sprintf("a dot in a header nests. %s named %s is written [%s.%q]", called[n.path[0]], whole, n.path[0], whole)
	case named && n.path[0] != "uplink" && (name == "port" || name == "ports" || name == "protocol"):
		return `ports stand with their protocol: services = ["tcp/80"]`
	case n.element && n.name == "real_servers" && n.doc.text[n.val.start] == '[' && slices.Contains(keysOf[rawDirector](), name):
		return fmt.Sprintf("%s is a key of [%s], but all keys below the line [[%s]] belong to that: move it above line %d",
			name, dotted(n.path[:2]), dotted(n.path), n.pos().Line)
	case atTop && !n.doc.settings && child.shape != table && slices.Contains(keysOf[rawUplink](), name):
		return fmt.Sprintf("%s is a key of an uplink: write the header [uplink.NAME] above it", name)
	case atTop && !n.doc.settings && (child.shape != table || n.doc.text[child.val.start] == '{') && homes(name) != "":
		return fmt.Sprintf("%s is a key of %s: write the header above it", name, homes(name))
	case atTop && !n.doc.settings && child.shape == scalar && slices.Contains(keysOf[rawSettings](), name):
		return fmt.Sprintf("%s is a setting and stands in sisod.toml", name)
	case n.element && len(n.path) == 1 && slices.Contains(keysOf[rawUplink](), name):
		return fmt.Sprintf("%s is a key of an uplink, but all keys below the line %s belong to that: move it above line %d",
			name, n.label(), n.pos().Line)
	case atTop && n.doc.settings && slices.Contains(keysOf[rawProfile](), name):
		return fmt.Sprintf("%s is for the files in profiles/; sisod.toml has settings alone", name)
	}
	hint := "known keys: " + strings.Join(known, ", ")
	if best := near(name, known); best != "" {
		hint = fmt.Sprintf("did you mean %q? %s", best, hint)
	}
	return hint
}

// want is a type that a key asks for, and which correction to show.
type want struct{ words, kind string }

var wanted = map[reflect.Type]want{
	reflect.TypeFor[string](): {"text", "text"},
	reflect.TypeFor[int64]():  {"a whole number", "number"},
	reflect.TypeFor[bool]():   {"true or false", "bool"},
}

// mistyped complains about a value of the wrong type and shows it put right,
// where that can be guessed.
func (n *node) mistyped(w want) {
	what := n.name
	if n.element && len(n.path) > 0 {
		what = "each element of " + n.name
	}
	n.bad(fmt.Sprintf("%s must be %s, not %s", what, w.words, n.describe()), n.correction(w.kind))
}

func (n *node) correction(kind string) string {
	written := n.written()
	if short := len(written) <= 40 && !strings.Contains(written, "\n"); !short {
		written = ""
	}
	assign := n.name + " = "
	if n.element {
		assign = ""
	}
	text, isText := n.value.(string)
	switch {
	case kind == "text" && n.shape == scalar && written != "":
		return fmt.Sprintf("write it in quotes: %s%q", assign, written)
	case kind == "text" && n.shape == array && len(n.elements) == 1 && n.elements[0].shape == scalar:
		return fmt.Sprintf("write the one value alone: %s%s", assign, n.elements[0].written())
	case kind == "number" && isText && text != "" && strings.Trim(text, "0123456789") == "":
		return fmt.Sprintf("write it without quotes: %s%s", assign, text)
	case kind == "number" && isText && strings.HasPrefix(text, "0x"):
		return fmt.Sprintf("write it without quotes: %s%s", assign, text)
	case kind == "number" && whole(n.value):
		return fmt.Sprintf("write it in digits: %s%.0f", assign, n.value)
	case kind == "bool" && (text == "true" || text == "false"):
		return fmt.Sprintf("write it without quotes: %s%s", assign, text)
	case kind == "bool":
		return fmt.Sprintf("write %strue or %sfalse", assign, assign)
	case kind == "list" && written != "" && n.doc.text[n.val.start] != '[':
		return fmt.Sprintf("write a list: %s[%s]", assign, written)
	case kind == "table":
		return fmt.Sprintf("it is a table, with the header [%s]", dotted(n.path))
	}
	return ""
}

// whole reports whether a fraction is none: 1e3, 80.0.
func whole(v any) bool {
	f, ok := v.(float64)
	return ok && f == math.Trunc(f) && math.Abs(f) < 1<<53
}

// written is the value as it stands in the file.
func (n *node) written() string { return n.doc.text[n.val.start:n.val.end] }

// describe names the type of a value.
func (n *node) describe() string {
	switch n.value.(type) {
	case string:
		return "text"
	case int64:
		return "a number"
	case float64:
		return "a fraction"
	case bool:
		return "true or false"
	case time.Time:
		return "a date"
	}
	if n.shape == table {
		return "a table"
	}
	return "a list"
}

// within returns the number when it is in range; a number outside is
// complained about with why as the hint.
func within(f field[int64], low, high int64, why string) (uint32, bool) {
	if !f.ok {
		return 0, false
	}
	if f.v < low || f.v > high {
		f.at.bad(fmt.Sprintf("%s must be %d to %d, not %d", f.at.name, low, high, f.v), why)
		return 0, false
	}
	return uint32(f.v), true
}
