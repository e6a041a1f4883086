package profiles

import (
	"strings"
	"testing"
)

func TestCaretStandsUnderItsPlace(t *testing.T) {
	for _, c := range []struct {
		line       string
		col, width int
		want       string
	}{
		{`table = "101"`, 9, 5, `table = "101"` + "\n" + `        ^^^^^`},
		{"\ttable\t= 1", 2, 5, "\ttable\t= 1\n\t^^^^^"},
		{"\ttable\t= 1", 10, 1, "\ttable\t= 1\n\t     \t  ^"},
		{`"电信" = 国`, 8, 1, `"电信" = 国` + "\n" + `         ^^`},
		{"e\u0301 = x", 6, 1, "e\u0301 = x\n    ^"},
		{"gateway =", 10, 1, "gateway =\n         ^"},
		{"", 1, 1, "\n^"},
		{"a\x1b]0;\u202eb", 2, 1, "a\uFFFD]0;\uFFFDb\n ^"},
		{"open = \"", 8, 500, "open = \"\n       ^"},
	} {
		text, caret := excerpt(c.line, c.col, c.width)
		if got := text + "\n" + caret; got != c.want {
			t.Errorf("%q, %d: got\n%s\nwant\n%s", c.line, c.col, got, c.want)
		}
	}
}

func TestLongLinesAreCutAroundTheirPlace(t *testing.T) {
	line := strings.Repeat("国", 100) + "HERE" + strings.Repeat("x", 400)
	text, caret := excerpt(line, 101, 4)
	before, _, found := strings.Cut(text, "HERE")
	width := 0
	for _, r := range before {
		width += columns(r)
	}
	if !found || caret != strings.Repeat(" ", width)+"^^^^" || !strings.HasPrefix(text, "…") || !strings.HasSuffix(text, "…") {
		t.Errorf("%s\n%s", text, caret)
	}
	total := 0
	for _, r := range text {
		total += columns(r)
	}
	if total > excerptWidth+2 {
		t.Errorf("%d columns", total)
	}
}

func TestNearestKey(t *testing.T) {
	known := keysOf[rawUplink]()
	for name, want := range map[string]string{
		"gatway": "gateway", "gateways": "gateway", "Interface": "interface", "iface": "", "addr": "addresses", "rpfilter": "rp_filter",
		"rp-filter": "rp_filter", "source": "sources", "tabel": "table", "colour": "", "x": "", "": "", "masq": "masquerade",
		strings.Repeat("gateway", 1000): "gateway",
	} {
		if got := near(name, known); got != want {
			t.Errorf("%.20q is near %q, want %q", name, got, want)
		}
	}
}

func TestNoComplaintIsLongerThanAScreenLine(t *testing.T) {
	_, err := Load("", files(t, map[string]string{"profiles/a.toml": china + "gateway = \"" + strings.Repeat("x\\n", 100000) + "\"\n"}))
	if err == nil || len(err.Error()) > 2000 {
		t.Errorf("%d bytes", len(err.Error()))
	}
}
