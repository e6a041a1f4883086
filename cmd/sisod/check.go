package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/profiles"
)

func checkCommand(p *places) *cobra.Command {
	return &cobra.Command{
		Use:   "check [PATH]",
		Short: "validate profiles; needs neither root nor a kernel",
		Long: `Check reads a configuration folder (or one profile) and reports every mistake
with its place. Root is also told what of the configuration the daemon's user
cannot read. Exit code 0: valid, 1: not.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := p.config
			if len(args) == 1 {
				path = args[0]
			}
			path, err := daemon.Absolute(path)
			if err != nil {
				return err
			}
			load := func(path string) (*profiles.Config, error) { return profiles.Load("", path) }
			if stat, err := os.Stat(path); err == nil && !stat.IsDir() {
				load = profiles.LoadFile
			}
			c, err := load(path)
			if err != nil {
				return err
			}
			// A draft that lies elsewhere is nobody's but its author's.
			if dir, err := daemon.Absolute(p.config); err != nil {
				return err
			} else if path == dir || strings.HasPrefix(path, dir+"/") {
				if err := p.unreadable(dir, c.Files); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: valid: %s in %s\n", path, contents(c), plural(len(c.Files), "file"))
			return nil
		},
	}
}

// contents counts what a configuration asks for, and leaves out what it has none of.
func contents(c *profiles.Config) string {
	var words []string
	for _, kind := range []struct {
		n    int
		name string
	}{
		{len(c.Uplinks), "uplink"}, {len(c.RealServers), "real server"}, {len(c.Directors), "director"},
		{len(c.Captures), "tproxy capture"}, {len(c.Rules), "rule"}, {len(c.Routes), "route"},
	} {
		if kind.n > 0 {
			words = append(words, plural(kind.n, kind.name))
		}
	}
	if len(words) == 0 {
		return plural(0, "uplink")
	}
	return strings.Join(words, ", ")
}
