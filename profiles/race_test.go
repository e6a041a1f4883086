//go:build race

package profiles

// raceFactor is how much slower the race detector may be.
const raceFactor = 8
