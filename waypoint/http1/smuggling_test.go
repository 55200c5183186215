package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/http1/http1test"
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
	for _, a := range http1test.Corpus {
		t.Run(a.Name, func(t *testing.T) {
			rec := &recorder{}
			up, _ := rawServer(t, rec.serve)
			p := &proxy{t: t, l: l, addr: up}
			addr := listen(t, l, ServerConfig{}, p.handler)
			got, err := attackWith(t, addr, a.In, false)
			if err != nil {
				t.Errorf("not closed in good order: %v", err)
			}
			rec.mu.Lock()
			defer rec.mu.Unlock()
			want := []int{a.Status}
			seen := a.Seen
			if a.Status == 200 {
				want = slices.Repeat([]int{200}, len(a.Seen)+1)
				seen = append(slices.Clone(seen), "GET /end ")
			}
			if !slices.Equal(got, want) || !slices.Equal(rec.seen, seen) {
				t.Errorf("answers %v, want %v; the backend saw %q, want %q", got, want, rec.seen, seen)
			}
			if a.Status == 200 {
				if err := http1test.Canonical(rec.raw.Bytes()); err != nil {
					t.Error(err)
				}
			}
			judge, _ := attackWith(t, std.Listener.Addr().String(), a.In, true)
			accepts := len(judge) > 0 && judge[0] == 200
			_, named := laxer[a.Name]
			switch {
			case a.Status == 200 && !accepts && !named:
				t.Errorf("net/http refuses this (%v)", judge)
			case a.Status != 200 && accepts:
				onlyWe++
				t.Logf("net/http accepts this (%v), answered here with %v", judge, got)
			case a.Status != 200:
				both++
			}
			if a.Status != 200 {
				refused++
			}
			if strings.Contains(rec.raw.String(), "x-auth") {
				t.Error("a field that Connection names was passed on")
			}
		})
	}
	t.Logf("%d attacks, %d refused; of these net/http refuses %d and accepts %d", len(http1test.Corpus), refused, both, onlyWe)
}
