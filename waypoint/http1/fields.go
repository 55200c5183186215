package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// lowerToken maps the octets of a token to lower case, and others to 0 (RFC 9110 section 5.6.2).
var lowerToken = func() (t [256]byte) {
	for c := range 256 {
		if s := string([]byte{byte(c)}); message.Token(s) {
			t[c] = byte(c)
			if 'A' <= c && c <= 'Z' {
				t[c] |= 0x20
			}
		}
	}
	return t
}()

// inTarget tells the octets that may stand in a request target: visible ASCII but "#".
var inTarget = func() (t [256]bool) {
	for c := 0x21; c < 0x7f; c++ {
		t[c] = c != '#'
	}
	return t
}()

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// skipValue returns where the octets of a field value that begins at i end: at a control character that is no tab. It
// looks at eight at a time: the lowest bit set in m tells the first octet below 0x20 or equal to 0x7f.
func skipValue(b []byte, i int) int {
	for i+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[i:])
		y := x ^ ones*0x7f
		m := ((x-ones*0x20)&^x | (y-ones)&^y) & highs
		if m == 0 {
			i += 8
			continue
		}
		if i += bits.TrailingZeros64(m) >> 3; b[i] != '\t' {
			return i
		}
		i++
	}
	for i < len(b) && (b[i] >= 0x20 && b[i] != 0x7f || b[i] == '\t') {
		i++
	}
	return i
}

// validValue says that s could be a field value on the wire.
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if n := len(s) - 1; s[0] <= ' ' || s[n] <= ' ' {
		return false
	}
	return skipValue(message.Bytes(s), 0) == len(s)
}

// scanner finds the end of a head that arrives in pieces. It looks at each byte once.
type scanner struct {
	at   int // looked at so far
	line int // where the current line begins
}

// next returns the length of the head at the beginning of b with its empty line, or 0 if more has to come. b begins where
// it did in the last call.
func (s *scanner) next(b []byte, limit int) (int, error) {
	for {
		i := bytes.IndexByte(b[s.at:], '\n')
		if i < 0 {
			s.at = len(b)
			if len(b) > limit {
				return 0, errTooLarge
			}
			return 0, nil
		}
		i += s.at
		if i == 0 || b[i-1] != '\r' {
			return 0, errBareLF
		}
		empty := i-1 == s.line
		s.at, s.line = i+1, i+1
		if i >= limit {
			return 0, errTooLarge
		}
		if empty {
			*s = scanner{}
			return i + 1, nil
		}
	}
}

// lineEnd says that a line ends at i, and where the next begins.
func lineEnd(b []byte, i int) (int, error) {
	switch {
	case i < len(b) && b[i] == '\n':
		return 0, errBareLF
	case i < len(b) && b[i] != '\r':
		return 0, errValue
	case i+1 >= len(b):
		return 0, errPartial
	case b[i+1] != '\n':
		return 0, errBareCR
	}
	return i + 2, nil
}

// cutField takes the field line at i apart and makes the name lower case in place. next is where the next line begins, and
// name is empty if this was the empty line.
func cutField(b []byte, i int) (name, value string, next int, err error) {
	start := i
	for i < len(b) {
		c := lowerToken[b[i]]
		if c == 0 {
			break
		}
		b[i] = c
		i++
	}
	switch {
	case i == len(b):
		return "", "", 0, errPartial
	case i == start && b[i] == '\r':
		next, err = lineEnd(b, i)
		return "", "", next, err
	case i == start && (b[i] == ' ' || b[i] == '\t'):
		return "", "", 0, errFold
	case b[i] == '\n':
		return "", "", 0, errBareLF
	case i == start || b[i] != ':':
		return "", "", 0, errName
	}
	name = message.String(b[start:i])
	for i++; i < len(b) && (b[i] == ' ' || b[i] == '\t'); i++ {
	}
	start = i
	i = skipValue(b, i)
	if next, err = lineEnd(b, i); err != nil {
		return "", "", 0, err
	}
	for i > start && (b[i-1] == ' ' || b[i-1] == '\t') {
		i--
	}
	return name, message.String(b[start:i]), next, nil
}

// connection is what a head says about the connection.
type connection struct {
	close, keepAlive, upgrade bool
	named                     [8]string // other fields that it names
	n                         int       // of named
}

// framing is what a head says about its body and its connection.
type framing struct {
	length  int64 // -1: no Content-Length
	chunked bool
	coding  bool // there is a Transfer-Encoding
	host    string
	hosts   int
	upgrade string
	expect  string
	conn    connection
}

