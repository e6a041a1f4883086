package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab/vm"
)

func TestReportIsReadAsItWasSent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "file")
	long := strings.Repeat("line\n", 32<<10)
	var port, stdout, stderr bytes.Buffer
	r := &vm.Reporter{W: &port}
	for _, err := range []error{
		r.Send(vm.ReportStarted, nil),
		r.Copy(vm.ReportStdout, strings.NewReader(long)),
		r.Copy(vm.ReportStderr, strings.NewReader("wrong\n")),
		r.Send(vm.ReportFile, append([]byte{0, 0, 1, 0x80}, path...)), // 0600
		r.Copy(vm.ReportData, strings.NewReader(long)),
		r.Send(vm.ReportExit, vm.ExitData(3, 9)),
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
		r := &vm.Reporter{W: &b}
		if err := r.Send(kind, []byte(data)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for name, tt := range map[string]struct{ port, want string }{
		"nothing":           {"", errSilent.Error()},
		"output and an end": {message(vm.ReportStdout, "x"), errSilent.Error()},
		"half a head":       {"o\x00", io.ErrUnexpectedEOF.Error()},
		"half a message":    {"o\x00\x00\x00\x09x", io.ErrUnexpectedEOF.Error()},
		"too much":          {"o\xff\xff\xff\xff", "message of 4294967295 bytes"},
		"unknown kind":      {message('?', ""), `kind '?'`},
		"short exit":        {message(vm.ReportExit, "x"), "exit of 1 bytes"},
		"data of no file":   {message(vm.ReportData, "x"), "invalid argument"},
		"file not asked":    {message(vm.ReportFile, "\x00\x00\x00\x00/b"), "was not asked for"},
		"file by detour":    {message(vm.ReportFile, "\x00\x00\x00\x00/a/../b"), "was not asked for"},
		"file without name": {message(vm.ReportFile, "x"), "without a name"},
		"failure":           {message(vm.ReportFailure, "no root"), "no root"},
	} {
		m := machine{stdout: io.Discard, stderr: io.Discard, job: job{Fetch: []string{"/a"}}}
		_, err := m.follow(strings.NewReader(tt.port), time.Now())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q", name, err, tt.want)
		}
	}
}
