package lab

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestWaitTellsWhatWasMissing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	missing := errors.New("no carrier")
	if err := Wait(ctx, func() error { return missing }); !errors.Is(err, ErrNotYet) || !errors.Is(err, missing) {
		t.Errorf("Wait: %v", err)
	}
	n := 0
	if err := Wait(t.Context(), func() error {
		if n++; n < 3 {
			return missing
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(cancelled, func() error { return missing }); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait of a cancelled context: %v", err)
	}
}
