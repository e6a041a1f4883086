package profiles

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// span is a stretch of a document's text, in bytes.
type span struct{ start, end int }

// shape is what a node is made of.
type shape uint8

const (
	scalar shape = iota
	table
	array
)

// node is a key with its value, or an element of a list, and where both stand.
type node struct {
	doc  *document
	name string // the key; elements have their list's
	path []string
	// element is set for members of a list, which have no key of their own.
	element bool
	key     span // where the name stands; for an element, its value or its [[header]]
	val     span // where the value stands; for a [header], the name in it
	shape   shape
	// keys are the names in children, in the order of the file.
	keys     []string
	children map[string]*node
	elements []*node
	value    any // as toml decoded it
}

// definition is a key as it was written, with its full path.
type definition struct {
	path []string
	key  span
}

var errLost = errors.New("scan TOML: text that the parser took and the position finder does not know")

// twiceError is a key that stands twice, where the parser dropped one of the
// two silently.
type twiceError struct {
	path []string
	key  span
}

func (e *twiceError) Error() string {
	return fmt.Sprintf("key '%s' has already been defined", dotted(e.path))
}

// scanner finds where keys and values stand. It relies on the text being
// valid TOML: whether it is, is toml.Decode's question.
type scanner struct {
	text  string
	pos   int
	root  *node
	found []definition
}

// scan returns the tree of a valid TOML text without its values, and every
// key in the order of the file.
func scan(text string) (*node, []definition, error) {
	s := &scanner{text: text, root: &node{shape: table, children: map[string]*node{}}}
	current := s.root
	for {
		s.blank()
		switch {
		case s.pos >= len(s.text):
			return s.root, s.found, nil
		case s.text[s.pos] == '[':
			header, err := s.header()
			if err != nil {
				return nil, nil, err
			}
			current = header
		default:
			if err := s.pair(current); err != nil {
				return nil, nil, err
			}
		}
	}
}

// blank passes space, line ends and comments.
func (s *scanner) blank() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		case '#':
			end := strings.IndexByte(s.text[s.pos:], '\n')
			if end < 0 {
				s.pos = len(s.text)
				return
			}
			s.pos += end
		default:
			return
		}
	}
}

func (s *scanner) space() {
	for s.pos < len(s.text) && (s.text[s.pos] == ' ' || s.text[s.pos] == '\t') {
		s.pos++
	}
}

// take passes one expected text.
func (s *scanner) take(want string) bool {
	if !strings.HasPrefix(s.text[s.pos:], want) {
		return false
	}
	s.pos += len(want)
	return true
}

func (s *scanner) lost() error { return fmt.Errorf("%w at byte %d", errLost, s.pos) }

// part is one name of a dotted key.
type part struct {
	name string
	span span
}

// parts reads a dotted key.
func (s *scanner) parts() ([]part, error) {
	var p []part
	for {
		s.space()
		start := s.pos
		name, err := s.name()
		if err != nil {
			return nil, err
		}
		p = append(p, part{name, span{start, s.pos}})
		s.space()
		if !s.take(".") {
			return p, nil
		}
	}
}

// name reads one bare or quoted name.
func (s *scanner) name() (string, error) {
	start := s.pos
	switch {
	case s.pos >= len(s.text):
		return "", s.lost()
	case s.text[s.pos] == '"' || s.text[s.pos] == '\'':
		if err := s.quoted(); err != nil {
			return "", err
		}
		inner := s.text[start+1 : s.pos-1]
		if s.text[start] == '\'' {
			return inner, nil
		}
		return unescape(inner)
	}
	for s.pos < len(s.text) && bare(s.text[s.pos]) {
		s.pos++
	}
	// The parser takes an empty name in some places, so an empty one is no reason to be lost.
	return s.text[start:s.pos], nil
}

