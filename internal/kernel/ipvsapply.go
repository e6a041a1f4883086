package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// errForeign is an object that stands where one of sisod's should, and is not
// sisod's.
type errForeign struct {
	err  error
	hint string
}

func (e errForeign) Error() string {
	return "it is there already and not sisod's (" + e.err.Error() + "): " + e.hint
}
func (e errForeign) Unwrap() error { return e.err }

// balance applies steps about services or destinations, in batches.
func (a *application) balance(ctx context.Context, start, end int) {
	number, err := a.host.ipvsNumber()
	if a.plan.Steps[start].Object.Kind() == state.KindDestination {
		for ; start < end && ctx.Err() == nil; start += batchMessages {
			a.destinationBatch(number, err, start, min(end, start+batchMessages))
		}
	} else {
		fresh, unsaved := a.noteServices(start, end)
		err = cmp.Or(unsaved, err)
		for ; start < end && ctx.Err() == nil; start += batchMessages {
			stop := min(end, start+batchMessages)
			a.serviceBatch(number, err, start, stop, fresh[:stop-start])
			fresh = fresh[stop-start:]
		}
		a.forgetUnsent(fresh, start)
	}
	for ; start < end; start++ {
		a.settle(start, stopped, nil)
	}
}

// noteServices records the services that are about to be added, and tells which
// of them were not sisod's before. The ledger is written once: its size is that
// of all services, and a write a batch would cost their square.
func (a *application) noteServices(start, end int) (fresh []bool, err error) {
	g := a.host.ledger
	fresh = make([]bool, end-start)
	for i := range fresh {
		if step := a.plan.Steps[start+i]; step.Op == state.Add {
			fresh[i] = g.noteService(step.Object.(state.Service).ServiceKey)
		}
	}
	return fresh, g.save()
}

// forgetUnsent takes back what noteServices said of the services from a step on.
func (a *application) forgetUnsent(fresh []bool, from int) {
	for i, is := range fresh {
		if is {
			a.host.ledger.forgetService(a.plan.Steps[from+i].Object.(state.Service).ServiceKey)
		}
	}
	if err := a.host.ledger.save(); err != nil {
		// A service that is not there is found to be absent by the next read.
		a.host.options.Log.Warn("ledger not written", "error", err)
	}
}

// genericBatch gathers messages of a generic netlink family; their bodies are
// parts of one.
type genericBatch struct {
	family uint16
	body   []byte
	start  int
	msgs   []message
}

// ipvsBody is more than most messages about a service or destination take.
const ipvsBody = 160

func newGenericBatch(family uint16, most int) *genericBatch {
	return &genericBatch{family: family, body: make([]byte, 0, most*ipvsBody), msgs: make([]message, 0, most)}
}

// begin begins a message: its attributes are appended to what it returns.
func (g *genericBatch) begin(command uint8) []byte {
	g.start = len(g.body)
	return append(g.body, command, 1, 0, 0)
}

// end takes in what begin returned, with the attributes.
func (g *genericBatch) end(b []byte) {
	g.body = b
	g.msgs = append(g.msgs, message{kind: g.family, body: b[g.start:len(b):len(b)]})
}

