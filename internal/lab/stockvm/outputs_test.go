package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOutputsAreThoseOfPackageTesting(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/usr", link); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args, fetch, want []string
	}{
		{args: []string{"-test.v=true", "-test.run=^TestOut", "other"}},
		{
			args: []string{"-test.paniconexit0", "-test.testlogfile=/b/testlog.txt", "-test.coverprofile=/b/_cover_.out", "-test.gocoverdir=/b/gocoverdir"},
			want: []string{"/b/_cover_.out", "/b/testlog.txt", "/b/gocoverdir"},
		},
		{args: []string{"-test.cpuprofile", "c.out", "--test.trace=t.out", "-test.outputdir=/b"}, want: []string{"/b/c.out", "/b/t.out"}},
		{args: []string{"-test.memprofile=m.out", "-test.outputdir=sub", "-test.testlogfile=log"}, want: []string{"/work dir/sub/m.out", "/work dir/log"}},
		{args: []string{"-test.coverprofile"}},
		{fetch: []string{"x/", "/a/../b", "x"}, want: []string{"/work dir/x", "/b"}},
		{fetch: []string{link + "/new"}, want: []string{"/usr/new"}},
	}
	for _, tt := range tests {
		if got := outputs(tt.args, "/work dir", tt.fetch); !slices.Equal(got, tt.want) {
			t.Errorf("outputs of %q and %q are %q, want %q", tt.args, tt.fetch, got, tt.want)
		}
	}
}

func TestOutputsAreTakenOnlyAsAskedFor(t *testing.T) {
	fetch := []string{"/b/log", "/c"}
	for path, want := range map[string]bool{"/b/log": true, "/c/x/y": true, "/c": true, "/b/log2": false, "/b": false, "/cc": false} {
		if got := wanted(path, fetch); got != want {
			t.Errorf("wanted(%s) is %v, want %v", path, got, want)
		}
	}
}
