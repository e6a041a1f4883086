package main

import (
	"fmt"
	"strings"
)

// goal is what sisod is to reach in one piece of work.
type goal struct {
	work string
	aim  string
	// judge finds what was reached; it returns false when that was not measured.
	judge func(r *report) (reached, bool)
}

// reached is what a goal came to.
type reached struct {
	ours, beside, ratio string
	met                 bool
}

// median1 is the median of a figure.
func (r *report) median1(work string, size int, where, program string) (float64, bool) {
	f := r.find(key{work, size, where, program})
	if f == nil {
		return 0, false
	}
	return f.Median, true
}

// versus compares sisod with one peer: it is to be at least so many times faster.
func versus(work string, size int, where, peer string, times float64) func(*report) (reached, bool) {
	return func(r *report) (reached, bool) {
		o, ok1 := r.median1(work, size, where, ours)
		p, ok2 := r.median1(work, size, where, peer)
		return reached{spell(o, seconds), peer + " " + spell(p, seconds), ratio(p, o) + " faster", p >= times*o}, ok1 && ok2
	}
}

// atMost compares sisod with a number.
func atMost(work string, size int, where, unit string, limit float64) func(*report) (reached, bool) {
	return func(r *report) (reached, bool) {
		o, ok := r.median1(work, size, where, ours)
		return reached{ours: spell(o, unit), met: o <= limit}, ok
	}
}

// fromNothing is the first apply beside ip and the floor, the faster one.
func fromNothing(size int) func(*report) (reached, bool) {
	return func(r *report) (reached, bool) {
		o, ok1 := r.median1(firstApply, size, onHost, ours)
		p, ok2 := r.median1(firstApply, size, onHost, ipBatch)
		f, ok3 := r.median1(firstApply, size, onHost, floor)
		h, ok4 := r.median1(firstApply, size, onHost, floorHop)
		f = min(f, h)
		return reached{spell(o, seconds), fmt.Sprintf("%s %s, floor %s", ipBatch, spell(p, seconds), spell(f, seconds)),
			fmt.Sprintf("%s faster, %s the floor", ratio(p, o), ratio(o, f)), p >= 3*o && o <= 1.3*f}, ok1 && ok2 && ok3 && ok4
	}
}

// gatewayGoal is a changed gateway; without a limit the floor is what is told.
func gatewayGoal(version string, limit float64) func(*report) (reached, bool) {
	return func(r *report) (reached, bool) {
		o, ok1 := r.median1(otherGateway+", "+version, million, onHost, ours)
		l, ok2 := r.most(lostPackets+", "+version, million, onHost, ours)
		f, ok3 := r.median1(otherGateway+", "+version, million, onHost, floorHop)
		m, ok4 := r.median1(oneExchange+", "+version, million, onHost, floorHop)
		return reached{fmt.Sprintf("%s, %s lost", spell(o, seconds), digits(l)),
			fmt.Sprintf("floor %s, its message takes %s", spell(f, seconds), spell(m, seconds)), "",
			l == 0 && (limit == 0 || o <= limit)}, ok1 && ok2 && ok3 && ok4
	}
}

// most is the worst run of a figure.
func (r *report) most(work string, size int, where, program string) (float64, bool) {
	f := r.find(key{work, size, where, program})
	if f == nil {
		return 0, false
	}
	worst := f.Runs[0]
	for _, v := range f.Runs {
		worst = max(worst, v)
	}
	return worst, true
}

// foreignGoal is the daemon's share of the time that the writer of a million
// foreign routes takes, and how it grows.
func foreignGoal(r *report) (reached, bool) {
	work, ok1 := r.median1(foreignWork, million, onHost, ours)
	took, ok2 := r.median1(foreignRoutes, million, onHost, ours)
	alone, ok3 := r.median1(foreignRoutes, million, onHost, noDaemon)
	growth, ok4 := r.most(foreignGrowth, million, onHost, ours)
	return reached{fmt.Sprintf("%s of a processor, %s more", spell(work, seconds), spell(growth, mebi)),
		fmt.Sprintf("the writer %s, without sisod %s", spell(took, seconds), spell(alone, seconds)),
		digits(100*work/took) + " %", work <= 0.05*took && growth < 1}, ok1 && ok2 && ok3 && ok4
}

// servicesGoal is services beside both programs and the floor.
func servicesGoal(n int) func(*report) (reached, bool) {
	return func(r *report) (reached, bool) { return r.services(n) }
}

func (r *report) services(n int) (reached, bool) {
	o, ok1 := r.median1(firstServices, n, inVM, ours)
	p, ok2 := r.median1(firstServices, n, inVM, restore)
	k, ok3 := r.median1(firstServices, n, inVM, keepalived)
	f, ok4 := r.median1(firstServices, n, inVM, floor)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return reached{}, false
	}
	reload := r.find(key{firstServices, n, inVM, keepalived})
	return reached{spell(o, seconds), fmt.Sprintf("%s %s, %s %s, floor %s", restore, spell(p, seconds), keepalived, reload, spell(f, seconds)),
		fmt.Sprintf("%s and %s faster, %s the floor", ratio(p, o), ratio(k, o), ratio(o, f)), p >= 5*o}, true
}

