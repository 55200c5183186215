package http1

import (
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// bodyKind is how a body is delimited (RFC 9112 section 6.3).
type bodyKind uint8

const (
	noBody     bodyKind = iota
	byLength            // left bytes
	chunked             // chunks, then a trailer
	untilClose          // all that comes until the end of the connection; tunnels too
)

// chunkState is where in a chunked body the next byte belongs (RFC 9112 section 7.1).
type chunkState uint8

const (
	chunkSize  chunkState = iota // hexadecimal digits
	chunkExt                     // extensions, dropped
	chunkQuote                   // a quoted string in one
	chunkSlash                   // the character behind a backslash in one
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
)

// reader takes a body apart. The zero value reads none.
type reader struct {
	kind   bodyKind
	state  chunkState
	digits uint8 // of the chunk's size
	ext    int   // bytes of extensions so far
	left   int64 // of the body, or of the chunk
	scan   scanner

	trailer message.Header
}

// start begins a body.
func (r *reader) start(kind bodyKind, length int64) {
	r.trailer.Reset()
	*r = reader{kind: kind, left: max(length, 0), trailer: r.trailer}
}

// step looks at the beginning of b: skip bytes of framing to be dropped, then data bytes of payload. done says that the
// body ends behind the skipped bytes; then there is no payload. If all is zero, more has to come.
func (r *reader) step(b []byte, lim *limits) (skip, data int, done bool, err error) {
	switch r.kind {
	case noBody:
		return 0, 0, true, nil
	case byLength:
		if r.left == 0 {
			return 0, 0, true, nil
		}
		return 0, int(min(r.left, int64(len(b)))), false, nil
	case untilClose:
		return 0, len(b), false, nil
	}
	for skip < len(b) {
		switch r.state {
		case chunkData:
			return skip, int(min(r.left, int64(len(b)-skip))), false, nil
		case chunkTrailer:
			n, err := r.scan.next(b[skip:], lim.head)
			if n == 0 || err != nil {
				return skip, 0, false, err
			}
			return skip + n, 0, true, parseTrailer(b[skip:skip+n], &r.trailer, lim.fields)
		}
		if err := r.octet(b[skip]); err != nil {
			return skip, 0, false, err
		}
		skip++
	}
	return skip, 0, false, nil
}

// took accounts for n bytes of payload.
func (r *reader) took(n int) {
	if r.kind == untilClose {
		return
	}
	if r.left -= int64(n); r.left == 0 && r.kind == chunked {
		r.state = chunkDataCR
	}
}

// octet takes one byte of the framing between chunks.
func (r *reader) octet(c byte) error {
	switch r.state {
	case chunkSize:
		return r.sizeOctet(c)
	case chunkExt, chunkQuote, chunkSlash:
		return r.extOctet(c)
	case chunkSizeLF:
		if c != '\n' {
			return errChunk
		}
		if r.state = chunkData; r.left == 0 {
			r.state = chunkTrailer
		}
	case chunkDataCR:
		if c != '\r' {
			return errChunk
		}
		r.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return errChunk
		}
		r.state, r.digits, r.left = chunkSize, 0, 0
	}
	return nil
}

func (r *reader) sizeOctet(c byte) error {
	v := int64(0)
	switch {
	case digit(c):
		v = int64(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		v = int64(c|0x20-'a') + 10
	case r.digits == 0:
		return errChunk
	case c == '\r':
		r.state = chunkSizeLF
		return nil
	case c == ';':
		r.state = chunkExt
		return r.extOctet(c)
	default:
		return errChunk
	}
	if r.digits++; r.digits > 15 { // 60 bits: nothing overflows
		return errChunk
	}
	r.left = r.left<<4 | v
	return nil
}

func (r *reader) extOctet(c byte) error {
	if r.ext++; r.ext > maxExtensions {
		return errExtension
	}
	switch {
	case c == '\r' && r.state == chunkExt:
		r.state = chunkSizeLF
	case c < ' ' && c != '\t' || c == 0x7f:
		return errChunk
	case r.state == chunkSlash:
		r.state = chunkQuote
	case c == '\\' && r.state == chunkQuote:
		r.state = chunkSlash
	case c == '"' && r.state == chunkQuote:
		r.state = chunkExt
	case c == '"':
		r.state = chunkQuote
	}
	return nil
}
