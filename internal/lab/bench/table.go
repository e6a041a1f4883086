package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// list is every figure on a line, for whoever looks into a run that failed.
func (r *report) list() string {
	var b strings.Builder
	for _, f := range r.Figures {
		fmt.Fprintf(&b, "%s, %s, %s, %s: median %s of %d\n", f.Work, thousands(f.Size), f.Where, f.Program, f, len(f.Runs))
	}
	return b.String()
}

// table is the figures as the README has them, in Markdown.
func (r *report) table() string {
	var b strings.Builder
	b.WriteString(r.caption())
	for _, m := range matrices {
		b.WriteString(r.matrix(m))
	}
	b.WriteString(r.goals())
	return b.String()
}

// caption says what it was measured on, and which versions.
func (r *report) caption() string {
	var b strings.Builder
	runs := 0
	for _, f := range r.Figures {
		if n := len(f.Runs); n > 1 && (runs == 0 || n < runs) {
			runs = n
		}
	}
	if m, ok := r.Machines[onHost]; ok {
		fmt.Fprintf(&b, "Medians of at least %d runs in turns, on %d × %s with Linux %s", max(runs, 1), m.CPUs, m.CPU, m.Kernel)
		if v, ok := r.Machines[inVM]; ok {
			fmt.Fprintf(&b, "; “VM” is Debian's Linux %s, emulated on it without hardware support, several times slower", v.Kernel)
		}
		fmt.Fprintf(&b, ". %s.\n\n", r.versions())
	}
	return b.String()
}

// versions are those of all programs.
func (r *report) versions() string {
	var all []string
	for _, name := range []string{"sisod", "iproute2", "ipvsadm", "keepalived", "systemd"} {
		for _, where := range []string{onHost, inVM} {
			if v := r.Machines[where].Programs[name]; v != "" {
				all = append(all, name+" "+v)
				break
			}
		}
	}
	return strings.Join(all, ", ")
}

// matrix is a table of sizes and programs.
type matrix struct {
	work, title, where string
	programs           []string
	size               []int
	// more is another work of sisod's that has a column.
	more string
}

var matrices = []matrix{
	{firstApply, "prefixes, first apply", onHost, []string{ours, ipBatch, floor, floorHop}, prefixSizes, ""},
	{reapply, "prefixes, nothing changed", onHost, []string{ours, ipShow}, prefixSizes, ""},
	{firstServices, "services × 4 from empty, VM", inVM, []string{ours, restore, keepalived, floor}, serviceCounts, ""},
	{reservices, "services × 4, nothing changed, VM", inVM, []string{ours, ipvsadmShow}, serviceCounts, ""},
	{lookups, "addresses on two uplinks, one lookup", onHost, []string{ours, eachRule, noRules}, addressCounts, rulesOfAddresses},
	{lookups + mixed, "addresses" + mixed + ", one lookup", onHost, []string{ours, eachRule, noRules}, addressCounts, rulesOfAddresses + mixed},
}

func (r *report) matrix(m matrix) string {
	rows := [][]string{append([]string{m.title}, m.programs...)}
	if m.more != "" {
		rows[0] = append(rows[0], "sisod's rules")
	}
	for _, n := range m.size {
		row, any := []string{thousands(n)}, false
		for _, p := range m.programs {
			f := r.find(key{m.work, n, m.where, p})
			if f == nil {
				row = append(row, "")
				continue
			}
			row, any = append(row, f.String()), true
		}
		if m.more != "" {
			f := r.find(key{m.more, n, m.where, ours})
			if f == nil {
				continue
			}
			row = append(row, thousands(int(f.Median)))
		}
		if any {
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 {
		return ""
	}
	return markdown(rows, 1) + "\n"
}

// markdown aligns rows, of which the first is the head; from a column on they are
// numbers.
func markdown(rows [][]string, numbers int) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 3)
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i >= numbers {
				fmt.Fprintf(&b, "| %s%s ", space, cell)
			} else {
				fmt.Fprintf(&b, "| %s%s ", cell, space)
			}
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, w := range widths {
			if i >= numbers {
				fmt.Fprintf(&b, "|%s:", strings.Repeat("-", w+1))
			} else {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", w+2))
			}
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// String is the median, or that it is more.
func (f *figure) String() string {
	if f.Beyond {
		return "> " + spell(f.Median, f.Unit)
	}
	return spell(f.Median, f.Unit)
}

// spell writes a value with three digits that count.
func spell(v float64, unit string) string {
	switch unit {
	case seconds:
		switch {
		case v == 0:
			return "0"
		case v < 0.9995e-6:
			return digits(v*1e9) + " ns"
		case v < 0.9995e-3:
			return digits(v*1e6) + " µs"
		case v < 0.9995:
			return digits(v*1e3) + " ms"
		}
		return digits(v) + " s"
	case mebi:
		return digits(v) + " MiB"
	}
	return digits(v)
}

// digits is three digits of v, or all before its point.
func digits(v float64) string {
	if v == 0 {
		return "0"
	}
	after := max(0, 2-int(math.Floor(math.Log10(math.Abs(v))+1e-3)))
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', after, 64), ".00")
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
