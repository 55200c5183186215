// Package message holds what an HTTP message looks like to the parts of a waypoint, whatever it is on the wire: its head
// (Request, Response, Header), and the interfaces by which its body moves (Taker, ServerStream, ClientStream). The codecs
// http1 and http2 implement them; forward is written against them only.
//
// Everything here belongs to one loop. A codec never calls back from inside a call of one of its methods, but for Close of
// a connection.
package message

import "unsafe"

// Proto is a version of HTTP.
type Proto uint8

// The versions.
const (
	HTTP10 Proto = iota + 1
	HTTP11
	HTTP2
)

// String is the version as in an access log.
func (p Proto) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return "unknown"
}

// Request is the head of a request. Its strings may lie in the Header's arena: they are valid until Reset.
type Request struct {
	// Method is as received; methods are case-sensitive.
	Method string
	// Scheme is "http" or "https". An HTTP/1 request that does not name one has "http".
	Scheme string
	// Authority is the target's host and port as received: of HTTP/1 the absolute form's, or Host. It is not in Header. ""
	// only of an HTTP/1.0 request without Host.
	Authority string
	// Path is path and query as received. "*" for the asterisk form, "" for an ordinary CONNECT.
	Path string
	// Header has no field that belongs to the connection, no Host and no pseudo header. "te" is there only as "trailers".
	Header Header
	// Proto is the version that the request was received in.
	Proto Proto
	// ContentLength is the length of the body in bytes as announced, 0 if the head says that there is none, -1 if it is not
	// known. A codec that sends goes by the field content-length in Header.
	ContentLength int64
	// Upgrade is the protocol that the client wants to change to, lower case: HTTP/1's first Upgrade token, HTTP/2's
	// :protocol (RFC 8441; Method is then GET here, and each codec writes what its version demands). "" if none.
	Upgrade string
	// Expect100 says that the client waits for 100 (Continue). A server codec sends it by itself at the end of the turn in
	// which the body was asked for (SetTaker), unless the final answer has been given by then. It is not in Header.
	Expect100 bool
}

// Reset makes r empty; its memory is kept for the next use.
func (r *Request) Reset() {
	r.Header.Reset()
	*r = Request{Header: r.Header, ContentLength: -1}
}

// Copy makes r a copy of o that shares no memory with it.
func (r *Request) Copy(o *Request) {
	h := &r.Header
	h.Copy(&o.Header)
	*r = Request{
		Method: h.Hold(o.Method), Scheme: h.Hold(o.Scheme), Authority: h.Hold(o.Authority), Path: h.Hold(o.Path), Header: r.Header,
		Proto: o.Proto, ContentLength: o.ContentLength, Upgrade: h.Hold(o.Upgrade), Expect100: o.Expect100,
	}
}

// Response is the head of a response. Its strings may lie in the Header's arena: they are valid until Reset.
type Response struct {
	// Status is 100 to 599 as received.
	Status int
	// Header has no field that belongs to the connection and no pseudo header.
	Header Header
	// Proto is the version that the response was received in.
	Proto Proto
	// ContentLength is as in Request. Of an answer to HEAD, and of a 304, it is that of the body which is not there.
	ContentLength int64
	// Upgrade is the protocol that was agreed to by 101, lower case; "" otherwise. HTTP/2's 200 to an extended CONNECT
	// appears as 101 too.
	Upgrade string
}

// Reset makes r empty; its memory is kept for the next use.
func (r *Response) Reset() {
	r.Header.Reset()
	*r = Response{Header: r.Header, ContentLength: -1}
}

// Copy makes r a copy of o that shares no memory with it.
func (r *Response) Copy(o *Response) {
	r.Header.Copy(&o.Header)
	up := r.Header.Hold(o.Upgrade)
	*r = Response{Status: o.Status, Header: r.Header, Proto: o.Proto, ContentLength: o.ContentLength, Upgrade: up}
}

// Bytes is the memory of s, which must not be changed.
func Bytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// String is b as a string that shares its memory: b must not change for as long as the string is used.
func String(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
