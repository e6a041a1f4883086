package kernel

import (
	"bytes"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

const rpFilter = "net/ipv4/conf/em1/rp_filter"

func replaceSysctl(path, value string) []state.Step {
	return []state.Step{{Op: state.Replace, Object: state.Sysctl{Path: path, Value: value}}}
}

func replaceGroup(link string, group uint32) []state.Step {
	return []state.Step{{Op: state.Replace, Object: state.LinkGroup{Link: link, Group: group}}}
}

func restore(steps []state.Step) []state.Step {
	steps[0].Op = state.Restore
	return steps
}

// mustApply fails the test when a step fails.
func mustApply(t *testing.T, errs []error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// before reads the links and what can be given back, as a process that starts now.
func before(t *testing.T, h *Host) state.Before {
	t.Helper()
	fresh, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	for _, host := range []*Host{h, fresh} {
		if err := host.links.read(); err != nil {
			t.Fatal(err)
		}
	}
	b, same := fresh.ledger.before(fresh.links, readSysctl), h.ledger.before(h.links, readSysctl)
	if !maps.Equal(b.Groups, same.Groups) || !maps.Equal(b.Sysctls, same.Sysctls) {
		t.Fatalf("a process that starts sees %v, the one that runs %v", b, same)
	}
	return b
}

func wantBefore(t *testing.T, h *Host, groups map[string]uint32, sysctls map[string]string) {
	t.Helper()
	b := before(t, h)
	if !maps.Equal(b.Groups, groups) || !maps.Equal(b.Sysctls, sysctls) {
		t.Fatalf("can be given back: %v, want %v %v", b, groups, sysctls)
	}
}

func groupOf(t *testing.T, link string) string {
	t.Helper()
	words := strings.Fields(strings.Join(ip(t, "-o link show dev "+link), " "))
	for i, w := range words {
		if w == "group" {
			return words[i+1]
		}
	}
	return ""
}

func TestValuesAreGivenBackAfterRename(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	ip(t, "link set em1 group 3")
	setSysctl(t, rpFilter, "1")
	wantBefore(t, h, nil, nil)
	mustApply(t, h.applyGroups(replaceGroup("em1", 115)))
	mustApply(t, h.applySysctls(replaceSysctl(rpFilter, "2")))
	if g, v := groupOf(t, "em1"), getSysctl(t, rpFilter); g != "115" || v != "2" {
		t.Fatalf("group %s, rp_filter %s", g, v)
	}
	wantBefore(t, h, map[string]uint32{"em1": 3}, map[string]string{rpFilter: "1"})

	ip(t, "link set em1 down")
	ip(t, "link set em1 name wan.7")
	wan := "net/ipv4/conf/wan.7/rp_filter"
	wantBefore(t, h, map[string]uint32{"wan.7": 3}, map[string]string{wan: "1"})
	// A new owner of the old name has nothing to be given back.
	ip(t, "link add em1 type veth peer name peer9")
	wantBefore(t, h, map[string]uint32{"wan.7": 3}, map[string]string{wan: "1"})

	// What was found stays the value from before the first change.
	mustApply(t, h.applyGroups(replaceGroup("wan.7", 116)))
	mustApply(t, h.applySysctls(replaceSysctl(wan, "0")))
	wantBefore(t, h, map[string]uint32{"wan.7": 3}, map[string]string{wan: "1"})

	mustApply(t, h.applyGroups(restore(replaceGroup("wan.7", 3))))
	mustApply(t, h.applySysctls(restore(replaceSysctl(wan, "1"))))
	if g, v := groupOf(t, "wan.7"), getSysctl(t, wan); g != "3" || v != "1" {
		t.Fatalf("given back: group %s, rp_filter %s", g, v)
	}
	wantBefore(t, h, nil, nil)
	if len(h.ledger.page.Sysctls)+len(h.ledger.page.Groups) != 0 {
		t.Errorf("the ledger still has %+v", h.ledger.page)
	}
}

func TestRecreatedLinkHasNothingToGiveBack(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	setSysctl(t, rpFilter, "1")
	before(t, h)
	mustApply(t, h.applyGroups(replaceGroup("em1", 115)))
	mustApply(t, h.applySysctls(replaceSysctl(rpFilter, "2")))
	mustApply(t, h.applySysctls(replaceSysctl("net/ipv4/conf/all/src_valid_mark", "1")))
	ip(t, "link del em1")
	ip(t, "link add em1 type veth peer name peer1")
	setSysctl(t, rpFilter, "2")
	ip(t, "link set em1 group 115")
	wantBefore(t, h, nil, map[string]string{"net/ipv4/conf/all/src_valid_mark": "0"})
	// A restore that was planned before the link went does no harm.
	mustApply(t, h.applyGroups(restore(replaceGroup("em1", 0))))
	mustApply(t, h.applySysctls(restore(replaceSysctl(rpFilter, "1"))))
	if g, v := groupOf(t, "em1"), getSysctl(t, rpFilter); g != "115" || v != "2" {
		t.Errorf("a link that sisod never touched has group %s, rp_filter %s", g, v)
	}
}

func TestValueOfSomebodyElseIsTheirs(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	var said bytes.Buffer
	h.options.Log = slog.New(slog.NewTextHandler(&said, nil))
	h.ledger.log = h.options.Log
	setSysctl(t, rpFilter, "1")
	before(t, h)
	mustApply(t, h.applyGroups(replaceGroup("em1", 115)))
	mustApply(t, h.applySysctls(replaceSysctl(rpFilter, "2")))
	setSysctl(t, rpFilter, "0")
	ip(t, "link set em1 group 9")
	said.Reset()
	for range 3 {
		if err := h.links.read(); err != nil {
			t.Fatal(err)
		}
		if b := h.ledger.before(h.links, readSysctl); len(b.Groups)+len(b.Sysctls) != 0 {
			t.Fatalf("can be given back: %v", b)
		}
	}
	wanted := state.New()
	wanted.Groups["em1"], wanted.Sysctls[rpFilter] = 115, "2"
	for _, s := range []state.State{wanted, state.New(), state.New()} {
		// Each as a process of its own that finds what the others found.
		saved := h.ledger.page
		if err := h.ledger.prune(h.links, s, state.Timeouts{}); err != nil {
			t.Fatal(err)
		}
		if len(s.Groups) > 0 && said.Len() > 0 {
			t.Errorf("what is set again is told:\n%s", &said)
		}
		h.ledger.page = saved
	}
	if n := strings.Count(said.String(), "changed by somebody else"); n != 2 {
		t.Errorf("told %d times, want once for each of two values:\n%s", n, &said)
	}
	// A restore that was planned before leaves it alone as well.
	mustApply(t, h.applySysctls(restore(replaceSysctl(rpFilter, "1"))))
	mustApply(t, h.applyGroups(restore(replaceGroup("em1", 0))))
	if g, v := groupOf(t, "em1"), getSysctl(t, rpFilter); g != "9" || v != "0" {
		t.Errorf("group %s, rp_filter %s: not theirs any more", g, v)
	}
	// Changed again by sisod, it is their value that comes back.
	mustApply(t, h.applySysctls(replaceSysctl(rpFilter, "2")))
	wantBefore(t, h, nil, map[string]string{rpFilter: "0"})
}

// A process killed between the ledger and the change leaves a ledger that is
// right either way.
func TestLedgerIsWrittenBeforeTheChange(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	setSysctl(t, rpFilter, "1")
	before(t, h)
	place, err := h.links.place(rpFilter)
	if err != nil {
		t.Fatal(err)
	}
	note := func(found, set string) {
		h.ledger.noteSysctl(place, found, set)
		if err := h.ledger.save(); err != nil {
			t.Fatal(err)
		}
	}
	note("1", "2") // killed here
	wantBefore(t, h, nil, nil)
	setSysctl(t, rpFilter, "2") // or here
	wantBefore(t, h, nil, map[string]string{rpFilter: "1"})
	note("2", "0") // killed here
	wantBefore(t, h, nil, map[string]string{rpFilter: "1"})
	setSysctl(t, rpFilter, "0")
	wantBefore(t, h, nil, map[string]string{rpFilter: "1"})
	// And applySysctls does it in that order: where the ledger cannot be written, nothing changes.
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.ledger.path = filepath.Join(blocked, "ledger.json")
	if errs := h.applySysctls(replaceSysctl(rpFilter, "2")); errs[0] == nil || getSysctl(t, rpFilter) != "0" {
		t.Errorf("without a ledger: error %v, value %s", errs[0], getSysctl(t, rpFilter))
	}
	if errs := h.applyGroups(replaceGroup("em1", 115)); errs[0] == nil || groupOf(t, "em1") != "default" {
		t.Errorf("without a ledger: error %v, group %s", errs[0], groupOf(t, "em1"))
	}
}

func TestLedgerOfAnotherBootOrNamespaceIsVoid(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	before(t, h)
	known := map[state.GatewayKey]netip.Addr{{Uplink: "china", Family: state.IPv4}: netip.MustParseAddr("192.0.2.1")}
	mustApply(t, h.applyGroups(replaceGroup("em1", 115)))
	if err := h.Remember(known); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{h.ledger.here.Boot, h.ledger.here.Namespace} {
		content, err := os.ReadFile(h.ledger.path)
		if err != nil {
			t.Fatal(err)
		}
		other := h.options
		other.RunDir = t.TempDir()
		file := filepath.Join(other.RunDir, ledgerFile)
		if err := os.WriteFile(file, bytes.ReplaceAll(content, []byte(field), []byte("another")), 0o644); err != nil {
			t.Fatal(err)
		}
		o, err := Open(other)
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		wantBefore(t, o, nil, nil)
		if len(o.ledger.known()) != 0 {
			t.Errorf("known gateways of another time or place: %v", o.ledger.known())
		}
		if err := o.Remember(known); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(file); err != nil || !bytes.Contains(now, []byte(field)) || bytes.Contains(now, []byte("another")) {
			t.Errorf("not overwritten: %s %v", now, err)
		}
	}
	// The next namespace has another identity.
	here := h.ledger.here.Namespace
	enterNamespace(t)
	if there, err := namespaceIdentity(); err != nil || there == here {
		t.Errorf("identities of two namespaces: %q and %q, %v", here, there, err)
	}
}

func TestDamagedLedgerIsSetAside(t *testing.T) {
	enterNamespace(t)
	for _, damage := range []string{"", "{", "[]", `{"boot": 3}`, "{}", "\x00\xff", `{"boot":"x","namespace":"y","sysctls":[{"link":"em1"}]}`} {
		var said bytes.Buffer
		dir := t.TempDir()
		file := filepath.Join(dir, ledgerFile)
		if err := os.WriteFile(file, []byte(damage), 0o644); err != nil {
			t.Fatal(err)
		}
		g, err := openLedger(dir, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatalf("%q: %v", damage, err)
		}
		if kept, err := os.ReadFile(file + ".damaged"); err != nil || string(kept) != damage {
			t.Errorf("%q: kept %q, %v", damage, kept, err)
		}
		if !strings.Contains(said.String(), "ledger is damaged") {
			t.Errorf("%q: said %q", damage, &said)
		}
		g.noteGroup(7, 0, 115)
		if err := g.save(); err != nil {
			t.Fatal(err)
		}
		again, err := openLedger(dir, nil)
		if err != nil || !again.ownsGroup(7, 115) {
			t.Errorf("%q: what was written afterwards: %+v %v", damage, again.page, err)
		}
	}
}

func TestUnreadableLedgerIsNotEmpty(t *testing.T) {
	enterNamespace(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ledgerFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openLedger(dir, nil); err == nil {
		t.Error("a folder was read as an empty ledger")
	}
}

func TestLedgersOfTwoProcessesAreOne(t *testing.T) {
	enterNamespace(t)
	dir := t.TempDir()
	open := func() *ledger {
		g, err := openLedger(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	a, b := open(), open()
	a.noteGroup(2, 0, 115)
	if err := a.save(); err != nil {
		t.Fatal(err)
	}
	b.noteGroup(3, 4, 115)
	if err := b.save(); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*ledger{a, b, open()} {
		if !g.ownsGroup(2, 115) || !g.ownsGroup(3, 115) {
			t.Errorf("lost an entry of the other: %+v", g.page)
		}
	}
}

func TestNothingNewIsNotWritten(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	known := map[state.GatewayKey]netip.Addr{
		{Uplink: "china", Family: state.IPv4}: netip.MustParseAddr("192.0.2.1"),
		{Uplink: "china", Family: state.IPv6}: netip.MustParseAddr("fe80::1"),
		{Uplink: "tun", Family: state.IPv4}:   {},
	}
	if err := h.Remember(known); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(h.ledger.path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o644 {
		t.Errorf("mode %s", st.Mode())
	}
	fresh, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if !maps.Equal(fresh.ledger.known(), known) {
		t.Errorf("known %v, want %v", fresh.ledger.known(), known)
	}
	for _, host := range []*Host{h, fresh} {
		if err := host.Remember(known); err != nil {
			t.Fatal(err)
		}
		host.ledger.dirty = true
		if err := host.ledger.save(); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := os.Stat(h.ledger.path); err != nil || !os.SameFile(st, now) {
		t.Errorf("written again with the same content: %v", err)
	}
}

func TestMissingSysctlSaysSo(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	before(t, h)
	for _, path := range []string{"net/ipv4/conf/absent0/rp_filter", "net/ipv4/conf/em1/no_such_value", "net/ipv4/vs_no/such"} {
		err := h.applySysctls(replaceSysctl(path, "1"))[0]
		if err == nil || !strings.Contains(err.Error(), "not supported by this kernel, or the interface is gone") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"kernel/hostname", "net/../kernel/hostname", "/net/ipv4/ip_forward", "net//ipv4/ip_forward"} {
		if err := h.applySysctls(replaceSysctl(path, "1"))[0]; err == nil || !strings.Contains(err.Error(), "not a path below net") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := h.applyGroups(replaceGroup("absent0", 1))[0]; err == nil {
		t.Error("a link that is not there was put into a group")
	}
	got := h.ReadAlso([]string{"net/ipv4/ip_local_port_range", "net/ipv4/conf/absent0/rp_filter", rpFilter}).Facts.Sysctls
	want := map[string]string{
		"net/ipv4/ip_local_port_range": strings.Join(strings.Fields(getSysctl(t, "net/ipv4/ip_local_port_range")), " "),
		rpFilter:                       getSysctl(t, rpFilter),
	}
	if !maps.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
