package http1

import (
	"bytes"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// parseRequest parses a whole head, with its empty line, into r, which is empty. What it says about the framing is in f.
func parseRequest(b []byte, r *message.Request, limit int, f *framing) error {
	line, rest := cutLine(b)
	if err := requestLine(line, r); err != nil {
		return err
	}
	if err := parseFields(rest, &r.Header, limit, f); err != nil {
		return err
	}
	switch {
	case f.hosts > 1:
		return errHosts
	case f.hosts == 0 && r.Proto == message.HTTP11:
		return errHost
	case f.hosts == 1 && !message.Authority(f.host):
		return errHost
	case r.Authority != "" && f.hosts == 1 && !message.EqualFold(r.Authority, f.host):
		return errMismatch
	case r.Authority == "":
		r.Authority = f.host
	}
	if f.chunked && r.Proto == message.HTTP10 {
		return errCoding
	}
	if f.expect != "" && r.Proto == message.HTTP11 {
		if !message.EqualFold(f.expect, "100-continue") {
			return errExpect
		}
		r.Expect100 = true
	}
	if f.conn.upgrade && r.Proto == message.HTTP11 && r.Method != "CONNECT" && !message.EqualFold(f.upgrade, "h2c") {
		if f.upgrade != "" && !message.Token(f.upgrade) {
			return errValue
		}
		r.Upgrade = r.Header.HoldLower(f.upgrade)
	}
	r.ContentLength = max(f.length, 0)
	if f.chunked {
		r.ContentLength = -1
	}
	return nil
}

// requestLine parses method SP request-target SP HTTP-version (RFC 9112 section 3).
func requestLine(line []byte, r *message.Request) (err error) {
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i <= 0 || j <= i+1 {
		return errLine
	}
	if r.Proto, err = version(line[j+1:]); err != nil {
		return err
	}
	if !message.Method(message.String(line[:i])) {
		return errMethod
	}
	r.Method = r.Header.HoldBytes(line[:i])
	return target(r.Header.HoldBytes(line[i+1:j]), r)
}

// target parses the four forms of a request target (RFC 9112 section 3.2).
func target(t string, r *message.Request) error {
	r.Scheme = "http"
	switch {
	case r.Method == "CONNECT":
		if !message.Authority(t) || !hasPort(t) {
			return errTarget
		}
		r.Authority = t
		return nil
	case t[0] == '/':
		r.Path = t
	case t == "*":
		if r.Method != "OPTIONS" {
			return errTarget
		}
		r.Path = t
		return nil
	default:
		if err := absolute(t, r); err != nil {
			return err
		}
	}
	if r.Path != "*" && !message.PathAndQuery(r.Path) {
		return errTarget
	}
	return nil
}

// absolute parses the absolute form.
func absolute(t string, r *message.Request) error {
	switch {
	case len(t) > 7 && message.EqualFold(t[:7], "http://"):
		t = t[7:]
	case len(t) > 8 && message.EqualFold(t[:8], "https://"):
		r.Scheme, t = "https", t[8:]
	default:
		return errTarget
	}
	i := 0
	for i < len(t) && t[i] != '/' && t[i] != '?' {
		i++
	}
	if r.Authority = t[:i]; !message.Authority(r.Authority) {
		return errTarget
	}
	switch r.Path = t[i:]; {
	case r.Path == "" && r.Method == "OPTIONS":
		r.Path = "*"
	case r.Path == "":
		r.Path = "/"
	case r.Path[0] == '?':
		r.Path = r.Header.Hold("/" + r.Path)
	}
	return nil
}

// hasPort says that an authority ends with a port.
func hasPort(s string) bool {
	return digit(s[len(s)-1]) && bytes.LastIndexByte(message.Bytes(s), ':') > bytes.LastIndexByte(message.Bytes(s), ']')
}

// parseResponse parses a whole head, with its empty line, into r, which is empty.
func parseResponse(b []byte, r *message.Response, limit int, f *framing) (err error) {
	line, rest := cutLine(b)
	// HTTP-version SP 3DIGIT [SP reason] (RFC 9112 section 4); many leave out the second blank with the reason
	if len(line) < 12 || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatus
	}
	if r.Proto, err = version(line[:8]); err != nil {
		return errStatus
	}
	for _, c := range line[9:12] {
		if !digit(c) {
			return errStatus
		}
		r.Status = 10*r.Status + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 {
		return errStatus
	}
	for _, c := range line[12:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return errStatus
		}
	}
	if err := parseFields(rest, &r.Header, limit, f); err != nil {
		return err
	}
	if f.chunked && r.Proto == message.HTTP10 {
		return errCoding
	}
	r.ContentLength = f.length
	return nil
}

// parseTrailer parses the fields behind the last chunk, up to the empty line, into h.
func parseTrailer(b []byte, h *message.Header, limit int) error {
	n := 0
	for {
		var line []byte
		line, b = cutLine(b)
		if len(line) == 0 {
			return nil
		}
		if n++; n > limit {
			return errFields
		}
		name, value, err := cutField(line, h)
		if err != nil {
			return err
		}
		switch name {
		case "content-length", "transfer-encoding", "host", "te", "trailer", "connection", "upgrade", "keep-alive", "proxy-connection",
			"content-encoding", "content-type", "content-range", "authorization", "set-cookie", "expect":
			return errTrailer // RFC 9110 section 6.5.1
		}
		h.Add(name, value)
	}
}
