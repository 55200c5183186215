package http2

import (
	"hash/maphash"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// encoder encodes header blocks (RFC 7541). Fields that are likely to come again go into the dynamic table, Huffman-coded;
// the others are written as they are, which costs less than it saves on a network of pods.
type encoder struct {
	table   dynamic
	peerMax int  // the largest table that the peer allows
	lowest  int  // the smallest it has allowed since the last block
	resized bool // the peer is to be told of the size
}

func (e *encoder) init() { e.table.max, e.peerMax, e.lowest = tableSize, tableSize, tableSize }

// setMax is the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) setMax(n uint32) {
	e.peerMax = int(min(n, tableSize))
	e.lowest = min(e.lowest, e.peerMax)
	e.resized = e.resized || e.peerMax != e.table.max
}

// begin begins a block: with the table's size, if that has changed (RFC 7541 section 4.2).
func (e *encoder) begin(b []byte) []byte {
	if !e.resized {
		return b
	}
	e.resized = false
	if e.lowest < e.table.max && e.lowest < e.peerMax {
		e.table.resize(0) // e.lowest would do, but x/net's decoder takes a second update only with an empty table
		b = append(b, 0x20)
	}
	e.table.resize(e.peerMax)
	e.lowest = e.peerMax
	return appendInt(b, 0x20, 5, e.peerMax)
}

// indexing says how a field is represented.
type indexing uint8

const (
	indexed indexing = iota // kept in the table
	without                 // not kept
	never                   // nobody on the way is to keep it (RFC 7541 section 7.1.3)
)

// largestIndexed is the size of a value, in bytes, above which it is not kept.
const largestIndexed = 512

// indexingOf chooses for a field: what is secret is never kept, what differs from message to message is not worth it.
func indexingOf(name, value string) indexing {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie":
		return never
	case "content-length", "content-range", "range", "age", "date", "etag", "expires", "last-modified", "location", "if-match",
		"if-none-match", "if-modified-since", "if-unmodified-since", "referer", "x-request-id", "traceparent", "tracestate", "b3",
		"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "grpc-timeout", "grpc-message", "sec-websocket-key",
		"sec-websocket-accept", "x-envoy-upstream-service-time":
		return without
	}
	if len(value) > largestIndexed {
		return without
	}
	return indexed
}

// field appends a field. One that cannot stand in a head is left out.
func (e *encoder) field(b []byte, name, value string) []byte {
	how := indexingOf(name, value)
	if how != indexed {
		if !message.LowerToken(name) || !message.Value(value) {
			return b
		}
		return appendLiteral(b, how, int(staticNames[name]), name, value)
	}
	return e.indexed(b, name, value, false)
}

var seed = maphash.MakeSeed()

// indexed appends a field that is kept in the table, or is already. pseudo says that it is known to be valid.
func (e *encoder) indexed(b []byte, name, value string, pseudo bool) []byte {
	hash := uint32(maphash.String(seed, value)) + uint32(len(name))
	for i := range e.table.n {
		x := e.table.get(i)
		if x.hash == hash && e.table.valueOf(x) == value && e.table.nameOf(x) == name {
			return appendInt(b, 0x80, 7, len(statics)+i)
		}
	}
	if !pseudo && (!message.LowerToken(name) || !message.Value(value)) {
		return b
	}
	b = appendLiteral(b, indexed, int(staticNames[name]), name, value)
	e.table.add(name, value, hash, true)
	return b
}

// appendLiteral appends a literal; index is that of the name in the static table, or 0.
func appendLiteral(b []byte, how indexing, index int, name, value string) []byte {
	switch how {
	case indexed:
		b = appendInt(b, 0x40, 6, index)
	case without:
		b = appendInt(b, 0, 4, index)
	case never:
		b = appendInt(b, 0x10, 4, index)
	}
	if index == 0 {
		b = appendString(b, name, true)
	}
	return appendString(b, value, how == indexed)
}

// appendString appends a string literal, Huffman-coded if that is wanted and shorter.
func appendString(b []byte, s string, coded bool) []byte {
	if coded {
		if n := huffmanSize(s); n < len(s) {
			b = appendInt(b, 0x80, 7, n)
			return appendHuffman(b, s)
		}
	}
	b = appendInt(b, 0, 7, len(s))
	return append(b, s...)
}

// appendInt appends an integer with a prefix of some bits, the bits above it as in high (RFC 7541 section 5.1).
func appendInt(b []byte, high byte, prefix, n int) []byte {
	mask := 1<<prefix - 1
	if n < mask {
		return append(b, high|byte(n))
	}
	b = append(b, high|byte(mask))
	for n -= mask; n >= 128; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
