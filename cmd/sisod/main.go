// Sisod turns TOML profiles into a host's policy routing and keeps the kernel
// that way. This package is its command line: words in, text and exit codes
// out; what they mean is said elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/profiles"
)

func main() {
	// SIGTERM ends a command as Ctrl-C does; run treats it as its normal end.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// exitCode ends a command with a code and without a word more.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// The exit codes, as README's table of commands has them.
const (
	exitOK    = 0
	exitError = 1
	exitMore  = 2 // plan: changes; apply: problems; status: drift or problems
)

func execute(ctx context.Context, args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitCode
	var invalid profiles.Errors
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled):
		// What apply and flush had begun they have told, and is another error.
		fmt.Fprintln(os.Stderr, "sisod: interrupted; the kernel is as it was")
	case errors.As(err, &invalid):
		fmt.Fprintln(os.Stderr, err)
	default:
		fmt.Fprintln(os.Stderr, "sisod:", err)
	}
	return exitError
}

// places are the folders that every command can be pointed away from.
type places struct {
	config, run, state, iproute2 string
	color                        string
}

func rootCommand() *cobra.Command {
	var p places
	root := &cobra.Command{
		Use:   "sisod",
		Short: "source in, source out: policy routing from profiles",
		Long: `sisod owns a Linux host's policy routing: a reply leaves by the way its
request came in, and if it would not, sisod says why. It also gives a host its
part in an LVS cluster, as real server or director (tun, dr, nat, fullnat), and
hands what passes a host to its transparent proxies.

Profiles are TOML files in /etc/sisod/profiles. Try "sisod demo" first: it
shows the fault and the cure in namespaces of its own.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch p.color {
			case "auto", "always", "never":
				return nil
			}
			return fmt.Errorf("--color is %q: expected auto, always or never", p.color)
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&p.config, "config", profiles.DefaultDir, "folder with sisod.toml and profiles/")
	f.StringVar(&p.run, "run-dir", "/run/sisod", "folder for the ledger, the lock and the daemon's status")
	f.StringVar(&p.state, "state-dir", "/var/lib/sisod", "folder for the last good configuration")
	f.StringVar(&p.iproute2, "iproute2-dir", "/etc/iproute2", "folder of rt_tables, and of the names that sisod adds")
	f.StringVar(&p.color, "color", "auto", "auto, always or never; NO_COLOR is heeded")
	root.AddCommand(
		checkCommand(&p), planCommand(&p), applyCommand(&p), runCommand(&p), statusCommand(&p),
		showCommand(&p), flushCommand(&p), demoCommand(&p), versionCommand(),
	)
	completions(root)
	return root
}

// completions tells shells which words can follow. The errors that are dropped
// would say that a flag does not exist, or has completions already.
func completions(root *cobra.Command) {
	fixed := func(cmd *cobra.Command, flag string, words ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed(root, "color", "auto", "always", "never")
	for _, folder := range []string{"config", "run-dir", "state-dir", "iproute2-dir"} {
		_ = root.MarkPersistentFlagDirname(folder)
	}
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "check":
			continue // its argument is a file
		case "plan":
			fixed(cmd, "output", "text", "json", "script")
		case "status":
			fixed(cmd, "output", "text", "json")
		}
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}
