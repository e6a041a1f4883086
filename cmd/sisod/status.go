package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

func statusCommand(p *places) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "uplinks, problems, drift, and what the daemon did last",
		Long: `Status looks at the kernel, the profiles and the daemon.
Exit code 0: all in order, 2: drift or problems, 1: error, also when the
profiles do not load, or when a problem is an error: connections fail, or are
about to.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("-o is %q: expected text or json", format)
			}
			st, err := p.status(cmd)
			if err != nil {
				return err
			}
			if format == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(st)
			} else {
				err = st.text(cmd.OutOrStdout(), p.palette(os.Stdout))
			}
			switch {
			case err != nil:
				return err
			case st.ConfigError != "", state.Errors(st.Problems) > 0:
				return exitCode(exitError)
			case !st.InOrder:
				return exitCode(exitMore)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}

// statusVersion is the version of the JSON of status.
const statusVersion = 1

// status is what the command shows; its JSON is an interface of the product.
type status struct {
	Version     int             `json:"version"`
	InOrder     bool            `json:"in_order"`
	ConfigError string          `json:"config_error,omitempty"`
	LastGood    bool            `json:"last_good,omitempty"` // the kept configuration is shown instead
	Held        bool            `json:"held"`
	Uplinks     []uplinkStatus  `json:"uplinks"`
	Roles       []roleStatus    `json:"roles"`
	Problems    []state.Problem `json:"problems"`
	Drift       []driftStatus   `json:"drift"`
	Daemon      *daemon.Report  `json:"daemon"` // null: no daemon runs
	// Neighbours are the programs besides that have to do with routing.
	Neighbours []kernel.Neighbour `json:"neighbours"`
	// DaemonError is why the daemon's report cannot be read.
	DaemonError string `json:"daemon_error,omitempty"`
}

// uplinkStatus is one uplink in one family.
type uplinkStatus struct {
	Name      string       `json:"name"`
	Interface string       `json:"interface"`
	Family    string       `json:"family"`
	State     string       `json:"state"` // up, no-carrier, guarded, waiting, unused
	Table     uint32       `json:"table"`
	Gateway   string       `json:"gateway,omitempty"` // an address, or "none": point-to-point
	Source    string       `json:"gateway_source,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// Forward and Masquerade are in force, not only wanted.
	Forward    bool   `json:"forward,omitempty"`
	Masquerade bool   `json:"masquerade,omitempty"`
	Trouble    string `json:"trouble,omitempty"`
}

type driftStatus struct {
	Op     string `json:"op"`
	Kind   string `json:"kind"`
	Family string `json:"family,omitempty"`
	Object string `json:"object"`
}

