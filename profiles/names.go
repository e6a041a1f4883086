package profiles

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// fault is what is wrong with a value, before it has a place.
type fault struct{ text, hint string }

func faultf(hint, format string, args ...any) *fault {
	return &fault{fmt.Sprintf(format, args...), hint}
}

// maxLinkName is IFNAMSIZ-1 (linux/if.h), in bytes.
const maxLinkName = 15

// linkName judges the name of an interface as the kernel does
// (net/core/dev.c, dev_valid_name): the byte 0xa0 counts as space there, % is
// a pattern, and all and default are taken by net.ipv4.conf.
func linkName(name string) *fault {
	switch {
	case name == "":
		return faultf(`the name as "ip link" shows it, such as "em1"`, "the name of the interface is empty")
	case len(name) > maxLinkName:
		return faultf("is it an alternative name? \"ip link\" shows the short one first", "%q has %d bytes; an interface's name has at most %d", name, len(name), maxLinkName)
	case name == "." || name == ".." || name == "all" || name == "default":
		return faultf(`the name as "ip link" shows it, such as "em1"`, "%q cannot be the name of an interface", name)
	case strings.Contains(name, "@"):
		before, _, _ := strings.Cut(name, "@")
		return faultf(fmt.Sprintf(`"ip link" prints NAME@PEER; the name ends before the @: %q`, before), "%q is not the name of an interface", name)
	case strings.Contains(name, ":"):
		before, _, _ := strings.Cut(name, ":")
		return faultf(fmt.Sprintf("an alias such as eth0:1 is an address and not an interface: write %q", before), "%q is not the name of an interface", name)
	}
	for i := range len(name) {
		c := name[i]
		if c == 0xa0 {
			return faultf("its UTF-8 has the byte 0xa0, which the kernel takes for a space: the kernel has no such name", "%q is not the name of an interface", name)
		}
		if c == '/' || c == '%' || c <= ' ' || c == 0x7f {
			return faultf("a name has no slash, space or percent sign", "%q is not the name of an interface", name)
		}
	}
	return nil
}

// maxTableName keeps names readable, and far below the line length of rt_tables.
const maxTableName = 63

// tableName judges a name that is to stand in rt_tables.
func tableName(name string) *fault {
	switch {
	case name == "":
		return faultf("a name of letters, digits, _ and -", "the name is empty")
	case len(name) > maxTableName:
		return faultf("a name of letters, digits, _ and -", "a name has at most %d bytes, this one has %d", maxTableName, len(name))
	}
	for i, r := range name {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' || i > 0 && strings.ContainsRune("-.:@+", r) {
			continue
		}
		return faultf("a name begins with a letter, a digit or _, and goes on with these and - . : @ +",
			"%q cannot be in a name", r)
	}
	return nil
}

// reserved says what a name already stands for, or "".
func reserved(name string) string {
	if _, err := strconv.ParseInt(name, 0, 64); err == nil || digits(name) {
		return "would be read as a table's number"
	}
	switch {
	case name == "main" || name == "local" || name == "default" || name == "unspec":
		return "is a table of the kernel's"
	case name == "all" || name == "cache":
		return `means something else to "ip route show table"`
	case name == "destinations" || name == "default-uplinks" || strings.HasPrefix(name, captureTable) ||
		strings.HasPrefix(name, realServerTable):
		return "is a table of sisod's own"
	}
	return ""
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// numberOfTable judges a table that is sisod's to fill.
func numberOfTable(number int64) *fault {
	switch {
	case number == 253 || number == 254 || number == 255:
		return faultf("take another number, 1 to 252 or from 256 up", "table %d is the kernel's own table %s", number,
			[]string{"default", "main", "local"}[number-253])
	case number < 1 || number > 4294967294:
		return faultf("", "a table's number is 1 to 4294967294, not %d", number)
	}
	return nil
}
