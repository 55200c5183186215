package http1

import (
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// parseRequest parses the head at the beginning of b into r, which is empty, and returns its length; errPartial if it is
// not whole. b is changed, and r points into it. What the head says about the framing is in f.
func parseRequest(b []byte, r *message.Request, limit int, f *framing) (int, error) {
	i, err := requestLine(b, r)
	if err != nil {
		return 0, err
	}
	n, err := parseFields(b, i, &r.Header, limit, f)
	if err != nil {
		return 0, err
	}
	if err := f.checkHost(r); err != nil {
		return 0, err
	}
	if f.coding && r.Proto == message.HTTP10 {
		return 0, errCoding
	}
	r.ContentLength = max(f.length, 0)
	if f.chunked {
		r.ContentLength = -1
	}
	if r.Method == "CONNECT" && r.ContentLength != 0 {
		return 0, errConnectBody
	}
	if f.expect != "" && r.Proto == message.HTTP11 {
		if !message.EqualFold(f.expect, "100-continue") {
			return 0, errExpect
		}
		r.Expect100 = r.ContentLength != 0
	}
	// a change of protocol behind a body, and the change to HTTP/2, are not offered (RFC 9110 section 7.8 allows it)
	if f.conn.upgrade && f.upgrade != "" && r.Proto == message.HTTP11 && r.Method != "CONNECT" && r.ContentLength == 0 &&
		!message.EqualFold(f.upgrade, "h2c") {
		if !upgradeToken(f.upgrade) {
			return 0, errValue
		}
		r.Upgrade = lower(&r.Header, f.upgrade)
	}
	return n, nil
}

// lower is s in lower case, in h's arena if it has to change.
func lower(h *message.Header, s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return h.HoldLower(s)
		}
	}
	return s
}

// upgradeToken says that s is protocol-name ["/" protocol-version].
func upgradeToken(s string) bool {
	name, version, ok := strings.Cut(s, "/")
	return message.Token(name) && (!ok || message.Token(version))
}

// checkHost finds the authority. The absolute form and CONNECT's win over Host (RFC 9112 section 3.2.2), which has to be
// one all the same.
func (f *framing) checkHost(r *message.Request) error {
	switch {
	case f.hosts > 1:
		return errHosts
	case f.hosts == 0 && r.Proto == message.HTTP11:
		return errHost
	case f.hosts == 1 && !message.Authority(f.host):
		return errHost
	case r.Authority == "":
		r.Authority = f.host
	}
	return nil
}

// requestLine parses method SP request-target SP HTTP-version (RFC 9112 section 3) and returns where the next line begins.
func requestLine(b []byte, r *message.Request) (int, error) {
	i := 0
	for i < len(b) && lowerToken[b[i]] != 0 {
		i++
	}
	switch {
	case i == len(b):
		return 0, errPartial
	case b[i] != ' ' || i == 0:
		return 0, errLine
	}
	r.Method = message.String(b[:i])
	if !message.Method(r.Method) {
		return 0, errMethod
	}
	start := i + 1
	for i++; i < len(b) && inTarget[b[i]]; i++ {
	}
	switch {
	case i == len(b):
		return 0, errPartial
	case i == start:
		return 0, errLine
	case b[i] != ' ':
		return 0, errTarget
	}
	if err := target(message.String(b[start:i]), r); err != nil {
		return 0, err
	}
	i++
	if len(b) < i+8 {
		return 0, partialVersion(b[i:])
	}
	var err error
	if r.Proto, err = version(b[i : i+8]); err != nil {
		return 0, err
	}
	next, err := lineEnd(b, i+8)
	if err == errValue {
		err = errLine
	}
	return next, err
}

// partialVersion tells a version that has not come whole from something else.
func partialVersion(b []byte) error {
	if strings.HasPrefix("HTTP/", message.String(b[:min(len(b), 5)])) {
		return errPartial
	}
	return errLine
}

// version parses "HTTP/1.x".
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

// target parses the four forms of a request target (RFC 9112 section 3.2). Its octets have been looked at.
func target(t string, r *message.Request) error {
	r.Scheme = "http"
	switch {
	case r.Method == "CONNECT":
		if !message.Authority(t) || !hasPort(t) {
			return errTarget
		}
		r.Authority = t
	case t[0] == '/':
		r.Path = t
	case t == "*":
		if r.Method != "OPTIONS" {
			return errTarget
		}
		r.Path = t
	default:
		return absolute(t, r)
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
		p := r.Header.Take(len(r.Path) + 1)
		p[0] = '/'
		copy(p[1:], r.Path)
		r.Path = message.String(p)
	}
	return nil
}

// hasPort says that an authority ends with a port.
func hasPort(s string) bool {
	return digit(s[len(s)-1]) && strings.LastIndexByte(s, ':') > strings.LastIndexByte(s, ']')
}

// parseResponse is parseRequest for a response.
func parseResponse(b []byte, r *message.Response, limit int, f *framing) (int, error) {
	i, err := statusLine(b, r)
	if err != nil {
		return 0, err
	}
	n, err := parseFields(b, i, &r.Header, limit, f)
	if err != nil {
		return 0, err
	}
	if f.coding && r.Proto == message.HTTP10 {
		return 0, errCoding
	}
	r.ContentLength = f.length
	return n, nil
}

// statusLine parses HTTP-version SP 3DIGIT [SP reason] (RFC 9112 section 4); many leave out the second blank with the
// reason.
func statusLine(b []byte, r *message.Response) (int, error) {
	if len(b) < 13 {
		if k := min(len(b), 7); "HTTP/1."[:k] != message.String(b[:k]) {
			return 0, errStatus
		}
		return 0, errPartial
	}
	var err error
	if r.Proto, err = version(b[:8]); err != nil || b[8] != ' ' {
		return 0, errStatus
	}
	for _, c := range b[9:12] {
		if !digit(c) {
			return 0, errStatus
		}
		r.Status = 10*r.Status + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 || b[12] != ' ' && b[12] != '\r' {
		return 0, errStatus
	}
	next, err := lineEnd(b, skipValue(b, 12))
	if err == errValue {
		err = errStatus
	}
	return next, err
}
