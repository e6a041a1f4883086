package main

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemoShowsWrongRepliesAndThenRightOnes(t *testing.T) {
	before := thisNamespace(t)
	out, err := exec.Command(program, "demo", "--color=never").CombinedOutput()
	if err != nil {
		t.Fatalf("sisod demo: %v\n%s", err, out)
	}
	first, last, found := strings.Cut(string(out), "sisod apply")
	if !found || !strings.Contains(first, "WRONG: isp1 drops it") {
		t.Errorf("nothing goes wrong before apply:\n%s", out)
	}
	if strings.Contains(last, "WRONG") || !strings.Contains(last, "12 of 12 replies left by the way their request came in.") {
		t.Errorf("not all is right after apply:\n%s", out)
	}
	if after := thisNamespace(t); after != before {
		t.Errorf("the demo left something behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestDemoLeavesNothingBehindWhenInterrupted(t *testing.T) {
	before := thisNamespace(t)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, "demo")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The picture is there: so are the namespaces.
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("an interrupted demo ends as if all were well")
		}
		if after := thisNamespace(t); after != before {
			t.Errorf("the demo left something behind after %s:\n%s\nbefore:\n%s", signal, after, before)
		}
	}
}

// thisNamespace is what the demo must leave alone.
func thisNamespace(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range []string{"-o link", "rule", "-6 rule", "route show table all", "netns"} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
		all.Write(out)
	}
	return all.String()
}
