package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/http1/http1test"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// whole is a message taken apart without a connection.
type whole struct {
	req     message.Request
	resp    message.Response
	f       framing
	body    []byte
	trailer message.Header
	n       int // length on the wire
}

var fuzzLimits = limits{head: 60 << 10, fields: 100}

// takeHead finds the head's end as a connection does that gets in in pieces, and parses it: parse is called first with
// what has come, then with the whole head.
func takeHead(in []byte, piece int, parse func(b []byte) (int, error)) (int, error) {
	if piece <= 0 || piece > len(in) {
		piece = len(in)
	}
	n, err := parse(bytes.Clone(in[:piece]))
	if err != errPartial {
		return n, err
	}
	var s scanner
	for k := piece; ; k = min(k+piece, len(in)) {
		end, err := s.next(in[:k], fuzzLimits.head)
		if err != nil {
			return 0, err
		}
		if end > 0 {
			return parse(bytes.Clone(in[:end]))
		}
		if k == len(in) {
			return 0, errPartial
		}
	}
}

// takeBody reads a body that comes in pieces.
func takeBody(in []byte, piece int, kind bodyKind, length int64, w *whole) error {
	if piece <= 0 || piece > len(in) {
		piece = max(len(in), 1)
	}
	var r reader
	r.start(kind, length)
	at, have := 0, min(piece, len(in))
	for {
		skip, data, done, err := r.step(in[at:have], &fuzzLimits)
		if err != nil {
			return err
		}
		at += skip
		if done {
			w.n += at
			w.trailer.Copy(&r.trailer)
			return nil
		}
		if data > 0 {
			k := (data + 1) / 2 // a taker that takes half
			w.body = append(w.body, in[at:at+k]...)
			r.took(k)
			at += k
			continue
		}
		if skip > 0 {
			continue
		}
		if have == len(in) {
			if kind == untilClose {
				w.n += at
				return nil
			}
			return errPartial
		}
		have = min(have+piece, len(in))
	}
}

func takeRequest(in []byte, piece int) (*whole, error) {
	w := &whole{}
	n, err := takeHead(in, piece, func(b []byte) (int, error) {
		w.req.Reset()
		w.f = framing{}
		return parseRequest(b, &w.req, fuzzLimits.fields, &w.f)
	})
	if err != nil {
		return nil, err
	}
	w.n = n
	kind := noBody
	switch {
	case w.f.chunked:
		kind = chunked
	case w.req.ContentLength > 0:
		kind = byLength
	}
	return w, takeBody(in[n:], piece, kind, w.req.ContentLength, w)
}

// wire is the request as a client sends it.
func (w *whole) wire(t *testing.T) []byte {
	end := len(w.body) == 0 && w.req.ContentLength == 0
	b, k, ok := appendRequest(nil, &w.req, end)
	if !ok {
		t.Fatalf("accepted and cannot be written: %+v", w.req)
	}
	switch k.kind {
	case chunked:
		if len(w.body) > 0 {
			b = appendChunk(b, w.body)
		}
		b = appendEnd(b, &w.trailer)
	case byLength:
		b = append(b, w.body...)
	}
	return b
}

func appendChunk(b, p []byte) []byte {
	const hex = "0123456789abcdef"
	var size []byte
	for n := len(p); n > 0; n >>= 4 {
		size = append(size, hex[n&15])
	}
	slices.Reverse(size)
	b = append(b, size...)
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}

// stdException says why net/http may refuse a request that is accepted here.
func stdException(w *whole) string {
	switch {
	case w.req.Method != "CONNECT" && urlError(w.req.Path):
		return "net/http parses the path: bad escapes are left to the route here"
	case urlError("http://" + w.req.Authority + "/"):
		return "net/http parses the authority of the absolute form"
	case w.f.hosts == 0:
		return "an HTTP/1.0 request without Host"
	}
	return ""
}

func urlError(s string) bool {
	_, err := url.ParseRequestURI(s)
	return err != nil && s != "*"
}

// sameRequest compares what both have understood.
func sameRequest(t *testing.T, in []byte, w *whole, r *http.Request, body []byte) {
	t.Helper()
	if r.Method != w.req.Method || !bytes.Equal(body, w.body) {
		t.Fatalf("%q: method %q, body %q; net/http %q, %q", in, w.req.Method, w.body, r.Method, body)
	}
	if host, _ := url.PathUnescape(w.req.Authority); w.req.Authority != r.Host && host != r.Host && r.Host != "" {
		t.Fatalf("%q: authority %q, net/http %q", in, w.req.Authority, r.Host)
	}
	if w.req.Method != "CONNECT" && strings.HasPrefix(r.RequestURI, "/") && r.RequestURI != w.req.Path {
		t.Fatalf("%q: path %q, net/http %q", in, w.req.Path, r.RequestURI)
	}
	for _, f := range w.req.Header.Fields() {
		if f.Name == "te" || f.Name == "content-length" || f.Name == "trailer" {
			continue
		}
		if !slices.Contains(r.Header.Values(f.Name), f.Value) {
			t.Fatalf("%q: field %q is %q; net/http %q", in, f.Name, f.Value, r.Header.Values(f.Name))
		}
	}
	for _, f := range w.trailer.Fields() {
		if !slices.Contains(r.Trailer.Values(f.Name), f.Value) {
			t.Fatalf("%q: trailer %q is %q; net/http %q", in, f.Name, f.Value, r.Trailer)
		}
	}
}

