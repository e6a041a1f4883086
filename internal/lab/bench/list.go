package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Lists are of prefixes of several lengths that nobody can merge: each begins a
// block whose neighbour is empty. They are the same in every run.
var (
	lengths4 = [...]int{24, 24, 23, 24, 22}
	lengths6 = [...]int{48, 48, 44, 48, 46}
)

// blockBits is how many addresses a block of list4 has, as a power of two.
const blockBits = 10

// list4 is n prefixes of IPv4 from 16.0.0.0 up, in their order.
func list4(n int) []netip.Prefix {
	list := make([]netip.Prefix, 0, n)
	for block := uint32(16) << (24 - blockBits); len(list) < n; block += 2 {
		if block>>(24-blockBits) == 127 {
			block = 128 << (24 - blockBits)
		}
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], block<<blockBits)
		list = append(list, netip.PrefixFrom(netip.AddrFrom4(a), lengths4[len(list)%len(lengths4)]))
	}
	return list
}

// spare is a prefix that is in no list4.
var spare = netip.MustParsePrefix("192.0.2.0/24")

// list6 is n prefixes of IPv6 from 2400:: up, in their order.
func list6(n int) []netip.Prefix {
	list := make([]netip.Prefix, 0, n)
	for i := range n {
		var a [16]byte
		binary.BigEndian.PutUint64(a[:], 0x2400<<48|uint64(i)<<21)
		list = append(list, netip.PrefixFrom(netip.AddrFrom16(a), lengths6[i%len(lengths6)]))
	}
	return list
}

// writeLines writes a line for each prefix, which format spells.
func writeLines(path string, list []netip.Prefix, format string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	for _, p := range list {
		fmt.Fprintf(w, format+"\n", p)
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