// serviceBatch applies steps about services that are of one operation. fresh are
// those that noteServices found not to have been sisod's before.
func (a *application) serviceBatch(number uint16, missing error, start, end int, fresh []bool) {
	g := a.host.ledger
	errs := make([]error, end-start)
	batch := newGenericBatch(number, len(errs))
	sent := make([]int, 0, len(errs))
	rescheduled := map[state.Family]bool{}
	for i := range errs {
		step := a.plan.Steps[start+i]
		s := step.Object.(state.Service)
		switch step.Op {
		case state.Delete:
			if !g.ownsService(s.ServiceKey) {
				continue
			}
			batch.end(appendServiceName(batch.begin(ipvsDelService), s.ServiceKey))
		case state.Replace:
			if a.host.cached.Observed.Services[s.ServiceKey].Scheduler != s.Scheduler {
				rescheduled[s.Family] = true
			}
			batch.end(appendService(batch.begin(ipvsSetService), s))
		default:
			batch.end(appendService(batch.begin(ipvsNewService), s))
		}
		sent = append(sent, i)
	}
	msgs := batch.msgs
	answers := make([]error, len(msgs))
	switch {
	case missing != nil:
		fill(answers, missing)
	case len(rescheduled) > 0:
		err := a.host.hushed(rescheduled, func() { answers = a.host.generic.do(msgs) })
		answers[0] = errors.Join(answers[0], err)
	default:
		answers = a.host.generic.do(msgs)
	}
	for k, i := range sent {
		step, err := a.plan.Steps[start+i], answers[k]
		s := step.Object.(state.Service)
		switch {
		case step.Op == state.Delete && gone(err):
			err = nil
		case step.Op == state.Add && !fresh[i] && errors.Is(err, unix.EEXIST):
			err = nil
		case step.Op == state.Add && errors.Is(err, unix.EEXIST):
			err = errForeign{err, "delete it (ipvsadm -D " + s.Option() + ") or give the VIP to one of the two"}
		default:
			err = serviceError(s, err)
		}
		if step.Op == state.Delete && err == nil || step.Op == state.Add && err != nil && fresh[i] {
			g.forgetService(s.ServiceKey)
		}
		if err != nil {
			errs[i] = a.wrap(step.Op, s, err)
		}
	}
	if err := g.save(); err != nil {
		for _, i := range sent {
			errs[i] = errors.Join(errs[i], err)
		}
	}
	for i, err := range errs {
		a.settle(start+i, "", err)
	}
}

// serviceError says what the kernel means (net/netfilter/ipvs/ip_vs_ctl.c,
// ip_vs_add_service).
func serviceError(s state.Service, err error) error {
	switch {
	case errors.As(err, new(errNoIPVS)):
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: no scheduler %s in this kernel: %s", err, s.Scheduler, moduleCure("ip_vs_"+s.Scheduler))
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: the kernel's IPVS has no %s", err, s.Family)
	}
	return err
}

// destinationBatch applies steps about destinations that are of one operation.
// They need no entry in the ledger: they are their service's.
func (a *application) destinationBatch(number uint16, missing error, start, end int) {
	errs := make([]error, end-start)
	held := make([]string, end-start)
	batch := newGenericBatch(number, len(errs))
	sent := make([]int, 0, len(errs))
	for i := range errs {
		step := a.plan.Steps[start+i]
		d := step.Object.(state.Destination)
		if held[i] = a.holds(start + i); held[i] != "" {
			continue
		}
		switch {
		case step.Op == state.Delete:
			if !a.host.ledger.ownsService(d.Service) {
				continue
			}
			batch.end(appendDestinationName(batch.begin(ipvsDelDest), d.DestinationKey))
		case step.Op == state.Replace:
			batch.end(appendDestination(batch.begin(ipvsSetDest), d))
		default:
			batch.end(appendDestination(batch.begin(ipvsNewDest), d))
		}
		sent = append(sent, i)
	}
	msgs := batch.msgs
	answers := make([]error, len(msgs))
	if missing != nil {
		fill(answers, missing)
	} else {
		answers = a.host.generic.do(msgs)
	}
	for k, i := range sent {
		step, err := a.plan.Steps[start+i], answers[k]
		d := step.Object.(state.Destination)
		if err == nil || step.Op == state.Delete && gone(err) || step.Op == state.Add && errors.Is(err, unix.EEXIST) {
			continue
		}
		errs[i] = a.wrap(step.Op, d, destinationError(d, err))
	}
	for i, err := range errs {
		a.settle(start+i, held[i], err)
	}
}

// destinationError says what the kernel means (net/netfilter/ipvs/ip_vs_ctl.c,
// ip_vs_genl_set_cmd and ip_vs_add_dest).
func destinationError(d state.Destination, err error) error {
	mixed := d.Addr.Is4() != (d.Service.Family == state.IPv4)
	switch {
	case errors.Is(err, unix.EINVAL) && mixed && d.Forward != state.TunnelTo:
		return fmt.Errorf("%w: a service reaches real servers of the other family by tunnel alone", err)
	case errors.Is(err, unix.EINVAL) && mixed:
		return fmt.Errorf("%w: while a sync daemon runs, a service has real servers of its own family alone", err)
	case errors.Is(err, unix.EINVAL) && max(d.Upper, d.Lower) > math.MaxInt32:
		return fmt.Errorf("%w: a threshold is at most %d", err, math.MaxInt32)
	case errors.Is(err, unix.EINVAL) && d.Addr.Is4():
		return fmt.Errorf("%w: where %s is a broadcast address (ip route get %[2]s), it is no real server", err, d.Addr)
	case errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: a weight is 0 to 2147483647, and a lower threshold is not above the upper one", err)
	}
	return err
}