func bare(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// quoted passes a string of any of the four kinds.
func (s *scanner) quoted() error {
	quote := s.text[s.pos]
	long := strings.Repeat(string(quote), 3)
	if !s.take(long) {
		s.pos++
		for s.pos < len(s.text) {
			switch c := s.text[s.pos]; {
			case c == quote:
				s.pos++
				return nil
			case c == '\\' && quote == '"':
				s.pos++
			}
			s.pos++
		}
		return s.lost()
	}
	for s.pos < len(s.text) {
		switch {
		case strings.HasPrefix(s.text[s.pos:], long):
			// Up to two quotes before the closing three belong to the text.
			for s.pos < len(s.text) && s.text[s.pos] == quote {
				s.pos++
			}
			return nil
		case s.text[s.pos] == '\\' && quote == '"':
			s.pos++
		}
		s.pos++
	}
	return s.lost()
}

// unescape decodes the escapes of a basic string.
func unescape(text string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			b.WriteByte(text[i])
			continue
		}
		i++
		if i >= len(text) {
			return "", errLost
		}
		if simple := strings.IndexByte("btnfre\"\\", text[i]); simple >= 0 {
			b.WriteByte("\b\t\n\f\r\x1b\"\\"[simple])
			continue
		}
		digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[text[i]]
		if digits == 0 || i+digits >= len(text) {
			return "", errLost
		}
		r, err := strconv.ParseUint(text[i+1:i+1+digits], 16, 32)
		if err != nil || !utf8.ValidRune(rune(r)) {
			return "", errLost
		}
		b.WriteRune(rune(r))
		i += digits
	}
	return b.String(), nil
}

// header reads [table] or [[table]] and returns the table it opens.
func (s *scanner) header() (*node, error) {
	start := s.pos
	s.pos++
	list := s.take("[")
	parts, err := s.parts()
	if err != nil {
		return nil, err
	}
	if !s.take("]") || list && !s.take("]") {
		return nil, s.lost()
	}
	parent := s.descend(s.root, parts[:len(parts)-1])
	last := parts[len(parts)-1]
	n, known := parent.children[last.name]
	if !known {
		n = parent.child(last, table)
	}
	path := n.path
	if list {
		n.shape = array
		e := &node{
			name: n.name, path: n.path, element: true, shape: table, children: map[string]*node{},
			key: span{start, s.pos}, val: span{start, s.pos},
		}
		n.elements = append(n.elements, e)
		n = e
	} else {
		// A header that comes after [its.children] is the better place to point at.
		n.key, n.val = last.span, last.span
	}
	s.found = append(s.found, definition{path, last.span})
	return n, nil
}

// descend walks, and makes, the tables of a dotted key.
func (s *scanner) descend(from *node, parts []part) *node {
	for _, p := range parts {
		next, known := from.children[p.name]
		if !known {
			next = from.child(p, table)
		}
		if next.shape == array && len(next.elements) > 0 {
			next = next.elements[len(next.elements)-1]
		}
		from = next
	}
	return from
}

// child adds a key to a table.
func (n *node) child(p part, s shape) *node {
	c := &node{name: p.name, path: append(slices.Clone(n.path), p.name), key: p.span, val: p.span, shape: s, children: map[string]*node{}}
	if n.children == nil {
		n.children = map[string]*node{}
	}
	n.keys = append(n.keys, p.name)
	n.children[p.name] = c
	return c
}

// pair reads key = value into a table.
func (s *scanner) pair(into *node) error {
	parts, err := s.parts()
	if err != nil {
		return err
	}
	if !s.take("=") {
		return s.lost()
	}
	s.space()
	last := parts[len(parts)-1]
	parent := s.descend(into, parts[:len(parts)-1])
	if first, known := parent.children[last.name]; known {
		return &twiceError{first.path, last.span}
	}
	n := parent.child(last, scalar)
	s.found = append(s.found, definition{n.path, last.span})
	return s.fill(n)
}

// fill reads a value into its node.
func (s *scanner) fill(n *node) error {
	if s.pos >= len(s.text) {
		return s.lost()
	}
	n.val.start = s.pos
	var err error
	switch s.text[s.pos] {
	case '"', '\'':
		err = s.quoted()
	case '[':
		n.shape = array
		err = s.list(n)
	case '{':
		n.shape = table
		err = s.inline(n)
	default:
		end := strings.IndexAny(s.text[s.pos:], ",]}#\r\n")
		if end < 0 {
			end = len(s.text) - s.pos
		}
		word := strings.TrimRight(s.text[s.pos:s.pos+end], " \t")
		if word == "" {
			return s.lost()
		}
		s.pos += len(word)
	}
	n.val.end = s.pos
	return err
}

func (s *scanner) list(n *node) error {
	s.pos++
	for {
		s.blank()
		if s.take("]") {
			return nil
		}
		e := &node{name: n.name, path: n.path, element: true, children: map[string]*node{}}
		if err := s.fill(e); err != nil {
			return err
		}
		e.key = e.val
		n.elements = append(n.elements, e)
		s.blank()
		s.take(",")
	}
}

func (s *scanner) inline(n *node) error {
	s.pos++
	for {
		s.blank()
		if s.take("}") {
			return nil
		}
		if err := s.pair(n); err != nil {
			return err
		}
		s.blank()
		s.take(",")
	}
}
