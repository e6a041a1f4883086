package kernel

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// enterNamespace moves the test into a network namespace of its own. The
// thread is never unlocked: it, and with it the namespace, ends with the test.
func enterNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v: run the tests as root", err)
	}
}

// ip runs iproute2's program in the namespace of the calling thread and
// returns its lines without trailing blanks.
func ip(t testing.TB, line string) []string {
	t.Helper()
	return ipInput(t, line, "")
}

// ipInput is ip with something on its standard input.
func ipInput(t testing.TB, line, input string) []string {
	t.Helper()
	cmd := exec.Command("ip", strings.Fields(line)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s(install iproute2)", line, err, out)
	}
	var lines []string
	for l := range strings.Lines(string(out)) {
		lines = append(lines, strings.TrimSpace(strings.ReplaceAll(l, "\t", " ")))
	}
	return lines
}

// twoUplinks gives the namespace two connected links, em1 and em2, with an
// address of each family.
func twoUplinks(t testing.TB) {
	t.Helper()
	ipInput(t, "-batch -", `
link set lo up
link add em1 type veth peer name peer1
link add em2 type veth peer name peer2
link set em1 up
link set em2 up
link set peer1 up
link set peer2 up
addr add 192.0.2.2/24 dev em1
addr add 198.51.100.2/24 dev em2
addr add 2001:db8:1::2/64 dev em1 nodad
addr add 2001:db8:2::2/64 dev em2 nodad
`)
}

// openTestHost opens the namespace of the calling thread, with files of its own.
func openTestHost(t testing.TB) *Host {
	t.Helper()
	h, err := Open(Options{RunDir: t.TempDir(), IPRoute2Dir: t.TempDir(), Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// openTestConn opens a routing socket that knows the links of the namespace.
func openTestConn(t testing.TB) (*conn, *links) {
	t.Helper()
	h := openTestHost(t)
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	return h.conn, h.links
}

// addRules writes rules, without Apply.
func addRules(t testing.TB, c *conn, rules ...state.Rule) {
	t.Helper()
	for _, r := range rules {
		body, err := appendRule(nil, r)
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		for _, err := range c.do([]message{{unix.RTM_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, body}}) {
			if err != nil {
				t.Fatalf("%s: %v", r, err)
			}
		}
	}
}

// observedRules lists a family's rules.
func observedRules(t testing.TB, c *conn, f state.Family) []observedRule {
	t.Helper()
	rules, err := c.listRules(f)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// observedRoutes lists the routes that pass the filter.
func observedRoutes(t testing.TB, c *conn, f routeFilter) []observedRoute {
	t.Helper()
	var routes []observedRoute
	err := c.dumpRoutes(f, func(r observedRoute) bool {
		routes = append(routes, r)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return routes
}
