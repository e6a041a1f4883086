package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about services.
const (
	firstServices = "services from empty"
	reservices    = "services, nothing changed"
	oneWeight     = "services, one weight changed"
	idleDirector  = "processor time in 20 s of nothing, services"
	smallDirector = "memory, services"
)

// realServers are how many each service has.
const realServers = 4

var serviceCounts = []int{100, 1_000, 10_000}

// perVIP is how many services an address has.
const perVIP = 100

// services makes every number of services from nothing, by each program on a
// director of its own, in turns. The first round, of few, is for the programs to
// be read from the disk, and does not count.
func (b *bench) services() error {
	counted := b.report
	b.report = &report{}
	err := b.serviceRound(serviceCounts[0], false)
	b.report = counted
	if err != nil {
		return err
	}
	for _, n := range serviceCounts {
		for run := range b.runs {
			b.log.Printf("%d services with %d real servers each, run %d of %d", n, realServers, run+1, b.runs)
			if err := b.serviceRound(n, run == b.runs-1); err != nil {
				return err
			}
		}
	}
	return b.onDirector(idleServices, b.idleDirector)
}

// idleServices is how many services the daemon has that idles.
const idleServices = 1_000

// idleDirector is what a daemon with services costs while nothing happens: IPVS
// tells nobody of its changes, and is looked at.
func (b *bench) idleDirector(h *lab.Host) error {
	if err := configure(h, directors(idleServices, 1)); err != nil {
		return err
	}
	d, _, err := b.startDaemon(h)
	if err != nil {
		return err
	}
	defer d.stop()
	// Its start is over.
	if err := b.pause(idleAfter); err != nil {
		return err
	}
	before, err := used(d.Pid())
	if err != nil {
		return err
	}
	if err := b.pause(idleSpan); err != nil {
		return err
	}
	after, err := used(d.Pid())
	if err != nil {
		return err
	}
	b.took(key{idleDirector, idleServices, b.where, ours}, after-before)
	rss, err := memory(d.Pid(), "VmRSS")
	b.report.add(key{smallDirector, idleServices, b.where, ours}, mebi, rss)
	return err
}

// serviceRound is one run of every program. After sisod's last one, it is told to
// apply again, and to change a weight.
func (b *bench) serviceRound(n int, again bool) error {
	saved := filepath.Join(b.dir, "saved.ipvsadm")
	if err := os.WriteFile(saved, ipvsadmLines(n), 0o644); err != nil {
		return err
	}
	for _, run := range []func(*lab.Host) error{
		func(h *lab.Host) error { return b.servicesOurs(h, n, again) },
		func(h *lab.Host) error {
			took, err := b.must(h, "sh", "-c", "ipvsadm -R < "+saved)
			b.took(key{firstServices, n, b.where, restore}, took)
			return err
		},
		func(h *lab.Host) error { return b.servicesKeepalived(h, n) },
		func(h *lab.Host) error { return b.servicesRaw(h, n) },
	} {
		if err := b.onDirector(n, run); err != nil {
			return err
		}
	}
	return nil
}

// onDirector runs f on a host that has nothing in IPVS, and must have all
// services then: a host that had some is slower.
func (b *bench) onDirector(n int, f func(*lab.Host) error) error {
	l := lab.New(b.ctx)
	h, err := l.Host("director")
	if err == nil {
		// The module is loaded by the first of them; that is not what counts.
		_, err = b.must(h, "modprobe", "-a", "ip_vs", "ip_vs_rr")
	}
	if err == nil {
		err = f(h)
	}
	if errors.Is(err, errBeyond) {
		return l.Close()
	}
	if err == nil {
		var got lineCounter
		_, err = b.run(h, &got, []int{0}, "ipvsadm", "-Sn")
		if want := n * (1 + realServers); err == nil && int(got) != want {
			err = fmt.Errorf("%d services and real servers, want %d", got, want)
		}
	}
	return errors.Join(err, l.Close())
}

// vipOf and portOf are of the service with a number.
func vipOf(i int) string  { return fmt.Sprintf("203.0.%d.%d", 113+i/perVIP/200, 1+i/perVIP%200) }
func portOf(i int) int    { return 8000 + i%perVIP }
func realOf(k int) string { return fmt.Sprintf("192.0.2.%d", 1+k) }

func ipvsadmLines(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "-A -t %s:%d -s rr\n", vipOf(i), portOf(i))
		for k := range realServers {
			fmt.Fprintf(&b, "-a -t %s:%d -r %s:%d -g -w 1\n", vipOf(i), portOf(i), realOf(k), portOf(i))
		}
	}
	return b.Bytes()
}

