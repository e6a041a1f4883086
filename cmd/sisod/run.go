package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
)

func runCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "the daemon: apply, and keep the kernel that way",
		Long: `Run applies the profiles and reapplies them when an interface, an address, a
gateway or a profile changes, and when somebody else undoes them.
SIGHUP reloads the profiles. SIGTERM stops; what was applied stays in place.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := mayChange("run"); err != nil {
				return err
			}
			outliveReaders()
			dir, err := daemon.Absolute(p.config)
			if err != nil {
				return err
			}
			log := newLog(slog.LevelInfo)
			host, err := p.openHost(log)
			if err != nil {
				return err
			}
			defer host.Close()
			return daemon.Run(cmd.Context(), daemon.Options{
				ConfigDir: dir, StateDir: p.state, RunDir: p.run, Host: host, Log: log,
			})
		},
	}
}
