package main

// job is what the guest has to do. It is a file of the initramfs.
type job struct {
	Path string   // of the program, absolute
	Args []string // the first is the program's name
	Env  []string
	Dir  string

	Modules   []string // names for modprobe
	Release   string   // of the kernel, as uname -r has it
	ModuleDir string   // where the machine has the kernel's modules
	Fetch     []string // what to bring back, absolute
}
