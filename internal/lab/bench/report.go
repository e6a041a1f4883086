package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
)

// report is all that a run found, as bench.json has it.
type report struct {
	Machines map[string]machineFacts `json:"machines"` // by where
	Figures  []*figure               `json:"figures"`
}

// key says what a figure is of.
type key struct {
	Work    string `json:"work"`
	Size    int    `json:"size,omitempty"` // prefixes, services, addresses
	Where   string `json:"where"`
	Program string `json:"program"`
}

// Units of figures.
const (
	seconds = "s"
	mebi    = "MiB"
	count   = "" // packets, messages
)

// figure is what the runs of one program came to, in their order.
type figure struct {
	key
	Unit   string    `json:"unit,omitempty"`
	Runs   []float64 `json:"runs"`
	Median float64   `json:"median"`
	// Beyond is a program that was not waited for: it takes longer than Median.
	Beyond bool `json:"beyond,omitempty"`
}

// add puts one run into the figure of its key.
func (r *report) add(k key, unit string, value float64) {
	f := r.find(k)
	if f == nil {
		f = &figure{key: k, Unit: unit}
		r.Figures = append(r.Figures, f)
	}
	f.Runs = append(f.Runs, value)
	f.Median = median(f.Runs)
}

func (r *report) find(k key) *figure {
	i := slices.IndexFunc(r.Figures, func(f *figure) bool { return f.key == k })
	if i < 0 {
		return nil
	}
	return r.Figures[i]
}

// merge adds the figures of another run, elsewhere or later.
func (r *report) merge(other *report) {
	if r.Machines == nil {
		r.Machines = map[string]machineFacts{}
	}
	maps.Copy(r.Machines, other.Machines)
	for _, f := range other.Figures {
		if old := r.find(f.key); old != nil {
			*old = *f
		} else {
			r.Figures = append(r.Figures, f)
		}
	}
}

// median is the middle of the values, or the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

func readReport(path string) (*report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read figures: %w", err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read figures %s: %w", path, err)
	}
	return &r, nil
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}