// parseFields parses the field lines at i up to the empty line into h, all but those that are about the connection or the
// framing; Content-Length is both. Names are changed in place, and h points into b. It returns where the head ends.
func parseFields(b []byte, i int, h *message.Header, limit int, f *framing) (int, error) {
	f.length = -1
	for n := 0; ; n++ {
		name, value, next, err := cutField(b, i)
		if err != nil {
			return 0, err
		}
		if i = next; name == "" {
			break
		}
		if n == limit {
			return 0, errFields
		}
		if err := f.field(h, name, value); err != nil {
			return 0, err
		}
	}
	if f.coding && f.length >= 0 {
		return 0, errBoth
	}
	for _, name := range f.conn.named[:f.conn.n] {
		dropFold(h, name)
	}
	return i, nil
}

// dropFold drops the fields of a name whose case is not known (RFC 9110 section 7.6.1).
func dropFold(h *message.Header, name string) {
	for i := 0; i < h.Len(); i++ {
		if x := h.Fields()[i].Name; message.EqualFold(x, name) {
			h.Del(x)
			return
		}
	}
}

// field acts on a field of the framing, and adds others to h.
func (f *framing) field(h *message.Header, name, value string) error {
	switch name {
	case "content-length":
		if f.length >= 0 {
			return errLengths
		}
		n, ok := message.Length(value)
		if !ok {
			return errLength
		}
		f.length = n
		h.Add(name, value)
	case "transfer-encoding":
		return f.transferEncoding(value)
	case "host":
		f.host = value
		f.hosts++
	case "connection":
		return f.conn.parse(value)
	case "upgrade":
		if f.upgrade == "" {
			f.upgrade, _ = nextToken(value)
		}
	case "expect":
		f.expect = value
	case "te":
		if hasTrailers(value) && !h.Has("te") {
			h.Add("te", "trailers")
		}
	case "keep-alive", "proxy-connection", "http2-settings":
	default:
		h.Add(name, value)
	}
	return nil
}

// transferEncoding takes "chunked" and nothing else. What is well-formed and not known here is another fault than what
// does not end with "chunked" (RFC 9112 sections 6.1 and 6.3).
func (f *framing) transferEncoding(list string) error {
	if f.coding {
		return errCoding
	}
	f.coding = true
	if message.EqualFold(list, "chunked") {
		f.chunked = true
		return nil
	}
	unknown := false
	for list != "" {
		var tok string
		tok, list = nextToken(list)
		switch {
		case list == "" && message.EqualFold(tok, "chunked"):
			if unknown {
				return errUnknownCoding
			}
		case message.EqualFold(tok, "gzip"), message.EqualFold(tok, "x-gzip"), message.EqualFold(tok, "deflate"),
			message.EqualFold(tok, "compress"), message.EqualFold(tok, "x-compress"):
			unknown = true
		default:
			return errCoding
		}
	}
	return errCoding
}

// nextToken cuts the first element off a comma-separated list.
func nextToken(list string) (tok, rest string) {
	i := 0
	for i < len(list) && list[i] != ',' {
		i++
	}
	tok = list[:i]
	if i < len(list) {
		i++
	}
	for tok != "" && (tok[0] == ' ' || tok[0] == '\t') {
		tok = tok[1:]
	}
	for n := len(tok); n > 0 && (tok[n-1] == ' ' || tok[n-1] == '\t'); n = len(tok) {
		tok = tok[:n-1]
	}
	return tok, list[i:]
}

func hasTrailers(list string) bool {
	for list != "" {
		var tok string
		if tok, list = nextToken(list); message.EqualFold(tok, "trailers") {
			return true
		}
	}
	return false
}

// parse acts on one Connection field.
func (c *connection) parse(list string) error {
	for list != "" {
		var tok string
		tok, list = nextToken(list)
		switch {
		case tok == "":
		case !message.Token(tok):
			return errValue
		case message.EqualFold(tok, "close"):
			c.close = true
		case message.EqualFold(tok, "keep-alive"):
			c.keepAlive = true
		case message.EqualFold(tok, "upgrade"):
			c.upgrade = true
		case message.EqualFold(tok, "te"), message.EqualFold(tok, "http2-settings"), message.EqualFold(tok, "proxy-connection"):
		case message.EqualFold(tok, "content-length"), message.EqualFold(tok, "transfer-encoding"),
			message.EqualFold(tok, "host"), message.EqualFold(tok, "trailer"), message.EqualFold(tok, "expect"):
			return errNominated
		case c.n == len(c.named):
			return errNominated
		default:
			c.named[c.n] = tok
			c.n++
		}
	}
	return nil
}

// parseTrailer parses the fields behind the last chunk, up to the empty line, into h. b is all of them. Names that speak
// of the framing, of routing or of the content have no place there (RFC 9110 section 6.5.1).
func parseTrailer(b []byte, h *message.Header, limit int) error {
	own := h.Take(len(b))
	copy(own, b)
	for n, i := 0, 0; ; n++ {
		name, value, next, err := cutField(own, i)
		switch {
		case err == errPartial:
			return errName
		case err != nil:
			return err
		case name == "":
			return nil
		case n == limit:
			return errFields
		}
		if notInTrailer(name) {
			return errTrailer
		}
		h.Add(name, value)
		i = next
	}
}
