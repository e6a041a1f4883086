package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/state"
)

func showCommand(p *places) *cobra.Command {
	var all, restorable bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "the desired state in iproute2's words, with the profile line that asked for it",
		Long: `Show prints all that the profiles ask for on this host, whether it is in the
kernel or not: rules, routes and links as ip writes them, services and real
servers of directors as ipvsadm does, and the table of nftables of forward,
masquerade, fullnat and transparent proxies as nft does. What cannot be now,
because an interface is absent or a gateway not learned, is not there: status
tells that. --ipvsadm prints what "ipvsadm-restore" reads.
Exit code 0: done, 1: error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.open()
			if err != nil {
				return err
			}
			defer s.close()
			pass, err := s.look(cmd.Context())
			if err != nil {
				return err
			}
			if restorable {
				return showServices(cmd.OutOrStdout(), pass)
			}
			return show(cmd.OutOrStdout(), p.palette(os.Stdout), pass, all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "write out long prefix lists")
	cmd.Flags().BoolVar(&restorable, "ipvsadm", false, "the services alone, as ipvsadm-restore reads them")
	return cmd
}

// showServices prints what ipvsadm -R makes the same services of. It takes no
// comments.
func showServices(w io.Writer, pass daemon.Pass) error {
	var err error
	for _, s := range state.Diff(state.Observed{State: state.New()}, pass.Desired).Steps {
		switch o := s.Object.(type) {
		case state.Service:
			_, err = fmt.Fprintln(w, "-A "+o.String())
		case state.Destination:
			_, err = fmt.Fprintln(w, "-a "+o.String())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// show prints the desired state object by object, in the order of apply.
func show(w io.Writer, pal palette, pass daemon.Pass, all bool) error {
	// From nothing to desired is everything, in order.
	plan := state.Diff(state.Observed{State: state.New()}, pass.Desired)
	for number, name := range pass.Plan.Names {
		plan.Names[number] = name
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(text, origin string) {
		if origin != "" {
			text += "\t" + pal.dim("# "+origin)
		}
		fmt.Fprintln(tw, text)
	}
	for _, s := range plan.Steps {
		switch o := s.Object.(type) {
		case state.RouteSet:
			if o.Dsts.Len() > 64 && !all {
				line(prefixOf(o.Family, "route ")+o.Spell(plan.Names), s.Origin)
				continue
			}
			for r := range o.All() {
				line(prefixOf(o.Family, "route ")+r.Spell(plan.Names), pass.Desired.Origin(state.One(r)))
			}
		case state.Rule:
			line(prefixOf(o.Family, "rule ")+o.Spell(plan.Names), s.Origin)
		case state.Service:
			line("-A "+o.String(), s.Origin)
		case state.Destination:
			line("-a "+o.String(), s.Origin)
		case state.NFTable:
			for text := range strings.Lines(o.Text) {
				rule := state.NFRuleText(strings.TrimSpace(text))
				// Cells begin behind tabs.
				line(strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\t", "  "), pass.Desired.Origins[rule])
			}
		case state.Nexthop:
			line(prefixOf(o.Family, "nexthop ")+o.String(), s.Origin)
		default:
			line(o.Kind().String()+" "+o.Spell(plan.Names), s.Origin)
		}
	}
	return tw.Flush()
}

func prefixOf(f state.Family, word string) string {
	if f == state.IPv6 {
		return "-6 " + word
	}
	return word
}
