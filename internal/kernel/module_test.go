package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// A sandbox hides the program's name, forbids to run it, or has it fail.
func TestModuleThatCannotBeLoadedSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fails := file("fails", "#!/bin/sh\necho could not insert \"$2\" >&2\nexit 1\n", 0o700)
	for path, want := range map[string]string{
		filepath.Join(dir, "hidden"):          "this kernel loads no modules, or none for sisod.service",
		file("empty", "\n", 0o600):            "kernel.modprobe is empty",
		file("none", dir+"/nothing\n", 0o600): "no such file",
		file("failing", fails+"\n", 0o600):    "could not insert fou",
	} {
		if err := modprobe(path, "fou"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for what, err := range map[string]error{
		"ip_gre":   deviceError(state.Device{Name: "rs0", Type: "gre"}, 0, unix.EOPNOTSUPP),
		"sit":      deviceError(state.Device{Name: "rs0", Type: "sit"}, 0, unix.EOPNOTSUPP),
		"ip_vs":    errNoIPVS{unix.ENOENT},
		"ip_vs_mh": serviceError(state.Service{Scheduler: "mh"}, unix.ENOENT),
		"nosuch":   loadModule("nosuch"),
	} {
		if err == nil {
			err = errors.New("no error")
		}
		for _, part := range []string{"modprobe " + what + ",", "/etc/modules-load.d/sisod.conf"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
}
