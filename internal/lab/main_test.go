package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"testing"
)

// residentEnv makes the test binary a process that has a lab and waits to be
// killed.
const residentEnv = "LAB_TEST_RESIDENT"

func TestMain(m *testing.M) {
	if os.Getenv(residentEnv) != "" {
		os.Exit(reside())
	}
	os.Exit(m.Run())
}

// reside builds a lab with a program in it, says which namespaces and process
// these are, and waits.
func reside() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	l := New(ctx)
	h, err := l.Host("resident")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := h.Start(exec.Command("sleep", "3600"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.Pid())
	<-ctx.Done()
	if err := l.Close(); err != nil {
		return 1
	}
	return 0
}
