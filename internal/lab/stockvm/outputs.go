package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// own are the folders that the guest does not share with the machine.
var own = [...]string{"/dev", "/proc", "/run", "/sys"}

// guestsOwn is the folder in which path means another file in the guest, or
// nothing.
func guestsOwn(path string) string {
	for _, dir := range own {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return dir
		}
	}
	return ""
}

// inOutputDir are the flags of package testing that name a file below
// -test.outputdir; inDir are those that name one below the working folder.
var (
	inOutputDir = []string{"test.coverprofile", "test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile", "test.trace"}
	inDir       = []string{"test.testlogfile", "test.gocoverdir"}
)

// outputs are the files and folders that a program with these arguments, in
// dir, is expected to write for its caller, and those of fetch; their folders'
// symbolic links are followed.
func outputs(args []string, dir string, fetch []string) []string {
	values := map[string]string{}
	for i, arg := range args {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		if !strings.HasPrefix(arg, "-") || !strings.HasPrefix(name, "test.") {
			continue
		}
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		values[name] = value
	}
	below := func(dir, path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	var paths []string
	add := func(dir, path string) {
		path = below(dir, path)
		if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(parent, filepath.Base(path))
		}
		if path = filepath.Clean(path); !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	for _, name := range inOutputDir {
		if v := values[name]; v != "" {
			add(below(dir, values["test.outputdir"]), v)
		}
	}
	for _, name := range inDir {
		if v := values[name]; v != "" {
			add(dir, v)
		}
	}
	for _, path := range fetch {
		add(dir, path)
	}
	return paths
}

// wanted says whether a file was asked for, by itself or by its folder.
func wanted(path string, fetch []string) bool {
	return slices.ContainsFunc(fetch, func(f string) bool {
		return path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/")
	})
}