// fill gives every answer the same error.
func fill(answers []error, err error) {
	for i := range answers {
		answers[i] = err
	}
}

// applyTimeouts sets the timeouts, the ledger first.
func (h *Host) applyTimeouts(steps []state.Step) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		if err := h.applyTimeout(s.Op, s.Object.(state.Timeouts)); err != nil {
			errs[i] = fmt.Errorf("%s %s %s: %w", s.Op, s.Object.Kind(), s.Object.Spell(nil), err)
		}
	}
	return errs
}

func (h *Host) applyTimeout(op state.Op, t state.Timeouts) error {
	number, err := h.ipvsNumber()
	var found state.Timeouts
	if err == nil {
		found, err = h.generic.timeouts(number)
	}
	if op == state.Restore {
		switch {
		case errors.As(err, new(errNoIPVS)):
			// Gone with the module, and the values with it.
		case err != nil:
			return err
		case h.ledger.timeoutsBefore(found) != nil:
			if err := h.generic.do([]message{genericMessage(number, ipvsSetConfig, appendTimeouts(nil, t))})[0]; err != nil {
				return err
			}
		}
		h.ledger.forgetTimeouts()
		return h.ledger.save()
	}
	if err != nil {
		return err
	}
	h.ledger.noteTimeouts(found, timeoutsOver(t, found))
	if err := h.ledger.save(); err != nil {
		return err
	}
	return h.generic.do([]message{genericMessage(number, ipvsSetConfig, appendTimeouts(nil, t))})[0]
}

// timeoutsOver is what the kernel has after t is set over found.
func timeoutsOver(t, found state.Timeouts) state.Timeouts {
	return state.Timeouts{TCP: cmp.Or(t.TCP, found.TCP), TCPFin: cmp.Or(t.TCPFin, found.TCPFin), UDP: cmp.Or(t.UDP, found.UDP)}
}

// applySyncDaemons starts and stops the synchronisation daemons, the ledger
// first. One that is to be another is stopped and started.
func (h *Host) applySyncDaemons(steps []state.Step) []error {
	errs := make([]error, len(steps))
	number, missing := h.ipvsNumber()
	for i, s := range steps {
		if err := h.applySyncDaemon(number, missing, s.Op, s.Object.(state.SyncDaemon)); err != nil {
			errs[i] = fmt.Errorf("%s %s %s: %w", s.Op, s.Object.Kind(), s.Object.Spell(nil), err)
		}
	}
	return errs
}

func (h *Host) applySyncDaemon(number uint16, missing error, op state.Op, d state.SyncDaemon) error {
	send := func(command uint8) error {
		if missing != nil {
			return missing
		}
		return h.generic.do([]message{genericMessage(number, command, appendSyncDaemon(nil, d))})[0]
	}
	if op != state.Add && h.ledger.ownsSync(d.Master) {
		if err := send(ipvsDelDaemon); err != nil && !gone(err) {
			return err
		}
	}
	if op == state.Delete {
		h.ledger.forgetSync(d.Master)
		return h.ledger.save()
	}
	fresh := h.ledger.noteSync(d.Master)
	if err := h.ledger.save(); err != nil {
		return err
	}
	err := send(ipvsNewDaemon)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST) && fresh:
		role, _, _ := strings.Cut(d.String(), " ")
		err = errForeign{err, "stop it (ipvsadm --stop-daemon " + role + ") or leave sync out"}
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("%w: the interface %s is not there", err, d.Link)
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("%w: the kernel's synchronisation does not go with real servers of another family than their service", err)
	}
	if fresh {
		h.ledger.forgetSync(d.Master)
		err = errors.Join(err, h.ledger.save())
	}
	return err
}
