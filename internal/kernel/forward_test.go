package kernel

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

// forwardings are the values of all interfaces as sysctl prints them.
func forwardings(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sysctl", "-a", "-r", `^net\.ipv[46]\.conf\..*\.forwarding|accept_redirects|ip_forward$`).Output()
	if err != nil {
		t.Fatalf("sysctl: %v (install procps)", err)
	}
	return string(out)
}

// switched is a host with interfaces that forward by themselves, after sisod has
// made it forward as a whole; found is what it was like.
func switched(t *testing.T, path string) (h *Host, found string) {
	t.Helper()
	enterNamespace(t)
	quietUplinks(t)
	setSysctl(t, path, "0")
	under := forwardSwitches[path]
	setSysctl(t, under+"em1/forwarding", "1")
	setSysctl(t, under+"default/forwarding", "1")
	setSysctl(t, "net/ipv4/conf/all/accept_redirects", "0")
	found = forwardings(t)
	h = openTestHost(t)
	before(t, h)
	mustApply(t, h.applySysctls(replaceSysctl(path, "1")))
	if !strings.Contains(forwardings(t), strings.ReplaceAll(under, "/", ".")+"em2.forwarding = 1\n") {
		t.Fatalf("%s does not reach em2:\n%s", path, forwardings(t))
	}
	return h, found
}

// The kernel writes a switch of forwarding into every interface, and back again.
func TestInterfacesThatForwardByThemselvesGoOn(t *testing.T) {
	for path := range forwardSwitches {
		t.Run(path, func(t *testing.T) {
			h, found := switched(t, path)
			ip(t, "link set em1 down")
			ip(t, "link set em1 name wan1")
			ip(t, "link set wan1 up")
			wantBefore(t, h, nil, map[string]string{path: "0"})
			if err := h.ledger.prune(h.links, state.New(), state.Timeouts{}); err != nil {
				t.Fatal(err)
			}
			// Written again, what is sisod's own doing is not what was found.
			setSysctl(t, path, "1")
			mustApply(t, h.applySysctls(replaceSysctl(path, "1")))
			mustApply(t, h.applySysctls(restore(replaceSysctl(path, "0"))))
			if got, want := forwardings(t), strings.ReplaceAll(found, ".em1.", ".wan1."); sortedWords(got) != sortedWords(want) {
				t.Errorf("given back\n%s\nfound\n%s", got, want)
			}
			if p := h.ledger.page; len(p.Along)+len(p.Sysctls) != 0 {
				t.Errorf("the ledger still has %+v", p)
			}
		})
	}
}

func sortedWords(text string) string {
	words := strings.Split(text, "\n")
	slices.Sort(words)
	return strings.Join(words, "\n")
}

// What somebody else has set on an interface since stays.
func TestForwardingOfSomebodyElseStays(t *testing.T) {
	for path, under := range forwardSwitches {
		t.Run(path, func(t *testing.T) {
			h, found := switched(t, path)
			setSysctl(t, under+"em1/forwarding", "0")
			mustApply(t, h.applySysctls(restore(replaceSysctl(path, "0"))))
			want := strings.Replace(found, strings.ReplaceAll(under, "/", ".")+"em1.forwarding = 1", strings.ReplaceAll(under, "/", ".")+"em1.forwarding = 0", 1)
			if got := forwardings(t); got != want {
				t.Errorf("given back\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// A process that is killed while it gives forwarding back leaves a ledger that
// knows the rest.
func TestForwardingIsGivenBackByTheNextProcess(t *testing.T) {
	for path, under := range forwardSwitches {
		for _, written := range []bool{false, true} {
			t.Run(map[bool]string{false: "before ", true: "after "}[written]+path, func(t *testing.T) {
				h, found := switched(t, path)
				h.giveBackAlong(path, "1", "0")
				if err := h.ledger.save(); err != nil {
					t.Fatal(err)
				}
				want := map[string]string{path: "0"}
				if written {
					setSysctl(t, path, "0")
					setSysctl(t, forwardSwitched, "0")
					want = map[string]string{under + "em1/forwarding": "1", under + "default/forwarding": "1"}
				}
				wantBefore(t, h, nil, want)
				next, err := Open(h.options)
				if err != nil {
					t.Fatal(err)
				}
				defer next.Close()
				if err := next.links.read(); err != nil {
					t.Fatal(err)
				}
				if err := next.ledger.prune(next.links, state.New(), state.Timeouts{}); err != nil {
					t.Fatal(err)
				}
				if written { // and it is asked for again, in between
					mustApply(t, next.applySysctls(replaceSysctl(path, "1")))
					want = map[string]string{path: "0"}
				}
				for p, v := range want {
					mustApply(t, next.applySysctls(restore(replaceSysctl(p, v))))
				}
				if got := forwardings(t); got != found {
					t.Errorf("given back\n%s\nfound\n%s", got, found)
				}
			})
		}
	}
}
