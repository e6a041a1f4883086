package kernel

import (
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

func isUp(t *testing.T, link string) bool {
	t.Helper()
	return strings.Contains(ip(t, "-o link show dev "+link)[0], ",UP")
}

func wantUp(links ...string) state.Desired {
	d := state.Desired{State: state.New()}
	for _, l := range links {
		d.Up[l] = true
	}
	return d
}

func TestLinksAreGivenBackAsFound(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	ip(t, "link set em1 down")
	if p := reach(t, h, Query{}, wantUp("em1", "em2")); len(p.Steps) != 1 || !isUp(t, "em1") {
		t.Errorf("brought up %v", p.Commands())
	}
	// A rename does not matter, and a new owner of the name has nothing to give back.
	ip(t, "link set em1 down")
	ip(t, "link set em1 name wan")
	ip(t, "link set wan up")
	ip(t, "link add em1 type veth peer name peer9")
	ip(t, "link set em1 up")
	if p := reach(t, h, Query{}, wantUp()); len(p.Steps) != 1 || isUp(t, "wan") || !isUp(t, "em1") || !isUp(t, "em2") {
		t.Errorf("given back %v", p.Commands())
	}
	if len(h.ledger.page.Ups) != 0 {
		t.Errorf("the ledger still has %v", h.ledger.page.Ups)
	}
}

func TestALinkThatSomebodyTookDownIsBroughtUpAgain(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	ip(t, "link set em1 down")
	reach(t, h, Query{}, wantUp("em1"))
	ip(t, "link set em1 down")
	reach(t, h, Query{}, wantUp("em1"))
	ip(t, "link set em1 down")
	// It is as it was found: nothing to give back.
	if p := plan(t, h, Query{}, wantUp()); !p.Empty() {
		t.Errorf("to do: %v", p.Commands())
	}
	ip(t, "link del em1")
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Restore, Object: state.LinkUp{Link: "em1", Up: false}}}})
	if o := h.Apply(t.Context(), state.Plan{Steps: []state.Step{{Op: state.Replace, Object: state.LinkUp{Link: "em1", Up: true}}}}, nil); o[0].Err == nil {
		t.Error("a link that is not there was brought up")
	}
}
