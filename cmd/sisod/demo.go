package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/profiles"
)

// demoProfile is all that the host of the demo is told.
const demoProfile = `[uplink.isp1]
interface = "em1"       # the gateway is learned: main's default has it

[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
`

const (
	demoProfileName = "demo.toml"
	// demoTimeout is how long a client waits for a reply: far above a round
	// trip between namespaces, below the first repetition of a SYN.
	demoTimeout = 600 * time.Millisecond
	// demoWitness is how long a packet of an exchange that is over may take to
	// its record.
	demoWitness = 200 * time.Millisecond
)

func demoCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "show replies going wrong, and then right, in namespaces of its own",
		Long: `Demo builds a host with two providers and a client behind each, in network
namespaces of its own on this kernel. It lets the clients ask, shows by which
interface each request came in and its reply left, applies a profile, and shows
the same again. Nothing of this machine is touched and nothing is left behind.
It needs root. Exit code 0: all replies are right in the end, 1: error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			two, err := lab.NewTwoUplinks(cmd.Context(), lab.TwoUplinksOptions{})
			if errors.Is(err, lab.ErrPrivilege) {
				return errors.New("demo makes network namespaces and needs root: run sudo sisod demo")
			}
			interrupted := errors.New("demo interrupted; its namespaces are gone")
			if err != nil {
				if cmd.Context().Err() != nil {
					return interrupted
				}
				return err
			}
			defer func() { err = errors.Join(err, two.Lab.Close()) }()
			d := demo{two: two, out: cmd.OutOrStdout(), pal: p.palette(os.Stdout)}
			if err := d.run(cmd.Context()); err != nil {
				if cmd.Context().Err() != nil {
					return interrupted
				}
				return err
			}
			return nil
		},
	}
}

// demo is one showing.
type demo struct {
	two *lab.TwoUplinks
	out io.Writer
	pal palette
}

func (d *demo) run(ctx context.Context) error {
	d.picture()
	before, err := d.ask(ctx)
	if err != nil {
		return err
	}
	d.title("Before", "main's default decides: every reply leaves by "+d.two.Uplinks[0].Link)
	d.table(before)

	d.title("Profile", filepath.Join(profiles.DefaultDir, "profiles", demoProfileName)+" of the host")
	d.indent(demoProfile)
	rules, err := d.apply(ctx)
	if err != nil {
		return err
	}
	d.title("sisod apply", "the rules that the kernel has now, as sisod show spells them")
	d.indent(rules)

	after, err := d.ask(ctx)
	if err != nil {
		return err
	}
	d.title("After", "the source address decides")
	d.table(after)

	right := 0
	for _, f := range after {
		if f.right() {
			right++
		}
	}
	verdict := fmt.Sprintf("%d of %d replies left by the way their request came in.", right, len(after))
	if right < len(after) {
		fmt.Fprintf(d.out, "\n%s\n", d.pal.bad(verdict))
		return errors.New("demo ended with wrong replies on this kernel: please report its output")
	}
	fmt.Fprintf(d.out, "\n%s\n", d.pal.good(verdict))
	return nil
}

// apply gives the host its profile, runs this very program on it, and returns
// the rules that are there now.
func (d *demo) apply(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	dir := filepath.Join(profiles.DefaultDir, "profiles")
	// Inside the host these folders are its own.
	err = d.two.Host.Do(func() error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, demoProfileName), []byte(demoProfile), 0o644)
	})
	if err != nil {
		return "", fmt.Errorf("write profile of the demo: %w", err)
	}
	if _, err := d.two.Host.Run(ctx, self, "apply", "--quiet", "--color=never"); err != nil {
		return "", err
	}
	// An empty plan: what show tells is what the kernel has.
	if _, err := d.two.Host.Run(ctx, self, "plan", "--color=never"); err != nil {
		return "", err
	}
	text, err := d.two.Host.Run(ctx, self, "show", "--color=never")
	if err != nil {
		return "", err
	}
	var rules strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "rule ") || strings.HasPrefix(line, "-6 rule ") {
			rules.WriteString(line)
		}
	}
	return rules.String(), nil
}

// flow is one request, and what became of it.
type flow struct {
	uplink   lab.Uplink
	client   string
	remote   netip.Addr
	address  netip.Addr // of the host
	protocol lab.Protocol

	in, out string // interfaces of the host, "" when nothing was seen
	err     error  // nil: the client has its reply
}

func (f flow) right() bool { return f.err == nil && f.in != "" && f.in == f.out }

// carries reports whether a packet belongs to the flow, in one direction.
func (f flow) carries(p lab.Packet, out bool) bool {
	src, dst := f.remote, f.address
	if out {
		src, dst = dst, src
	}
	return p.Out == out && p.Protocol.Is(f.protocol) && p.Src.Addr() == src && p.Dst.Addr() == dst
}

// ask has every client ask the host's address on its own provider's side, all
// at once, and witnesses the packets at the host's interfaces.
func (d *demo) ask(ctx context.Context) ([]flow, error) {
	var flows []flow
	for _, u := range d.two.Uplinks {
		for i, address := range u.Address.All() {
			for _, protocol := range []lab.Protocol{lab.TCP, lab.UDP, lab.ICMP} {
				flows = append(flows, flow{uplink: u, client: u.Client.Name, remote: u.Remote.All()[i], address: address, protocol: protocol})
			}
		}
	}
	witness, err := d.two.Host.Capture()
	if err != nil {
		return nil, err
	}
	var wait sync.WaitGroup
	for i := range flows {
		f := &flows[i]
		wait.Go(func() {
			_, f.err = f.uplink.Client.Ask(ctx, lab.Request{
				Protocol: f.protocol, To: netip.AddrPortFrom(f.address, lab.Port), Timeout: demoTimeout,
			})
			f.in, f.out = seen(ctx, witness, *f, false), seen(ctx, witness, *f, true)
		})
	}
	wait.Wait()
	return flows, errors.Join(ctx.Err(), witness.Close())
}

// seen is the interface of the flow's first packet in a direction, or "".
func seen(ctx context.Context, witness *lab.Capture, f flow, out bool) string {
	ctx, cancel := context.WithTimeout(ctx, demoWitness)
	defer cancel()
	p, err := witness.Wait(ctx, func(p lab.Packet) bool { return f.carries(p, out) })
	if err != nil {
		return ""
	}
	return p.Link
}

func (d *demo) title(word, what string) {
	fmt.Fprintf(d.out, "\n%s  %s\n\n", d.pal.bold(word), d.pal.dim(what))
}

func (d *demo) indent(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(d.out, strings.TrimRight("  "+line, "\n "))
	}
}

func (d *demo) table(flows []flow) {
	const row = "  %-8s  %-4s  %-16s  %-15s  %-6s  %-7s  "
	fmt.Fprintln(d.out, d.pal.dim(fmt.Sprintf(row+"%s", "client", "asks", "from", "to", "way in", "way out", "reply")))
	for _, f := range flows {
		text := fmt.Sprintf(row, f.client, f.protocol, f.remote, f.address, orNone(f.in), orNone(f.out))
		switch {
		case f.right():
			text += d.pal.good("right")
		case f.err == nil:
			text += d.pal.bad("wrong way")
		case errors.Is(f.err, lab.ErrNoReply):
			text += d.pal.bad("WRONG") + ": " + d.fate(f)
		default:
			text += d.pal.bad("WRONG") + ": " + f.err.Error()
		}
		fmt.Fprintln(d.out, text)
	}
}

// fate says why a reply has not come.
func (d *demo) fate(f flow) string {
	if f.out != "" && f.out != f.in {
		for _, u := range d.two.Uplinks {
			if u.Link == f.out {
				return u.Router.Name + " drops it"
			}
		}
	}
	return "no reply"
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// picture draws the topology, one column an uplink.
func (d *demo) picture() {
	const width = 40
	a, b := d.two.Uplinks[0], d.two.Uplinks[1]
	column := func(left, right string) { fmt.Fprintf(d.out, "  %-*s%s\n", width, left, right) }
	both := func(left, right lab.Addresses) {
		column(left.V4.String(), right.V4.String())
		column(left.V6.String(), right.V6.String())
	}
	// line joins two names, with a third in the middle.
	line := func(left, middle, right string) {
		rest := width - len(left) - len(middle) - 2
		fmt.Fprintf(d.out, "  %s %s%s%s %s\n", d.pal.bold(left), strings.Repeat("─", rest/2), d.pal.bold(middle), strings.Repeat("─", rest-rest/2), d.pal.bold(right))
	}
	fmt.Fprint(d.out, "A host with two providers and a client behind each, in network namespaces:\nreal packets on this kernel, and nothing of this machine is touched.\n\n")
	fmt.Fprintf(d.out, "  %s%s%s\n", d.pal.bold(a.Client.Name), strings.Repeat(" ", width-len(a.Client.Name)), d.pal.bold(b.Client.Name))
	both(a.Remote, b.Remote)
	column(" │", " │")
	line(a.Router.Name, "", b.Router.Name)
	both(a.Gateway, b.Gateway)
	column(" │", " │")
	line(a.Link, " "+d.two.Host.Name+" ", b.Link)
	both(a.Address, b.Address)
	fmt.Fprintf(d.out, "\n  Main's default goes by %s. A provider drops what comes from the host with\n  a source address that is not of its own networks.\n", a.Link)
}
