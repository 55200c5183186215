package http1

import (
	"bytes"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// fault is a peer's breach of the rules; status is what a client gets to hear.
type fault struct {
	status int
	what   string
	kind   error
}

// Error implements error.
func (f *fault) Error() string { return f.what }

// Unwrap says which sentinel of package message applies.
func (f *fault) Unwrap() error { return f.kind }

func malformed(what string) error { return &fault{400, what, message.ErrMalformed} }

var (
	errBareLF    = malformed("line ends without CR")
	errBareCR    = malformed("control character in a line")
	errFold      = malformed("folded line")
	errName      = malformed("bad field name")
	errValue     = malformed("bad field value")
	errLine      = malformed("bad request line")
	errStatus    = malformed("bad status line")
	errMethod    = malformed("bad method")
	errTarget    = malformed("bad request target")
	errHost      = malformed("bad Host")
	errHosts     = malformed("several Host fields")
	errMismatch  = malformed("Host differs from the target")
	errLength    = malformed("bad Content-Length")
	errLengths   = malformed("several Content-Length fields")
	errCoding    = malformed("bad Transfer-Encoding")
	errBoth      = malformed("Content-Length beside Transfer-Encoding")
	errNominated = malformed("Connection names a field of the framing")
	errTrailer   = malformed("field not allowed in a trailer")
	errChunk     = malformed("bad chunk")
	errVersion   = error(&fault{505, "HTTP version not supported", message.ErrMalformed})
	errExpect    = error(&fault{417, "unknown expectation", message.ErrMalformed})
	errTooLarge  = error(&fault{431, "head too large", message.ErrTooLarge})
	errFields    = error(&fault{431, "too many fields", message.ErrTooLarge})
	errExtension = malformed("chunk extensions too long")
)

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

// cutLine splits b, which has whole lines only, behind its first line.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	return b[:i-1], b[i+1:]
}

// connection is what a head says about the connection.
type connection struct {
	close, keepAlive, upgrade bool
	named                     [8]string // other fields that it names
	n                         int       // of named
}

// framing is what a head says about its body.
type framing struct {
	length  int64 // -1: no Content-Length
	chunked bool
	host    string
	hosts   int
	upgrade string
	expect  string
	conn    connection
}

// parseFields parses the field lines in b up to the empty line into h, all but those that are about the connection or the
// framing. Content-Length is both.
func parseFields(b []byte, h *message.Header, limit int, f *framing) error {
	f.length = -1
	n := 0
	for {
		var line []byte
		line, b = cutLine(b)
		if len(line) == 0 {
			break
		}
		if n++; n > limit {
			return errFields
		}
		name, value, err := cutField(line, h)
		if err != nil {
			return err
		}
		if err := f.field(h, name, value); err != nil {
			return err
		}
	}
	if f.chunked && f.length >= 0 {
		return errBoth
	}
	for _, name := range f.conn.named[:f.conn.n] {
		dropFold(h, name)
	}
	return nil
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

// cutField takes a field line apart; the strings are in h's arena.
func cutField(line []byte, h *message.Header) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", errFold
	}
	i := bytes.IndexByte(line, ':')
	if i <= 0 || !message.Token(message.String(line[:i])) {
		return "", "", errName
	}
	v := bytes.Trim(line[i+1:], " \t")
	if !message.Value(message.String(v)) {
		return "", "", errValue
	}
	return h.HoldLower(message.String(line[:i])), h.HoldBytes(v), nil
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
		if f.chunked || !message.EqualFold(value, "chunked") {
			return errCoding
		}
		f.chunked = true
	case "host":
		f.host = value
		f.hosts++
	case "connection":
		return f.conn.parse(value)
	case "upgrade":
		if f.upgrade == "" {
			f.upgrade = firstToken(value)
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

func firstToken(list string) string {
	tok, _ := nextToken(list)
	return tok
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
			message.EqualFold(tok, "host"), message.EqualFold(tok, "trailer"):
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

// version parses "HTTP/1.x" at the end of a request line or the beginning of a status line.
func version(b []byte) (message.Proto, error) {
	switch {
	case string(b) == "HTTP/1.1":
		return message.HTTP11, nil
	case string(b) == "HTTP/1.0":
		return message.HTTP10, nil
	case len(b) == 8 && string(b[:5]) == "HTTP/" && digit(b[5]) && b[6] == '.' && digit(b[7]):
		return 0, errVersion
	}
	return 0, errLine
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
