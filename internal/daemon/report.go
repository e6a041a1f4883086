package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// Report is what a running daemon tells `sisod status`, in run-dir/status.json.
type Report struct {
	Version int       `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// ConfigError is why the profiles on disk are not in force, "" when they are.
	ConfigError string    `json:"config_error,omitempty"`
	LastGood    bool      `json:"last_good,omitempty"` // the kept copy stands in for them
	Held        bool      `json:"held,omitempty"`      // after `sisod flush`
	LastPass    time.Time `json:"last_pass"`
	Repairs     int       `json:"repairs"` // of what others undid, since the start
	// Steps are the last ones applied, oldest first.
	Steps    []ReportStep    `json:"steps"`
	Failures []ReportStep    `json:"failures,omitempty"` // of the last pass
	Problems []state.Problem `json:"problems"`
	// Fights are objects that somebody else keeps undoing.
	Fights []string `json:"fights,omitempty"`
}

// ReportStep is one applied step.
type ReportStep struct {
	Time   time.Time `json:"time"`
	Op     string    `json:"op"`
	Kind   string    `json:"kind"`
	Object string    `json:"object"`
	Reason string    `json:"reason,omitempty"`
	// Drift: somebody else had undone what this step brought back.
	Drift bool   `json:"drift,omitempty"`
	Error string `json:"error,omitempty"`
}

// keptSteps is how many applied steps a report remembers.
const keptSteps = 20

const reportVersion = 1

func reportPath(runDir string) string { return filepath.Join(runDir, "status.json") }

func (r *Report) add(s ReportStep) {
	r.Steps = append(r.Steps, s)
	if len(r.Steps) > keptSteps {
		r.Steps = append(r.Steps[:0], r.Steps[len(r.Steps)-keptSteps:]...)
	}
}

func (r *Report) write(runDir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("make folder for status: %w", err)
	}
	if err := renameio.WriteFile(reportPath(runDir), append(text, '\n'), 0o644, renameio.WithTempDir(runDir), renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// ReadReport reads what the daemon last reported. It is nil when no daemon
// runs: when it never did, or when its process is gone.
func ReadReport(runDir string) (*Report, error) {
	text, err := os.ReadFile(reportPath(runDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read status %s: %w", reportPath(runDir), err)
	}
	if !kernel.DaemonRuns(runDir, r.PID) {
		return nil, nil
	}
	return &r, nil
}