// linkGoal is all prefixes after a link came up, beside the daemon's own start
// with them.
func linkGoal(r *report) (reached, bool) {
	all, ok1 := r.median1(linkAll, million, onHost, ours)
	first, ok2 := r.median1(firstRun, million, onHost, ours)
	return reached{spell(all, seconds), "the daemon's start with them " + spell(first, seconds), ratio(all, first), all <= 1.1*first}, ok1 && ok2
}

func messageGoal(r *report) (reached, bool) {
	took, ok1 := r.median1(oneLine, million, onHost, ours)
	messages, ok2 := r.most(oneMessage, million, onHost, ours)
	return reached{spell(took, seconds), "", fmt.Sprintf("%s write messages", digits(messages)), took < 1 && messages == 1}, ok1 && ok2
}

var goals = []goal{
	{"first apply of 100,000 prefixes", "3 × faster than `ip -batch`, 1.3 × the floor", fromNothing(100_000)},
	{"first apply of 1,000,000 prefixes", "3 × faster than `ip -batch`, 1.3 × the floor", fromNothing(million)},
	{"reapply of 1,000,000 prefixes, nothing changed", "faster than printing them", versus(reapply, million, onHost, ipShow, 1)},
	{"one prefix changed in 1,000,000, from the file to the kernel", "1 s, 1 message", messageGoal},
	{"peak memory with 1,000,000 prefixes, first apply", "150 MiB", atMost(peakFirst, million, onHost, mebi, 150)},
	{"the same, with a changed list and the link back", "150 MiB", atMost(peakAll, million, onHost, mebi, 150)},
	{"memory idle after it", "60 MiB", atMost(idleMemory, million, onHost, mebi, 60)},
	{"gateway changed under 1,000,000 prefixes, IPv4", "20 ms, nothing lost", gatewayGoal("IPv4", 0.020)},
	{"gateway changed under 1,000,000 prefixes, IPv6", "nothing lost", gatewayGoal("IPv6", 0)},
	{"link up, one of 10 uplinks with 100 addresses each", "3 × faster than networkd, 10 ms", func(r *report) (reached, bool) {
		g, ok := versus(flapped, flapAddresses, onHost, networkdIs, 3)(r)
		o, _ := r.median1(flapped, flapAddresses, onHost, ours)
		g.met = g.met && o <= 0.010
		return g, ok
	}},
	{"the same in the VM", "3 × faster than networkd", versus(flapped, flapAddresses, inVM, networkdIs, 3)},
	{"1,000,000 routes of others added to main", "5 % of the writer's time, memory unchanged", foreignGoal},
	{"1,000 services × 4 from empty, VM", "5 × faster than `ipvsadm -R`", servicesGoal(1_000)},
	{"10,000 services × 4 from empty, VM", "5 × faster than `ipvsadm -R`", servicesGoal(10_000)},
	{"link up, 1,000,000 prefixes back", "1.1 × a first apply", linkGoal},
	{"link up, defaults and source rules before them", "10 ms", atMost(linkFirst, million, onHost, seconds, 0.010)},
	{"start to READY, two uplinks", "30 ms", atMost(startReady, 0, onHost, seconds, 0.030)},
	{"address added to its rule there, ten uplinks", "", atMost(newAddress, 0, onHost, seconds, 1)},
	{"rule deleted by others to its return", "", atMost(ruleBack, 0, onHost, seconds, 1)},
	{"apply with nothing to do, beside 100,000 routes of others", "", atMost(applyBeside, 100_000, onHost, seconds, 1)},
	{"processor time in 20 s of nothing, ten uplinks", "", atMost(idleWork, 0, onHost, seconds, 1)},
	{"memory, ten uplinks", "", atMost(idleSmall, 0, onHost, mebi, 100)},
	{"one weight changed in 1,000 services × 4, VM", "", atMost(oneWeight, 1_000, inVM, seconds, 1)},
	{"one weight changed in 10,000 services × 4, VM", "", atMost(oneWeight, 10_000, inVM, seconds, 1)},
	{"processor time in 20 s of nothing, 1,000 services × 4, VM", "", atMost(idleDirector, idleServices, inVM, seconds, 1)},
	{"memory, 1,000 services × 4", "", atMost(smallDirector, idleServices, inVM, mebi, 100)},
}

// goals is a row for each that was measured.
func (r *report) goals() string {
	rows := [][]string{{"work", "sisod", "beside it", "that is", "aim", "reached"}}
	for _, g := range goals {
		got, ok := g.judge(r)
		if !ok {
			continue
		}
		yes := map[bool]string{true: "yes", false: "**no**"}[got.met]
		if g.aim == "" {
			yes = ""
		}
		rows = append(rows, []string{g.work, got.ours, strings.ReplaceAll(got.beside, "ip route show", "`ip route show`"), got.ratio, g.aim, yes})
	}
	if len(rows) == 1 {
		return ""
	}
	return markdown(rows, len(rows[0]))
}

// ratio is a over b, as a factor.
func ratio(a, b float64) string {
	if b == 0 {
		return "–"
	}
	return digits2(a/b) + " ×"
}

// digits2 is two digits that count.
func digits2(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}
