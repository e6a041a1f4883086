package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The manual page and the command line know the same commands and options.
func TestManualAndCommandLineAgree(t *testing.T) {
	text, err := os.ReadFile("../../packaging/man/sisod.8")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	items := func(of string) []string {
		var found []string
		for _, m := range regexp.MustCompile(of).FindAllStringSubmatch(page, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	root := rootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var commands, options []string
	flag := regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z0-9-]+)`)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		for _, m := range flag.FindAllStringSubmatch(c.NonInheritedFlags().FlagUsages(), -1) {
			options = append(options, m[1], "-"+m[2])
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, c := range root.Commands() {
		commands = append(commands, c.Name())
	}
	slices.Sort(commands)
	slices.Sort(options)
	options = slices.Compact(options)

	if got := items(`(?m)^\.It Cm (\w+)`); !slices.Equal(got, commands) {
		t.Errorf("the page explains the commands %v; there are %v", got, commands)
	}
	if got := items(`(?m)^\.Nm\n\.Cm (\w+)`); !slices.Equal(got, commands) {
		t.Errorf("the synopsis has the commands %v; there are %v", got, commands)
	}
	if got := items(`(?m)^\.It.* ?Fl (-?[a-z0-9-]+)`); !slices.Equal(got, long(options)) {
		t.Errorf("the page explains the options %v; there are %v", got, long(options))
	}
	for _, short := range options {
		if short != "" && !strings.HasPrefix(short, "-") && !strings.Contains(page, ".It Fl "+short+" ,") {
			t.Errorf("the page does not explain the option -%s", short)
		}
	}
	for _, env := range []string{"NO_COLOR", "TERM", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC"} {
		if !regexp.MustCompile(`(?m)^\.It Ev .*\b` + env + `\b`).MatchString(page) {
			t.Errorf("the page does not explain the variable %s", env)
		}
	}
}

// The programs of plan -o script are the same in the help and on the page.
func TestManualAndHelpNameTheProgramsOfAScript(t *testing.T) {
	text, err := os.ReadFile("../../packaging/man/sisod.8")
	if err != nil {
		t.Fatal(err)
	}
	_, entry, _ := strings.Cut(string(text), ".It Fl o , Fl -output")
	entry, _, _ = strings.Cut(entry, "The script is for reading")
	var told []string
	for _, m := range regexp.MustCompile(`(?m)^\.Xr (\w+) 8`).FindAllStringSubmatch(entry, -1) {
		told = append(told, m[1])
	}
	plan, _, err := rootCommand().Find([]string{"plan"})
	if err != nil {
		t.Fatal(err)
	}
	usage := plan.Flag("output").Usage
	if want := strings.Join(told[:len(told)-1], ", ") + " and " + told[len(told)-1]; !strings.Contains(usage, "of "+want) {
		t.Errorf("the page has the commands of %s, the help %q", want, usage)
	}
}

// long are the options of more than a letter.
func long(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool { return !strings.HasPrefix(o, "-") })
}
