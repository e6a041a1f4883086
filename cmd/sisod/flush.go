package main

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
)

func flushCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use:   "flush",
		Short: "remove all that sisod owns and restore what it changed",
		Long: `Flush gives the host back as it was found. Profiles stay; a running daemon
holds still until apply, reload or restart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := mayChange("flush"); err != nil {
				return err
			}
			outliveReaders()
			host, err := p.openHost(newLog(slog.LevelWarn))
			if err != nil {
				return err
			}
			defer host.Close()
			unlock, err := host.Lock(cmd.Context())
			if err != nil {
				return err
			}
			defer unlock()
			pass, err := daemon.Flush(cmd.Context(), host)
			if err != nil {
				return err
			}
			if report, err := daemon.ReadReport(p.run); !pass.Plan.Empty() || err != nil || report != nil {
				if err := host.Hold(); err != nil {
					return err
				}
			}
			out, pal := bufio.NewWriter(cmd.OutOrStdout()), p.palette(os.Stdout)
			defer out.Flush()
			outcomes, err := pass.Apply(cmd.Context(), host, func(o kernel.Outcome) {
				if o.Done() {
					for _, line := range stepLines(pal, o.Step, pass.Plan.Names) {
						_, _ = out.WriteString(line + "\n")
					}
				}
			})
			if err != nil {
				return err
			}
			if len(outcomes) == 0 {
				fmt.Fprintln(out, "nothing of sisod's is here")
			}
			_ = out.Flush()
			return tellOutcomes(cmd.ErrOrStderr(), p.palette(os.Stderr), outcomes, pass.Plan.Names)
		},
	}
}
