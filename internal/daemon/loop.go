package daemon

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/profiles"
)

// Times of the loop.
const (
	gatherQuiet = 20 * time.Millisecond  // events that follow each other closer than this are one pass
	gatherMost  = 200 * time.Millisecond // and none of them waits longer than this
	gatherHaste = 2 * time.Millisecond   // an urgent one waits for its like alone
	// restShare and restMost are how long changes of main wait after a pass for such,
	// by its length, when that was restFrom or more.
	restFrom  = 10 * time.Millisecond
	restShare = 19
	restMost  = 2 * time.Second
	fullPass  = 5 * time.Minute
	// silentLook is how often is looked at what changes without an event: IPVS, and
	// sysctls of which the kernel does not tell. Where one look takes long, because
	// there are thousands of services, the next one comes lookShare times later than
	// that, and at the latest after silentMost.
	silentLook = 2 * time.Second
	silentMost = time.Minute
	lookShare  = 100
	// proxyLook is how often the sockets of transparent proxies are looked at.
	proxyLook = 30 * time.Second
	// marksRest is how long rules of others about marks are left to come to rest
	// before they are read, at least.
	marksRest = time.Second
	// lockPatience is how long a pass waits for another process, and breath how
	// long it waits for anything without a sign of life to the watchdog.
	lockPatience = 10 * time.Second
	breath       = 500 * time.Millisecond
)

// loop is the one goroutine that reconciles; everything else pulls a trigger.
type loop struct {
	Options
	events *kernel.Events
	stream <-chan kernel.Event // of events; nil while it has ended
	watch  *watcher
	hup    <-chan os.Signal
	alive  <-chan time.Time // due signs of life
	kept   bool             // the configuration in force is the last good one by now
	left   bool             // the last pass gave way to something more urgent
	proven bool             // a pass with the configuration in force came to its end
	heeds  bool             // changes of files and SIGHUP are looked after, as events are
	looks  bool             // the timer for the next look at what is silent is set
	// rechecks: the next pass without an event is one to look at IPVS and at what waits.
	rechecks bool

	config *profiles.Config // nil: nothing ever loaded, so nothing is touched
	listen interest         // what the events were last told to look for
	// announced is the last application by another process that this one knows of.
	announced string

	pending trigger
	news    announcements
	fights  *fights
	retries retries
	rest    time.Time // until then what does not press waits
	trouble backOff   // of passes that did not come to their end

	report Report
	told   map[string]bool // failures that have been logged
	status string          // the last text for systemd
}

func (l *loop) run(ctx context.Context) {
	full := time.NewTicker(fullPass)
	defer full.Stop()
	retry, gather, silent, news, proxies, marks := stopped(), stopped(), stopped(), stopped(), stopped(), stopped()
	defer retry.Stop()
	defer gather.Stop()
	defer silent.Stop()
	defer news.Stop()
	defer proxies.Stop()
	defer marks.Stop()
	var stopAlive func()
	l.alive, stopAlive = watchdog()
	defer stopAlive()

	l.load()
	l.pending.pull(kernel.AllParts, "start")
	l.pending.sweep, l.pending.facts = true, true
	l.again(retry, l.pass(ctx))
	for l.left && ctx.Err() == nil {
		l.again(retry, l.pass(ctx))
	}
	l.notify(daemon.SdNotifyReady)
	l.keep()
	l.heeds = true
	l.lookAgain(silent)
	l.again(news, l.news.next())
	proxies.Reset(proxyLook)
	active := time.Now() // the last event, or the end of the last pass
	marksDue := false
	for {
		reloading := false
		select {
		case <-ctx.Done():
			l.notify(daemon.SdNotifyStopping)
			l.Log.Info("stop", "state", "stays in place")
			return
		case e, open := <-l.stream:
			if !open {
				l.deaf()
				break
			}
			if e.Marks && !marksDue {
				// Whoever writes rules all the time must not keep this process busy.
				marks.Reset(max(marksRest, l.Host.MarkRest()))
				marksDue = true
			}
			if e.Parts == 0 {
				continue
			}
			l.hear(e)
			now := time.Now()
			follows := now.Sub(active) < gatherQuiet || !l.pending.pressing && now.Before(l.rest)
			active = now
			// The first event is acted on at once, its followers are gathered.
			if follows {
				gather.Reset(l.pending.wait(now, l.rest))
				continue
			}
		case <-gather.C:
		case <-l.watch.changed:
			// A folder may have come; what is in it is read after it is watched.
			l.watch.follow(l.files(l.config))
			for _, m := range l.watch.take() {
				l.changed(m)
			}
		case <-l.hup:
			reloading = true
			l.reloading()
			if err := l.Host.Release(); err != nil {
				l.Log.Error("release hold", "error", err)
			}
			l.fights.forget()
			l.pending.pull(kernel.AllParts, "reload")
			l.pending.reload, l.pending.facts = true, true
		case <-full.C:
			l.pending.pull(kernel.AllParts, "full pass")
			l.pending.sweep, l.pending.facts = true, true
			// A file that was missing may have come where nobody watches.
			l.pending.reload = l.pending.reload || l.report.ConfigError != "" && l.watches()
		case <-silent.C:
			l.looks = false
			moved, err := l.Host.Moved()
			if err != nil {
				l.Log.Warn("look for changes", "error", err)
			}
			if moved&kernel.PartIPVS != 0 {
				l.pending.pull(kernel.PartIPVS, "IPVS changed")
			}
			if moved&kernel.PartValues != 0 {
				l.pending.pull(kernel.PartValues, "values changed")
			}
			if moved == 0 {
				l.lookAgain(silent)
				continue
			}
		case now := <-news.C:
			l.Host.AnnounceAgain(l.news.take(now))
			l.again(news, l.news.next())
			continue
		case <-proxies.C:
			proxies.Reset(proxyLook)
			if l.config == nil || len(l.config.Captures) == 0 {
				continue
			}
			l.pending.pull(kernel.PartSockets, "look at proxies")
		case <-marks.C:
			marksDue = false
			l.pending.pull(kernel.PartMarks, "nft rules of others changed")
		case <-retry.C:
			if l.rechecks {
				l.pending.pull(kernel.PartIPVS, "look at what drains or waits")
			} else {
				l.pending.pull(kernel.AllParts, "retry")
			}
		case <-l.alive:
			l.notify(daemon.SdNotifyWatchdog)
			continue
		}
		if !l.pending.pulled() && !l.left {
			continue
		}
		if l.pending.reload {
			l.reload()
		}
		if l.pending.parts != 0 || l.left {
			l.again(retry, l.pass(ctx))
		} else {
			l.pending = trigger{}
		}
		if reloading {
			l.notify(daemon.SdNotifyReady)
		}
		l.keep()
		if len(l.stream) == 0 && !l.left {
			l.collect()
		}
		active = time.Now()
		if l.left {
			gather.Reset(0) // what is more urgent has waited already
		}
		l.lookAgain(silent)
		l.again(news, l.news.next())
	}
}

