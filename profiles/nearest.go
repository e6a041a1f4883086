package profiles

import "strings"

// near returns the known word that name was most likely meant to be, or "".
func near(name string, known []string) string {
	best, least := "", len(name)/2+1
	for _, k := range known {
		if d := distance(strings.ToLower(name), k); d < least && d <= max((len(k)+1)/3, 1) {
			best, least = k, d
		}
	}
	if best == "" {
		best = longer(strings.ToLower(name), known)
	}
	return best
}

// longer finds the one word that name abbreviates or goes on from: mark for
// fwmark, addr for addresses.
func longer(name string, known []string) string {
	best := ""
	for _, k := range known {
		if len(name) < 3 || !strings.Contains(k, name) && (len(k) < 4 || !strings.HasPrefix(name, k)) {
			continue
		}
		if best != "" {
			return ""
		}
		best = k
	}
	return best
}

// distance is the number of letters to insert, delete, change, or swap with
// their neighbour, to get from a to b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	before := make([]int, len(b)+1)
	previous := make([]int, len(b)+1)
	current := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := range len(a) {
		current[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			current[j+1] = min(previous[j+1]+1, current[j]+1, previous[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				current[j+1] = min(current[j+1], before[j-1]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
