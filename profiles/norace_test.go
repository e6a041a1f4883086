//go:build !race

package profiles

const raceFactor = 1
