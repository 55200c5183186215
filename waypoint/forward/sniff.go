package forward

import "bytes"

// protocol is what the first bytes of a connection look like.
type protocol uint8

const (
	// undecided: more bytes are needed.
	undecided protocol = iota
	// plainTCP is anything else, or nothing within the time limit.
	plainTCP
	// http1Proto is HTTP/1.x, told by its request line.
	http1Proto
	// http2Proto is HTTP/2 without TLS, told by its preface.
	http2Proto
	// tlsProto is TLS, told by its ClientHello.
	tlsProto
)

// tlsHandshake is the first byte of a TLS connection: the type of its record.
const tlsHandshake = 22

var (
	preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	// methods are those that begin an HTTP/1 request, as Envoy's HTTP inspector knows them.
	methods = [][]byte{
		[]byte("GET "), []byte("HEAD "), []byte("POST "), []byte("PUT "), []byte("DELETE "), []byte("CONNECT "),
		[]byte("OPTIONS "), []byte("TRACE "), []byte("PATCH "),
	}
)

// maxRequestLine is how long a request line may be before detection gives up, in bytes.
const maxRequestLine = 8 << 10

// sniff looks at the first bytes of a connection. HTTP/1 is decided by a whole request line that ends with a version: a
// protocol whose first word merely looks like a method stays TCP.
func sniff(b []byte) protocol {
	if len(b) == 0 {
		return undecided
	}
	if n := min(len(b), len(preface)); bytes.Equal(b[:n], preface[:n]) {
		if n == len(preface) {
			return http2Proto
		}
		return undecided
	}
	known := false
	for _, m := range methods {
		n := min(len(b), len(m))
		if bytes.Equal(b[:n], m[:n]) {
			known = true
			break
		}
	}
	if !known {
		return plainTCP
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) > maxRequestLine {
			return plainTCP
		}
		return undecided
	}
	line := bytes.TrimSuffix(b[:end], []byte("\r"))
	if i := bytes.LastIndexByte(line, ' '); i > 0 && (string(line[i+1:]) == "HTTP/1.1" || string(line[i+1:]) == "HTTP/1.0") {
		return http1Proto
	}
	return plainTCP
}
