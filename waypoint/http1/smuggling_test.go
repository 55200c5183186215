package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a backend that writes down what reaches it.
type recorder struct {
	mu   sync.Mutex
	raw  bytes.Buffer
	seen []string
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.raw.Write(p)
}

func (r *recorder) serve(c io.ReadWriteCloser) {
	br := bufio.NewReader(io.TeeReader(c, r))
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		s := fmt.Sprintf("%s %s %s", req.Method, req.RequestURI, body)
		if req.Host != "h" && req.Host != "" {
			s += " @" + req.Host
		}
		r.mu.Lock()
		r.seen = append(r.seen, s)
		r.mu.Unlock()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// canonicalHead is the only form in which a head leaves the codec.
var canonicalHead = regexp.MustCompile(`^[!-~]+ [!-~]+ HTTP/1\.1\r\nhost: [!-~]*\r\n([!#$%&'*+.^_|~0-9a-z` + "`" + `-]+: ([^\x00-\x08\x0a-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?\r\n)*\r\n`)

var (
	lengthLine = regexp.MustCompile(`\r\ncontent-length: ([0-9]+)`)
	chunkLine  = regexp.MustCompile(`^(([1-9a-f][0-9a-f]*)\r\n)`)
)

// canonical checks what reached a backend, byte by byte: heads in one form, one framing each, chunks without extensions.
func canonical(raw []byte) error {
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

const lastRequest = "GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

// attackWith sends in, and a last request behind it, and returns the statuses of the answers, and how the connection ended.
func attackWith(t *testing.T, addr, in string, halfClose bool) ([]int, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		io.WriteString(c, in+lastRequest)
		if halfClose {
			closeWrite(c)
		}
	}()
	all, ended := io.ReadAll(c)
	var statuses []int
	for br := bufio.NewReader(bytes.NewReader(all)); ; {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return statuses, ended
		}
		io.Copy(io.Discard, resp.Body)
		statuses = append(statuses, resp.StatusCode)
	}
}

// laxer are attacks that net/http's server refuses and this codec lets pass, with the reason.
var laxer = map[string]string{
	"one empty line before": "RFC 9112 section 2.2 asks servers to skip it",
}

func TestSmuggledRequestsAreRefusedOrCanonicalAtTheBackend(t *testing.T) {
	std := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(400)
		}
	}))
	defer std.Close()
	l := running(t)
	refused, both, onlyWe := 0, 0, 0
	for _, a := range corpus {
		t.Run(a.name, func(t *testing.T) {
			rec := &recorder{}
			up, _ := rawServer(t, rec.serve)
			p := &proxy{t: t, l: l, addr: up}
			addr := listen(t, l, ServerConfig{}, p.handler)
			got, err := attackWith(t, addr, a.in, false)
			if err != nil {
				t.Errorf("not closed in good order: %v", err)
			}
			rec.mu.Lock()
			defer rec.mu.Unlock()
			want := []int{a.status}
			seen := a.seen
			if a.status == 200 {
				want = slices.Repeat([]int{200}, len(a.seen)+1)
				seen = append(slices.Clone(seen), "GET /end ")
			}
			if !slices.Equal(got, want) || !slices.Equal(rec.seen, seen) {
				t.Errorf("answers %v, want %v; the backend saw %q, want %q", got, want, rec.seen, seen)
			}
			if a.status == 200 {
				if err := canonical(rec.raw.Bytes()); err != nil {
					t.Error(err)
				}
			}
			judge, _ := attackWith(t, std.Listener.Addr().String(), a.in, true)
			accepts := len(judge) > 0 && judge[0] == 200
			_, named := laxer[a.name]
			switch {
			case a.status == 200 && !accepts && !named:
				t.Errorf("net/http refuses this (%v)", judge)
			case a.status != 200 && accepts:
				onlyWe++
				t.Logf("net/http accepts this (%v), answered here with %v", judge, got)
			case a.status != 200:
				both++
			}
			if a.status != 200 {
				refused++
			}
			if strings.Contains(rec.raw.String(), "x-auth") {
				t.Error("a field that Connection names was passed on")
			}
		})
	}
	t.Logf("%d attacks, %d refused; of these net/http refuses %d and accepts %d", len(corpus), refused, both, onlyWe)
}
