package http2

import (
	"strconv"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// head is what is known of a header block besides its ordinary fields.
type head struct {
	method, scheme, authority, path, protocol, status string

	seen    uint8  // pseudo-header fields
	fields  int    // ordinary fields
	size    int    // as in RFC 9113 section 6.5.2
	tooBig  bool   // fields beyond the limits were dropped
	bad     string // the first rule that was broken
	host    string
	hosts   int
	length  int64 // of content-length; -1 if there is none
	cookies int
	expect  string
}

// Pseudo-header fields that were seen.
const (
	sawMethod = 1 << iota
	sawScheme
	sawAuthority
	sawPath
	sawProtocol
	sawStatus
)

// decodeHead decodes a header block: ordinary fields into h, the others into hd. The error is one of the connection.
func (c *conn) decodeHead(p []byte, h *message.Header, hd *head) error {
	hd.length = -1
	c.dec.resizes = 0
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	to := h
	for len(p) > 0 {
		f, rest, err := c.dec.next(p, sc, to)
		if err != nil {
			return connError(message.CodeCompression, err.Error())
		}
		p = rest
		if f.resize {
			continue
		}
		if hd.size += len(f.name) + len(f.value) + 32; hd.size > c.lim.HeadBytes || hd.fields > c.lim.Fields {
			hd.tooBig, to = true, nil
		}
		if to != nil && hd.bad == "" {
			hd.add(h, f)
		}
	}
	if cap(sc.value) > maxBlock {
		sc.value = make([]byte, 0, 1024)
	}
	return nil
}

// skipBlock decodes a block for its effect on the table only.
func (c *conn) skipBlock(p []byte) error {
	c.dec.resizes = 0
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	for len(p) > 0 {
		_, rest, err := c.dec.next(p, sc, nil)
		if err != nil {
			return connError(message.CodeCompression, err.Error())
		}
		p = rest
	}
	return nil
}

// add takes one field.
func (hd *head) add(h *message.Header, f field) {
	if !f.valid {
		hd.bad = "field with a bad name or value"
		return
	}
	if f.name[0] == ':' {
		hd.pseudo(f)
		return
	}
	hd.fields++
	switch f.name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
		hd.bad = "field of the connection"
		return
	case "te":
		if f.value != "trailers" {
			hd.bad = "te other than trailers"
			return
		}
	case "host":
		hd.hosts++
		hd.host = f.value
		return
	case "content-length":
		n, ok := message.Length(f.value)
		if !ok || hd.length >= 0 && hd.length != n {
			hd.bad = "bad content-length"
			return
		}
		if hd.length == n {
			return
		}
		hd.length = n
	case "cookie":
		hd.cookies++
	case "expect":
		hd.expect = f.value
		return
	}
	h.Add(f.name, f.value)
}

func (hd *head) pseudo(f field) {
	var bit uint8
	var to *string
	switch f.name {
	case ":method":
		bit, to = sawMethod, &hd.method
	case ":scheme":
		bit, to = sawScheme, &hd.scheme
	case ":authority":
		bit, to = sawAuthority, &hd.authority
	case ":path":
		bit, to = sawPath, &hd.path
	case ":protocol":
		bit, to = sawProtocol, &hd.protocol
	case ":status":
		bit, to = sawStatus, &hd.status
	default:
		hd.bad = "unknown pseudo-header field"
		return
	}
	if hd.seen&bit != 0 || hd.fields > 0 {
		hd.bad = "pseudo-header field twice or behind others"
		return
	}
	hd.seen |= bit
	*to = f.value
}

// request completes a request. why is the rule that was broken; a status is to be answered instead of serving it.
func (hd *head) request(r *message.Request, end bool) (status int, why malformed) {
	if hd.bad != "" {
		return 0, malformed(hd.bad)
	}
	if hd.tooBig {
		return 431, ""
	}
	if why := hd.target(); why != "" {
		return 0, why
	}
	if why := hd.authorities(); why != "" {
		return 0, why
	}
	r.Method, r.Scheme, r.Authority, r.Path, r.Proto = hd.method, hd.scheme, hd.authority, hd.path, message.HTTP2
	if hd.protocol != "" {
		r.Method = "GET"
		r.Upgrade = r.Header.HoldLower(hd.protocol)
	}
	r.ContentLength = hd.length
	if end {
		if hd.length > 0 {
			return 0, "body shorter than its content-length"
		}
		r.ContentLength = 0
	}
	if hd.expect != "" {
		if !message.EqualFold(hd.expect, "100-continue") {
			return 417, ""
		}
		r.Expect100 = !end
	}
	if hd.cookies > 1 {
		joinCookies(&r.Header)
	}
	return 0, ""
}

// target checks the pseudo-header fields of a request (RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4).
func (hd *head) target() malformed {
	switch {
	case hd.seen&sawStatus != 0:
		return "status in a request"
	case !message.Method(hd.method):
		return "bad method"
	}
	if hd.method == "CONNECT" && hd.seen&sawProtocol == 0 {
		if hd.seen&(sawScheme|sawPath) != 0 || hd.authority == "" {
			return "bad CONNECT"
		}
		hd.scheme = "http"
		return ""
	}
	if hd.seen&sawProtocol != 0 && (hd.method != "CONNECT" || !message.Token(hd.protocol) || hd.authority == "") {
		return "bad extended CONNECT"
	}
	switch {
	case hd.scheme != "http" && hd.scheme != "https":
		return "bad scheme"
	case hd.path == "*" && hd.method == "OPTIONS":
		return ""
	case !message.PathAndQuery(hd.path):
		return "bad path"
	}
	return ""
}

