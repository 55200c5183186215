package hbone

import (
	"strconv"

	"golang.org/x/net/http2/hpack"
)

const (
	// maxBlock is the longest encoded header block that is accepted, in bytes; maxContinuations the number of frames after
	// the first that may carry it (CVE-2023-45288).
	maxBlock         = 64 << 10
	maxContinuations = 16
)

// block is a header block that is being received.
type block struct {
	open          bool // END_HEADERS is still to come
	stream        uint32
	endStream     bool
	selfDependent bool
	frames        int
	buf           []byte
}

// fieldList is a decoded header list.
type fieldList struct {
	fields []hpack.HeaderField
	size   int  // as in RFC 9113 section 6.5.2
	tooBig bool // fields beyond the limit were dropped
}

// headerDecoder decodes header blocks within a limit. What lies beyond the limit is decoded, as the state of the table
// demands, but not kept.
type headerDecoder struct {
	dec   *hpack.Decoder
	list  fieldList
	limit int
}

func newHeaderDecoder(limit int) *headerDecoder {
	d := &headerDecoder{limit: limit}
	d.dec = hpack.NewDecoder(4096, d.emit)
	d.dec.SetMaxStringLength(limit)
	return d
}

func (d *headerDecoder) emit(f hpack.HeaderField) {
	d.list.size += int(f.Size())
	if d.list.size > d.limit {
		d.list.tooBig = true
		d.dec.SetEmitEnabled(false)
		return
	}
	d.list.fields = append(d.list.fields, f)
}

// decode returns the fields of a whole block; they are valid until the next call.
func (d *headerDecoder) decode(b []byte) (*fieldList, error) {
	clear(d.list.fields)
	d.list = fieldList{fields: d.list.fields[:0]}
	d.dec.SetEmitEnabled(true)
	if _, err := d.dec.Write(b); err != nil {
		return nil, err
	}
	if err := d.dec.Close(); err != nil {
		return nil, err
	}
	return &d.list, nil
}

// The encoder uses the static table only, and never the dynamic one: a header block is then a function of its fields.

const (
	staticAuthority = 1
	staticMethod    = 2
	staticStatus    = 8
)

// appendField appends a literal field without indexing (RFC 7541 section 6.2.2); name is an index of the static table, or
// 0 for the literal in f.
func appendField(b []byte, index byte, name, value string) []byte {
	b = append(b, index) // below 15: fits the 4-bit prefix
	if index == 0 {
		b = appendString(b, name)
	}
	return appendString(b, value)
}

func appendString(b []byte, s string) []byte {
	if n := hpack.HuffmanEncodeLength(s); n < uint64(len(s)) {
		b = appendInt(b, 0x80, n)
		return hpack.AppendHuffmanString(b, s)
	}
	b = appendInt(b, 0, uint64(len(s)))
	return append(b, s...)
}

// appendInt appends an integer with a 7-bit prefix (RFC 7541 section 5.1).
func appendInt(b []byte, high byte, n uint64) []byte {
	if n < 127 {
		return append(b, high|byte(n))
	}
	b = append(b, high|127)
	for n -= 127; n >= 128; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendFields(b []byte, h []HeaderField) []byte {
	for i := range h {
		b = appendField(b, 0, h[i].Name, h[i].Value)
	}
	return b
}

// appendRequest encodes a CONNECT request.
func appendRequest(b []byte, r *Request) []byte {
	b = appendField(b, staticMethod, "", "CONNECT")
	b = appendField(b, staticAuthority, "", r.Authority)
	return appendFields(b, r.Header)
}

// appendResponse encodes a response.
func appendResponse(b []byte, status int, h []HeaderField) []byte {
	if status == 200 {
		b = append(b, 0x88)
	} else {
		b = appendField(b, staticStatus, "", strconv.Itoa(status))
	}
	return appendFields(b, h)
}
