package http1

import (
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// writer is how the body of a message that is being sent is delimited.
type writer struct {
	kind bodyKind
	left int64 // byLength
}

// reasons are the phrases of status lines; for others there is none.
var reasons = map[int]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
	200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content", 205: "Reset Content",
	206: "Partial Content", 207: "Multi-Status", 208: "Already Reported", 226: "IM Used",
	300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 305: "Use Proxy",
	307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
	406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout", 409: "Conflict", 410: "Gone",
	411: "Length Required", 412: "Precondition Failed", 413: "Payload Too Large", 414: "URI Too Long",
	415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed", 421: "Misdirected Request",
	422: "Unprocessable Entity", 423: "Locked", 424: "Failed Dependency", 425: "Too Early", 426: "Upgrade Required",
	428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
	505: "HTTP Version Not Supported", 507: "Insufficient Storage", 508: "Loop Detected", 511: "Network Authentication Required",
}

// statusLines are whole status lines of HTTP/1.1, by status less 100.
var statusLines = func() (t [500]string) {
	for i := range t {
		s := i + 100
		t[i] = "HTTP/1.1 " + strconv.Itoa(s) + " " + reasons[s] + "\r\n"
	}
	return t
}()

// appendStatus appends a status line. A client of HTTP/1.0 gets its own version, as Envoy and net/http do.
func appendStatus(b []byte, status int, old bool) []byte {
	at := len(b)
	b = append(b, statusLines[status-100]...)
	if old {
		b[at+len("HTTP/1.")] = '0'
	}
	return b
}

// appendFields appends the fields of h that are not the connection's, whatever h has. length is that of Content-Length,
// which is not appended, or -1. What could not be a field never gets on the wire; ok is false if lengths contradict.
func appendFields(b []byte, h *message.Header) (out []byte, length int64, ok bool) {
	length, ok = -1, true
	for _, f := range h.Fields() {
		switch f.Name {
		case "content-length":
			n, valid := message.Length(f.Value)
			if !valid || length >= 0 && length != n {
				ok = false
			}
			length = n
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings", "host", "expect":
		default:
			b = appendField(b, f)
		}
	}
	return b, length, ok
}

