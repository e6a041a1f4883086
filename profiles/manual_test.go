package profiles

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// chapters are the sections of sisod-profile(5), and the raw type that each is
// about.
var chapters = map[string]string{
	"[uplink.NAME]": "rawUplink", "[uplink.NAME.default]": "rawDefault",
	"[[rule]]": "rawRule", "[[route]]": "rawRoute", "Entries of nexthops": "rawNexthop",
	"[real_server.NAME]": "rawRealServer",
	"[director.NAME]":    "rawDirector", "Entries of real_servers": "rawBackend",
	"[tproxy.NAME]": "rawCapture", "[ipvs]": "rawIPVS", "Keys of timeouts": "rawTimeouts", "Keys of sync": "rawSync",
}

// told lists the keys of a manual page as kind.key. top is the kind of those
// that stand in no chapter.
func told(t *testing.T, path, top string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	item := regexp.MustCompile(`^\.It Ic (\S+) = `)
	kind := top
	var keys []string
	for line := range strings.Lines(string(text)) {
		if title, found := strings.CutPrefix(strings.TrimSpace(line), ".Ss "); found {
			kind = chapters[strings.TrimSuffix(title, `\&`)]
			if kind == "" {
				t.Errorf("%s: chapters does not know %q", path, title)
			}
		} else if m := item.FindStringSubmatch(line); m != nil {
			keys = append(keys, kind+"."+m[1])
		}
	}
	return keys
}

func TestManualAndTypesKnowTheSameKeys(t *testing.T) {
	for _, c := range []struct {
		path, top string
		types     reflect.Type
	}{
		{"../packaging/man/sisod-profile.5", "", reflect.TypeFor[rawProfile]()},
		{"../packaging/man/sisod.toml.5", "rawSettings", reflect.TypeFor[rawSettings]()},
	} {
		want := slices.DeleteFunc(tags(c.types), func(k string) bool {
			return strings.HasPrefix(k, "rawProfile.") || // headers, which are the chapters
				strings.HasPrefix(k, "rawWay.") || // told as the keys of [[route]]
				k == "rawUplink.default" // a chapter as well
		})
		got := told(t, c.path, c.top)
		for _, k := range want {
			if !slices.Contains(got, k) {
				t.Errorf("%s does not tell of %s", c.path, k)
			}
		}
		for i, k := range got {
			if !slices.Contains(want, k) {
				t.Errorf("%s tells of %s, which no type has", c.path, k)
			}
			if slices.Contains(got[:i], k) {
				t.Errorf("%s tells of %s twice", c.path, k)
			}
		}
	}
}

func TestManualNamesEveryWordThatAKeyTakes(t *testing.T) {
	text, err := os.ReadFile("../packaging/man/sisod-profile.5")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(`[a-z0-9]+`).FindAllString(strings.ReplaceAll(string(text), `\(dq`, " "), -1)
	for _, list := range [][]string{schedulers, encapsulations, rpFilters, ruleActions, routeTypes, syncRoles, {string(NAT), string(DR), string(Tun), string(FullNAT)}} {
		for _, w := range list {
			if !slices.Contains(words, w) {
				t.Errorf("sisod-profile(5) does not name %q", w)
			}
		}
	}
}

func TestManualCallsNothingUnfinished(t *testing.T) {
	pages, err := filepath.Glob("../packaging/man/*")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d manual pages, %v", len(pages), err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		for _, promise := range []string{"not in force", "in this version", "not yet supported"} {
			if strings.Contains(words, promise) {
				t.Errorf("%s says %q", page, promise)
			}
		}
	}
}
