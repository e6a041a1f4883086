package profiles

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/sisod/sisod/internal/prefix"
)

// maxListErrors is the number of bad lines of one list that are shown.
const maxListErrors = 10

// maxListLine is the longest line of a list, in bytes.
const maxListLine = 4096

// sampled is how many lines tell how many prefixes a whole list holds.
const sampled = 1000

// sampledMost is the most of a file, in bytes, that room is made for ahead.
const sampledMost = 64 << 20

// listFile reads the file of an entry "@name". A relative name is looked for
// beside the profile.
func (b *builder) listFile(e *node, name string, u *Uplink, list *PrefixList) {
	if name == "" {
		e.bad("the name of a file is missing behind the @", `"@cn.zone" is the file cn.zone beside this profile`)
		return
	}
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(filepath.Dir(e.doc.path), name)
	}
	list.File = filepath.Clean(path)
	if o, ok := claim(b.lists, list.File, owner{u.Name, e.pos()}); !ok {
		e.bad(fmt.Sprintf("the list %s is in `to` of uplink %s already, at %s", list.File, o.uplink, o.at), twice(o, u, oneUplink))
		return
	}
	f, size, bad := b.loader.open(list.File)
	if bad != nil {
		hint := bad.hint
		if hint == "" && !filepath.IsAbs(name) {
			hint = "a name without a leading / is looked for beside the profile"
		}
		e.bad(fmt.Sprintf("%s: %s", list.File, bad.text), hint)
		return
	}
	defer f.Close()
	if known, ok := b.loader.list(list.File); ok {
		list.Prefixes = known.Prefixes
		return
	}
	s := &listScanner{path: list.File, to: toHint(u.Name), size: size}
	sum := NewSum()
	if err := s.read(io.TeeReader(f, sum)); err != nil {
		e.bad(fmt.Sprintf("%s: %v", list.File, err), "")
		return
	}
	b.loader.sum(list.File, sum.Sum64())
	b.loader.errs = append(b.loader.errs, s.complaints()...)
	list.Prefixes = s.found.Set()
	if len(s.errs) == 0 && list.Prefixes.Len() == 0 {
		e.bad(fmt.Sprintf("%s holds no prefix", list.File), "a download that went wrong? To want nothing of it, take the entry out of `to`")
	}
}

// listScanner reads a list of prefixes, one a line.
type listScanner struct {
	path    string
	to      string // the hint for a default route
	size    int64  // of the file, in bytes
	taken   int64  // bytes of it
	line    int
	errs    Errors
	more    int      // bad lines beyond those in errs
	rest    Position // the first of them
	found   prefix.Builder
	cutting bool
}

func (s *listScanner) read(r io.Reader) error {
	lines := bufio.NewReaderSize(r, maxListLine)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if !s.cutting {
				s.line++
			}
			if first := bytes.TrimLeft(line, " \t"); !s.cutting && (len(first) == 0 || first[0] != '#' && first[0] != ';') {
				s.complain(line[:64], 0, faultf("one prefix a line", "the line is longer than %d bytes", maxListLine))
			}
			s.cutting = true
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		if s.cutting {
			s.cutting = false
		} else if len(line) > 0 {
			s.line++
			s.take(line)
		}
		if err != nil {
			return nil
		}
	}
}

// take reads one line.
func (s *listScanner) take(line []byte) {
	if s.taken += int64(len(line)); s.line == sampled {
		// What is in one piece from the beginning is not copied while it grows.
		s.found.Grow(float64(min(s.size, sampledMost)) / float64(s.taken) * 1.05)
	}
	if s.line == 1 {
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if address, length, ok := plainIPv4(bytes.TrimRight(line, "\r\n")); ok {
		s.found.AddIPv4(address, length)
		return
	}
	entry := line
	if i := bytes.IndexAny(line, "#;"); i >= 0 {
		entry = line[:i]
	}
	entry = bytes.TrimSpace(entry)
	if len(entry) == 0 {
		return
	}
	p, bad := parsePrefix(string(entry))
	if bad == nil {
		bad = unicast(p)
	}
	switch {
	case bad != nil:
		if bad.hint == "" {
			bad.hint = s.to
		}
		if first := bytes.FieldsFunc(entry, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }); len(first) > 1 && prefixed(first[0]) {
			bad = faultf("one prefix a line; a comment begins with # or ;", "%q is more than one prefix", entry)
		}
		s.complain(line, bytes.Index(line, entry), bad)
	default:
		s.found.Add(p)
	}
}

func prefixed(word []byte) bool {
	_, bad := parsePrefix(string(word))
	return bad == nil
}

func (s *listScanner) complain(line []byte, at int, bad *fault) {
	text := strings.TrimRight(string(line), "\r\n")
	pos := Position{s.path, s.line, utf8.RuneCountInString(text[:at]) + 1}
	if len(s.errs) == maxListErrors {
		if s.more++; s.more == 1 {
			s.rest = pos
		}
		return
	}
	entry := strings.TrimSpace(strings.FieldsFunc(text[at:]+" ", func(r rune) bool { return r == '#' || r == ';' })[0])
	s.errs = append(s.errs, &Error{Pos: pos, Text: bad.text, Hint: bad.hint, Line: text, Width: utf8.RuneCountInString(entry)})
}

func (s *listScanner) complaints() Errors {
	if s.more == 0 {
		return s.errs
	}
	return append(s.errs, &Error{Pos: s.rest, Text: fmt.Sprintf("and %s from here on", plural(s.more, "more bad line", "more bad lines")),
		Hint: "is this a list of prefixes at all? It has one prefix or address a line, and comments behind # or ;"})
}

// plainIPv4 reads the common case, a network's a.b.c.d/n in its plainest
// spelling, without making garbage; all else is false and read by parsePrefix.
func plainIPv4(entry []byte) (addr uint32, length uint8, ok bool) {
	var address, field uint64
	fields, width := 0, 0
	for i, c := range entry {
		switch {
		case c >= '0' && c <= '9':
			if width > 0 && field == 0 {
				return 0, 0, false
			}
			field = field*10 + uint64(c-'0')
			if width++; width > 3 || field > 255 {
				return 0, 0, false
			}
		case width > 0 && (c == '.' && fields < 3 || c == '/' && fields == 3 && i > 0):
			address = address<<8 | field
			fields++
			field, width = 0, 0
		default:
			return 0, 0, false
		}
	}
	if fields != 4 || width == 0 || field == 0 || field > 32 {
		return 0, 0, false
	}
	first := address >> 24
	if address<<field&0xffffffff != 0 || first == 127 || first >= 224 && first < 240 {
		return 0, 0, false
	}
	return uint32(address), uint8(field), true
}

// thinReach is how many bits wider a prefix may be that makes another one
// superfluous. It bounds what one line of a list adds and takes away to 511 routes.
const thinReach = 8

// thin joins the lists of each uplink. It looks at those of all uplinks, because
// all their prefixes are in one table, where the longest wins.
func (c *Config) thin() {
	listed := make([]prefix.Set, len(c.Uplinks))
	for i := range c.Uplinks {
		for _, l := range c.Uplinks[i].To {
			listed[i] = listed[i].Union(l.Prefixes)
		}
	}
	for i, s := range prefix.Thin(listed, thinReach) {
		c.Uplinks[i].Listed, c.Uplinks[i].Thinned = listed[i], s
	}
}
