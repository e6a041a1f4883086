package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestReportRemembersTheLastSteps(t *testing.T) {
	var r Report
	for i := range 3 * keptSteps {
		r.add(ReportStep{Object: fmt.Sprint(i)})
	}
	if len(r.Steps) != keptSteps || r.Steps[0].Object != fmt.Sprint(2*keptSteps) || r.Steps[keptSteps-1].Object != fmt.Sprint(3*keptSteps-1) {
		t.Errorf("%d steps from %s to %s", len(r.Steps), r.Steps[0].Object, r.Steps[len(r.Steps)-1].Object)
	}
}

func TestReportOfNobodyIsNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if r, err := ReadReport(dir); r != nil || err != nil {
		t.Errorf("report without a run folder: %v, %v", r, err)
	}
	// A process of that number is there, and is not the daemon.
	r := Report{Version: reportVersion, PID: os.Getpid()}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadReport(dir); r != nil || err != nil {
		t.Errorf("report of a daemon that does not run: %v, %v", r, err)
	}
	if err := os.WriteFile(reportPath(dir), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(dir); err == nil {
		t.Error("half a report is read")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("left in the run folder: %q, %v", left, err)
	}
}
