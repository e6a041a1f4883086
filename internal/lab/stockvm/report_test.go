package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReportIsReadAsItWasSent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "file")
	long := strings.Repeat("line\n", reportChunk)
	var port, stdout, stderr bytes.Buffer
	r := &reporter{w: &port}
	for _, err := range []error{
		r.send(reportStarted, nil),
		r.copy(reportStdout, strings.NewReader(long)),
		r.copy(reportStderr, strings.NewReader("wrong\n")),
		r.send(reportFile, append([]byte{0, 0, 1, 0x80}, path...)), // 0600
		r.copy(reportData, strings.NewReader(long)),
		r.send(reportExit, exitData(3, 9)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m := machine{stdout: &stdout, stderr: &stderr, job: job{Fetch: []string{dir}}}
	res, err := m.follow(&port, time.Now())
	if err != nil || res.code != 3 || res.signal != syscall.SIGKILL || res.started > res.ended {
		t.Errorf("result %+v (%v)", res, err)
	}
	if stdout.String() != long || stderr.String() != "wrong\n" {
		t.Errorf("output of %d bytes, errors %q", stdout.Len(), &stderr)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != long {
		t.Errorf("file of %d bytes (%v), want %d", len(text), err, len(long))
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("file has mode %v (%v)", st.Mode(), err)
	}
}

func TestReportWithFaultsIsRefused(t *testing.T) {
	message := func(kind byte, data string) string {
		var b bytes.Buffer
		r := &reporter{w: &b}
		if err := r.send(kind, []byte(data)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for name, tt := range map[string]struct{ port, want string }{
		"nothing":           {"", errSilent.Error()},
		"output and an end": {message(reportStdout, "x"), errSilent.Error()},
		"half a head":       {"o\x00", io.ErrUnexpectedEOF.Error()},
		"half a message":    {"o\x00\x00\x00\x09x", io.ErrUnexpectedEOF.Error()},
		"too much":          {"o\xff\xff\xff\xff", "message of 4294967295 bytes"},
		"unknown kind":      {message('?', ""), `kind '?'`},
		"short exit":        {message(reportExit, "x"), "exit of 1 bytes"},
		"data of no file":   {message(reportData, "x"), "invalid argument"},
		"file not asked":    {message(reportFile, "\x00\x00\x00\x00/b"), "was not asked for"},
		"file by detour":    {message(reportFile, "\x00\x00\x00\x00/a/../b"), "was not asked for"},
		"file without name": {message(reportFile, "x"), "without a name"},
		"failure":           {message(reportFailure, "no root"), "no root"},
	} {
		m := machine{stdout: io.Discard, stderr: io.Discard, job: job{Fetch: []string{"/a"}}}
		_, err := m.follow(strings.NewReader(tt.port), time.Now())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q", name, err, tt.want)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	c := &tail{limit: 10}
	for range 5 {
		if n, err := c.Write([]byte("abc\r\n")); n != 5 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got, want := c.String(), "abc\nabc"; got != want {
		t.Errorf("tail is %q, want %q", got, want)
	}
	if _, err := imagePayload([]byte("MZ")); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("payload of no image: %v", err)
	}
}
