package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
)

// The plot is two panels beside each other, time against size, both logarithmic,
// with a line for each program and its name at the line's end. It has no
// background, and its colours can be read on a light one and on a dark one.
const (
	plotWidth, plotHeight = 1100, 470
	panelTop, panelHeight = 62, 300
	panelWidth            = 280
	// labelGap is the least distance of two labels' base lines.
	labelGap = 17
)

const (
	inkText = "#757d87"
	inkGrid = "#8b949e"
)

// stroke is how the line of a program looks.
type stroke struct {
	program, label, colour string
	width                  float64
	dashes                 string
}

var (
	strokeOurs    = stroke{ours, "sisod", "#2f81f7", 3, ""}
	strokeFloor   = stroke{floor, "floor: raw netlink", "#8b949e", 1.8, "5 4"}
	strokeHop     = stroke{floorHop, "floor, nexthop object", "#8b949e", 1.8, "1.5 3.5"}
	strokeBatch   = stroke{ipBatch, ipBatch, "#d9730d", 2.2, ""}
	strokeRestore = stroke{restore, restore, "#d9730d", 2.2, ""}
	strokeKeep    = stroke{keepalived, keepalived, "#bf4b8a", 2.2, ""}
)

// panel is one half of the plot.
type panel struct {
	left         float64
	title, axis  string
	work, where  string
	sizes        []int
	strokes      []stroke
	lowX, highX  float64 // decades
	lowY, highY  float64
	seriesValues [][]point
}

// point is a size and a time, as decades.
type point struct{ x, y float64 }

// plot is the figures as an SVG.
func (r *report) plot() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="12.5" fill="%s">`+"\n", plotWidth, plotHeight, inkText)
	b.WriteString("<title>sisod beside other programs: time against the number of prefixes and of services</title>\n")
	for _, p := range []*panel{
		{left: 62, title: "First apply of prefixes", axis: "prefixes", work: firstApply, where: onHost, sizes: prefixSizes,
			strokes: []stroke{strokeBatch, strokeFloor, strokeHop, strokeOurs}},
		{left: 604, title: "IPVS services with 4 real servers each, from empty", axis: "services, in the VM", work: firstServices, where: inVM, sizes: serviceCounts,
			strokes: []stroke{strokeKeep, strokeRestore, strokeFloor, strokeOurs}},
	} {
		p.draw(&b, r)
	}
	for i, line := range r.notes() {
		fmt.Fprintf(&b, `<text x="24" y="%d" font-size="11">%s</text>`+"\n", plotHeight-30+i*16, escape(line))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// notes are the lines below the panels.
func (r *report) notes() []string {
	var lines []string
	if m, ok := r.Machines[onHost]; ok {
		line := fmt.Sprintf("%d × %s, Linux %s", m.CPUs, m.CPU, m.Kernel)
		if v, ok := r.Machines[inVM]; ok {
			line += fmt.Sprintf("; VM: Debian's Linux %s, emulated", v.Kernel)
		}
		lines = append(lines, line, "Medians. "+r.versions())
	}
	return lines
}

// draw adds a panel, if anything of it was measured.
func (p *panel) draw(b *strings.Builder, r *report) {
	p.lowX, p.highX = decade(p.sizes[0]), decade(p.sizes[len(p.sizes)-1])
	p.lowY, p.highY = math.Inf(1), math.Inf(-1)
	for _, s := range p.strokes {
		var line []point
		for _, n := range p.sizes {
			if v, ok := r.median1(p.work, n, p.where, s.program); ok && v > 0 {
				y := math.Log10(v)
				line = append(line, point{decade(n), y})
				p.lowY, p.highY = min(p.lowY, math.Floor(y)), max(p.highY, math.Ceil(y))
			}
		}
		p.seriesValues = append(p.seriesValues, line)
	}
	if p.lowY >= p.highY {
		return
	}
	fmt.Fprintf(b, `<text x="%.1f" y="26" font-size="15" font-weight="600">%s</text>`+"\n", p.left-38, escape(p.title))
	fmt.Fprintf(b, `<text x="%.1f" y="%d">time</text>`+"\n", p.left-38, panelTop-14)
	p.grid(b)
	for i, s := range p.strokes {
		p.line(b, s, p.seriesValues[i])
	}
	p.labels(b)
}

func decade(n int) float64 { return math.Log10(float64(n)) }

func (p *panel) x(v float64) float64 {
	return p.left + (v-p.lowX)/(p.highX-p.lowX)*panelWidth
}

func (p *panel) y(v float64) float64 {
	return panelTop + (p.highY-v)/(p.highY-p.lowY)*panelHeight
}

// grid is a line for each decade, with what it stands for.
func (p *panel) grid(b *strings.Builder) {
	const line = `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="` + inkGrid + `" stroke-opacity="%s"/>` + "\n"
	for d := p.lowY; d <= p.highY; d++ {
		fmt.Fprintf(b, line, p.left, p.y(d), p.left+panelWidth, p.y(d), "0.28")
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", p.left-8, p.y(d)+4, power(d))
	}
	for _, n := range p.sizes {
		fmt.Fprintf(b, line, p.x(decade(n)), float64(panelTop), p.x(decade(n)), float64(panelTop+panelHeight), "0.28")
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", p.x(decade(n)), panelTop+panelHeight+19, thousands(n))
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", p.left+panelWidth/2, panelTop+panelHeight+40, p.axis)
}

// power spells a power of ten seconds.
func power(d float64) string {
	for _, u := range []struct {
		from float64
		unit string
	}{{0, "s"}, {-3, "ms"}, {-6, "µs"}} {
		if d >= u.from {
			return fmt.Sprintf("%.0f %s", math.Pow(10, d-u.from), u.unit)
		}
	}
	return fmt.Sprintf("%.0f ns", math.Pow(10, d+9))
}

func (p *panel) line(b *strings.Builder, s stroke, values []point) {
	if len(values) == 0 {
		return
	}
	var coordinates []string
	for _, v := range values {
		coordinates = append(coordinates, fmt.Sprintf("%.1f,%.1f", p.x(v.x), p.y(v.y)))
	}
	dashes := ""
	if s.dashes != "" {
		dashes = fmt.Sprintf(` stroke-dasharray="%s"`, s.dashes)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%.1f" stroke-linejoin="round" stroke-linecap="round"%s/>`+"\n",
		strings.Join(coordinates, " "), s.colour, s.width, dashes)
	for _, v := range values {
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s"/>`+"\n", p.x(v.x), p.y(v.y), s.width/2+1.7, s.colour)
	}
}