// full says that a head has no room for the fields that a writer adds: written, it may be more than a reader takes.
func full(h *message.Header, out []byte) bool {
	return h.Len() >= fuzzLimits.fields-2 || bytes.Index(out, []byte("\r\n\r\n")) >= fuzzLimits.head-4
}

func FuzzRequest(f *testing.F) {
	for _, a := range http1test.Corpus {
		if len(a.In) < 4<<10 {
			f.Add([]byte(a.In), 0)
			f.Add([]byte(a.In), 3)
		}
	}
	f.Add([]byte(benchHeadFuzz), 7)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		w, err := takeRequest(in, piece)
		if at, atErr := takeRequest(in, 0); (err == nil) != (atErr == nil) {
			t.Fatalf("%q: in pieces of %d: %v, at once: %v", in, piece, err, atErr)
		} else if err == nil && !slices.Equal(at.body, w.body) {
			t.Fatalf("%q: in pieces of %d the body is %q, at once %q", in, piece, w.body, at.body)
		}
		if err != nil {
			return
		}
		br := bufio.NewReader(bytes.NewReader(in))
		r, err := http.ReadRequest(br)
		if err == nil {
			var body []byte
			body, err = io.ReadAll(r.Body)
			if err == nil {
				sameRequest(t, in, w, r, body)
			}
		}
		if err != nil && stdException(w) == "" {
			t.Fatalf("%q is accepted; net/http: %v", in, err)
		}
		if w.f.hosts == 0 && w.req.Authority == "" {
			return // HTTP/1.0: what host it is for, the caller has to say
		}
		out := w.wire(t)
		if err := http1test.Canonical(out); err != nil {
			t.Fatalf("%q becomes %q: %v", in, out, err)
		}
		if full(&w.req.Header, out) {
			return
		}
		again, err := takeRequest(out, 0)
		if err != nil || again.n != len(out) {
			t.Fatalf("%q becomes %q, which is not one request: %v", in, out, err)
		}
		if !bytes.Equal(again.wire(t), out) {
			t.Fatalf("%q becomes %q, and then %q", in, out, again.wire(t))
		}
	})
}

const benchHeadFuzz = "POST /a?b=c HTTP/1.1\r\nHost: reviews:9080\r\nX-Request-Id: 1\r\nTE: gzip, trailers\r\nConnection: TE, X-Hop\r\n" +
	"X-Hop: 1\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nExpect: 100-continue\r\n\r\n5;x=\"y\"\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 6\r\n\r\n"

func takeResponse(in []byte, piece int, head bool) (*whole, error) {
	w := &whole{}
	n, err := takeHead(in, piece, func(b []byte) (int, error) {
		w.resp.Reset()
		w.f = framing{}
		return parseResponse(b, &w.resp, fuzzLimits.fields, &w.f)
	})
	if err != nil {
		return nil, err
	}
	w.n = n
	kind := untilClose
	switch s := w.resp.Status; {
	case head, s < 200, s == 204, s == 304, w.resp.ContentLength == 0:
		kind = noBody
	case w.f.chunked:
		kind = chunked
	case w.resp.ContentLength > 0:
		kind = byLength
	}
	return w, takeBody(in[n:], piece, kind, w.resp.ContentLength, w)
}

// wire is the response as a server sends it.
func (w *whole) wireResponse(t *testing.T, head bool) []byte {
	end := len(w.body) == 0
	b, k, _, ok := appendResponse(nil, &w.resp, end, answering{keep: true, head: head})
	if !ok {
		t.Fatalf("accepted and cannot be written: %+v", w.resp)
	}
	switch k.kind {
	case chunked:
		b = appendEnd(appendChunk(b, w.body), &w.trailer)
	case byLength:
		b = append(b, w.body...)
	}
	return b
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 999 X\r\n\r\n", "HTTP/1.1 20 X\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
	} {
		f.Add([]byte(s), 0, false)
		f.Add([]byte(s), 2, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, piece int, head bool) {
		w, err := takeResponse(in, piece, head)
		if at, atErr := takeResponse(in, 0, head); (err == nil) != (atErr == nil) {
			t.Fatalf("%q: in pieces of %d: %v, at once: %v", in, piece, err, atErr)
		} else if err == nil && !slices.Equal(at.body, w.body) {
			t.Fatalf("%q: in pieces of %d the body is %q, at once %q", in, piece, w.body, at.body)
		}
		if err != nil {
			return
		}
		req := &http.Request{Method: "GET"}
		if head {
			req.Method = "HEAD"
		}
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), req)
		if err != nil {
			t.Fatalf("%q is accepted; net/http: %v", in, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != w.resp.Status || !bytes.Equal(body, w.body) {
			t.Fatalf("%q: status %d, body %q; net/http %d, %q, %v", in, w.resp.Status, w.body, r.StatusCode, body, err)
		}
		for _, f := range w.resp.Header.Fields() {
			if f.Name != "te" && f.Name != "content-length" && f.Name != "trailer" && !slices.Contains(r.Header.Values(f.Name), f.Value) {
				t.Fatalf("%q: field %q is %q; net/http %q", in, f.Name, f.Value, r.Header.Values(f.Name))
			}
		}
		if w.resp.Status < 200 {
			return
		}
		out := w.wireResponse(t, head)
		if full(&w.resp.Header, out) {
			return
		}
		again, err := takeResponse(out, 0, head)
		if err != nil || again.n != len(out) || !bytes.Equal(again.body, w.body) {
			t.Fatalf("%q becomes %q, which is not one response: %v", in, out, err)
		}
		if next := again.wireResponse(t, head); !bytes.Equal(next, out) {
			t.Fatalf("%q becomes %q, and then %q", in, out, next)
		}
	})
}

