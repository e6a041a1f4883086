//go:build stock

package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

func kernelTimeouts(t *testing.T) string {
	t.Helper()
	_, values, _ := strings.Cut(ipvsadm(t, "-L --timeout")[0], ": ")
	return values
}

func TestTimeoutsAreGivenBack(t *testing.T) {
	h := openBalanced(t)
	ipvsadm(t, "--set 100 20 30")
	want := balancing(state.Timeouts{TCP: 900 * time.Second})
	reach(t, h, balanced, want)
	if got := kernelTimeouts(t); got != "900 20 30" {
		t.Errorf("timeouts %s", got)
	}
	reach(t, h, balanced, balancing(state.Timeouts{TCP: 901 * time.Second, UDP: 31 * time.Second}))
	if got := kernelTimeouts(t); got != "901 20 31" {
		t.Errorf("timeouts %s", got)
	}
	reach(t, h, Query{}, balancing())
	if got := kernelTimeouts(t); got != "100 20 30" || h.ledger.page.Timeouts != nil {
		t.Errorf("given back %s, in the ledger %v", got, h.ledger.page.Timeouts)
	}
	// What somebody else has set since is theirs.
	reach(t, h, balanced, want)
	ipvsadm(t, "--set 7 8 9")
	reach(t, h, balanced, balancing())
	if got := kernelTimeouts(t); got != "7 8 9" {
		t.Errorf("timeouts %s: not theirs any more", got)
	}
}

func running(t *testing.T) string {
	t.Helper()
	var words []string
	for _, l := range ipvsadm(t, "-L --daemon") {
		role, rest, _ := strings.Cut(l, " sync daemon (mcast=")
		link, rest, _ := strings.Cut(rest, ", syncid=")
		id, _, _ := strings.Cut(rest, ",")
		words = append(words, role+" "+link+" "+id)
	}
	return strings.Join(words, ", ")
}

func TestSyncDaemonsComeAndGo(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	master, backup := state.SyncDaemon{Master: true, Link: "em1", ID: 1}, state.SyncDaemon{Link: "em1", ID: 255}
	reach(t, h, balanced, balancing(master, backup))
	if got := running(t); got != "master em1 1, backup em1 255" {
		t.Errorf("running: %s", got)
	}
	master.ID, backup.Link = 7, "em2"
	reach(t, h, balanced, balancing(master, backup))
	if got := running(t); got != "master em1 7, backup em2 255" {
		t.Errorf("running: %s", got)
	}
	reach(t, h, balanced, balancing(backup))
	if got := running(t); got != "backup em2 255" {
		t.Errorf("running: %s", got)
	}
	// Somebody else's is left alone.
	ipvsadm(t, "--start-daemon master --mcast-interface em2 --syncid 9")
	if p := plan(t, h, balanced, balancing(backup)); !p.Empty() {
		t.Errorf("it would be stopped: %v", p.Commands())
	}
	o := h.Apply(t.Context(), plan(t, h, balanced, balancing(master, backup)), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "not sisod's (file exists): stop it (ipvsadm --stop-daemon master)") {
		t.Errorf("%+v", o)
	}
	reach(t, h, Query{}, balancing())
	if got := running(t); got != "master em2 9" {
		t.Errorf("running: %s", got)
	}
	ipvsadm(t, "--stop-daemon master")
	absent := state.SyncDaemon{Master: true, Link: "absent0", ID: 1}
	o = h.Apply(t.Context(), plan(t, h, balanced, balancing(absent)), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "the interface absent0 is not there") {
		t.Errorf("%+v", o)
	}
	if len(h.ledger.page.Syncs) != 0 {
		t.Errorf("the ledger has %v", h.ledger.page.Syncs)
	}
}

// TestSyncDaemonsSpeakAsTheyShould: one that somebody has started anew, with
// another group or length, is heard by no peer.
func TestSyncDaemonsSpeakAsTheyShould(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	ip(t, "link set em2 mtu 9000")
	master, backup := state.SyncDaemon{Master: true, Link: "em1", ID: 1}, state.SyncDaemon{Link: "em2", ID: 1}
	want := balancing(master, backup)
	usual := []string{
		"master sync daemon (mcast=em1, syncid=1, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)",
		"backup sync daemon (mcast=em2, syncid=1, maxlen=8972, group=224.0.0.81, port=8848, ttl=1)",
	}
	reach(t, h, balanced, want)
	readHost(t, h, balanced, AllParts)
	for _, other := range []string{"--sync-maxlen 9000", "--sync-maxlen 1400", "--mcast-group 239.0.0.1", "--mcast-group ff02::5", "--mcast-port 9000", "--mcast-ttl 2"} {
		for _, d := range []state.SyncDaemon{master, backup} {
			role, _, _ := strings.Cut(d.String(), " ")
			ipvsadm(t, "--stop-daemon "+role)
			ipvsadm(t, "--start-daemon "+d.String()+" "+other)
			moved, err := h.IPVSMoved()
			// A backup that takes longer messages takes all that a master sends.
			if fits := !d.Master && other == "--sync-maxlen 9000"; moved == fits || err != nil {
				t.Errorf("%s %s: moved %v, %v", role, other, moved, err)
			} else if fits {
				ipvsadm(t, "--stop-daemon "+role)
				ipvsadm(t, "--start-daemon "+d.String())
			}
			reach(t, h, balanced, want)
			if got := ipvsadm(t, "-L --daemon"); !slices.Equal(got, usual) {
				t.Errorf("%s %s:\n%s", role, other, strings.Join(got, "\n"))
			}
		}
	}
	// What is asked for is what runs.
	for n, group := range []string{"239.0.0.1", "ff02::5"} {
		master.Group, master.MaxLen, master.Port, master.TTL = netip.MustParseAddr(group), 1300+n, 9000, 7
		reach(t, h, balanced, balancing(master))
		if got, want := ipvsadm(t, "-L --daemon")[0], fmt.Sprintf("master sync daemon (mcast=em1, syncid=1, maxlen=%d, group=%s, port=9000, ttl=7)", 1300+n, group); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

func TestSyncDoesNotGoWithMixedFamilies(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	k := tcp("203.0.113.1", 80)
	mixed := balancing(service(k, "rr"), destination(k, "2001:db8::1", 80, state.TunnelTo, 1))
	reach(t, h, balanced, mixed)
	master := state.SyncDaemon{Master: true, Link: "em1", ID: 1}
	mixed.Syncs[true] = master
	o := h.Apply(t.Context(), plan(t, h, balanced, mixed), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "of another family than their service") {
		t.Errorf("%+v", o)
	}
	reach(t, h, balanced, balancing())
	reach(t, h, balanced, balancing(master))
	for _, x := range h.Apply(t.Context(), plan(t, h, balanced, mixed), nil) {
		if x.Step.Object.Kind() == state.KindDestination && (x.Err == nil || !strings.Contains(x.Err.Error(), "while a sync daemon runs")) {
			t.Errorf("%+v", x)
		}
	}
}
