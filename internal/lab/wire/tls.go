package wire

import "encoding/binary"

// records follows a TLS record stream (RFC 8446 section 5.1):
//
//	type (1 byte: 20 to 23)  legacy version (2: 0x03 0x01..0x03)  length (2: at most 2^14+256)  fragment
//
// and reads the first handshake message, which is in the clear.
type records struct {
	head    []byte // of a record header, at most 5
	left    int    // bytes of the fragment that are still to come
	keep    bool   // the fragment is handshake in the clear
	hello   []byte // of the first handshake message
	done    bool   // the hello was read
	records int
	broken  bool // bytes that are no record
	lost    bool // began in the midst: nothing can be said

	offered  []uint16 // by a ClientHello
	selected uint16   // by a ServerHello
}

// maxHello bounds the first handshake message; larger ones are not read.
const maxHello = 64 << 10

func (r *records) take(p []byte) {
	for len(p) > 0 && !r.broken && !r.lost {
		if r.left > 0 {
			n := min(r.left, len(p))
			if r.keep && !r.done {
				r.hello = append(r.hello, p[:n]...)
				r.readHello()
			}
			r.left -= n
			p = p[n:]
			continue
		}
		n := min(5-len(r.head), len(p))
		r.head = append(r.head, p[:n]...)
		p = p[n:]
		if !plausible(r.head) {
			r.broken = true
			return
		}
		if len(r.head) == 5 {
			r.left = int(binary.BigEndian.Uint16(r.head[3:]))
			r.keep = r.head[0] == 22
			r.records++
			r.head = r.head[:0]
		}
	}
}

// plausible tells whether the bytes may begin a record.
func plausible(h []byte) bool {
	return !(len(h) > 0 && (h[0] < 20 || h[0] > 23) || len(h) > 1 && h[1] != 3 || len(h) > 2 && (h[2] < 1 || h[2] > 3) ||
		len(h) == 5 && int(binary.BigEndian.Uint16(h[3:])) > 1<<14+256)
}

// readHello reads a ClientHello or ServerHello (RFC 8446 sections 4.1.2, 4.1.3) once it is complete.
func (r *records) readHello() {
	h := r.hello
	if len(h) < 4 {
		return
	}
	size := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
	if size > maxHello {
		r.done = true
		return
	}
	if len(h) < 4+size {
		return
	}
	r.done, r.hello = true, nil
	body := cursor{b: h[4 : 4+size]}
	body.skip(2 + 32)            // legacy version, random
	body.skip(int(body.uint(1))) // session ID
	switch h[0] {
	case 1:
		body.skip(int(body.uint(2))) // cipher suites
		body.skip(int(body.uint(1))) // compression methods
	case 2:
		body.skip(2 + 1)
		r.selected = 0x0303 // unless supported_versions says another
	default:
		return
	}
	exts := cursor{b: body.bytes(int(body.uint(2)))}
	for len(exts.b) >= 4 {
		typ := exts.uint(2)
		ext := cursor{b: exts.bytes(int(exts.uint(2)))}
		if typ != 43 { // supported_versions
			continue
		}
		if h[0] == 2 {
			r.selected = uint16(ext.uint(2))
			return
		}
		list := cursor{b: ext.bytes(int(ext.uint(1)))}
		for len(list.b) >= 2 {
			r.offered = append(r.offered, uint16(list.uint(2)))
		}
	}
}

// cursor reads big-endian fields; beyond the end everything is zero and empty.
type cursor struct{ b []byte }

func (c *cursor) bytes(n int) []byte {
	n = min(n, len(c.b))
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) skip(n int) { c.bytes(n) }

func (c *cursor) uint(n int) (v uint64) {
	for _, x := range c.bytes(n) {
		v = v<<8 | uint64(x)
	}
	return v
}