// lookAgain sets the timer for the next look at what changes without an event.
// Passes do not put it off: they read what their own triggers name.
func (l *loop) lookAgain(silent *time.Timer) {
	if !l.looks && l.config != nil && l.Host.Silent() {
		silent.Reset(lookPause(l.Host.LookCost()))
		l.looks = true
	}
}

// hear pulls the trigger for an event of the kernel.
func (l *loop) hear(e kernel.Event) {
	l.pending.event(e, l.Host.Expires(e))
}

// lookPause is how long after a look the next one comes.
func lookPause(cost time.Duration) time.Duration {
	return min(max(silentLook, cost*lookShare), silentMost)
}

// changed pulls the trigger for a change of files.
func (l *loop) changed(m matter) {
	switch m {
	case wishes:
		if l.watches() {
			l.pending.pull(0, "profile changed")
			l.pending.reload = true
		}
	case tableNames:
		l.pending.pull(kernel.PartNames, "table names changed")
	case leases:
		l.pending.pull(kernel.PartMain, "DHCP lease changed")
		l.pending.facts = true
	}
}

// watches reports whether the profiles are followed. Before any was loaded, one
// that is mended is.
func (l *loop) watches() bool { return l.config == nil || l.config.Settings.Watch }

// deaf takes note that the stream of events has ended: with ctx, or because the
// kernel refused to go on.
func (l *loop) deaf() {
	l.stream = nil
	if err := l.events.Err(); err != nil {
		l.Log.Error("listen to kernel events", "error", err)
		l.pending.pull(kernel.AllParts, "events began anew")
		l.pending.facts, l.pending.links = true, true
	}
}

// listenAgain begins a new stream of events after the kernel ended the one
// before. What happened between the two is found by a full pass.
func (l *loop) listenAgain(ctx context.Context) error {
	events, err := l.Host.Listen(ctx)
	if err != nil {
		return err
	}
	l.events, l.stream, l.listen = events, events.C(), interest{}
	return nil
}

// lock waits for another process that changes the host, and goes on giving
// signs of life.
func (l *loop) lock(ctx context.Context) (unlock func(), err error) {
	for start := time.Now(); ; {
		some, cancel := context.WithTimeout(ctx, breath)
		unlock, err = l.Host.Lock(some)
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || time.Since(start) > lockPatience {
			return unlock, err
		}
		l.breathe()
	}
}

// breathe gives the sign of life that has become due in the middle of a pass.
func (l *loop) breathe() {
	select {
	case <-l.alive:
		l.notify(daemon.SdNotifyWatchdog)
	default:
	}
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// again sets the timer for the next try; the zero time needs none.
func (l *loop) again(retry *time.Timer, due time.Time) {
	if due.IsZero() {
		retry.Stop()
	} else {
		retry.Reset(max(0, time.Until(due)))
	}
}
