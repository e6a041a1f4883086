package main

import (
	"fmt"
	"os"
	"strings"
)

// Markers of the README's section that is made here.
const (
	readmeBegin = "<!-- bench: what follows is written by make bench -->\n"
	readmeEnd   = "<!-- bench: end -->\n"
)

// updateReadme puts text between the markers of a file.
func updateReadme(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("update README: %w", err)
	}
	now, err := between(string(old), text)
	if err != nil {
		return fmt.Errorf("update %s: %w", path, err)
	}
	if now == string(old) {
		return nil
	}
	if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
		return fmt.Errorf("update README: %w", err)
	}
	return nil
}

// between replaces what stands between the markers, which must be there once.
func between(old, text string) (string, error) {
	head, rest, ok := strings.Cut(old, readmeBegin)
	_, tail, ok2 := strings.Cut(rest, readmeEnd)
	if !ok || !ok2 || strings.Contains(tail, readmeBegin) {
		return "", fmt.Errorf("it has not the lines %q and %q, once each", strings.TrimSpace(readmeBegin), strings.TrimSpace(readmeEnd))
	}
	return head + readmeBegin + strings.TrimRight(text, "\n") + "\n" + readmeEnd + tail, nil
}
