package state

import (
	"fmt"
	"path"
	"strconv"
)

// Numbers of the kernel's own routing tables (linux/rtnetlink.h, enum rt_class_t).
const (
	TableUnspec  = 0
	TableDefault = 253
	TableMain    = 254
	TableLocal   = 255
)

// TableName gives a routing table a name in rt_tables(5).
type TableName struct {
	Number uint32
	Name   string
}

// Kind is KindTableName.
func (TableName) Kind() Kind { return KindTableName }

// String is the line of rt_tables.
func (t TableName) String() string { return fmt.Sprintf("%d %s", t.Number, t.Name) }

// Spell is String: a name is spelled by itself.
func (t TableName) Spell(Names) string { return t.String() }

// TableNamesFile is where the names live, below iproute2's folder.
const TableNamesFile = "rt_tables.d/sisod.conf"

// Commands edits the drop-in that holds sisod's names.
func (t TableName) Commands(op Op, _ Names) []string {
	const file = "/etc/iproute2/" + TableNamesFile
	if op.Removes() {
		return []string{fmt.Sprintf("sed -i '/^%d[[:space:]]*%s$/d' %s", t.Number, t.Name, file)}
	}
	return []string{
		"mkdir -p " + path.Dir(file),
		fmt.Sprintf("echo '%d %s' >> %s", t.Number, t.Name, file),
	}
}

func wellKnownTable(number uint32) string {
	switch number {
	case TableMain:
		return "main"
	case TableLocal:
		return "local"
	case TableDefault:
		return "default"
	}
	return strconv.FormatUint(uint64(number), 10)
}
