package http2

import (
	"errors"
	"sync"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// What makes a header block undecodable: the connection is lost with it, as its table is.
var (
	errTruncated = errors.New("truncated header block")
	errInteger   = errors.New("integer too large")
	errIndex     = errors.New("index beyond the table")
	errResize    = errors.New("table size update out of place")
)

// maxResizes is how many table size updates one block may begin with (RFC 7541 section 4.2).
const maxResizes = 2

// decoder decodes header blocks (RFC 7541). It is told block after block.
type decoder struct {
	table   dynamic
	resizes int // of this block; maxResizes once a field has come
}

func (d *decoder) init() { d.table.max = tableSize }

// scratch is where strings are decoded to before they have a place.
type scratch struct{ name, value []byte }

var scratches = sync.Pool{New: func() any { return &scratch{make([]byte, 0, 256), make([]byte, 0, 1024)} }}

// field is a decoded field.
type field struct {
	name, value string
	valid       bool // both may stand in a head, the name perhaps as that of a pseudo-header field
	resize      bool // it is none, but a table size update
}

// next decodes the first representation of b, which is not empty, and returns what is behind it. Strings are put in
// h's arena; without h they are valid until the next call only.
func (d *decoder) next(b []byte, sc *scratch, h *message.Header) (f field, rest []byte, err error) {
	c := b[0]
	switch {
	case c&0x80 != 0: // indexed field
		var i uint32
		if i, b, err = readInt(b, 7); err != nil {
			return f, nil, err
		}
		d.resizes = maxResizes
		f, err = d.indexed(i, h)
		return f, b, err
	case c&0xc0 == 0x40: // literal with incremental indexing
		return d.literal(b, 6, true, sc, h)
	case c&0xe0 == 0x20: // table size update
		var n uint32
		if n, b, err = readInt(b, 5); err != nil {
			return f, nil, err
		}
		if d.resizes >= maxResizes || n > tableSize {
			return f, nil, errResize
		}
		d.resizes++
		d.table.resize(int(n))
		f.resize = true
		return f, b, nil
	}
	return d.literal(b, 4, false, sc, h) // without indexing, or never indexed
}

// indexed returns an entry of a table.
func (d *decoder) indexed(i uint32, h *message.Header) (field, error) {
	if i == 0 {
		return field{}, errIndex
	}
	if i < uint32(len(statics)) {
		return field{name: statics[i].Name, value: statics[i].Value, valid: true}, nil
	}
	e, err := d.entry(i)
	if err != nil {
		return field{}, err
	}
	f := field{name: d.table.nameOf(e), value: d.table.valueOf(e), valid: e.valid}
	if h != nil {
		f.name, f.value = h.Hold(f.name), h.Hold(f.value)
	}
	return f, nil
}

func (d *decoder) entry(i uint32) (*entry, error) {
	i -= uint32(len(statics))
	if i >= uint32(d.table.n) {
		return nil, errIndex
	}
	return d.table.get(int(i)), nil
}

func (d *decoder) literal(b []byte, prefix int, index bool, sc *scratch, h *message.Header) (f field, rest []byte, err error) {
	d.resizes = maxResizes
	i, b, err := readInt(b, prefix)
	if err != nil {
		return f, nil, err
	}
	f.valid = true
	switch {
	case i == 0:
		if f.name, b, err = readString(b, &sc.name, h); err != nil {
			return f, nil, err
		}
		f.valid = message.LowerToken(f.name) || len(f.name) > 1 && f.name[0] == ':' && message.LowerToken(f.name[1:])
	case i < uint32(len(statics)):
		f.name = statics[i].Name
	default:
		e, err := d.entry(i)
		if err != nil {
			return f, nil, err
		}
		name := d.table.nameOf(e)
		f.valid = e.valid || message.LowerToken(name)
		if h != nil {
			f.name = h.Hold(name)
		} else { // add may overwrite it
			sc.name = append(sc.name[:0], name...)
			f.name = message.String(sc.name)
		}
	}
	if f.value, b, err = readString(b, &sc.value, h); err != nil {
		return f, nil, err
	}
	f.valid = f.valid && message.Value(f.value)
	if index {
		d.table.add(f.name, f.value, 0, f.valid)
	}
	return f, b, nil
}

// readInt reads an integer with a prefix of some bits (RFC 7541 section 5.1).
func readInt(b []byte, prefix int) (uint32, []byte, error) {
	mask := uint32(1)<<prefix - 1
	n := uint32(b[0]) & mask
	b = b[1:]
	if n < mask {
		return n, b, nil
	}
	for shift := 0; shift < 28; shift += 7 {
		if len(b) == 0 {
			return 0, nil, errTruncated
		}
		c := b[0]
		b = b[1:]
		n += uint32(c&0x7f) << shift
		if c&0x80 == 0 {
			return n, b, nil
		}
	}
	return 0, nil, errInteger
}

// readString reads a string literal (RFC 7541 section 5.2), by way of tmp, into h's arena, or leaves it where it is or in
// tmp.
func readString(b []byte, tmp *[]byte, h *message.Header) (string, []byte, error) {
	if len(b) == 0 {
		return "", nil, errTruncated
	}
	coded := b[0]&0x80 != 0
	n, b, err := readInt(b, 7)
	if err != nil {
		return "", nil, err
	}
	if uint64(n) > uint64(len(b)) {
		return "", nil, errTruncated
	}
	s, rest := b[:n], b[n:]
	if coded {
		if *tmp, err = appendUnhuffman((*tmp)[:0], s); err != nil {
			return "", nil, err
		}
		s = *tmp
	}
	if h != nil {
		return h.HoldBytes(s), rest, nil
	}
	return message.String(s), rest, nil
}