// labels puts each program's name and last value beside its line's end, and moves
// them apart where lines end close to each other.
func (p *panel) labels(b *strings.Builder) {
	type label struct {
		stroke
		at, end float64
		value   float64
	}
	var all []label
	for i, s := range p.strokes {
		if values := p.seriesValues[i]; len(values) > 0 {
			last := values[len(values)-1]
			all = append(all, label{s, p.y(last.y), p.y(last.y), math.Pow(10, last.y)})
		}
	}
	slices.SortFunc(all, func(a, b label) int {
		if a.end < b.end {
			return -1
		}
		return 1
	})
	spread(len(all), labelGap, func(i int) *float64 { return &all[i].at })
	right := p.left + panelWidth
	for _, l := range all {
		weight := ""
		if l.program == ours {
			weight = ` font-weight="700"`
		}
		fmt.Fprintf(b, `<path d="M%.1f %.1f L%.1f %.1f" stroke="%s" stroke-opacity="0.6" fill="none"/>`+"\n", right+6, l.end, right+16, l.at, l.colour)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="%s"%s>%s  %s</text>`+"\n", right+20, l.at+4, l.colour, weight, escape(l.label), spell(l.value, seconds))
	}
}

// spread moves sorted places apart until each has the gap to the next, as little
// as that takes.
func spread(n int, gap float64, at func(int) *float64) {
	for range 100 {
		moved := false
		for i := 1; i < n; i++ {
			a, b := at(i-1), at(i)
			if short := gap - (*b - *a); short > 0.01 {
				*a, *b, moved = *a-short/2, *b+short/2, true
			}
		}
		if !moved {
			return
		}
	}
}

func escape(text string) string {
	var b strings.Builder
	// A strings.Builder takes everything.
	_ = xml.EscapeText(&b, []byte(text))
	return b.String()
}
