package http2

import "math/bits"

// table finds the streams that are open on the wire, by number. It is open addressing with linear probing, at most half
// full; nothing is allocated once it is large enough.
type table struct {
	slots []*stream // length is 2^(32-shift)
	shift uint8
	n     int
}

// home scatters the numbers, which follow each other: neighbours would make long runs.
func (t *table) home(id uint32) int { return int(id * 0x9e3779b1 >> t.shift) }

func (t *table) get(id uint32) *stream {
	if t.n == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; s == nil || s.id == id {
			return s
		}
	}
}

// put adds a stream whose number is not there yet.
func (t *table) put(s *stream) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*stream, max(8, 2*len(old)))
		t.shift = uint8(33 - bits.Len(uint(len(t.slots))))
		for _, x := range old {
			if x != nil {
				t.place(x)
			}
		}
	}
	t.place(s)
	t.n++
}

func (t *table) place(s *stream) {
	i := t.home(s.id)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
}

// del takes a stream out, and closes the gap: what was pushed aside by it moves back.
func (t *table) del(s *stream) {
	mask := len(t.slots) - 1
	i := t.home(s.id)
	for t.slots[i] != s {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		if (j-t.home(t.slots[j].id))&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
	if t.n--; t.n == 0 && len(t.slots) > keptSlots {
		t.slots = nil
	}
}

// keptSlots is the size above which an empty table is not kept.
const keptSlots = 512
