package cluster

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// table is what choices are made by. It is made anew whenever endpoints, their health or their weights change; only the
// cursors in it change.
type table struct {
	levels  []level
	drops   []Drop
	unknown bool // the endpoints have not come
}

// level is a priority.
type level struct {
	healthy, degraded  *source
	all                *source // nil unless panic
	panic              bool    // all endpoints are used
	availability       uint32  // percent of healthy ones, times overprovisioning, at most 100
	degradedShare      uint32  // the same of degraded ones
	hosts              int
	load, degradedLoad uint32 // percent of requests
}

// source is a list of endpoints to choose from. Only the cursors change once it is made.
type source struct {
	hosts      []*Host
	weights    []float64 // nil: all the same
	schedule   []uint32  // indexes of hosts, each as often as its weight says; nil if all weights are the same
	ring       []ringEntry
	maglev     []uint32
	localities []*source // if localities have weights: each of them
	turns      []uint32  // indexes of localities, each as often as its weight says

	_            [64]byte // the cursors have a cache line of their own: loops write them all the time
	cursor, turn atomic.Uint64
}

// noHosts is the source without endpoints.
var noHosts source

// rebuild makes the table. c.mu is held.
func (c *Cluster) rebuild() {
	a := c.assignment
	t := &table{unknown: a == nil || c.asking()}
	if a == nil || len(c.hosts) == 0 {
		c.table.Store(t)
		return
	}
	now := c.now()
	t.drops = a.Drops
	t.levels = make([]level, a.priorities)
	by := make([][]*Host, a.priorities)
	for _, h := range c.hosts {
		p := h.Endpoint().Priority
		by[p] = append(by[p], h)
	}
	c.slow = false
	for i, hosts := range by {
		c.buildLevel(&t.levels[i], a, hosts, now)
	}
	t.share(c.balance.panic)
	for i := range t.levels {
		if t.levels[i].panic {
			t.levels[i].all = c.newSource(a, by[i], by[i], now)
		}
	}
	c.table.Store(t)
}

func (c *Cluster) buildLevel(l *level, a *Assignment, hosts []*Host, now time.Time) {
	var healthy, degraded []*Host
	var total, good, poor uint64
	for _, h := range hosts {
		w := uint64(1)
		if a.byWeight {
			w = uint64(h.Endpoint().Weight)
		}
		total += w
		switch {
		case h.healthy():
			healthy = append(healthy, h)
			good += w
		case h.degraded():
			degraded = append(degraded, h)
			poor += w
		}
	}
	l.hosts = len(hosts)
	if total > 0 {
		l.availability = uint32(min(100, uint64(a.overprovision)*good/total))
		l.degradedShare = uint32(min(100, uint64(a.overprovision)*poor/total))
	}
	l.healthy = c.newSource(a, healthy, hosts, now)
	l.degraded = c.newSource(a, degraded, hosts, now)
}

// share divides the load among priorities, as Envoy's LoadBalancerBase does.
func (t *table) share(threshold float64) {
	var sum uint32
	for i := range t.levels {
		sum += t.levels[i].availability + t.levels[i].degradedShare
	}
	sum = min(sum, 100)
	all := true
	for i := range t.levels {
		l := &t.levels[i]
		usable := 0.0
		if l.hosts > 0 {
			usable = 100 * float64(len(l.healthy.hosts)+len(l.degraded.hosts)) / float64(l.hosts)
		}
		l.panic = threshold > 0 && (sum == 0 || sum < 100 && usable < threshold)
		all = all && l.panic
	}
	if all {
		t.shareInPanic()
		return
	}
	if sum == 0 {
		return // nobody gets anything
	}
	left := uint32(100)
	for i := range t.levels {
		l := &t.levels[i]
		l.load = min(left, l.availability*100/sum)
		left -= l.load
	}
	for i := range t.levels {
		l := &t.levels[i]
		l.degradedLoad = min(left, l.degradedShare*100/sum)
		left -= l.degradedLoad
	}
	for i := range t.levels { // what rounding left over goes to the first that has a share
		l := &t.levels[i]
		if l.load > 0 {
			l.load += left
			return
		}
		if l.degradedLoad > 0 {
			l.degradedLoad += left
			return
		}
	}
}

