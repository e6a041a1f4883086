package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/profiles"
)

// program is the binary under test, built once for all tests. Hosts of a lab
// share the machine's temporary folder and find it there.
var program string

// builtEnv names a binary that is built already, for where there is no time or
// place to build one: in an emulated machine.
const builtEnv = "SISOD_BINARY"

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if program = os.Getenv(builtEnv); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "sisod-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "sisod")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build sisod: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// result is what a command said and how it ended.
type result struct {
	code           int
	stdout, stderr string
}

// sisod runs the program under test on a host. Exit codes are the caller's to judge.
func sisod(t testing.TB, h *lab.Host, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return r
}

// apply runs sisod apply, which must end with code.
func apply(t testing.TB, h *lab.Host, code int) result {
	t.Helper()
	r := sisod(t, h, "apply")
	if r.code != code {
		t.Fatalf("sisod apply: exit code %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	return r
}

// startDaemon starts sisod run on a host, with more in its environment. The log is its standard error; whoever
// waits for a line of it, or for a state of the kernel, uses wait.
func startDaemon(t testing.TB, h *lab.Host, env ...string) (*lab.Process, *lab.Lines) {
	t.Helper()
	log := &lab.Lines{}
	cmd := exec.Command(program, "run")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
		if t.Failed() {
			t.Logf("log of sisod run on %s:\n%s", h.Name, log)
		}
	})
	return p, log
}

// wait fails the test when cond never returns nil.
func wait(t testing.TB, cond func() error) {
	t.Helper()
	if err := lab.Wait(t.Context(), cond); err != nil {
		t.Fatal(err)
	}
}

// run runs a program on a host, which must end with code 0, and returns its output.
func run(t testing.TB, h *lab.Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), name, args...)
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: make tools installs it", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ip runs one ip command.
func ip(t testing.TB, h *lab.Host, args ...string) string {
	t.Helper()
	return run(t, h, "ip", args...)
}

// writeFile writes a file below a host's /etc/sisod.
func writeFile(t testing.TB, h *lab.Host, name, text string) {
	t.Helper()
	path := filepath.Join(profiles.DefaultDir, name)
	err := h.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(text), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// writeProfile makes text the host's profile of that name.
func writeProfile(t testing.TB, h *lab.Host, name, text string) {
	t.Helper()
	if text == "" {
		text = "# nothing is wanted\n"
	}
	writeFile(t, h, filepath.Join("profiles", name), text)
}

// bridgeTimers are the running clocks of bridges, as "ip -d link" shows them.
var bridgeTimers = regexp.MustCompile(`\b\w+_timer +\d+\.\d+`)

// snapshot is all of a host that sisod could change, as other programs see it.
func snapshot(t testing.TB, h *lab.Host) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"rule", "-6 rule", "route show table all", "-6 route show table all", "nexthop", "-d link", "address",
	} {
		fmt.Fprintf(&b, "# ip %s\n%s", command, bridgeTimers.ReplaceAllString(ip(t, h, strings.Fields(command)...), ""))
	}
	err := h.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "/conf/") {
				return err
			}
			// Some can only be written, or have no value yet.
			if value, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s=%s", path, value)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// twoUplinks is a lab.TwoUplinks that ends with the test.
func twoUplinks(t testing.TB, o lab.TwoUplinksOptions) *lab.TwoUplinks {
	t.Helper()
	two, err := lab.NewTwoUplinks(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, two.Lab)
	return two
}

// closeLab closes a lab with the test; a capture that lost packets fails it.
func closeLab(t testing.TB, l *lab.Lab) {
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// runInput is run with a standard input.
func runInput(t *testing.T, h *lab.Host, input, name string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &said, &said
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("%s on %s: %v\n%s", name, h.Name, err, &said)
	}
}