// status looks at everything. Profiles that do not load are no reason to show
// nothing: the last good ones are looked at, as the daemon does.
func (p *places) status(cmd *cobra.Command) (*status, error) {
	st := &status{Version: statusVersion, Uplinks: []uplinkStatus{}, Roles: []roleStatus{}, Problems: []state.Problem{}, Drift: []driftStatus{}, Neighbours: []kernel.Neighbour{}}
	var err error
	if st.Daemon, err = daemon.ReadReport(p.run); err != nil {
		st.DaemonError = err.Error()
	}
	s, err := p.open()
	var invalid profiles.Errors
	if errors.As(err, &invalid) {
		st.ConfigError, st.LastGood = invalid.Error(), true
		if s, err = p.openLastGood(); err != nil {
			// An ordinary user may not read the copy. That must not hide what is wrong.
			st.ConfigError += "\nlast good configuration: " + err.Error()
			s, err = nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if s == nil {
		st.LastGood = false
		return st, nil
	}
	defer s.close()
	st.Held = s.host.Held()
	st.Neighbours = s.host.Neighbours()
	pass, err := s.look(cmd.Context())
	if err != nil {
		return nil, err
	}
	for _, e := range pass.Exits {
		st.Uplinks = append(st.Uplinks, uplinkOf(s.config, e, pass.Facts.NFT.Missing == ""))
	}
	traffic, err := s.host.Traffic()
	if err != nil {
		return nil, err
	}
	st.Roles = roles(s.config, pass, traffic)
	st.Problems = append(st.Problems, pass.Desired.Problems...)
	for _, step := range pass.Plan.Steps {
		for object := range strings.SplitSeq(step.Object.Spell(pass.Plan.Names), "\n") {
			st.Drift = append(st.Drift, driftStatus{step.Op.String(), step.Object.Kind().String(), familyName(step.Object), object})
		}
	}
	st.InOrder = st.ConfigError == "" && st.DaemonError == "" && len(st.Problems) == 0 && len(st.Drift) == 0 &&
		(st.Daemon == nil || len(st.Daemon.Failures) == 0 && len(st.Daemon.Fights) == 0)
	return st, nil
}

// uplinkOf is an uplink in one family, on a host with nf_tables or without.
func uplinkOf(c *profiles.Config, e *routing.Exit, tables bool) uplinkStatus {
	u := uplinkStatus{
		Name: e.Uplink, Interface: e.Interface, Family: e.Family.String(), Table: e.Table,
		Addresses: e.Addresses, Trouble: e.Trouble, State: e.State(),
	}
	if u.Addresses == nil {
		u.Addresses = []netip.Addr{}
	}
	if i := slices.IndexFunc(c.Uplinks, func(x profiles.Uplink) bool { return x.Name == e.Uplink }); i >= 0 && tables && e.Out {
		u.Forward, u.Masquerade = c.Uplinks[i].Forward, c.Uplinks[i].Masquerade
	}
	if e.Out {
		u.Gateway, u.Source = "none", e.Gateway.Source
		if e.Gateway.Via.IsValid() {
			u.Gateway = e.Gateway.Via.String()
		}
	}
	return u
}

func (st *status) text(w io.Writer, pal palette) error {
	if st.ConfigError != "" {
		fmt.Fprintln(w, pal.bad("profiles do not load, nothing in them is in force:"))
		fmt.Fprintln(w, st.ConfigError)
		if st.LastGood {
			fmt.Fprintln(w, pal.warn("the last good configuration stands in:"))
		}
	}
	if st.Held {
		fmt.Fprintln(w, pal.warn("flushed: held until sisod apply, a reload or a restart"))
	}
	fmt.Fprintln(w, st.verdict(pal))
	fmt.Fprintln(w, pal.bold("uplinks"))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, u := range st.Uplinks {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\n", u.Name, u.Interface, u.Family, paintState(pal, u.State), gatewayText(u), addressText(u.Addresses)+followText(u))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(st.Uplinks) == 0 {
		fmt.Fprintln(w, "  none")
	}
	section := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintln(w, pal.bold(title))
		for _, l := range lines {
			fmt.Fprintln(w, "  "+l)
		}
	}
	section("roles", roleLines(pal, st.Roles))
	var lines, failing []string
	for _, p := range st.Problems {
		paint, list := pal.warn, &lines
		if p.Error {
			paint, list = pal.bad, &failing
		}
		line := paint(p.Subject) + ": " + p.Text
		if p.Origin != "" {
			line += pal.dim("  " + p.Origin)
		}
		*list = append(*list, line)
	}
	section("errors", failing)
	section("problems", lines)
	lines = nil
	for _, d := range st.Drift {
		kind := d.Kind
		if d.Family == state.IPv6.String() {
			kind += " -6"
		}
		lines = append(lines, fmt.Sprintf("%s %s %s", pal.warn("to "+d.Op), kind, d.Object))
	}
	section("drift", lines)
	lines = nil
	for _, n := range st.Neighbours {
		lines = append(lines, neighbourText(pal, n))
	}
	section("neighbours", lines)
	fmt.Fprintln(w, pal.bold("daemon"))
	switch {
	case st.DaemonError != "":
		fmt.Fprintf(w, "  %s %s; a running daemon writes it anew with its next pass\n", pal.bad("unknown:"), st.DaemonError)
	case st.Daemon == nil:
		fmt.Fprintln(w, "  not running: nothing follows changes (sisod run)")
	default:
		st.daemonText(w, pal)
	}
	return nil
}

func (st *status) daemonText(w io.Writer, pal palette) {
	d := st.Daemon
	fmt.Fprintf(w, "  running, pid %d, started %s, last pass %s, %s\n", d.PID, age(d.Started), age(d.LastPass), plural(d.Repairs, "repair"))
	for _, f := range d.Failures {
		fmt.Fprintf(w, "  %s %s\n", pal.bad("failed"), f.Error)
	}
	for _, f := range d.Fights {
		fmt.Fprintf(w, "  %s %s\n", pal.warn("fight"), f)
	}
	for _, s := range d.Steps[max(0, len(d.Steps)-8):] {
		drift := ""
		if s.Drift {
			drift = pal.warn("  drift")
		}
		fmt.Fprintf(w, "  %s %s %s %s%s%s\n", pal.dim(s.Time.Format("15:04:05")), s.Op, s.Kind, s.Object, drift, pal.dim("  "+s.Reason))
	}
}

// verdict is the status in one line.
func (st *status) verdict(pal palette) string {
	if st.InOrder {
		return pal.good("in order")
	}
	var words []string
	failing := state.Errors(st.Problems)
	for _, c := range []struct {
		n    int
		noun string
	}{{failing, "error"}, {len(st.Problems) - failing, "problem"}, {len(st.Drift), "step"}} {
		if c.n > 0 {
			words = append(words, plural(c.n, c.noun))
		}
	}
	if len(st.Drift) > 0 {
		words[len(words)-1] += " of drift"
	}
	if st.Daemon != nil && len(st.Daemon.Failures) > 0 {
		words = append(words, plural(len(st.Daemon.Failures), "failed step"))
	}
	if st.Daemon != nil && len(st.Daemon.Fights) > 0 {
		words = append(words, plural(len(st.Daemon.Fights), "fight"))
	}
	if len(words) == 0 {
		words = append(words, "not in order")
	}
	if failing > 0 {
		return pal.bad(strings.Join(words, ", "))
	}
	return pal.warn(strings.Join(words, ", "))
}

func paintState(pal palette, s string) string {
	switch s {
	case routing.StateUp:
		return pal.good(s)
	case routing.StateUnused:
		return pal.dim(s)
	}
	return pal.warn(s)
}

func gatewayText(u uplinkStatus) string {
	switch {
	case u.Gateway == "none":
		return "point-to-point"
	case u.Gateway != "":
		return "via " + u.Gateway + ", " + u.Source
	}
	return "-"
}

func neighbourText(pal palette, n kernel.Neighbour) string {
	if len(n.Deletes) == 0 {
		return n.Name
	}
	advice := ""
	switch n.Name {
	case kernel.Networkd:
		advice = ": ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in networkd.conf(5) keep it from that"
	case kernel.Keepalived:
		advice = ": without lvs_flush and lvs_flush_on_stop in keepalived.conf(5) it leaves them"
	}
	return n.Name + " " + pal.warn("deletes others' "+strings.Join(n.Deletes, " and ")) + advice
}

// followText tells what an uplink does beyond its addresses.
func followText(u uplinkStatus) string {
	text := ""
	for _, word := range []struct {
		is   bool
		text string
	}{{u.Forward, "forward"}, {u.Masquerade, "masquerade"}} {
		if word.is {
			text += ", " + word.text
		}
	}
	return text
}

// shownAddresses is how many addresses of an uplink fit on its line.
const shownAddresses = 4

func addressText(list []netip.Addr) string {
	if len(list) == 0 {
		return "-"
	}
	var words []string
	for _, a := range list[:min(len(list), shownAddresses)] {
		words = append(words, a.String())
	}
	if more := len(list) - shownAddresses; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return "from " + strings.Join(words, " ")
}

// openLastGood opens the kept configuration; nil when there is none.
func (p *places) openLastGood() (*session, error) {
	config, err := daemon.LastGood(p.state, p.config)
	if err != nil || config == nil {
		return nil, err
	}
	host, err := p.openHost(newLog(slog.LevelWarn))
	if err != nil {
		return nil, err
	}
	return &session{p, config, host}, nil
}