// shareInPanic divides the load by the number of endpoints: there is no health to go by.
func (t *table) shareInPanic() {
	total := 0
	for i := range t.levels {
		total += t.levels[i].hosts
	}
	left := uint32(100)
	first := -1
	for i := range t.levels {
		l := &t.levels[i]
		l.load = uint32(100 * l.hosts / total)
		left -= l.load
		if first < 0 && l.hosts > 0 {
			first = i
		}
	}
	t.levels[first].load += left
}

// source is the list that a request's endpoint is chosen from. failed are priorities that are not wanted.
func (t *table) source(hash, failed uint64) *source {
	if failed != 0 {
		if s := t.sourceWithout(hash, failed); s != nil {
			return s
		}
	}
	at := uint32(hash % 100)
	for i := range t.levels {
		l := &t.levels[i]
		if at < l.load {
			if l.panic {
				return l.all
			}
			return l.healthy
		}
		at -= l.load
	}
	for i := range t.levels {
		l := &t.levels[i]
		if at < l.degradedLoad {
			if l.panic {
				return l.all
			}
			return l.degraded
		}
		at -= l.degradedLoad
	}
	return nil
}

// sourceWithout divides the load among the priorities that are left; nil if there is none that has endpoints.
func (t *table) sourceWithout(hash, failed uint64) *source {
	sum := uint64(0)
	for i := range t.levels {
		if i >= 64 || failed&(1<<i) == 0 {
			sum += uint64(t.levels[i].availability)
		}
	}
	if sum == 0 {
		return nil
	}
	at := hash % 100
	for i := range t.levels {
		if i < 64 && failed&(1<<i) != 0 {
			continue
		}
		l := &t.levels[i]
		// the first ones get all that they can carry, as without failures; what nobody can carry is shared
		n := uint64(l.availability)
		if sum < 100 {
			n = n * 100 / sum
		}
		if at < n {
			return l.healthy
		}
		at -= n
	}
	for i := range t.levels {
		if (i >= 64 || failed&(1<<i) == 0) && t.levels[i].availability > 0 {
			return t.levels[i].healthy
		}
	}
	return nil
}

// newSource makes a list to choose from. of are all endpoints of the priority, for the health of localities.
func (c *Cluster) newSource(a *Assignment, hosts, of []*Host, now time.Time) *source {
	if len(hosts) == 0 {
		return &noHosts
	}
	s := &source{hosts: hosts}
	s.cursor.Store(rand.Uint64N(uint64(len(hosts))))
	b := &c.balance
	switch b.policy {
	case RingHash, Maglev:
		s.hash(b, c.hashWeights(a, hosts))
		return s
	}
	if b.byLocality && c.buildLocalities(s, a, hosts, of, now) {
		return s
	}
	c.weigh(s, now)
	return s
}

// weigh works out the weights of a list, and the schedule by them.
func (c *Cluster) weigh(s *source, now time.Time) {
	same := true
	ws := make([]float64, len(s.hosts))
	for i, h := range s.hosts {
		ws[i] = float64(h.Endpoint().Weight) * c.slowFactor(h, now)
		same = same && ws[i] == ws[0]
	}
	if !same && c.balance.policy != RandomChoice {
		s.weights, s.schedule = ws, schedule(ws)
		s.cursor.Store(rand.Uint64N(uint64(len(s.schedule))))
	}
}

// slowFactor is the share of its weight that an endpoint has at the time.
func (c *Cluster) slowFactor(h *Host, now time.Time) float64 {
	s := &c.balance.slow
	if s.window == 0 || h.since.IsZero() {
		return 1
	}
	age := now.Sub(h.since)
	if age >= s.window {
		return 1
	}
	c.slow = true
	f := math.Pow(max(float64(age), float64(time.Millisecond))/float64(s.window), 1/s.aggression)
	return min(1, max(s.least, f, 0.001))
}

