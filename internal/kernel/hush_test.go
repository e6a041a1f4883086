package kernel

import (
	"testing"

	"github.com/sisod/sisod/internal/state"
)

// TestHushEndsWithItsCause: whoever is killed while the host keeps silent leaves
// a record of it.
func TestHushEndsWithItsCause(t *testing.T) {
	enterNamespace(t)
	const v4, v6 = "net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"
	for _, found := range []string{"780", "0"} {
		for _, c := range []struct {
			families map[state.Family]bool
			during   map[string]string
		}{
			{map[state.Family]bool{state.IPv4: true}, map[string]string{v4: hush, v6: found}},
			{map[state.Family]bool{state.IPv6: true}, map[string]string{v4: found, v6: hush}},
			{map[state.Family]bool{state.IPv4: true, state.IPv6: true}, map[string]string{v4: hush, v6: hush}},
		} {
			h := openTestHost(t)
			before := map[string]string{}
			for path, value := range c.during {
				setSysctl(t, path, found)
				if value == hush {
					before[path] = found
				}
			}
			ran := false
			err := h.hushed(c.families, func() {
				ran = true
				for path, want := range c.during {
					if got := getSysctl(t, path); got != want {
						t.Errorf("%v: meanwhile %s is %s, want %s", c.families, path, got, want)
					}
				}
				wantBefore(t, h, nil, before)
			})
			if err != nil || !ran {
				t.Errorf("%v: %v, ran: %v", c.families, err, ran)
			}
			for path := range c.during {
				if got := getSysctl(t, path); got != found {
					t.Errorf("%v: afterwards %s is %s, want %s", c.families, path, got, found)
				}
			}
			wantBefore(t, h, nil, nil)
		}
	}
}
