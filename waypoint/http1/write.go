package http1

import (
	"net/http"
	"strconv"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// writer is how the body of a message that is being sent is delimited.
type writer struct {
	kind bodyKind
	left int64 // byLength
	drop bool  // the message has no body, whatever is given (HEAD, 204, 304)
}

// appendFields appends the fields of h that are not the connection's. hasLength and length are those of Content-Length,
// which is not appended. What could not be a field never gets on the wire.
func appendFields(b []byte, h *message.Header) (out []byte, length int64, hasLength bool) {
	for _, f := range h.Fields() {
		switch f.Name {
		case "content-length":
			length, hasLength = message.Length(f.Value)
			continue
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings", "host", "expect":
			continue
		}
		b = appendField(b, f)
	}
	return b, length, hasLength
}

func appendField(b []byte, f message.Field) []byte {
	if !message.LowerToken(f.Name) || !message.Value(f.Value) {
		return b
	}
	b = append(b, f.Name...)
	b = append(b, ": "...)
	b = append(b, f.Value...)
	return append(b, "\r\n"...)
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "content-length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

const codingLine = "transfer-encoding: chunked\r\n"

// appendRequest appends the head of a request and says how its body is delimited.
func appendRequest(b []byte, r *message.Request, end bool) ([]byte, writer) {
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
	b, n, has := appendFields(b, &r.Header)
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
	if r.Expect100 && !end {
		b = append(b, "expect: 100-continue\r\n"...)
	}
	w := writer{kind: noBody}
	switch {
	case r.Method == "CONNECT":
	case end:
		if has && n == 0 || !has && bodyExpected(r.Method) {
			b = appendLength(b, 0)
		}
	case r.Upgrade != "" && (!has || n == 0): // what follows is the tunnel
	case has:
		b = appendLength(b, n)
		w = writer{kind: byLength, left: n}
	default:
		b = append(b, codingLine...)
		w.kind = chunked
	}
	return append(b, "\r\n"...), w
}

// bodyExpected says that a request of the method without a body says so (RFC 9110 section 8.6).
func bodyExpected(method string) bool {
	return method == "POST" || method == "PUT" || method == "PATCH"
}

// appendStatus appends a status line.
func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// answering is what the head of a response depends on besides itself.
type answering struct {
	head    bool // the request was HEAD
	connect bool // ... CONNECT
	old     bool // the client speaks HTTP/1.0
	closing bool // the connection ends after this answer
	keep    bool // an HTTP/1.0 client asked to keep it
}

// appendResponse appends the head of a final response other than 101, says how its body is delimited, and whether the
// connection has to end with it.
func appendResponse(b []byte, r *message.Response, end bool, a answering) ([]byte, writer, bool) {
	b = appendStatus(b, r.Status)
	b, n, has := appendFields(b, &r.Header)
	w := writer{kind: noBody}
	switch {
	case a.connect && r.Status/100 == 2:
		return append(b, "\r\n"...), writer{kind: untilClose}, true
	case r.Status == 204:
		w.drop = true
	case a.head || r.Status == 304:
		w.drop = true
		if has {
			b = appendLength(b, n)
		} else if !a.old && !end {
			b = append(b, codingLine...)
		}
	case end:
		b = appendLength(b, 0)
	case has:
		b = appendLength(b, n)
		w = writer{kind: byLength, left: n}
	case a.old:
		w.kind, a.closing = untilClose, true
	default:
		b = append(b, codingLine...)
		w.kind = chunked
	}
	switch {
	case a.closing:
		b = append(b, "connection: close\r\n"...)
	case a.keep:
		b = append(b, "connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...), w, a.closing
}

// appendSwitch appends the head of a 101.
func appendSwitch(b []byte, r *message.Response, proto string) []byte {
	b = appendStatus(b, 101)
	b, _, _ = appendFields(b, &r.Header)
	b = append(b, "connection: upgrade\r\nupgrade: "...)
	b = append(b, proto...)
	return append(b, "\r\n\r\n"...)
}

// appendInterim appends a 1xx response.
func appendInterim(b []byte, r *message.Response) []byte {
	b = appendStatus(b, r.Status)
	b, _, _ = appendFields(b, &r.Header)
	return append(b, "\r\n"...)
}

// appendEnd appends what ends a chunked body.
func appendEnd(b []byte, trailer *message.Header) []byte {
	b = append(b, "0\r\n"...)
	if trailer != nil {
		for _, f := range trailer.Fields() {
			if !message.ConnectionField(f.Name) && f.Name != "content-length" && f.Name != "host" {
				b = appendField(b, f)
			}
		}
	}
	return append(b, "\r\n"...)
}
