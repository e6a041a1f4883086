package main

import (
	"bufio"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

func applyCommand(p *places) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "bring the kernel to what the profiles say, once",
		Long: `Apply does one pass. What cannot be done is said with the kernel's own words,
the rest is done; a second apply completes it.
Exit code 0: done, 2: done but with problems, 1: error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := mayChange("apply"); err != nil {
				return err
			}
			outliveReaders()
			s, err := p.open()
			if err != nil {
				return err
			}
			defer s.close()
			unlock, err := s.host.Lock(cmd.Context())
			if err != nil {
				return err
			}
			defer unlock()
			if err := s.host.Release(); err != nil {
				return err
			}
			if err := s.host.Announce(); err != nil {
				return err
			}
			pass, err := s.look(cmd.Context())
			if err != nil {
				return err
			}
			// Thousands of lines one by one take longer than what they tell of.
			out, pal := bufio.NewWriter(cmd.OutOrStdout()), p.palette(os.Stdout)
			if quiet {
				out.Reset(io.Discard)
			}
			defer out.Flush()
			outcomes, err := pass.Apply(cmd.Context(), s.host, func(o kernel.Outcome) {
				if o.Done() {
					for _, line := range stepLines(pal, o.Step, pass.Plan.Names) {
						_, _ = out.WriteString(line + "\n")
					}
				}
			})
			if err != nil {
				return err
			}
			// A reader who has gone is no reason to stop.
			_ = out.Flush()
			if err := tellOutcomes(cmd.ErrOrStderr(), p.palette(os.Stderr), outcomes, pass.Plan.Names); err != nil {
				return err
			}
			if len(outcomes) == 0 {
				fmt.Fprintln(out, "nothing to do")
				_ = out.Flush()
			}
			for _, line := range problemsText(p.palette(os.Stderr), pass) {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
			}
			if err := daemon.KeepLastGood(p.state, p.config, s.config); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "sisod:", err)
			}
			if len(pass.Desired.Problems) > 0 {
				return exitCode(exitMore)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "say only what went wrong")
	return cmd
}

// tellOutcomes says what failed and what stays to do.
func tellOutcomes(w io.Writer, pal palette, outcomes []kernel.Outcome, names state.Names) error {
	done, failed, held := 0, 0, 0
	for _, o := range outcomes {
		switch {
		case o.Err != nil:
			failed++
			fmt.Fprintf(w, "%s    %v\n", pal.bad("failed"), o.Err)
		case o.Held != "":
			held++
		default:
			done++
		}
	}
	if failed+held == 0 {
		return nil
	}
	for _, o := range outcomes {
		if o.Held != "" {
			for _, line := range stepLines(pal, o.Step, names) {
				fmt.Fprintf(w, "%s     %s  (%s)\n", pal.warn("to do"), line, o.Held)
			}
		}
	}
	return fmt.Errorf("%s done, %d failed, %d stay to do; mend what failed and run sisod apply again", plural(done, "step"), failed, held)
}
