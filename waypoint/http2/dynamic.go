package http2

import "github.com/ambit-mesh/ambit/waypoint/message"

const (
	// tableSize is the size of a dynamic table in bytes, counted as RFC 7541 section 4.1 does: what a decoder has unless it
	// announces another, and the most that our encoders use.
	tableSize = 4096
	// entryCost is what an entry counts besides its strings.
	entryCost = 32
)

// entry is a field in a dynamic table. Its strings lie in the table's buf, the value behind the name.
type entry struct {
	at          uint64 // position in the stream of all bytes that were ever put in
	name, value uint32 // lengths
	hash        uint32 // encoder
	valid       bool   // decoder: name and value may stand in a head
}

// dynamic is a dynamic table (RFC 7541 section 2.3.2): first in, first out. It holds no memory until it is used. Strings
// that it returns are valid until the next add.
type dynamic struct {
	ents  []entry // ring; its length is a power of two
	first int     // place of the oldest
	n     int
	buf   []byte
	base  uint64 // position of buf[0]
	end   uint64 // position behind the newest entry
	size  int
	max   int
}

// get returns the i-th newest entry, from 0.
func (d *dynamic) get(i int) *entry { return &d.ents[(d.first+d.n-1-i)&(len(d.ents)-1)] }

func (d *dynamic) nameOf(e *entry) string {
	at := e.at - d.base
	return message.String(d.buf[at : at+uint64(e.name)])
}

func (d *dynamic) valueOf(e *entry) string {
	at := e.at - d.base + uint64(e.name)
	return message.String(d.buf[at : at+uint64(e.value)])
}

// resize sets the largest size, and evicts what is beyond it.
func (d *dynamic) resize(max int) {
	d.max = max
	d.evict(max)
}

// evict drops the oldest entries until the size is at most size.
func (d *dynamic) evict(size int) {
	for d.size > size {
		e := &d.ents[d.first]
		d.size -= int(e.name+e.value) + entryCost
		d.first = (d.first + 1) & (len(d.ents) - 1)
		d.n--
	}
}

// add puts an entry in; one that is larger than the table only empties it. The strings must not be the table's own.
func (d *dynamic) add(name, value string, hash uint32, valid bool) {
	n := len(name) + len(value)
	if n+entryCost > d.max {
		d.evict(0)
		return
	}
	d.evict(d.max - n - entryCost)
	d.makeRoom(n)
	if d.n == len(d.ents) {
		d.moreEntries()
	}
	e := &d.ents[(d.first+d.n)&(len(d.ents)-1)]
	*e = entry{at: d.end, name: uint32(len(name)), value: uint32(len(value)), hash: hash, valid: valid}
	at := d.end - d.base
	copy(d.buf[at:], name)
	copy(d.buf[at+uint64(len(name)):], value)
	d.end += uint64(n)
	d.size += n + entryCost
	d.n++
}

// makeRoom makes buf have room for n bytes behind end.
func (d *dynamic) makeRoom(n int) {
	used := int(d.end - d.base)
	if used+n <= len(d.buf) {
		return
	}
	live := d.end
	if d.n > 0 {
		live = d.ents[d.first].at
	}
	from := d.buf[live-d.base : used]
	to := d.buf
	if need := len(from) + n; need > len(d.buf)/2 { // at most half full after moving, so that one moves seldom
		to = make([]byte, max(256, 2*need))
	}
	copy(to, from)
	d.buf, d.base = to, live
}

func (d *dynamic) moreEntries() {
	ents := make([]entry, max(8, 2*len(d.ents)))
	for i := range d.n {
		ents[i] = d.ents[(d.first+i)&(len(d.ents)-1)]
	}
	d.ents, d.first = ents, 0
}
