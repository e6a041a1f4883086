package daemon

import (
	"testing"
	"time"
)

func TestLookingTakesAHundredthOfTheTime(t *testing.T) {
	for cost, want := range map[time.Duration]time.Duration{
		0: silentLook, time.Millisecond: silentLook, 50 * time.Millisecond: 5 * time.Second, time.Second: silentMost,
	} {
		if got := lookPause(cost); got != want {
			t.Errorf("after a look of %s the next one comes in %s, want %s", cost, got, want)
		}
	}
}
