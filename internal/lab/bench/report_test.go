package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMedianIsTheMiddleOfTheRuns(t *testing.T) {
	for _, c := range []struct {
		runs []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{5, 1, 3}, 3},
		{[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{9, 1, 1, 9, 2}, 2},
	} {
		r := &report{}
		for _, v := range c.runs {
			r.add(key{Work: "w", Program: ours}, seconds, v)
		}
		if got := r.Figures[0].Median; got != c.want {
			t.Errorf("median of %v is %v, want %v", c.runs, got, c.want)
		}
		if got := r.Figures[0].Runs; !slices.Equal(got, c.runs) {
			t.Errorf("runs became %v, they were %v", got, c.runs)
		}
	}
}

func TestFiguresSurviveTheirFile(t *testing.T) {
	r := sample()
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	got, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("read %+v, wrote %+v", got, r)
	}
}

func TestLaterFiguresCount(t *testing.T) {
	r, later := sample(), &report{}
	k := key{firstApply, million, onHost, ours}
	later.add(k, seconds, 6)
	later.add(key{lookups, 10, onHost, ours}, seconds, 1e-6)
	n := len(r.Figures)
	r.merge(later)
	if f := r.find(k); f.Median != 6 || len(f.Runs) != 1 {
		t.Errorf("the figure measured again is %+v", f)
	}
	if len(r.Figures) != n+1 || len(r.Machines) != 2 {
		t.Errorf("%d figures and %d machines, want %d and 2", len(r.Figures), len(r.Machines), n+1)
	}
}

func TestValuesHaveThreeDigits(t *testing.T) {
	for _, c := range []struct {
		value float64
		unit  string
		want  string
	}{
		{0, seconds, "0"},
		{12.5e-9, seconds, "12.5 ns"},
		{0.9999e-6, seconds, "1 µs"},
		{0.0082, seconds, "8.20 ms"},
		{0.9996, seconds, "1 s"},
		{36.24, seconds, "36.2 s"},
		{123.6, seconds, "124 s"},
		{1234.5, seconds, "1234 s"},
		{59.96, mebi, "60.0 MiB"},
		{1, count, "1"},
	} {
		if got := spell(c.value, c.unit); got != c.want {
			t.Errorf("%v %s is written %q, want %q", c.value, c.unit, got, c.want)
		}
	}
	if got := thousands(1_000_000) + " " + thousands(999) + " " + thousands(10_000); got != "1,000,000 999 10,000" {
		t.Errorf("numbers are written %s", got)
	}
}

// sample is a run of two sizes, in which sisod reaches one goal and not another.
func sample() *report {
	r := &report{Machines: map[string]machineFacts{
		onHost: {CPU: "A <fast> & small one", CPUs: 2, Kernel: "6.18.0", Programs: map[string]string{"sisod": "1.0", "iproute2": "6.1.0"}},
		inVM:   {Kernel: "6.1.0-49-amd64", Programs: map[string]string{"sisod": "1.0", "ipvsadm": "1.31"}},
	}}
	for program, values := range map[string][2]float64{ours: {0.4, 7}, ipBatch: {1.6, 28}, floor: {0.5, 6}, floorHop: {0.35, 5}} {
		for i, n := range []int{100_000, million} {
			for range 5 {
				r.add(key{firstApply, n, onHost, program}, seconds, values[i])
			}
		}
	}
	for _, program := range []string{ours, restore, keepalived, floor} {
		r.add(key{firstServices, 100, inVM, program}, seconds, 0.1)
		r.add(key{firstServices, 1000, inVM, program}, seconds, 1)
	}
	r.find(key{firstServices, 1000, inVM, keepalived}).Beyond = true
	return r
}

