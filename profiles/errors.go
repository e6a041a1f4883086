package profiles

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Error is one complaint about one place in a file.
type Error struct {
	Pos  Position
	Text string // what is wrong
	// Hint is what was expected and what to do. It may be empty.
	Hint string
	// Line is the line at Pos as it stands in the file, without its end. It is
	// empty when the complaint is about the file as a whole.
	Line string
	// Width is the number of characters at Pos that the complaint is about.
	Width int
}

// Errors are all complaints about all files, by file, line and column; of
// those about one file the first hundred.
type Errors []*Error

// Error is all complaints, each with its excerpt and hint.
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i, one := range e {
		texts[i] = one.Error()
	}
	return strings.Join(texts, "\n")
}

// maxFileErrors is the number of complaints about one file that are worth
// reading at once.
const maxFileErrors = 100

// tidy sorts the complaints and cuts those about one file to maxFileErrors.
func (e Errors) tidy() Errors {
	e.sort()
	var kept Errors
	for len(e) > 0 {
		n := 1
		for n < len(e) && e[n].Pos.File == e[0].Pos.File {
			n++
		}
		kept = append(kept, e[:min(n, maxFileErrors)]...)
		if n > maxFileErrors {
			kept = append(kept, &Error{Pos: e[maxFileErrors].Pos, Text: fmt.Sprintf("and %s about this file", plural(n-maxFileErrors, "more complaint", "more complaints"))})
		}
		e = e[n:]
	}
	return kept
}

func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(
			cmp.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Col, b.Pos.Col),
		)
	})
}

// Error is the complaint, the line with a caret under the place, and the hint.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Pos, printable(clip(e.Text)))
	if e.Pos.Line > 0 && e.Line != "" {
		number := strconv.Itoa(e.Pos.Line)
		line, caret := excerpt(e.Line, e.Pos.Col, e.Width)
		fmt.Fprintf(&b, "\n  %s | %s\n  %s | %s", number, line, strings.Repeat(" ", len(number)), caret)
	}
	if e.Hint != "" {
		b.WriteString("\n  " + strings.Join(wrap(printable(clip(e.Hint)), hintWidth), "\n  "))
	}
	return b.String()
}

// Widths in terminal columns.
const (
	hintWidth    = 96
	excerptWidth = 96
)

// excerpt returns the line, cut to the part around col (from 1), and carets
// below width characters of it.
func excerpt(line string, col, width int) (text, carets string) {
	r := []rune(line)
	at := min(max(col-1, 0), len(r))
	end := min(at+max(width, 1), len(r))
	first, last := window(r, at)
	end = min(end, last)
	var t, c strings.Builder
	if first > 0 {
		t.WriteRune('…')
		c.WriteByte(' ')
	}
	for i := first; i < last; i++ {
		shown := visible(r[i])
		t.WriteRune(shown)
		switch {
		case i >= at && i < end:
			c.WriteString(strings.Repeat("^", max(columns(shown), 1)))
		case i >= end:
		case shown == '\t':
			// A tab of the line is as wide as a tab below it, whatever the terminal's stops.
			c.WriteByte('\t')
		default:
			c.WriteString(strings.Repeat(" ", columns(shown)))
		}
	}
	if at >= last {
		c.WriteByte('^')
	}
	if last < len(r) {
		t.WriteRune('…')
	}
	return t.String(), c.String()
}

// window returns the part of a line to show: all of it, or as much as fits
// with the character at in view.
func window(r []rune, at int) (first, last int) {
	total := 0
	for _, c := range r {
		total += columns(visible(c))
	}
	if total <= excerptWidth {
		return 0, len(r)
	}
	first = at
	for before := 0; first > 0 && before < excerptWidth/3; first-- {
		before += columns(visible(r[first-1]))
	}
	last = first
	for used := 0; last < len(r); last++ {
		used += columns(visible(r[last]))
		if used > excerptWidth {
			break
		}
	}
	return first, last
}

// visible replaces what a terminal would not show or would obey: control
// characters, marks that reverse the writing direction, odd spaces.
func visible(r rune) rune {
	if r == '\t' || unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return visible(r)
	}, s)
}

// clip bounds what a value that is quoted in a text can add to it.
func clip(s string) string {
	const most = 600
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// wide are the ranges that take two columns (Unicode UAX #11, W and F), as
// far as people write them in configuration files.
var wide = [...][2]rune{
	{0x1100, 0x115f}, {0x2e80, 0x303e}, {0x3041, 0xa4cf}, {0xac00, 0xd7a3}, {0xf900, 0xfaff},
	{0xfe30, 0xfe6f}, {0xff00, 0xff60}, {0xffe0, 0xffe6}, {0x1f300, 0x1faff}, {0x20000, 0x3fffd},
}

// columns is the width of a character on a terminal.
func columns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	for _, w := range wide {
		if r >= w[0] && r <= w[1] {
			return 2
		}
	}
	return 1
}

// wrap breaks every line of text at spaces.
func wrap(text string, width int) []string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		used := 0
		var b strings.Builder
		for i, word := range strings.Split(line, " ") {
			w := 0
			for _, r := range word {
				w += columns(r)
			}
			switch {
			case i == 0:
			case used+1+w > width:
				out = append(out, b.String())
				b.Reset()
				used = 0
			default:
				b.WriteByte(' ')
				used++
			}
			b.WriteString(word)
			used += w
		}
		out = append(out, b.String())
	}
	return out
}
