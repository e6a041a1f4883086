package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// poll is how often Wait asks.
	poll = 2 * time.Millisecond
	// patience is how long Wait asks when its context has no deadline.
	patience = 5 * time.Second
)

// ErrNotYet is in the error of a Wait whose condition never came true.
var ErrNotYet = errors.New("condition not met")

// Wait asks cond until it returns nil, and at least once. The error of the
// last attempt says what was missing: it is returned when ctx ends, or after
// five seconds when ctx has no deadline.
func Wait(ctx context.Context, cond func() error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	start := time.Now()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return fmt.Errorf("wait: %w: %w", cause, err)
			}
			return fmt.Errorf("%w in %v: %w", ErrNotYet, time.Since(start).Round(time.Millisecond), err)
		case <-tick.C:
		}
	}
}