func TestTableSaysWhatWasReached(t *testing.T) {
	table := sample().table()
	for _, want := range []string{
		`(?m)^\| 100,000 +\| +400 ms \| +1.60 s \| +500 ms \| +350 ms \|$`,
		`(?m)^\| first apply of 100,000 prefixes +\| 400 ms +\| ip -batch 1.60 s, floor 350 ms +\| 4 × faster, 1.1 × the floor +\|.*\| yes +\|$`,
		`(?m)^\| first apply of 1,000,000 prefixes +\|.*\| 4 × faster, 1.4 × the floor +\|.*\| \*\*no\*\* +\|$`,
		`(?m)^\| 1,000 +\| +1 s \| +1 s \| +> 1 s \| +1 s \|$`,
		`iproute2 6\.1\.0, ipvsadm 1\.31`,
	} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("the table does not match %s:\n%s", want, table)
		}
	}
	if strings.Contains(table, "memory") {
		t.Errorf("the table tells of what was not measured:\n%s", table)
	}
	for i, block := range strings.Split(strings.TrimSpace(table), "\n\n")[1:] {
		columns := strings.Count(strings.Split(block, "\n")[0], "|")
		for line := range strings.Lines(block) {
			if strings.Count(line, "|") != columns {
				t.Errorf("table %d: a line has other columns than the head: %s", i, line)
			}
		}
	}
}

// TestPlotIsWellFormed reads the plot as XML, and looks for lines that rise to
// the right, inside of the picture, and for labels that end there too and do not
// cover each other.
func TestPlotIsWellFormed(t *testing.T) {
	r := sample()
	// A long label.
	r.find(key{firstServices, 100, inVM, floor}).Median = 7.7e-3
	r.find(key{firstServices, 1000, inVM, floor}).Median = 63.6e-3
	text := r.plot()
	lines := 0
	labels := map[float64][]float64{}
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		attributes := map[string]string{}
		for _, a := range e.Attr {
			attributes[a.Name.Local] = a.Value
		}
		switch {
		case e.Name.Local == "polyline":
			lines++
			lastX, lastY := -1.0, math.Inf(1)
			for pair := range strings.FieldsSeq(attributes["points"]) {
				xs, ys, _ := strings.Cut(pair, ",")
				x, err := strconv.ParseFloat(xs, 64)
				y, err2 := strconv.ParseFloat(ys, 64)
				if err := errors.Join(err, err2); err != nil || x <= lastX || y >= lastY || x > plotWidth || y < 0 || y > plotHeight {
					t.Errorf("line goes to %s, %v", pair, err)
				}
				lastX, lastY = x, y
			}
		case e.Name.Local == "text" && strings.HasPrefix(attributes["fill"], "#"):
			x, _ := strconv.ParseFloat(attributes["x"], 64)
			y, _ := strconv.ParseFloat(attributes["y"], 64)
			labels[x] = append(labels[x], y)
			word, err := d.Token()
			// DejaVu Sans, a wide one, takes 6.3 a letter.
			if text, ok := word.(xml.CharData); err != nil || !ok || x+6.5*float64(utf8.RuneCount(text)) > plotWidth {
				t.Errorf("label %q at %v is cut off", word, x)
			}
		}
	}
	if lines != 8 {
		t.Errorf("%d lines, want 8", lines)
	}
	for x, column := range labels {
		slices.Sort(column)
		for i := 1; i < len(column); i++ {
			if column[i]-column[i-1] < labelGap-0.2 {
				t.Errorf("labels at %v are at %v", x, column)
			}
		}
	}
	if got := (&report{}).plot(); !strings.HasSuffix(got, "</svg>\n") {
		t.Errorf("without figures the plot is %s", got)
	}
}

func TestReadmeKeepsWhatIsAroundTheTable(t *testing.T) {
	readme := "# A\n\n" + readmeBegin + "old\n" + readmeEnd + "\nrest\n"
	got, err := between(readme, "new\n\n")
	if want := "# A\n\n" + readmeBegin + "new\n" + readmeEnd + "\nrest\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"", readmeBegin, readmeEnd + readmeBegin, readme + readme} {
		if got, err := between(bad, "new"); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
