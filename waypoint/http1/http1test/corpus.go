// Package http1test is what a proxy of HTTP/1 is attacked with, and what it may let through, for tests.
package http1test

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Attack is one input of the smuggling corpus. Status is what a client is answered first; 200 means that the requests in
// Seen, and nothing else, reach the backend, each in canonical form.
type Attack struct {
	Name   string
	In     string
	Status int
	Seen   []string // method, target, body
}

// get is a GET with the lines in its head.
func get(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(lines, "", ""), "\r\n")
}

// post is a POST with the lines in its head, and a body.
func post(body string, lines ...string) string {
	return "POST / HTTP/1.1\r\nHost: h\r\n" + strings.Join(append(lines, "", ""), "\r\n") + body
}

// chunks is a chunked POST.
func chunks(body string) string { return post(body, "Transfer-Encoding: chunked") }

// line is a request with the given request line.
func line(l string) string { return l + "\r\nHost: h\r\n\r\n" }

const inner = "GET /inner HTTP/1.1\r\nHost: h\r\n\r\n"

var (
	onlyGet = []string{"GET / "}
	hello   = []string{"POST / hello"}
)

// Corpus is B9 to B13 of ecosystem.md, and what was published about smuggling: length against coding (CL.TE, TE.CL, TE.TE,
// CL.0, 0.CL), line ends, folding, chunks, targets, hosts, changes of protocol.
var Corpus = []Attack{
	// Content-Length against Transfer-Encoding
	{"CL.TE", post("0\r\n\r\n"+inner, "Content-Length: 6", "Transfer-Encoding: chunked"), 400, nil},
	{"TE.CL", post("5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 4"), 400, nil},
	{"CL 0 with TE", post("0\r\n\r\n", "Content-Length: 0", "Transfer-Encoding: chunked"), 400, nil},
	{"CL with TE identity", post("hello", "Content-Length: 5", "Transfer-Encoding: identity"), 400, nil},
	{"CL with empty TE", post("hello", "Content-Length: 5", "Transfer-Encoding:"), 400, nil},
	{"two equal lengths", post("hello", "Content-Length: 5", "Content-Length: 5"), 400, nil},
	{"two different lengths", post("hello", "Content-Length: 5", "Content-Length: 0"), 400, nil},
	{"list of equal lengths", post("hello", "Content-Length: 5, 5"), 400, nil},
	{"list of different lengths", post("hello", "Content-Length: 5, 0"), 400, nil},
	{"length with plus", post("hello", "Content-Length: +5"), 400, nil},
	{"length with minus", post("hello", "Content-Length: -5"), 400, nil},
	{"length minus zero", post("", "Content-Length: -0"), 400, nil},
	{"length hexadecimal", post("hello", "Content-Length: 0x5"), 400, nil},
	{"length with fraction", post("hello", "Content-Length: 5.0"), 400, nil},
	{"length with exponent", post("hello", "Content-Length: 5e0"), 400, nil},
	{"length with underscore", post("hello", "Content-Length: 1_0"), 400, nil},
	{"length with a blank inside", post("hello", "Content-Length: 5 5"), 400, nil},
	{"length with text behind", post("hello", "Content-Length: 5abc"), 400, nil},
	{"length empty", post("", "Content-Length:"), 400, nil},
	{"length of blanks", post("", "Content-Length:   "), 400, nil},
	{"length overflows 64 bits", post("hello", "Content-Length: 18446744073709551621"), 400, nil},
	{"length overflows 63 bits", post("hello", "Content-Length: 9223372036854775808"), 400, nil},
	{"length with full-width digits", post("hello", "Content-Length: \uff15"), 400, nil},
	{"length with vertical tab", post("hello", "Content-Length: \x0b5"), 400, nil},
	{"length with NUL", post("hello", "Content-Length: 5\x00"), 400, nil},
	{"length in quotes", post("hello", `Content-Length: "5"`), 400, nil},
	{"length with leading zeros", post("hello", "Content-Length: 0005"), 200, hello},
	{"length with tabs around", post("hello", "Content-Length:\t5\t"), 200, hello},
	{"length of a GET", get("Content-Length: 5") + "hello", 200, []string{"GET / hello"}},
	{"length with underscore in the name", post("", "Content_Length: 5"), 200, []string{"POST / "}},
	{"CL.0: a request in a body", post(inner, "Content-Length: 32"), 200, []string{"POST / " + inner}},

	// Transfer-Encoding
	{"TE twice", post("0\r\n\r\n", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400, nil},
	{"TE chunked and identity", post("0\r\n\r\n", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"), 400, nil},
	{"TE list chunked, identity", post("0\r\n\r\n", "Transfer-Encoding: chunked,identity"), 400, nil},
	{"TE list identity, chunked", post("0\r\n\r\n", "Transfer-Encoding: identity, chunked"), 400, nil},
	{"TE list chunked, chunked", post("0\r\n\r\n", "Transfer-Encoding: chunked, chunked"), 400, nil},
	{"TE gzip, chunked", post("0\r\n\r\n", "Transfer-Encoding: gzip, chunked"), 501, nil},
	{"TE chunked, gzip", post("0\r\n\r\n", "Transfer-Encoding: chunked, gzip"), 400, nil},
	{"TE gzip alone", post("0\r\n\r\n", "Transfer-Encoding: gzip"), 400, nil},
	{"TE identity alone", post("hello", "Transfer-Encoding: identity"), 400, nil},
	{"TE empty", post("", "Transfer-Encoding:"), 400, nil},
	{"TE with vertical tab", post("0\r\n\r\n", "Transfer-Encoding: \x0bchunked"), 400, nil},
	{"TE with form feed", post("0\r\n\r\n", "Transfer-Encoding: chunked\x0c"), 400, nil},
	{"TE with no-break space", post("0\r\n\r\n", "Transfer-Encoding: \u00a0chunked"), 400, nil},
	{"TE with a comma before", post("0\r\n\r\n", "Transfer-Encoding: ,chunked"), 400, nil},
	{"TE with a comma behind", post("0\r\n\r\n", "Transfer-Encoding: chunked,"), 400, nil},
	{"TE with a parameter", post("0\r\n\r\n", "Transfer-Encoding: chunked;q=1"), 400, nil},
	{"TE in quotes", post("0\r\n\r\n", `Transfer-Encoding: "chunked"`), 400, nil},
	{"TE xchunked", post("0\r\n\r\n", "Transfer-Encoding: xchunked"), 400, nil},
	{"TE chunk", post("0\r\n\r\n", "Transfer-Encoding: chunk"), 400, nil},
	{"TE folded", post("0\r\n\r\n", "Transfer-Encoding:", " chunked"), 400, nil},
	{"TE with a blank before the colon", post("0\r\n\r\n", "Transfer-Encoding : chunked"), 400, nil},
	{"TE with a tab before the colon", post("0\r\n\r\n", "Transfer-Encoding\t: chunked"), 400, nil},
	{"TE line begins with a blank", post("0\r\n\r\n", "X: y", " Transfer-Encoding: chunked"), 400, nil},
	{"TE behind a bare LF", post("0\r\n\r\n", "X: y\nTransfer-Encoding: chunked"), 400, nil},
	{"TE behind a bare CR", post("0\r\n\r\n", "X: y\rTransfer-Encoding: chunked"), 400, nil},
	{"TE with a Kelvin sign", post("0\r\n\r\n", "Transfer-Encoding: chun\u212aed"), 400, nil},
	{"TE of HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, nil},
	{"TE in capitals", post("5\r\nhello\r\n0\r\n\r\n", "TRANSFER-ENCODING: CHUNKED"), 200, hello},
	{"TE with tabs around", post("5\r\nhello\r\n0\r\n\r\n", "Transfer-Encoding:\tchunked\t"), 200, hello},
	{"TE of a GET", get("Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n", 200, []string{"GET / hello"}},

	// chunks
	{"chunk size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size with plus", chunks("+5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size with minus", chunks("-5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size with a blank before", chunks(" 5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size with a blank behind", chunks("5 \r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size empty", chunks("\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size only an extension", chunks(";x\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size overflows", chunks("FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size overflows to 5", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size of many zeros", chunks(strings.Repeat("0", 100) + "5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size with underscore", chunks("0_5\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size not hexadecimal", chunks("g\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size ends with bare LF", chunks("5\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size ends with bare CR", chunks("5\rhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk size ends with CR CR LF", chunks("5\r\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk data ends with bare LF", chunks("5\r\nhello\n0\r\n\r\n"), 400, nil},
	{"chunk data ends with other bytes", chunks("5\r\nhelloXX0\r\n\r\n"), 400, nil},
	{"chunk data is longer than its size", chunks("4\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"chunk data is shorter than its size", chunks("6\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"last chunk without its CRLF", chunks("5\r\nhello\r\n0\r\n"), 400, nil},
	{"last chunk ends with bare LF", chunks("5\r\nhello\r\n0\r\n\n"), 400, nil},
	{"last chunk with bare LF", chunks("5\r\nhello\r\n0\n\r\n"), 400, nil},
	{"extension with bare LF", chunks("5;x\nhello\r\n0\r\n\r\n"), 400, nil},
	{"extension with LF in quotes", chunks("5;x=\"\n\"\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"extension with CRLF in quotes", chunks("5;x=\"\r\n\"\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"extension with NUL", chunks("5;x\x00\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"extension of 1 MiB", chunks("5;" + strings.Repeat("x", 1<<20) + "\r\nhello\r\n0\r\n\r\n"), 400, nil},
	{"many short extensions", chunks(strings.Repeat("1;abcdefgh\r\nx\r\n", 2000) + "0\r\n\r\n"), 400, nil},
	{"extension", chunks("5;x=y;z=\"a;b\"\r\nhello\r\n0\r\n\r\n"), 200, hello},
	{"extension on the last chunk", chunks("5\r\nhello\r\n0;x\r\n\r\n"), 200, hello},
	{"chunk sizes with zeros before", chunks("0005\r\nhello\r\n000\r\n\r\n"), 200, hello},
	{"a request in chunks", chunks("20\r\n" + inner + "\r\n0\r\n\r\n"), 200, []string{"POST / " + inner}},

	// trailers
	{"trailer with length", chunks("0\r\nContent-Length: 5\r\n\r\n"), 400, nil},
	{"trailer with coding", chunks("0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400, nil},
	{"trailer with host", chunks("0\r\nHost: evil\r\n\r\n"), 400, nil},
	{"trailer with authorization", chunks("0\r\nAuthorization: Bearer x\r\n\r\n"), 400, nil},
	{"trailer folded", chunks("0\r\nX: a\r\n b\r\n\r\n"), 400, nil},
	{"trailer without a colon", chunks("0\r\nX\r\n\r\n"), 400, nil},
	{"trailer with a blank before the colon", chunks("0\r\nX : a\r\n\r\n"), 400, nil},
	{"trailer with bare LF", chunks("0\r\nX: a\n\r\n"), 400, nil},
	{"trailer is a request", chunks("0\r\n" + inner), 400, nil},
	{"trailer of 1 MiB", chunks("0\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), 431, nil},
	{"trailer of 10,000 fields", chunks("0\r\n" + strings.Repeat("a: b\r\n", 10_000) + "\r\n"), 431, nil},
	{"trailer", chunks("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), 200, hello},

	// lines and fields
	{"bare LF ends the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", 400, nil},
	{"bare LF ends a field", "GET / HTTP/1.1\r\nHost: h\n\r\n", 400, nil},
	{"bare LF ends the head", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400, nil},
	{"only bare LF", "GET / HTTP/1.1\nHost: h\n\n", 400, nil},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400, nil},
	{"CR in a value", get("X: a\rb"), 400, nil},
	{"CR in a name", get("X\rY: a"), 400, nil},
	{"LF in a value", get("X: a\nY: b"), 400, nil},
	{"NUL in a value", get("X: a\x00b"), 400, nil},
	{"NUL in a name", get("X\x00: a"), 400, nil},
	{"DEL in a value", get("X: a\x7fb"), 400, nil},
	{"escape in a value", get("X: \x1b[31m"), 400, nil},
	{"folded field", get("X: a", " b"), 400, nil},
	{"folded by a tab", get("X: a", "\tb"), 400, nil},
	{"first field begins with a blank", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, nil},
	{"blank before the colon", get("X : a"), 400, nil},
	{"blank in a name", get("X Y: a"), 400, nil},
	{"name empty", get(": a"), 400, nil},
	{"no colon", get("X"), 400, nil},
	{"name with a bracket", get("X[]: a"), 400, nil},
	{"name with a slash", get("X/Y: a"), 400, nil},
	{"name with high bit", get("X\xe9: a"), 400, nil},
	{"name in quotes", get(`"X": a`), 400, nil},
	{"pseudo header", get(":path: /admin"), 400, nil},
	{"line of blanks", get("   "), 400, nil},
	{"10,000 fields", get(strings.Split(strings.Repeat("a: b\n", 10_000)+"z: z", "\n")...), 431, nil},
	{"101 fields", get(strings.Split(strings.Repeat("a: b\n", 99)+"z: z", "\n")...), 431, nil},
	{"field of 1 MiB", get("X: " + strings.Repeat("x", 1<<20)), 431, nil},
	{"name of 1 MiB", get(strings.Repeat("x", 1<<20) + ": y"), 431, nil},
	{"100 fields", get(strings.Split(strings.Repeat("a: b\n", 98)+"z: z", "\n")...), 200, onlyGet},
	{"value with high bit", get("X: caf\xc3\xa9 \xff"), 200, onlyGet},
	{"value with tab", get("X: a\tb"), 200, onlyGet},
	{"value empty", get("X:"), 200, onlyGet},
	{"name in capitals", get("X-UPPER: a"), 200, onlyGet},
	{"one empty line before", "\r\n" + get(), 200, onlyGet},
	{"two empty lines before", "\r\n\r\n" + get(), 400, nil},
	{"bare LF before", "\n" + get(), 400, nil},
	{"blanks before", "  " + get(), 400, nil},

	// request line
	{"no version", line("GET /"), 400, nil},
	{"version 0.9", line("GET / HTTP/0.9"), 505, nil},
	{"version 1.2", line("GET / HTTP/1.2"), 505, nil},
	{"version 2.0", line("GET / HTTP/2.0"), 505, nil},
	{"version 11", line("GET / HTTP/11"), 400, nil},
	{"version 1.10", line("GET / HTTP/1.10"), 400, nil},
	{"version in lower case", line("GET / http/1.1"), 400, nil},
	{"version with a blank behind", line("GET / HTTP/1.1 "), 400, nil},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, nil},
	{"two blanks before the target", line("GET  / HTTP/1.1"), 400, nil},
	{"two blanks behind the target", line("GET /  HTTP/1.1"), 400, nil},
	{"tabs for blanks", line("GET\t/\tHTTP/1.1"), 400, nil},
	{"vertical tab for blank", line("GET /\x0bHTTP/1.1"), 400, nil},
	{"blank in the target", line("GET /a b HTTP/1.1"), 400, nil},
	{"a request in the target", line("GET /a HTTP/1.1 HTTP/1.1"), 400, nil},
	{"no method", line(" / HTTP/1.1"), 400, nil},
	{"method in lower case", line("get / HTTP/1.1"), 400, nil},
	{"method in mixed case", line("dElEtE / HTTP/1.1"), 400, nil},
	{"method with a colon", line("GET: / HTTP/1.1"), 400, nil},
	{"method with high bit", line("G\xc9T / HTTP/1.1"), 400, nil},
	{"method unknown", line("PURGE / HTTP/1.1"), 200, []string{"PURGE / "}},
	{"TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, nil},

	// targets
	{"target with NUL", line("GET /\x00 HTTP/1.1"), 400, nil},
	{"target with high bit", line("GET /\xc3\xa9 HTTP/1.1"), 400, nil},
	{"target with fragment", line("GET /admin#f HTTP/1.1"), 400, nil},
	{"target without slash", line("GET admin HTTP/1.1"), 400, nil},
	{"target an authority", line("GET h:80 HTTP/1.1"), 400, nil},
	{"target a query", line("GET ?a HTTP/1.1"), 400, nil},
	{"target a backslash", line(`GET \admin HTTP/1.1`), 400, nil},
	{"asterisk of GET", line("GET * HTTP/1.1"), 400, nil},
	{"target of another scheme", line("GET ftp://h/ HTTP/1.1"), 400, nil},
	{"target of scheme file", line("GET file:///etc/passwd HTTP/1.1"), 400, nil},
	{"absolute form without host", line("GET http:///a HTTP/1.1"), 400, nil},
	{"absolute form with userinfo", line("GET http://user@h/ HTTP/1.1"), 400, nil},
	{"absolute form with a bad port", line("GET http://h:8a/ HTTP/1.1"), 400, nil},
	{"absolute form with backslash in the host", line(`GET http://h\@evil/ HTTP/1.1`), 400, nil},
	{"absolute form and no Host", "GET http://h/ HTTP/1.1\r\n\r\n", 400, nil},
	{"absolute form wins over Host", "GET http://other/a HTTP/1.1\r\nHost: h\r\n\r\n", 200, []string{"GET /a  @other"}},
	{"absolute form in capitals", line("GET HTTP://h/a HTTP/1.1"), 200, []string{"GET /a "}},
	{"absolute form with a query only", line("GET http://h?q HTTP/1.1"), 200, []string{"GET /?q "}},
	{"asterisk of OPTIONS", line("OPTIONS * HTTP/1.1"), 200, []string{"OPTIONS * "}},
	{"double slash", line("GET //admin HTTP/1.1"), 200, []string{"GET //admin "}},

	// hosts
	{"no Host", "GET / HTTP/1.1\r\n\r\n", 400, nil},
	{"Host empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, nil},
	{"Host twice", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400, nil},
	{"two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n", 400, nil},
	{"Host with a blank before the colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, nil},
	{"Host a list", "GET / HTTP/1.1\r\nHost: h, evil\r\n\r\n", 400, nil},
	{"Host with userinfo", "GET / HTTP/1.1\r\nHost: user@h\r\n\r\n", 400, nil},
	{"Host with a path", "GET / HTTP/1.1\r\nHost: h/admin\r\n\r\n", 400, nil},
	{"Host with a fragment", "GET / HTTP/1.1\r\nHost: h#f\r\n\r\n", 400, nil},
	{"Host with a query", "GET / HTTP/1.1\r\nHost: h?x\r\n\r\n", 400, nil},
	{"Host with a blank", "GET / HTTP/1.1\r\nHost: h evil\r\n\r\n", 400, nil},
	{"Host with a bad port", "GET / HTTP/1.1\r\nHost: h:http\r\n\r\n", 400, nil},
	{"Host with two ports", "GET / HTTP/1.1\r\nHost: h:80:80\r\n\r\n", 400, nil},
	{"Host only a port", "GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400, nil},
	{"Host with a zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", 400, nil},
	{"Host an open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, nil},
	{"Host with NUL", "GET / HTTP/1.1\r\nHost: h\x00\r\n\r\n", 400, nil},
	{"Host with high bit", "GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400, nil},
	{"Host with a bad escape", "GET / HTTP/1.1\r\nHost: h%zz\r\n\r\n", 400, nil},
	{"Host folded", "GET / HTTP/1.1\r\nHost:\r\n h\r\n\r\n", 400, nil},
	{"Host an IPv6 address", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200, []string{"GET /  @[::1]:80"}},
	{"Host in capitals with a dot", "GET / HTTP/1.1\r\nHost: H.Example.\r\n\r\n", 200, []string{"GET /  @H.Example."}},

	// the connection's fields
	{"Connection names Content-Length", post("hello", "Content-Length: 5", "Connection: content-length"), 400, nil},
	{"Connection names Transfer-Encoding", post("0\r\n\r\n", "Connection: transfer-encoding", "Transfer-Encoding: chunked"), 400, nil},
	{"Connection names Host", get("Connection: host"), 400, nil},
	{"Connection not of tokens", get("Connection: a b"), 400, nil},
	{"Connection names many fields", get("Connection: a,b,c,d,e,f,g,h,i"), 400, nil},
	{"Connection names a field of ours", get("Connection: X-Auth", "X-Auth: secret"), 200, onlyGet},
	{"Expect unknown", post("hello", "Content-Length: 5", "Expect: 200-ok"), 417, nil},
	{"Expect without a body", get("Expect: 100-continue"), 200, onlyGet},

	// changes of protocol
	{"upgrade to h2c", get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200, onlyGet},
	{"upgrade without Connection", get("Upgrade: websocket"), 200, onlyGet},
	{"upgrade with a body", post("hello", "Connection: upgrade", "Upgrade: websocket", "Content-Length: 5"), 200, hello},
	{"upgrade to no token", get("Connection: upgrade", "Upgrade: web socket"), 400, nil},
	{"CONNECT without a port", "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", 400, nil},
	{"CONNECT with a path", "CONNECT h:80/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, nil},
	{"CONNECT with absolute form", "CONNECT http://h:80/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, nil},
	{"CONNECT with a length", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\nContent-Length: 5\r\n\r\nhello", 400, nil},
	{"CONNECT with chunks", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, nil},

	// HTTP/1.0
	{"HTTP/1.0 with a bad Host", "GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400, nil},
	{"HTTP/1.0 kept", "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", 200, onlyGet},
}

// canonicalHead is the only form in which a head leaves the codec.
var canonicalHead = regexp.MustCompile(`^[!-~]+ [!-~]+ HTTP/1\.1\r\nhost: [!-~]*\r\n([!#$%&'*+.^_|~0-9a-z` + "`" + `-]+: ([^\x00-\x08\x0a-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?\r\n)*\r\n`)

var (
	lengthLine = regexp.MustCompile(`\r\ncontent-length: ([0-9]+)`)
	chunkLine  = regexp.MustCompile(`^(([1-9a-f][0-9a-f]*)\r\n)`)
)

// Canonical checks what reached a backend, byte by byte: heads in one form, one framing each, chunks without extensions.
func Canonical(raw []byte) error {
	for len(raw) > 0 {
		head := canonicalHead.Find(raw)
		if head == nil {
			return fmt.Errorf("no canonical head in %.200q", raw)
		}
		raw = raw[len(head):]
		lengths := lengthLine.FindAllSubmatch(head, -1)
		codings := bytes.Count(head, []byte("\r\ntransfer-encoding: chunked\r\n"))
		switch {
		case len(lengths)+codings > 1 || bytes.Count(head, []byte("\r\ntransfer-encoding:")) != codings || bytes.Count(head, []byte("\r\nhost:")) != 1:
			return fmt.Errorf("two framings or hosts in %.200q", head)
		case codings == 1:
			for !bytes.HasPrefix(raw, []byte("0\r\n")) {
				x := chunkLine.FindSubmatch(raw)
				if x == nil {
					return fmt.Errorf("no canonical chunk in %.200q", raw)
				}
				n, _ := strconv.ParseInt(string(x[2]), 16, 64)
				if raw = raw[len(x[1]):]; int64(len(raw)) < n+2 || string(raw[n:n+2]) != "\r\n" {
					return fmt.Errorf("chunk not whole in %.200q", raw)
				}
				raw = raw[n+2:]
			}
			end := bytes.Index(raw, []byte("\r\n\r\n"))
			if end < 0 {
				return fmt.Errorf("no end of the chunks in %.200q", raw)
			}
			raw = raw[end+4:]
		case len(lengths) == 1:
			n, _ := strconv.Atoi(string(lengths[0][1]))
			if len(raw) < n {
				return fmt.Errorf("body not whole")
			}
			raw = raw[n:]
		}
	}
	return nil
}
