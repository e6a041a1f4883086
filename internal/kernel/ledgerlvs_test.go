package kernel

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// web is the service of a port.
func web(port uint16) state.ServiceKey {
	return state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: netip.MustParseAddr("203.0.113.1"), Port: port}
}

func TestServicesAreWordsInTheFile(t *testing.T) {
	want := services{
		web(80): true,
		{Family: state.IPv6, Protocol: state.UDP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 53}: true,
		{Family: state.IPv4, Protocol: state.SCTP, Addr: netip.MustParseAddr("203.0.113.1"), Port: 0}: true,
		{Family: state.IPv4, Mark: 7}:          true,
		{Family: state.IPv6, Mark: 0xffffffff}: true,
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != `["132 203.0.113.1:0","6 203.0.113.1:80","IPv4 fwmark 7","17 [2001:db8::1]:53","IPv6 fwmark 4294967295"]` {
		t.Errorf("the file has %s", text)
	}
	var got services
	if err := json.Unmarshal(text, &got); err != nil || !maps.Equal(got, want) {
		t.Errorf("read %v, %v", got, err)
	}
	for _, bad := range []string{"", "6", "6 203.0.113.1", "256 203.0.113.1:80", "6 203.0.113.1:70000", "fwmark 7", "IPv4 fwmark", "IPv4 fwmark 0",
		"IPv5 fwmark 7", "IPv4 fwmark -1", "6 [fe80::1%em1]:80", "6  203.0.113.1:80"} {
		if k, err := serviceOfText(bad); err == nil {
			t.Errorf("%q is %+v", bad, k)
		}
	}
}

// FuzzServiceText: what is taken for a service is spelled, and read again, as
// that service.
func FuzzServiceText(f *testing.F) {
	for _, text := range []string{"6 203.0.113.1:80", "17 [2001:db8::1]:0", "IPv4 fwmark 7", "IPv6 fwmark 4294967295", "6 [::ffff:192.0.2.1]:80"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		k, err := serviceOfText(text)
		if err != nil {
			return
		}
		spelled := string(appendServiceText(nil, k))
		if again, err := serviceOfText(spelled); err != nil || again != k {
			t.Errorf("%q is %+v, spelled %q, read as %+v, %v", text, k, spelled, again, err)
		}
	})
}

func TestEveryServiceHasItsTurn(t *testing.T) {
	all := map[state.ServiceKey]state.Service{}
	for port := range uint16(100) {
		k := web(1000 + port)
		all[k] = state.Service{ServiceKey: k, Scheduler: "rr"}
	}
	var s seenIPVS
	s.take(all)
	was := slices.Clone(s.turns)
	s.take(maps.Clone(all))
	if !slices.Equal(s.turns, was) {
		t.Fatal("the turns are others though the services are the same")
	}
	gone := s.turns[0]
	delete(all, gone)
	s.take(all)
	for _, k := range s.turns {
		if k == gone {
			t.Error("a service that is gone has a turn")
		}
	}
	if len(s.turns) != len(all) {
		t.Errorf("%d turns for %d services", len(s.turns), len(all))
	}
}

func TestWhatADirectorSaidIsRemembered(t *testing.T) {
	dir := t.TempDir()
	open := func() *Host {
		t.Helper()
		g, err := openLedger(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &Host{ledger: g}
	}
	limits := map[state.ServiceKey]time.Duration{web(80): 10 * time.Minute, web(81): 10 * time.Minute, web(82): 0, {Family: state.IPv6, Mark: 7}: 90 * time.Second}
	vips := map[state.MarkedVIP]time.Time{
		{Mark: 7, Addr: netip.MustParseAddr("203.0.113.1")}: {},
		{Mark: 7, Addr: netip.MustParseAddr("2001:db8::1")}: time.Now(),
	}
	h := open()
	if err := h.RememberDirectors(limits, vips); err != nil {
		t.Fatal(err)
	}
	for _, again := range []*Host{h, open()} {
		if got := again.ledger.limits(); !maps.Equal(got, limits) {
			t.Errorf("limits %v, want %v", got, limits)
		}
		if got := again.ledger.markedVIPs(); !maps.EqualFunc(got, vips, time.Time.Equal) {
			t.Errorf("VIPs %v, want %v", got, vips)
		}
	}
	again := open()
	if err := again.RememberDirectors(limits, vips); err != nil || again.stale != 0 {
		t.Errorf("IPVS is read anew though nothing is: %v", err)
	}
	if err := open().RememberDirectors(nil, nil); err != nil {
		t.Fatal(err)
	}
	if h.ledger.reload(); len(h.ledger.limits())+len(h.ledger.markedVIPs()) != 0 {
		t.Error("still remembered")
	}
}

// What another program makes later by the same names is not sisod's. A kernel
// without IPVS has nothing in it either.
func TestWhatIsNotThereIsSisodsNoMore(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	h.ledger.noteService(web(80))
	h.ledger.noteSync(true)
	if err := h.readIPVS(); err != nil {
		t.Fatal(err)
	}
	if h.ledger.ownsService(web(80)) || h.ledger.ownsSync(true) {
		t.Errorf("services %v, sync daemons %v are sisod's still", h.ledger.services(), h.ledger.page.Syncs)
	}
}
