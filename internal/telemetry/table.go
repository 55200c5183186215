package telemetry

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const shards = 16

// use counts who holds a series, and remembers when it was last let go. Safe from any goroutine.
type use struct {
	refs     atomic.Int64
	lastUsed atomic.Int64 // unix nanoseconds
}

func (u *use) release() {
	u.lastUsed.Store(time.Now().UnixNano())
	u.refs.Add(-1)
}

// series is what a table holds.
type series interface {
	comparable
	use() *use
}

// table holds the series of a kind of label set L. Safe from any goroutine.
type table[L comparable, S series] struct {
	seed      maphash.Seed
	max       int // < 0: no bound
	overflows Counter
	// mark returns the fields that tell most sets apart; equality is checked in full by the map.
	mark func(*L) (string, string, string)
	make func(*L) S
	// over is the series that counts what is beyond the bound. All that it can return are in extra.
	over  func(*L) S
	extra []S

	count  atomic.Int64
	shards [shards]*shard[L, S]
}

type shard[L comparable, S series] struct {
	mu     sync.RWMutex
	series map[L]S
}

func newTable[L comparable, S series](max int, overflows Counter, mark func(*L) (string, string, string), make_, over func(*L) S) *table[L, S] {
	t := &table[L, S]{seed: maphash.MakeSeed(), max: max, overflows: overflows, mark: mark, make: make_, over: over}
	for i := range t.shards {
		t.shards[i] = &shard[L, S]{series: map[L]S{}}
	}
	return t
}

// acquire returns the series of a label set, held.
func (t *table[L, S]) acquire(l *L) S {
	a, b, c := t.mark(l)
	h := maphash.String(t.seed, a) ^ maphash.String(t.seed, b)*3 ^ maphash.String(t.seed, c)*5
	sh := t.shards[h%shards]
	sh.mu.RLock()
	s, ok := sh.series[*l]
	if ok {
		s.use().refs.Add(1)
	}
	sh.mu.RUnlock()
	if ok {
		return s
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s, ok = sh.series[*l]; !ok {
		if n := t.count.Add(1); t.max >= 0 && n > int64(t.max) {
			t.count.Add(-1)
			t.overflows.Inc()
			s = t.over(l)
		} else {
			s = t.make(l)
			sh.series[*l] = s
		}
	}
	s.use().refs.Add(1)
	return s
}

// sweep forgets the series that nobody holds and that were last used before t0.
func (t *table[L, S]) sweep(t0 time.Time) {
	for _, sh := range t.shards {
		sh.mu.Lock()
		for l, s := range sh.series {
			if u := s.use(); u.refs.Load() == 0 && u.lastUsed.Load() < t0.UnixNano() {
				delete(sh.series, l)
				t.count.Add(-1)
			}
		}
		sh.mu.Unlock()
	}
}

// snapshot returns all series that exist now.
func (t *table[L, S]) snapshot() []S {
	out := make([]S, 0, t.count.Load()+int64(len(t.extra)))
	for _, sh := range t.shards {
		sh.mu.RLock()
		for _, s := range sh.series {
			out = append(out, s)
		}
		sh.mu.RUnlock()
	}
	for _, s := range t.extra {
		if u := s.use(); u.refs.Load() > 0 || u.lastUsed.Load() > 0 {
			out = append(out, s)
		}
	}
	return out
}
