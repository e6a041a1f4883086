package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// palette colours words, or leaves them as they are.
type palette struct{ on bool }

// palette decides about colour for a stream: on a terminal only, unless told.
func (p *places) palette(stream *os.File) palette {
	switch p.color {
	case "always":
		return palette{true}
	case "never":
		return palette{}
	}
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return palette{}
	}
	_, err := unix.IoctlGetTermios(int(stream.Fd()), unix.TCGETS)
	return palette{err == nil}
}

func (p palette) paint(code, s string) string {
	if !p.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p palette) good(s string) string { return p.paint("32", s) }
func (p palette) warn(s string) string { return p.paint("33", s) }
func (p palette) bad(s string) string  { return p.paint("31", s) }
func (p palette) dim(s string) string  { return p.paint("2", s) }
func (p palette) bold(s string) string { return p.paint("1", s) }