// directors is the profile: one for the ports of a VIP, but for the first
// service, whose first real server has a weight.
func directors(n, weight int) string {
	var b strings.Builder
	one := func(name string, first, end, weight int) {
		fmt.Fprintf(&b, "[director.%s]\nmode = \"dr\"\nvip = \"%s\"\nscheduler = \"rr\"\nservices = [", name, vipOf(first))
		for i := first; i < end; i++ {
			fmt.Fprintf(&b, "\"tcp/%d\", ", portOf(i))
		}
		b.WriteString("]\nreal_servers = [")
		for k := range realServers {
			fmt.Fprintf(&b, "{ address = \"%s\", weight = %d }, ", realOf(k), weight)
			weight = 1
		}
		b.WriteString("]\n")
	}
	one("first", 0, 1, weight)
	for first := 0; first < n; first += perVIP {
		one(fmt.Sprintf("d%d", first/perVIP), max(first, 1), min(first+perVIP, n), 1)
	}
	return b.String()
}

func (b *bench) servicesOurs(h *lab.Host, n int, again bool) error {
	if err := configure(h, directors(n, 1)); err != nil {
		return err
	}
	took, err := b.must(h, b.sisod, "apply")
	if err != nil {
		return err
	}
	b.took(key{firstServices, n, b.where, ours}, took)
	if !again {
		return nil
	}
	for run := range b.runs {
		if took, err = b.must(h, b.sisod, "apply"); err != nil {
			return err
		}
		b.took(key{reservices, n, b.where, ours}, took)
		if took, err = b.must(h, "ipvsadm", "-Sn"); err != nil {
			return err
		}
		b.took(key{reservices, n, b.where, ipvsadmShow}, took)
		if err := configure(h, directors(n, run+2)); err != nil {
			return err
		}
		if took, err = b.must(h, b.sisod, "apply"); err != nil {
			return err
		}
		b.took(key{oneWeight, n, b.where, ours}, took)
	}
	return nil
}

// keepalivedLines is the same set for keepalived, which asks no real server
// whether it is there.
func keepalivedLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "virtual_server %s %d {\n  lb_algo rr\n  lb_kind DR\n  protocol TCP\n", vipOf(i), portOf(i))
		for k := range realServers {
			fmt.Fprintf(&b, "  real_server %s %d {\n    weight 1\n  }\n", realOf(k), portOf(i))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// reloadLimit is how long a reload of keepalived's is waited for. One that takes
// longer is not run again.
const reloadLimit = 2 * time.Minute

// errBeyond is a program that was not waited for.
var errBeyond = errors.New("it takes longer than anybody waits")

// servicesKeepalived starts keepalived with one service, and reloads it with all.
// It makes them in their order: the clock stops when the last one is whole.
func (b *bench) servicesKeepalived(h *lab.Host, n int) error {
	if f := b.report.find(key{firstServices, n, b.where, keepalived}); f != nil && f.Beyond {
		return errBeyond
	}
	config := filepath.Join(b.dir, "keepalived.conf")
	if err := os.WriteFile(config, []byte(keepalivedLines(1)), 0o644); err != nil {
		return err
	}
	said := &lab.Lines{}
	cmd := exec.Command("keepalived", "--dont-fork", "--check", "--log-console", "--no-syslog", "--use-file", config)
	cmd.Stdout, cmd.Stderr = io.Discard, said
	// It ends with its host: ended earlier, it would take its services away.
	p, err := h.Start(cmd)
	if err != nil {
		return err
	}
	err = b.onIPVS(h, func(i *ipvs) error {
		if err := i.whole(b.ctx, 0, time.Minute); err != nil {
			return err
		}
		if err := os.WriteFile(config, []byte(keepalivedLines(n)), 0o644); err != nil {
			return err
		}
		start := time.Now()
		if err := p.Signal(syscall.SIGHUP); err != nil {
			return err
		}
		k := key{firstServices, n, b.where, keepalived}
		err := i.whole(b.ctx, n-1, reloadLimit)
		if errors.Is(err, lab.ErrNotYet) {
			b.took(k, reloadLimit)
			b.report.find(k).Beyond = true
			return errBeyond
		}
		if err == nil {
			b.took(k, time.Since(start))
		}
		return err
	})
	if err != nil && !errors.Is(err, errBeyond) {
		return fmt.Errorf("keepalived: %w\n%s", err, firstLines(said.String(), 20))
	}
	return err
}

func firstLines(text string, n int) string {
	var b strings.Builder
	for lines := bufio.NewScanner(strings.NewReader(text)); n > 0 && lines.Scan(); n-- {
		fmt.Fprintln(&b, lines.Text())
	}
	return b.String()
}

// servicesRaw is the floor.
func (b *bench) servicesRaw(h *lab.Host, n int) error {
	return b.onIPVS(h, func(i *ipvs) error {
		batches := i.all(n)
		start := time.Now()
		if err := i.socket.send(batches); err != nil {
			return fmt.Errorf("add services: %w", err)
		}
		b.took(key{firstServices, n, b.where, floor}, time.Since(start))
		return nil
	})
}
