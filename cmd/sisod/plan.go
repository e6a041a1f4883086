package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/state"
)

func planCommand(p *places) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "show what apply would do",
		Long: `Plan compares profiles and kernel and shows the steps between them, in order.
Exit code 0: nothing to do, 2: there are changes, 1: error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" && format != "script" {
				return fmt.Errorf("-o is %q: expected text, json or script", format)
			}
			s, err := p.open()
			if err != nil {
				return err
			}
			defer s.close()
			pass, err := s.look(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch format {
			case "json":
				err = planJSON(out, pass)
			case "script":
				planScript(out, pass)
			default:
				planText(out, p.palette(os.Stdout), pass)
			}
			if err == nil && !pass.Plan.Empty() {
				err = exitCode(exitMore)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text, json, or script (commands of ip, nft, ipvsadm, sysctl, conntrack and modprobe)")
	return cmd
}

func planText(w io.Writer, pal palette, pass daemon.Pass) {
	for _, line := range problemsText(pal, pass) {
		fmt.Fprintln(w, line)
	}
	if pass.Plan.Empty() {
		fmt.Fprintln(w, "nothing to do")
		return
	}
	for _, s := range pass.Plan.Steps {
		for _, line := range stepLines(pal, s, pass.Plan.Names) {
			fmt.Fprintln(w, line)
		}
	}
	fmt.Fprintln(w, plural(len(pass.Plan.Steps), "step"))
}

// kindWidth is the width of the column of kinds.
const kindWidth = 11

// stepLines spells a step, a route to a line.
func stepLines(pal palette, s state.Step, names state.Names) []string {
	sign, kind, origin := painter(pal, s.Op)(s.Op.Sign()), s.Object.Kind().String(), ""
	if familyOf(s.Object) == state.IPv6 {
		kind += " -6"
	}
	if s.Origin != "" {
		origin = pal.dim("   # " + s.Origin)
	}
	// Not by Sprintf: there may be tens of thousands of lines.
	kind += strings.Repeat(" ", max(1, kindWidth-len(kind)))
	spelled := s.Object.Spell(names)
	lines := make([]string, 0, 1+strings.Count(spelled, "\n"))
	for object := range strings.SplitSeq(spelled, "\n") {
		lines = append(lines, sign+" "+kind+object+origin)
	}
	for _, l := range s.Lines {
		line := fmt.Sprintf("  %s %s", painter(pal, l.Op)(l.Op.Sign()), l.Text)
		if l.Origin != "" {
			line += pal.dim("   # " + l.Origin)
		}
		lines = append(lines, line)
	}
	return lines
}

// painter is the colour of an operation.
func painter(pal palette, op state.Op) func(string) string {
	switch {
	case op.Removes():
		return pal.bad
	case op != state.Add:
		return pal.warn
	}
	return pal.good
}

// familyOf is the address family of a nexthop, route set or rule, 0 of anything else.
func familyOf(o state.Object) state.Family {
	switch o := o.(type) {
	case state.Nexthop:
		return o.Family
	case state.RouteSet:
		return o.Family
	case state.Rule:
		return o.Family
	}
	return 0
}

// familyName is what JSON calls a family: nothing where there is none.
func familyName(o state.Object) string {
	if f := familyOf(o); f != 0 {
		return f.String()
	}
	return ""
}

func planScript(w io.Writer, pass daemon.Pass) {
	// Not "sh -ex" on the first line: "sh FILE" does not read it.
	fmt.Fprint(w, "#!/bin/sh\nset -ex\n")
	for _, c := range pass.Plan.Commands() {
		fmt.Fprintln(w, c)
	}
}

// planVersion is the version of the JSON of plan.
const planVersion = 1

func planJSON(w io.Writer, pass daemon.Pass) error {
	type line struct {
		Op      string `json:"op"`
		Text    string `json:"text"`
		Profile string `json:"profile,omitempty"`
	}
	type step struct {
		Op       string   `json:"op"`
		Kind     string   `json:"kind"`
		Family   string   `json:"family,omitempty"`
		Object   string   `json:"object"`
		Profile  string   `json:"profile,omitempty"`
		Lines    []line   `json:"lines,omitempty"` // of an nft table: the rules that come and go
		Commands []string `json:"commands"`
	}
	doc := struct {
		Version  int             `json:"version"`
		Steps    []step          `json:"steps"`
		Problems []state.Problem `json:"problems"`
	}{Version: planVersion, Steps: []step{}, Problems: pass.Desired.Problems}
	if doc.Problems == nil {
		doc.Problems = []state.Problem{}
	}
	for _, s := range pass.Plan.Steps {
		var lines []line
		for _, l := range s.Lines {
			lines = append(lines, line{l.Op.String(), l.Text, l.Origin})
		}
		doc.Steps = append(doc.Steps, step{
			Op: s.Op.String(), Kind: s.Object.Kind().String(), Family: familyName(s.Object), Object: s.Object.Spell(pass.Plan.Names),
			Profile: s.Origin, Lines: lines, Commands: s.Object.Commands(s.Op, pass.Plan.Names),
		})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}
