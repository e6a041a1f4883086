package profiles

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

const everyForm = "\ttop = 1 # comment with [brackets] and \"quotes\n" +
	"dotted . 'raw key'.\"esc\\u00e9\\\"\" = { a = 1, b.c = [ {d = 2}, {d = 3, e = {f = '}'}} ] }\n" +
	"date = 1979-05-27 07:32:00 # the space belongs to it\n" +
	"multi = \"\"\"one \\\" \"\" ]\n  # no comment\"\"\"\"\"\n" +
	"raw = '''\n'' \\'''''\n" +
	"[uplink.\"em1.100\"] # header\r\n" +
	"interface = \"em1.100\"\r\n" +
	"list = [ # first\n  \"a#b\", [1, [2,\n 3]], {x = 1, y = [ {z = \"]\"} ],\n },\n]\n" +
	"[ uplink . china . default ]\nmetric=+1_0\n" +
	"[uplink.china]\nguard= true\n" +
	"[[rule]]\nfrom = ''\n[rule.sub]\nx = -inf\n[[rule]]\nfrom = \"\"\n[[rule.sub.deep]]\ny = [ ]\n[[rule.sub.deep]]\ny = {}"

func TestEveryKeyIsFoundWhereItStands(t *testing.T) {
	comparePositions(t, everyForm)
	root := parse("all.toml", []byte(everyForm), false, &Errors{})
	if root == nil {
		t.Fatal("the text does not parse")
	}
	text := func(s span) string { return everyForm[s.start:s.end] }
	rules := root.children["rule"].elements
	elements := root.children["uplink"].children["em1.100"].children["list"].elements
	for _, c := range []struct{ got, want string }{
		{text(root.children["top"].key), "top"},
		{text(root.children["top"].val), "1"},
		{root.children["top"].pos().String(), "all.toml:1:2"},
		{text(root.children["date"].val), "1979-05-27 07:32:00"},
		{text(root.children["dotted"].children["raw key"].children["esc\u00e9\""].key), "\"esc\\u00e9\\\"\""},
		{text(root.children["uplink"].children["em1.100"].key), "\"em1.100\""},
		{text(elements[0].val), "\"a#b\""},
		{text(elements[1].elements[1].elements[1].val), "3"},
		{text(elements[2].children["y"].elements[0].children["z"].val), "\"]\""},
		{text(root.children["uplink"].children["china"].key), "china"},
		{root.children["uplink"].children["china"].pos().String(), "all.toml:17:9"},
		{text(rules[1].key), "[[rule]]"},
		{rules[1].pos().String(), "all.toml:23:1"},
		{text(rules[1].children["from"].val), `""`},
		{text(rules[0].children["sub"].children["x"].val), "-inf"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestTreeAndValuesOfDifferentShapeAreNoticed(t *testing.T) {
	for text, values := range map[string]map[string]any{
		"a = 1":   {"a": int64(1), "b": int64(2)},
		"a = [1]": {"a": []any{int64(1), int64(2)}},
		"a = 2":   {"a": []any{}},
		"a = {}":  {"a": int64(1)},
		"b = 1":   {"a": int64(1)},
	} {
		root, _, err := scan(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := root.take(values, &document{}); !errors.Is(err, errLost) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// comparePositions holds the scanner against the parser: the same keys in the
// same order, each name at its place, and a tree of the same shape as the values.
func comparePositions(t *testing.T, text string) {
	t.Helper()
	var values map[string]any
	md, err := toml.Decode(text, &values)
	if err != nil {
		t.Fatalf("not TOML: %v", err)
	}
	root, found, err := scan(text)
	var twice *twiceError
	if errors.As(err, &twice) {
		// Not TOML, whatever the parser says.
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	want := md.Keys()
	for i := range max(len(want), len(found)) {
		switch {
		case i >= len(found):
			t.Fatalf("key %q has no position", want[i])
		case i >= len(want):
			t.Fatalf("position of a key that is not there: %q", found[i].path)
		case !slices.Equal(want[i], found[i].path):
			t.Fatalf("key %d is %q, the scanner has %q", i, want[i], found[i].path)
		}
		name := found[i].path[len(found[i].path)-1]
		if written := text[found[i].key.start:found[i].key.end]; written != name && !strings.ContainsAny(written, `"'`) {
			t.Fatalf("key %q is said to stand at %q", name, written)
		}
	}
	if err := root.take(values, &document{}); err != nil {
		t.Fatalf("the tree has not the shape of the values: %v", err)
	}
}

func FuzzPositions(f *testing.F) {
	for _, seed := range []string{
		everyForm, "", "a=1", "a.b.c=[{x=1},{x.y=2}]", "[[a.b]]\n[a.b.c]\nd={}", "\"\"=1\n''.''=2", "a=[[{b=1}],[{b=2}]]",
		"a={\n# c\nb=1,\n}", "x=\"\\\"\"\ny='\\'", "k=\"\"\"\\\n  \"\"\"", "a=\"\"\"x\\\"\"\"\"\"", "d=07:32:00 ,", "a=1 \r\nb=2\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.TrimPrefix(text, "\xef\xbb\xbf")
		if !(&document{text: text, starts: []int{0}, errs: &Errors{}}).utf8() {
			return
		}
		if _, err := decode(text); err != nil {
			return
		}
		comparePositions(t, text)
	})
}
