// Package order is what the boot test and its virtual machine have agreed on.
package order

// Port is the name of the connection between the two, and Program where the
// guest's own program is.
const (
	Port    = "orders"
	Program = "/usr/local/sbin/boot-guest"
)

// Command is what the guest shall do: run a program, or write a file.
type Command struct {
	Args    []string `json:",omitempty"`
	File    string   `json:",omitempty"`
	Mode    uint32   `json:",omitempty"`
	Append  bool     `json:",omitempty"`
	Content []byte   `json:",omitempty"`
}
