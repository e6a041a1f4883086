package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// document is the text of one file, and where complaints about it go.
type document struct {
	path   string
	text   string
	starts []int // byte offsets of the lines
	errs   *Errors
	// counted is the place that position last counted to, so that the places of a
	// long line cost one count of it and not one each.
	counted struct{ line, offset, col int }
	// settings is set for sisod.toml, whose keys are others than a profile's.
	settings bool
}

// Limits of a TOML file.
const (
	maxProfile = 1 << 20 // bytes
	maxDepth   = 500     // brackets within brackets
	maxParts   = 50      // dots of a dotted key
)

// parse reads a TOML text. It complains and returns nil when the text is none.
func parse(path string, text []byte, settings bool, errs *Errors) *node {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	d := &document{path: path, text: string(text), settings: settings, errs: errs}
	d.starts = append(d.starts, 0)
	for i := range len(d.text) {
		if d.text[i] == '\n' {
			d.starts = append(d.starts, i+1)
		}
	}
	if !d.utf8() || !d.shallow() {
		return nil
	}
	values, err := decode(d.text)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		d.syntax(syntax)
		return nil
	case err != nil:
		d.complain(span{}, err.Error(), "")
		return nil
	}
	root, _, err := scan(d.text)
	var twice *twiceError
	if errors.As(err, &twice) {
		d.complain(twice.key, twice.Error(), "a key may stand once: remove one of the two")
		return nil
	}
	if err == nil {
		err = root.take(values, d)
	}
	if err != nil {
		d.complain(span{}, err.Error(), "write this file in a plainer way, and report the text that led here")
		return nil
	}
	return root
}

// decode is toml.Decode for any text: the parser panics on a few invalid
// ones, and a typing error must not end the daemon.
func decode(text string) (values map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			values, err = nil, fmt.Errorf("parse TOML: %v", p)
		}
	}()
	_, err = toml.Decode(text, &values)
	return values, err
}

// take copies decoded values into the tree and tells every node its document.
func (n *node) take(value any, d *document) error {
	n.doc, n.value = d, value
	switch v := value.(type) {
	case map[string]any:
		if n.shape != table || len(v) != len(n.children) {
			return errLost
		}
		for name, c := range n.children {
			child, ok := v[name]
			if !ok {
				return errLost
			}
			if err := c.take(child, d); err != nil {
				return err
			}
		}
	case []any:
		return n.takeElements(len(v), func(i int) any { return v[i] }, d)
	case []map[string]any:
		return n.takeElements(len(v), func(i int) any { return v[i] }, d)
	default:
		if n.shape != scalar {
			return errLost
		}
	}
	return nil
}

func (n *node) takeElements(count int, value func(int) any, d *document) error {
	if n.shape != array || len(n.elements) != count {
		return errLost
	}
	for i, e := range n.elements {
		if err := e.take(value(i), d); err != nil {
			return err
		}
	}
	return nil
}

// utf8 complains about the first byte that is not UTF-8.
func (d *document) utf8() bool {
	for i, r := range d.text {
		if r != utf8.RuneError {
			continue
		}
		if _, size := utf8.DecodeRuneInString(d.text[i:]); size > 1 {
			continue
		}
		hint := "save the file as UTF-8"
		if i == 0 && (strings.HasPrefix(d.text, "\xff\xfe") || strings.HasPrefix(d.text, "\xfe\xff")) {
			hint = "the file looks like UTF-16, as some Windows editors write it: save it as UTF-8"
		}
		d.complain(span{i, i + 1}, fmt.Sprintf("byte 0x%02x is not UTF-8", d.text[i]), hint)
		return false
	}
	return true
}

// shallow refuses a text whose nesting only a machine would write: the parser
// needs time by the square of it. It looks before the text is known to be TOML,
// so brackets in strings and comments count too, which no honest file notices.
func (d *document) shallow() bool {
	depth, dots := 0, 0
	var quote byte
	comment := false
	for i := range len(d.text) {
		switch c := d.text[i]; {
		case c == '\n':
			dots, quote, comment = 0, 0, false
		case c == '[' || c == '{':
			depth++
		case c == ']' || c == '}':
			depth = max(depth-1, 0)
		case quote == 0 && c == '#':
			comment = true
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		case c == '.' && quote == 0 && !comment:
			dots++
		case c == '=' || c == ',':
			dots = 0
		}
		if depth > maxDepth {
			d.complain(span{i, i + 1}, fmt.Sprintf("more than %d brackets are open here", maxDepth), "close them")
			return false
		}
		if dots > maxParts {
			d.complain(span{i, i + 1}, fmt.Sprintf("a key with more than %d dots", maxParts), "no key of sisod has more than three")
			return false
		}
	}
	return true
}

// complain adds a complaint about a stretch of the text.
func (d *document) complain(at span, text, hint string) {
	pos := d.position(at.start)
	start := d.starts[pos.Line-1]
	line := d.text[start:]
	if pos.Line < len(d.starts) {
		line = d.text[start : d.starts[pos.Line]-1]
	}
	line = strings.TrimSuffix(line, "\r")
	end := min(max(at.end, at.start), start+len(line))
	width := 1
	if at.start < end {
		width = utf8.RuneCountInString(d.text[at.start:end])
	}
	*d.errs = append(*d.errs, &Error{Pos: pos, Text: text, Hint: hint, Line: line, Width: width})
}

// position turns a byte offset into line and column.
func (d *document) position(offset int) Position {
	line := sort.SearchInts(d.starts, offset+1)
	from, col := d.starts[line-1], 1
	if d.counted.line == line && d.counted.offset <= offset {
		from, col = d.counted.offset, d.counted.col
	}
	col += utf8.RuneCountInString(d.text[from:offset])
	d.counted.line, d.counted.offset, d.counted.col = line, offset, col
	return Position{File: d.path, Line: line, Col: col}
}

// pos is where the key stands, or the value of an element.
func (n *node) pos() Position { return n.doc.position(n.key.start) }

// valuePos is where the value stands.
func (n *node) valuePos() Position { return n.doc.position(n.val.start) }

// badKey complains about a key.
func (n *node) badKey(text, hint string) { n.doc.complain(n.key, text, hint) }

// bad complains about a value.
func (n *node) bad(text, hint string) { n.doc.complain(n.val, text, hint) }

// label names a table as its header does.
func (n *node) label() string {
	switch {
	case len(n.path) == 0 && n.doc.settings:
		return "sisod.toml"
	case len(n.path) == 0:
		return "a profile"
	case n.element && len(n.path) == 1:
		return "[[" + n.name + "]]"
	case n.element && (n.path[0] == "rule" || n.path[0] == "route"):
		return "`" + n.name + "` of [[" + dotted(n.path[:len(n.path)-1]) + "]]"
	case n.element:
		return "`" + n.name + "` of [" + dotted(n.path[:len(n.path)-1]) + "]"
	}
	return "[" + dotted(n.path) + "]"
}

// dotted spells a path with the quotes it needs.
func dotted(path []string) string {
	return toml.Key(path).String()
}