// buildLocalities divides a list by locality. It is false if there are no weights to go by.
func (c *Cluster) buildLocalities(s *source, a *Assignment, hosts, of []*Host, now time.Time) bool {
	parts := map[int]*source{}
	total := map[int]int{}
	for _, h := range of {
		total[h.Endpoint().group]++
	}
	var order []int
	for _, h := range hosts {
		g := h.Endpoint().group
		if parts[g] == nil {
			parts[g] = &source{}
			order = append(order, g)
		}
		parts[g].hosts = append(parts[g].hosts, h)
	}
	var ws []float64
	for _, g := range order {
		p := parts[g]
		available := min(1, float64(a.overprovision)/100*float64(len(p.hosts))/float64(total[g]))
		w := float64(a.groups[g].weight) * available
		if w == 0 {
			continue
		}
		p.cursor.Store(rand.Uint64N(uint64(len(p.hosts))))
		c.weigh(p, now)
		s.localities = append(s.localities, p)
		ws = append(ws, w)
	}
	if len(ws) == 0 {
		return false
	}
	s.turns = schedule(ws)
	s.turn.Store(rand.Uint64N(uint64(len(s.turns))))
	return true
}

const (
	// minSlots is the least number of turns by which weights that are not small integers are approximated.
	minSlots = 1024
	// maxSlots is the greatest number of turns of a schedule.
	maxSlots = 1 << 13
)

// schedule is a sequence of indexes in which each comes as often as its weight says, spread evenly: the order of Envoy's
// earliest deadline first scheduler.
func schedule(ws []float64) []uint32 {
	n := slots(ws)
	total := 0.0
	for _, w := range ws {
		total += w
	}
	counts := make([]int, len(ws))
	sum := 0
	for i, w := range ws {
		counts[i] = max(1, int(math.Round(w/total*float64(n))))
		sum += counts[i]
	}
	type turn struct {
		at float64
		i  uint32
	}
	turns := make([]turn, 0, sum)
	for i, k := range counts {
		for j := range k {
			turns = append(turns, turn{(float64(j) + 0.5) / float64(k), uint32(i)})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.i, b.i)) })
	out := make([]uint32, len(turns))
	for i, t := range turns {
		out[i] = t.i
	}
	return out
}

// slots is the length of a schedule: exact if the weights are integers with a small sum.
func slots(ws []float64) int {
	g, sum := uint64(0), uint64(0)
	for _, w := range ws {
		if w != math.Trunc(w) || w > math.MaxUint32 {
			return min(maxSlots, max(minSlots, 16*len(ws)))
		}
		g = gcd(g, uint64(w))
		sum += uint64(w)
	}
	if n := sum / g; n <= maxSlots {
		return int(n)
	}
	return maxSlots
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// pick chooses from a list that is not empty. attempt counts from 0.
func (s *source) pick(b *balanceConfig, p *Pick, hash, attempt uint64) *Host {
	switch b.policy {
	case RingHash:
		return s.hosts[s.onRing(hash, attempt)]
	case Maglev:
		if attempt > 0 { // as in Envoy
			hash ^= ^uint64(0) - attempt + 1
		}
		return s.hosts[s.maglev[hash%uint64(len(s.maglev))]]
	}
	if s.localities != nil {
		s = s.localities[s.turns[(s.turn.Add(1)-1)%uint64(len(s.turns))]]
	}
	switch b.policy {
	case LeastRequest:
		return s.least(b, p)
	case RandomChoice:
		return s.hosts[p.below(len(s.hosts))]
	}
	i := s.cursor.Add(1) - 1
	if s.schedule != nil {
		return s.hosts[s.schedule[i%uint64(len(s.schedule))]]
	}
	return s.hosts[i%uint64(len(s.hosts))]
}

// least compares some endpoints, drawn by weight, and takes the one with the fewest requests for its weight.
func (s *source) least(b *balanceConfig, p *Pick) *Host {
	if len(s.hosts) == 1 {
		return s.hosts[0]
	}
	best := -1
	for range b.choices {
		var i int
		if s.schedule != nil {
			i = int(s.schedule[p.below(len(s.schedule))])
		} else {
			i = p.below(len(s.hosts))
		}
		if best < 0 || s.lighter(b, i, best) {
			best = i
		}
	}
	return s.hosts[best]
}

// lighter says whether endpoint i has fewer requests than j, for its weight.
func (s *source) lighter(b *balanceConfig, i, j int) bool {
	x, y := float64(s.hosts[i].active.Load()), float64(s.hosts[j].active.Load())
	if s.schedule == nil {
		return x < y
	}
	if b.bias != 1 {
		x, y = math.Pow(x, b.bias), math.Pow(y, b.bias)
	}
	return x*s.weights[j] < y*s.weights[i]
}
