package main

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// unprivileged puts the program where everybody can run it and returns the
// words before its arguments that run it as a user without capabilities.
func unprivileged(t *testing.T, h *lab.Host) []string {
	t.Helper()
	run(t, h, "install", "-m", "755", program, "/run/sisod-for-all")
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "/run/sisod-for-all"}
}

// try runs any program on a host; its end is the caller's to judge.
func try(t *testing.T, h *lab.Host, words ...string) result {
	t.Helper()
	var stdout, stderr lab.Lines
	cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	// The code tells what the error would.
	_ = p.Wait()
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func TestApplyTwiceChangesNothingTheSecondTime(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	if r := expect(t, h, 2, "plan"); !strings.HasSuffix(r.stdout, "\n30 steps\n") {
		t.Errorf("plan before apply:\n%s", r.stdout)
	}
	var first []string
	expect := func(code int, args ...string) (result, []string) {
		t.Helper()
		var changes []string
		r := traced(t, h, func(c change) verdict {
			changes = append(changes, c.what)
			return proceed
		}, args...)
		if r.code != code {
			t.Errorf("sisod %v: exit code %d, want %d\n%s", args, r.code, code, r.stderr)
		}
		return r, changes
	}
	_, first = expect(0, "apply")
	contains(t, strings.Join(first, "\n"), "netlink NEWROUTE", "netlink NEWRULE", "netlink SETLINK", "write /proc/sys/net/ipv4/conf/em1/rp_filter")
	after := wholeSnapshot(t, h)

	r, second := expect(0, "apply")
	if r.stdout != "nothing to do\n" || r.stderr != "" {
		t.Errorf("the second apply said\n%s%s", r.stdout, r.stderr)
	}
	for _, what := range second {
		if strings.HasPrefix(what, "netlink") || strings.Contains(what, "/proc/sys") || strings.Contains(what, "/etc/") || strings.Contains(what, "/var/") || strings.Contains(what, "ledger") {
			t.Errorf("the second apply did %s", what)
		}
	}
	for _, looker := range []string{"plan", "show", "status", "check"} {
		if r, changes := expect(0, looker); len(changes) > 0 || r.stderr != "" {
			t.Errorf("sisod %s changed %v and said on standard error: %s", looker, changes, r.stderr)
		}
	}
	same(t, "the host after all that", wholeSnapshot(t, h), after)
}

// TestScriptOfAPlanDoesWhatApplyDoes runs the commands of a plan instead of it.
func TestScriptOfAPlanDoesWhatApplyDoes(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	found := snapshot(t, h)
	for _, c := range []struct{ name, first, then string }{
		{"from nothing", "", smallProfile},
		{"from one profile to another", smallProfile, otherProfile},
		{"back", otherProfile, smallProfile},
		{"to nothing", smallProfile, ""},
	} {
		start := func() {
			writeProfile(t, h, "isp.toml", c.first)
			expect(t, h, 0, "apply")
			writeProfile(t, h, "isp.toml", c.then)
		}
		start()
		script := sisod(t, h, "plan", "-o", "script")
		if script.code != 2 || script.stderr != "" {
			t.Fatalf("%s: plan -o script: exit code %d\n%s", c.name, script.code, script.stderr)
		}
		expect(t, h, 0, "apply")
		wanted := snapshot(t, h)
		expect(t, h, 0, "flush")
		same(t, c.name+": flush", snapshot(t, h), found)

		start()
		runInput(t, h, script.stdout, "sh")
		same(t, c.name+": the script", snapshot(t, h), wanted)
		contains(t, expect(t, h, 0, "plan").stdout, "nothing to do")
		// The ledger did not see what the script did.
		writeProfile(t, h, "isp.toml", c.first)
		run(t, h, "sh", "-c", `ip link set em1 group 0; ip link set em2 group 0; for l in em1 em2; do echo 0 > /proc/sys/net/ipv4/conf/$l/rp_filter; done; rm -r /run/sisod`)
		expect(t, h, 0, "flush")
		same(t, c.name+": cleared", snapshot(t, h), found)
	}
}

func TestJSONIsVersioned(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile+"[uplink.late]\ninterface = \"em9\"\n")
	decode := func(text string, into any) {
		t.Helper()
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
	type problem struct{ Subject, Text, Origin string }
	var plan struct {
		Version int
		Steps   []struct {
			Op, Kind, Family, Object, Profile string
			Commands                          []string
		}
		Problems []problem
	}
	decode(expect(t, h, 2, "plan", "-o", "json").stdout, &plan)
	if plan.Version != 1 || len(plan.Steps) != 31 || len(plan.Problems) != 1 || plan.Problems[0].Subject != "uplink late" {
		t.Errorf("plan: %+v", plan)
	}
	for _, s := range plan.Steps {
		if !regexp.MustCompile(`^isp\.toml:\d+$`).MatchString(s.Profile) || len(s.Commands) == 0 || s.Object == "" {
			t.Errorf("step without its place or command: %+v", s)
		}
	}
	contains(t, expect(t, h, 2, "plan", "-o", "json").stdout, `"subject": "uplink late"`, `"op": "add"`, `"kind": "rule"`, `"family": "IPv6"`)

	var status struct {
		Version  int
		InOrder  bool `json:"in_order"`
		Held     bool
		Uplinks  []map[string]any
		Roles    []map[string]any
		Problems []problem
		Drift    []struct{ Op, Kind, Family, Object string }
		Daemon   any
		// Programs in other network namespaces are no neighbours: here is nobody.
		Neighbours []struct {
			Name    string
			Deletes []string
		}
	}
	decode(expect(t, h, 2, "status", "-o", "json").stdout, &status)
	if status.Version != 1 || status.InOrder || len(status.Uplinks) != 6 || len(status.Problems) != 1 || len(status.Drift) != 31 || status.Daemon != nil || status.Neighbours == nil || len(status.Neighbours) != 0 {
		t.Errorf("status before apply: %+v", status)
	}
	expect(t, h, 2, "apply")
	writeProfile(t, h, "isp.toml", smallProfile)
	expect(t, h, 0, "apply")
	status.Drift = nil
	decode(expect(t, h, 0, "status", "-o", "json").stdout, &status)
	if !status.InOrder || len(status.Drift) != 0 || len(status.Uplinks) != 4 {
		t.Errorf("status after apply: %+v", status)
	}
	decode(expect(t, h, 0, "plan", "-o", "json").stdout, &plan)
	contains(t, expect(t, h, 0, "plan", "-o", "json").stdout, `"steps": []`, `"problems": []`)
	for _, c := range []string{"plan", "status"} {
		contains(t, expect(t, h, 1, c, "-o", "yaml").stderr, `-o is "yaml": expected text`, "json")
	}
}

// TestShowIsWhatTheKernelHas holds every line of show against ip, and wants
// the profile's place on it.
func TestShowIsWhatTheKernelHas(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	expect(t, h, 0, "apply")
	have := map[string]bool{}
	for _, family := range []string{"-4", "-6"} {
		for _, words := range []string{"rule", "route show table all"} {
			for line := range strings.Lines(ip(t, h, append([]string{family}, strings.Fields(words)...)...)) {
				kind, _, _ := strings.Cut(words, " ")
				if family == "-6" {
					kind = "-6 " + kind
				}
				line = strings.NewReplacer(":\t", ": ", " proto 115", "", " dev lo", "", " scope link", "", " pref medium", "", " metric 1024", "").Replace(strings.TrimSpace(line))
				line, _, _ = strings.Cut(line, " error ")
				have[kind+" "+line] = true
			}
		}
	}
	lines := 0
	for line := range strings.Lines(expect(t, h, 0, "show").stdout) {
		object, place, ok := strings.Cut(line, "  # ")
		if object = strings.TrimSpace(object); !ok || !regexp.MustCompile(`^isp\.toml:(1|5)\n$`).MatchString(place) {
			t.Errorf("line without the profile's place: %q", line)
		}
		if strings.HasPrefix(object, "sysctl ") || strings.HasPrefix(object, "link group ") || strings.HasPrefix(object, "table name ") {
			continue
		}
		lines++
		if !have[object] {
			t.Errorf("the kernel has no %q; it has %v", object, have)
		}
	}
	if lines != 24 {
		t.Errorf("show has %d routes and rules, want 24", lines)
	}
}

func TestColourOnATerminalOnly(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	onTerminal := func(command string) string {
		t.Helper()
		// script gives the command a terminal of its own; -e passes its exit code on.
		r := try(t, h, "env", "-u", "NO_COLOR", "TERM=xterm", "script", "-qec", command, "/dev/null")
		if r.code != 2 {
			t.Fatalf("%s on a terminal: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	for command, want := range map[string]bool{
		program + " plan":                 true,
		program + " status":               true,
		"NO_COLOR=1 " + program + " plan": false,
		// no-color.org: an empty value says nothing.
		"NO_COLOR= " + program + " plan":                     true,
		"TERM=dumb " + program + " plan":                     false,
		program + " plan --color=never":                      false,
		"NO_COLOR=1 " + program + " plan --color=always":     true,
		program + " plan > /run/file; cat /run/file; exit 2": false,
	} {
		if got := strings.Contains(onTerminal(command), "\x1b["); got != want {
			t.Errorf("%s on a terminal: coloured %v, want %v", command, got, want)
		}
	}
	if r := expect(t, h, 2, "plan"); strings.Contains(r.stdout, "\x1b[") {
		t.Error("colour in a pipe")
	}
	if r := expect(t, h, 2, "plan", "--color=always"); !strings.Contains(r.stdout, "\x1b[32m+\x1b[0m rule") {
		t.Error("--color=always has no colour in a pipe")
	}
	contains(t, expect(t, h, 1, "plan", "--color=red").stderr, `--color is "red": expected auto, always or never`)
}

// TestEveryCommandSaysWhatItIsFor asks the program for help, wrongly and rightly.
func TestEveryCommandSaysWhatItIsFor(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	commands := []string{"apply", "check", "completion", "demo", "flush", "plan", "run", "show", "status", "version"}
	top := expect(t, h, 0, "help").stdout
	same(t, "sisod without a word", expect(t, h, 0).stdout, top)
	for _, c := range commands {
		contains(t, top, "\n  "+c+" ")
		r := expect(t, h, 0, c, "--help")
		contains(t, r.stdout, "Usage:\n  sisod "+c, "--config string")
		if r.stderr != "" {
			t.Errorf("help of %s on standard error: %s", c, r.stderr)
		}
	}
	for _, c := range []string{"apply", "plan", "status"} {
		contains(t, expect(t, h, 0, c, "--help").stdout, "Exit code 0")
	}
	for _, c := range []struct{ args, stderr string }{
		{"aply", "sisod: unknown command \"aply\" for \"sisod\"\n\nDid you mean this?\n\tapply\n"},
		{"apply now", `sisod: unknown command "now" for "sisod apply"`},
		{"check a b", "sisod: accepts at most 1 arg(s), received 2"},
		{"plan --outptu=json", "sisod: unknown flag: --outptu"},
	} {
		r := expect(t, h, 1, strings.Fields(c.args)...)
		contains(t, r.stderr, c.stderr)
		if r.stdout != "" {
			t.Errorf("sisod %s: an error on standard output: %s", c.args, r.stdout)
		}
	}
	if r := expect(t, h, 0, "version"); !regexp.MustCompile(`^sisod \S+( \w+)? go1\.\S+.* linux/\w+\n$`).MatchString(r.stdout) {
		t.Errorf("version: %q", r.stdout)
	}
	for shell, sign := range map[string]string{"bash": "complete -o default", "zsh": "#compdef sisod", "fish": "complete -c sisod"} {
		contains(t, expect(t, h, 0, "completion", shell).stdout, sign)
	}
	runInput(t, h, expect(t, h, 0, "completion", "bash").stdout, "bash", "-n")
	for words, want := range map[string]string{"pl": "plan\t", "plan --o": "--output", "plan -o ": "script", "--color ": "always", "flush ": ":4"} {
		contains(t, expect(t, h, 0, append([]string{"__complete"}, strings.Split(words, " ")...)...).stdout, want)
	}
}

func TestLookingNeedsNoPrivilege(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	as := unprivileged(t, h)
	user := func(code int, args ...string) result {
		t.Helper()
		r := try(t, h, append(as, args...)...)
		if r.code != code {
			t.Fatalf("sisod %v without privilege: exit code %d, want %d\n%s%s", args, r.code, code, r.stdout, r.stderr)
		}
		return r
	}
	looks := func(drift int) {
		t.Helper()
		user(0, "check")
		for _, c := range []struct {
			command string
			code    int
		}{{"plan", drift}, {"status", drift}, {"show", 0}} {
			same(t, c.command+" without privilege", user(c.code, c.command).stdout, expect(t, h, c.code, c.command).stdout)
		}
	}
	looks(2)
	expect(t, h, 0, "apply")
	looks(0)
	before := wholeSnapshot(t, h)
	for _, c := range []string{"apply", "flush", "run"} {
		contains(t, user(1, c).stderr, "sisod: "+c+" changes the kernel's routing and needs CAP_NET_ADMIN: run it as root, e.g. with sudo")
	}
	contains(t, user(1, "demo").stderr, "needs root: run sudo sisod demo")
	same(t, "the host after that", wholeSnapshot(t, h), before)

	run(t, h, "chmod", "600", "/etc/sisod/profiles/isp.toml")
	for _, c := range []string{"check", "plan", "show"} {
		contains(t, user(1, c).stderr, "/etc/sisod/profiles/isp.toml", "permission denied", "run as root")
	}
}

func TestConfigIsReadFromAnyFolder(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	run(t, h, "sh", "-c", "mkdir -p /run/elsewhere && cp -r /etc/sisod /run/elsewhere/wishes && rm -r /etc/sisod/*")
	for _, command := range []string{
		"cd /run/elsewhere && $0 --config wishes apply && $0 --config wishes plan && cd wishes && $0 --config . plan && cd profiles && $0 --config .. plan",
		"$0 --config /run/elsewhere/wishes/ plan && $0 plan --config /run/../run/elsewhere/wishes",
	} {
		r := try(t, h, "sh", "-c", command, program)
		if r.code != 0 || !strings.HasSuffix(r.stdout, "nothing to do\n") {
			t.Errorf("%s: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
		}
	}
	contains(t, run(t, h, "find", "/var/lib/sisod"), "/var/lib/sisod/last-good/run/elsewhere/wishes/profiles/isp.toml")

	for path, want := range map[string]string{
		"/run/elsewhere/wishes":                   "/run/elsewhere/wishes: valid: 2 uplinks in 1 file\n",
		"/run/elsewhere/wishes/profiles/isp.toml": "/run/elsewhere/wishes/profiles/isp.toml: valid: 2 uplinks in 1 file\n",
	} {
		same(t, "check "+path, expect(t, h, 0, "check", path).stdout, want)
	}
	same(t, "check with a relative path", try(t, h, "sh", "-c", "cd /run/elsewhere && $0 check wishes/profiles/isp.toml", program).stdout,
		"/run/elsewhere/wishes/profiles/isp.toml: valid: 2 uplinks in 1 file\n")
	contains(t, expect(t, h, 1, "check", "/run/nowhere").stderr, "/run/nowhere", "no such file or folder")
	writeFile(t, h, "draft.toml", "[uplink.a]\ninterfaces = \"em1\"\n")
	r := expect(t, h, 1, "check", "/etc/sisod/draft.toml")
	contains(t, r.stderr, "/etc/sisod/draft.toml:2:1", "interface")
	if r.stdout != "" {
		t.Errorf("complaints on standard output: %s", r.stdout)
	}
}