// authorities brings :authority and Host together (RFC 9113 section 8.3.1).
func (hd *head) authorities() malformed {
	switch {
	case hd.hosts > 1:
		return "more than one host"
	case hd.hosts == 1 && hd.seen&sawAuthority != 0 && !message.EqualFold(hd.host, hd.authority):
		return "host differs from the authority"
	case hd.hosts == 1 && hd.seen&sawAuthority == 0:
		hd.authority = hd.host
	}
	if !message.Authority(hd.authority) {
		return "bad authority"
	}
	return ""
}

// joinCookies makes one field of several (RFC 9113 section 8.2.3).
func joinCookies(h *message.Header) {
	var a [512]byte
	b := a[:0]
	for _, f := range h.Fields() {
		if f.Name == "cookie" {
			if len(b) > 0 {
				b = append(b, "; "...)
			}
			b = append(b, f.Value...)
		}
	}
	h.Set("cookie", h.HoldBytes(b))
}

// response completes a response to s.
func (hd *head) response(r *message.Response, s *stream, end bool) malformed {
	switch {
	case hd.bad != "":
		return malformed(hd.bad)
	case hd.seen != sawStatus || len(hd.status) != 3:
		return "bad status"
	}
	r.Status = 0
	for i := range 3 {
		d := hd.status[i]
		if d < '0' || d > '9' {
			return "bad status"
		}
		r.Status = 10*r.Status + int(d-'0')
	}
	switch {
	case r.Status < 100 || r.Status > 599 || r.Status == 101:
		return "bad status"
	case r.Status < 200 && end:
		return "interim response that ends the stream"
	}
	r.Proto, r.ContentLength = message.HTTP2, hd.length
	if end && !s.isHead && r.Status != 304 {
		if hd.length > 0 {
			return "body shorter than its content-length"
		}
		r.ContentLength = 0
	}
	return ""
}

// trailer completes a trailer. Fields that would change what the message is are dropped (RFC 9110 section 6.5.1).
func (hd *head) trailer(h *message.Header) malformed {
	switch {
	case hd.bad != "":
		return malformed(hd.bad)
	case hd.seen != 0:
		return "pseudo-header field in a trailer"
	}
	h.DelFunc(func(f message.Field) bool {
		switch f.Name {
		case "content-length", "te", "trailer", "authorization", "proxy-authorization", "set-cookie", "cookie", "content-encoding",
			"content-type", "content-range", "cache-control", "max-forwards", "range":
			return true
		}
		return false
	})
	return ""
}

// connectionField says that a field is not to be sent in HTTP/2.
func connectionField(f message.Field) bool {
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings", "host", "expect":
		return true
	case "te":
		return f.Value != "trailers"
	}
	return false
}

// fields appends ordinary fields.
func (e *encoder) fields(b []byte, h *message.Header) []byte {
	for _, f := range h.Fields() {
		if !connectionField(f) {
			b = e.field(b, f.Name, f.Value)
		}
	}
	return b
}

// status appends :status.
func (e *encoder) status(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x80|staticStatus)
	case 204:
		return append(b, 0x80|staticStatus+1)
	case 206:
		return append(b, 0x80|staticStatus+2)
	case 304:
		return append(b, 0x80|staticStatus+3)
	case 400:
		return append(b, 0x80|staticStatus+4)
	case 404:
		return append(b, 0x80|staticStatus+5)
	case 500:
		return append(b, 0x80|staticStatus+6)
	}
	b = append(b, staticStatus, 3) // literal, not indexed
	return strconv.AppendInt(b, int64(status), 10)
}

// request appends the head of a request.
func (e *encoder) request(b []byte, r *message.Request, end bool) []byte {
	method := r.Method
	if r.Upgrade != "" {
		method = "CONNECT"
	}
	switch method {
	case "GET":
		b = append(b, 0x80|staticGet)
	case "POST":
		b = append(b, 0x80|staticPost)
	default:
		b = e.indexed(b, ":method", method, true)
	}
	b = e.indexed(b, ":authority", r.Authority, true)
	if method != "CONNECT" || r.Upgrade != "" {
		if r.Scheme == "https" {
			b = append(b, 0x80|staticHTTPS)
		} else {
			b = append(b, 0x80|staticHTTP)
		}
		if r.Path == "/" {
			b = append(b, 0x80|staticPath)
		} else {
			b = appendLiteral(b, without, staticPath, ":path", r.Path)
		}
	}
	if r.Upgrade != "" {
		b = e.indexed(b, ":protocol", r.Upgrade, true)
	}
	b = e.fields(b, &r.Header)
	if r.Expect100 && !end {
		b = e.indexed(b, "expect", "100-continue", true)
	}
	return b
}
