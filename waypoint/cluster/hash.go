package cluster

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// ringEntry is a point of a ring.
type ringEntry struct {
	hash uint64
	host uint32
}

// hashWeights are the weights of the endpoints of a hashing policy; their sum is 1.
func (c *Cluster) hashWeights(a *Assignment, hosts []*Host) []float64 {
	ws := make([]float64, len(hosts))
	inGroup := map[int]float64{}
	groups := 0.0
	if c.balance.byLocality {
		for _, h := range hosts {
			e := h.Endpoint()
			if _, ok := inGroup[e.group]; !ok {
				groups += float64(a.groups[e.group].weight)
			}
			inGroup[e.group] += float64(e.Weight)
		}
	}
	sum := 0.0
	for i, h := range hosts {
		e := h.Endpoint()
		ws[i] = float64(e.Weight)
		if groups > 0 {
			ws[i] = ws[i] / inGroup[e.group] * float64(a.groups[e.group].weight)
		}
		sum += ws[i]
	}
	for i := range ws {
		ws[i] /= sum
	}
	return ws
}

// hash makes the ring or the table of a hashing policy, as Envoy makes them: a waypoint of either kind sends a key to the
// same endpoint.
func (s *source) hash(b *balanceConfig, ws []float64) {
	keys := make([]string, len(s.hosts))
	for i, h := range s.hosts {
		keys[i] = h.key
		if n := h.Endpoint().Hostname; b.byHostname && n != "" {
			keys[i] = n
		}
	}
	if b.policy == RingHash {
		s.ring = buildRing(keys, ws, b.ringMin, b.ringMax)
	} else {
		s.maglev = buildMaglev(keys, ws, b.maglevSize)
	}
}

// buildRing puts each endpoint on the ring as often as its weight says, the lightest at least once if the ring may be that
// large.
func buildRing(keys []string, ws []float64, least, most uint64) []ringEntry {
	smallest := 1.0
	for _, w := range ws {
		if w > 0 {
			smallest = min(smallest, w)
		}
	}
	scale := min(math.Ceil(smallest*float64(least))/smallest, float64(most))
	ring := make([]ringEntry, 0, int(math.Ceil(scale)))
	target := 0.0
	var key []byte
	for i, k := range keys {
		key = append(append(key[:0], k...), '_')
		n := len(key)
		target += scale * ws[i]
		for j := 0; float64(len(ring)) < target; j++ {
			key = strconv.AppendInt(key[:n], int64(j), 10)
			ring = append(ring, ringEntry{xxhash.Sum64(key), uint32(i)})
		}
	}
	slices.SortFunc(ring, func(a, b ringEntry) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.host) - int(b.host)
	})
	return ring
}

// onRing finds the first point at or behind a hash; further attempts take the points that follow.
func (s *source) onRing(hash, attempt uint64) uint32 {
	lo, hi := 0, len(s.ring)
	for lo < hi {
		if m := (lo + hi) / 2; s.ring[m].hash < hash {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return s.ring[(uint64(lo)+attempt)%uint64(len(s.ring))].host
}

// buildMaglev fills a table by Maglev's algorithm with weights (NSDI 2016, section 3.4, as in Envoy). In which order the
// endpoints are listed does not count.
func buildMaglev(keys []string, ws []float64, size uint64) []uint32 {
	const free = math.MaxUint32
	type builder struct {
		at, skip       uint64 // the next place of its permutation, and the step to the one behind
		weight, target float64
		host           uint32
	}
	most := slices.Max(ws)
	bs := make([]builder, len(keys))
	for i, k := range keys {
		d := xxhash.NewWithSeed(1)
		d.WriteString(k)
		bs[i] = builder{at: xxhash.Sum64String(k) % size, skip: d.Sum64()%(size-1) + 1, weight: ws[i], host: uint32(i)}
	}
	slices.SortStableFunc(bs, func(a, b builder) int { return strings.Compare(keys[a.host], keys[b.host]) })
	table := make([]uint32, size)
	for i := range table {
		table[i] = free
	}
	for filled, round := uint64(0), 1.0; filled < size; round++ {
		for i := range bs {
			b := &bs[i]
			if filled == size {
				break
			}
			if round*b.weight < b.target { // not this one's turn
				continue
			}
			b.target += most
			at := b.at
			for table[at] != free {
				if at += b.skip; at >= size {
					at -= size
				}
			}
			table[at] = b.host
			b.at = at // taken from now on: the next search goes on behind it
			filled++
		}
	}
	return table
}
