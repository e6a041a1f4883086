package kernel

import (
	"bytes"
	"hash/maphash"
	"strings"
	"testing"
	"testing/iotest"
)

const balancerList = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  CB007101:1F40 wlc persistent 300 FFFFFFFF
  -> C0000201:1F40      Route   1      0          0         
  -> C0000202:1F40      Route   1      12         3456      
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 rr 
  -> [2001:0db8:0000:0000:0000:0000:0000:0009]:0050      Masq    1      0          0         
FWM  00000007 rr 
`

func printOf(t testing.TB, seed maphash.Seed, list string, buffer int) uint64 {
	t.Helper()
	print, err := fingerprint(seed, make([]byte, buffer), strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	return print
}

func TestAFingerprintHeedsAllButConnections(t *testing.T) {
	seed := maphash.MakeSeed()
	was := printOf(t, seed, balancerList, listBuffer)
	for from, to := range map[string]string{"12         3456      ": "1234567890 3456789   ", "0          0         \nFWM": "1          0         \nFWM"} {
		if now := printOf(t, seed, strings.Replace(balancerList, from, to, 1), listBuffer); now != was {
			t.Errorf("%q for %q is a change", to, from)
		}
	}
	for from, to := range map[string]string{
		"1      12": "2      12", "Route   1      0": "Tunnel  1      0", "CB007101": "CB007102", "C0000202:1F40": "C0000203:1F40",
		"wlc": "wrr", "persistent 300": "persistent 301", "FWM  00000007 rr \n": "", " 12 ": " ",
	} {
		if now := printOf(t, seed, strings.Replace(balancerList, from, to, 1), listBuffer); now == was {
			t.Errorf("%q for %q is no change", to, from)
		}
	}
}

// FuzzFingerprint: however the kernel cuts its list, the number is the same, and
// what is left out of a line is at its end.
func FuzzFingerprint(f *testing.F) {
	f.Add([]byte(balancerList))
	f.Add([]byte("  -> 1 2\n"))
	f.Add([]byte("  -> \n\n  ->  9\n 7"))
	seed := maphash.MakeSeed()
	f.Fuzz(func(t *testing.T, list []byte) {
		whole, err := fingerprint(seed, make([]byte, len(list)+1), bytes.NewReader(list))
		if err != nil {
			t.Fatal(err)
		}
		cut, err := fingerprint(seed, make([]byte, len(list)+1), iotest.OneByteReader(bytes.NewReader(list)))
		if err != nil || cut != whole {
			t.Errorf("%d at once, %d byte by byte, %v", whole, cut, err)
		}
		for line := range bytes.Lines(list) {
			if !bytes.HasPrefix(line, withoutCounters(line)) {
				t.Errorf("%q becomes %q", line, withoutCounters(line))
			}
		}
	})
}