func appendField(b []byte, f message.Field) []byte {
	n := len(f.Name)
	for i := range n {
		if c := f.Name[i]; lowerToken[c] != c || c == 0 {
			return b
		}
	}
	if n == 0 || !validValue(f.Value) {
		return b
	}
	at, size := len(b), n+len(f.Value)+4
	b = slices.Grow(b, size)[:at+size]
	p := b[at:]
	copy(p, f.Name)
	p[n], p[n+1] = ':', ' '
	copy(p[n+2:], f.Value)
	p[size-2], p[size-1] = '\r', '\n'
	return b
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "content-length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

const codingLine = "transfer-encoding: chunked\r\n"

// writableRequest says that a request line can be made of r.
func writableRequest(r *message.Request) bool {
	switch {
	case !message.Token(r.Method) || r.Authority != "" && !message.Authority(r.Authority):
		return false
	case r.Method == "CONNECT":
		return r.Authority != ""
	case r.Path == "*":
		return r.Method == "OPTIONS"
	}
	if r.Path == "" || r.Path[0] != '/' {
		return false
	}
	for i := range len(r.Path) {
		if !inTarget[r.Path[i]] {
			return false
		}
	}
	return r.Upgrade == "" || upgradeToken(r.Upgrade)
}

// appendRequest appends the head of a request and says how its body is delimited.
func appendRequest(b []byte, r *message.Request, end bool) ([]byte, writer, bool) {
	if !writableRequest(r) {
		return b, writer{}, false
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	if r.Method == "CONNECT" {
		b = append(b, r.Authority...)
	} else {
		b = append(b, r.Path...)
	}
	b = append(b, " HTTP/1.1\r\nhost: "...)
	b = append(b, r.Authority...)
	b = append(b, "\r\n"...)
	b, length, ok := appendFields(b, &r.Header)
	if !ok {
		return b, writer{}, false
	}
	te := r.Header.Has("te")
	switch {
	case r.Upgrade != "" && te:
		b = append(b, "connection: upgrade, te\r\nupgrade: "...)
	case r.Upgrade != "":
		b = append(b, "connection: upgrade\r\nupgrade: "...)
	case te:
		b = append(b, "connection: te\r\n"...)
	}
	if r.Upgrade != "" {
		b = append(b, r.Upgrade...)
		b = append(b, "\r\n"...)
	}
	w := writer{kind: noBody}
	switch {
	case r.Method == "CONNECT", r.Upgrade != "": // what follows is the tunnel
	case end:
		if length == 0 || bodyExpected(r.Method) {
			b = appendLength(b, 0)
		}
	case length >= 0:
		b = appendLength(b, length)
		w = writer{kind: byLength, left: length}
	default:
		b = append(b, codingLine...)
		w.kind = chunked
	}
	if r.Expect100 && w.kind != noBody {
		b = append(b, "expect: 100-continue\r\n"...)
	}
	return append(b, "\r\n"...), w, true
}

// bodyExpected says that a request of the method without a body says so (RFC 9110 section 8.6): all but those that have no
// body by their nature, as from Envoy.
func bodyExpected(method string) bool {
	switch method {
	case "GET", "HEAD", "DELETE", "TRACE", "CONNECT":
		return false
	}
	return true
}

// answering is what the head of a response depends on besides itself.
type answering struct {
	head    bool // the request was HEAD
	connect bool // ... CONNECT
	old     bool // the client speaks HTTP/1.0
	keep    bool // the connection goes on after this answer
	said    bool // ... and an HTTP/1.0 client has to be told
}

// appendResponse appends the head of a final response other than 101, says how its body is delimited, and whether the
// connection goes on.
func appendResponse(b []byte, r *message.Response, end bool, a answering) (out []byte, w writer, keep, ok bool) {
	if r.Status < 200 || r.Status > 599 {
		return b, w, false, false
	}
	b = appendStatus(b, r.Status, a.old)
	b, length, ok := appendFields(b, &r.Header)
	if !ok {
		return b, w, false, false
	}
	w.kind, keep = noBody, a.keep
	switch {
	case a.connect && r.Status/100 == 2:
		return append(b, "\r\n"...), writer{kind: untilClose}, false, true
	case r.Status == 204:
	case a.head || r.Status == 304:
		if length >= 0 {
			b = appendLength(b, length)
		} else if a.head && !a.old && !end {
			b = append(b, codingLine...)
		}
	case end:
		b = appendLength(b, 0)
	case length >= 0:
		b = appendLength(b, length)
		w = writer{kind: byLength, left: length}
	case a.old:
		w.kind, keep = untilClose, false
	default:
		b = append(b, codingLine...)
		w.kind = chunked
	}
	switch {
	case !keep:
		b = append(b, "connection: close\r\n"...)
	case a.said:
		b = append(b, "connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...), w, keep, true
}

// appendSwitch appends the head of a 101.
func appendSwitch(b []byte, r *message.Response, proto string) []byte {
	b = appendStatus(b, 101, false)
	b, _, _ = appendFields(b, &r.Header)
	b = append(b, "connection: upgrade\r\nupgrade: "...)
	b = append(b, proto...)
	return append(b, "\r\n\r\n"...)
}

// appendInterim appends a 1xx response.
func appendInterim(b []byte, r *message.Response) []byte {
	b = appendStatus(b, r.Status, false)
	b, _, _ = appendFields(b, &r.Header)
	return append(b, "\r\n"...)
}

// appendEnd appends what ends a chunked body.
func appendEnd(b []byte, trailer *message.Header) []byte {
	b = append(b, "0\r\n"...)
	if trailer != nil {
		for _, f := range trailer.Fields() {
			if !notInTrailer(f.Name) {
				b = appendField(b, f)
			}
		}
	}
	return append(b, "\r\n"...)
}

// notInTrailer tells names that speak of the framing, of routing or of the content: they have no place in a trailer (RFC
// 9110 section 6.5.1).
func notInTrailer(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "host", "te", "trailer", "connection", "upgrade", "keep-alive", "proxy-connection",
		"content-encoding", "content-type", "content-range", "authorization", "set-cookie", "expect", "http2-settings":
		return true
	}
	return false
}