// FuzzServer gives bytes to a connection in random pieces. Whatever they are, it ends when the client does, without a panic,
// and what it has said are responses.
func FuzzServer(f *testing.F) {
	for i, a := range http1test.Corpus {
		if len(a.In) < 4<<10 {
			f.Add([]byte(a.In+lastRequest), uint64(i))
		}
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello"), uint64(1))
	l := running(f)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		rnd, cut := rand.New(rand.NewPCG(seed, 3)), rand.New(rand.NewPCG(seed, 7)) // of the loop, and of this goroutine
		m := moody{l, rnd}
		p, q := memPair(l, rnd, 1<<30, 1+rnd.IntN(5000), 1+rnd.IntN(5000))
		end := newFate()
		l.OnLoop(func() {
			NewServer(q, ServerConfig{}, serveFunc(func(s message.ServerStream) {
				r := response(200)
				if s.Request().Upgrade != "" {
					r.Status = 101
				}
				s.SetTaker(&moodyEcho{moody: m, s: s})
				s.SendHead(r, false)
			}), end)
		})
		for len(in) > 0 {
			n := min(len(in), 1+cut.IntN(5000))
			piece := in[:n]
			in = in[n:]
			l.OnLoop(func() {
				q.in = append(q.in, piece...)
				q.Wake()
			})
		}
		l.OnLoop(func() { p.CloseWrite() })
		err := <-end.closed
		var said []byte
		l.OnLoop(func() { said = p.in })
		for err == nil && len(said) > 0 {
			w, err := takeResponse(said, 0, false)
			if errors.Is(err, errPartial) || err == nil && w.resp.Status == 101 {
				return
			}
			if err != nil {
				t.Fatalf("said %q: %v", said, err)
			}
			said = said[w.n:]
		}
	})
}

// FuzzClient gives bytes to a client in random pieces, as the answer to a request. The request hears of its end once, and
// the connection ends when the server does.
func FuzzClient(f *testing.F) {
	for i, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello", "HTTP/1.0 200 OK\r\n\r\nhello", "HTTP/1.1 204 X\r\n\r\nHTTP/1.1 204 X\r\n\r\n",
	} {
		f.Add([]byte(s), uint64(i))
		f.Add([]byte(s), uint64(i+8))
	}
	l := running(f)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		rnd, cut := rand.New(rand.NewPCG(seed, 4)), rand.New(rand.NewPCG(seed, 8)) // of the loop, and of this goroutine
		p, q := memPair(l, rnd, 1<<30, 1+rnd.IntN(5000), 1+rnd.IntN(5000))
		end := newFate()
		b := &ledger{t: t}
		k := strictClient{&strict{b: b, do: func(error) { b.begun-- }}}
		l.OnLoop(func() {
			c := NewClient(p, ClientConfig{}, end)
			r := request([]string{"GET", "HEAD", "POST", "CONNECT"}[seed%4], "/")
			if seed%8 == 4 {
				r.Upgrade = "echo"
			}
			b.begun++
			s, err := c.Open(r, seed%3 > 0, k)
			if err != nil {
				t.Fatal(err)
			}
			k.next = &sends{left: -1, send: s.SendData, end: func() {}}
			if seed%3 == 0 {
				s.SendEnd(nil)
			}
			if r.Method == "CONNECT" || r.Upgrade != "" {
				s.SendEnd(nil)
			}
		})
		for len(in) > 0 {
			n := min(len(in), 1+cut.IntN(5000))
			piece := in[:n]
			in = in[n:]
			l.OnLoop(func() {
				p.in = append(p.in, piece...)
				p.Wake()
			})
		}
		l.OnLoop(func() { q.CloseWrite() })
		<-end.closed
		l.OnLoop(func() {
			if b.begun != 0 {
				t.Errorf("%d requests have no end", b.begun)
			}
		})
	})
}
