package workload

import (
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
)

// shardCount trades the fixed copy of one change (8 bytes a shard and the entries of one shard) against memory.
const shardCount = 512

// table is an immutable hash map cut into shards: a change copies the shards it touches and shares the others.
// The zero table is empty. Reading is safe from any goroutine.
type table[K comparable, V any] struct {
	shards *[shardCount]map[K]V
	size   int
}

// get returns the value under k, whose hash is h.
func (t table[K, V]) get(h uint64, k K) (V, bool) {
	if t.shards == nil {
		var zero V
		return zero, false
	}
	v, ok := t.shards[h%shardCount][k]
	return v, ok
}

// all walks the entries in no order.
func (t table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.shards == nil {
			return
		}
		for _, s := range t.shards {
			for k, v := range s {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// edit is a change to a table that is not visible yet. Each shard is copied at most once per edit, so that a batch of
// n changes costs O(n) and not O(n * shard).
type edit[K comparable, V any] struct {
	t     table[K, V]
	owned [shardCount / 64]uint64
	own   bool // the array itself was copied
}

func editOf[K comparable, V any](t table[K, V]) *edit[K, V] { return &edit[K, V]{t: t} }

func (e *edit[K, V]) get(h uint64, k K) (V, bool) { return e.t.get(h, k) }

// shard returns a private copy of the shard of h.
func (e *edit[K, V]) shard(h uint64) map[K]V {
	if !e.own {
		e.own = true
		var fresh [shardCount]map[K]V
		if e.t.shards != nil {
			fresh = *e.t.shards
		}
		e.t.shards = &fresh
	}
	i := h % shardCount
	if bit := uint64(1) << (i % 64); e.owned[i/64]&bit == 0 {
		e.owned[i/64] |= bit
		if m := e.t.shards[i]; m != nil {
			e.t.shards[i] = maps.Clone(m)
		} else {
			e.t.shards[i] = make(map[K]V)
		}
	}
	return e.t.shards[i]
}

func (e *edit[K, V]) put(h uint64, k K, v V) {
	s := e.shard(h)
	before := len(s)
	s[k] = v
	e.t.size += len(s) - before
}

func (e *edit[K, V]) remove(h uint64, k K) {
	if _, ok := e.t.get(h, k); !ok {
		return
	}
	s := e.shard(h)
	delete(s, k)
	e.t.size--
	if len(s) == 0 {
		e.t.shards[h%shardCount] = nil
		e.owned[h%shardCount/64] &^= 1 << (h % shardCount % 64)
	}
}

// done returns the changed table; the edit must not be used again.
func (e *edit[K, V]) done() table[K, V] { return e.t }

// addrKey is an address inside a network.
type addrKey struct {
	network string
	ip      netip.Addr
}

// nameKey is a namespace and a name (or hostname).
type nameKey struct{ ns, name string }

// podKey names a pod as ZDS does (O2).
type podKey struct{ name, ns, sa string }

// hasher computes the shard hashes. One per Store; immutable.
type hasher struct{ seed maphash.Seed }

func (h hasher) str(s string) uint64 { return maphash.String(h.seed, s) }

func (h hasher) name(k nameKey) uint64 {
	return maphash.String(h.seed, k.name)*31 + maphash.String(h.seed, k.ns)
}

func (h hasher) pod(k podKey) uint64 {
	return maphash.String(h.seed, k.name)*31 + maphash.String(h.seed, k.ns)
}

func (h hasher) addr(k addrKey) uint64 {
	a := k.ip.As16()
	x := maphash.Bytes(h.seed, a[:])
	if k.network != "" {
		x = x*31 + maphash.String(h.seed, k.network)
	}
	return x
}
