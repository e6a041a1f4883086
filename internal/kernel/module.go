package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// moduleCure is what to do about a module that is not there. The kernel loads
// most by itself, also for a process in a sandbox; where it may not, they are
// loaded at boot.
func moduleCure(name string) string {
	return fmt.Sprintf("install or allow its module %s, or have it loaded at boot: modprobe %[1]s, as root, and its name in /etc/modules-load.d/sisod.conf", name)
}

// linkModules are the modules of types of links, where they have another name.
var linkModules = map[string]string{"gre": "ip_gre", "ip6tnl": "ip6_tunnel", "ip6gre": "ip6_gre"}

// modprobePath tells which program the kernel calls to load a module
// (proc_sys_kernel(5)).
const modprobePath = "/proc/sys/kernel/modprobe"

// loadModule loads a module that the kernel does not load by itself. The
// daemon's unit may not (ProtectKernelModules).
func loadModule(name string) error {
	if err := modprobe(modprobePath, name); err != nil {
		return fmt.Errorf("load module %s: %w: %s", name, err, moduleCure(name))
	}
	return nil
}

func modprobe(path, name string) error {
	content, err := os.ReadFile(path)
	program := strings.TrimSpace(string(content))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("this kernel loads no modules, or none for sisod.service (%w)", err)
	case err != nil:
		return err
	case program == "":
		return errors.New("the kernel is told to load none (kernel.modprobe is empty)")
	}
	if out, err := exec.Command(program, "--", name).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}
