package forward

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// spreadRig is a rig of four workers, whose client has one tunnel.
func spreadRig(t *testing.T, h http.HandlerFunc) *rig {
	t.Helper()
	r := newRigWith(t, func(c *Config) { c.Workers = 4 })
	r.cluster("reviews", "", backend(t, h))
	r.routes(toReviews)
	return r
}

// carried is the number of connections that each worker has.
func (r *rig) carried() (n []int) {
	for _, w := range r.proxy.workers {
		w.loop.OnLoop(func() { n = append(n, len(w.conns)) })
	}
	return n
}

func TestConnectionsOfOneTunnelAreSpreadOverAllWorkers(t *testing.T) { // T16
	r := spreadRig(t, func(w http.ResponseWriter, q *http.Request) { io.Copy(w, q.Body) })
	var conns []net.Conn
	for range 64 {
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for range 3 { // requests on each of them
		for _, c := range conns {
			if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 4\r\n\r\nping"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ping" {
				t.Fatalf("%q, %v", b, err)
			}
		}
	}
	sum := 0
	n := r.carried()
	for _, k := range n {
		sum += k
		if k < 64/4-64/4/2 {
			t.Errorf("connections of the workers: %v", n)
			break
		}
	}
	if sum != 64 {
		t.Errorf("%d connections are carried: %v", sum, n)
	}
}

func TestWhatEndsAConnectionThatWasHandedOverIsPassedOn(t *testing.T) {
	gone := make(chan struct{}, 1)
	r := spreadRig(t, func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, "/broken") { // an answer that breaks off
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "some")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		<-q.Context().Done()
		gone <- struct{}{}
	})
	for range 3 * handOverMargin { // the worker of the tunnel has enough of its own
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := r.dial(ctx, vip)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET /broken HTTP/1.1\r\nHost: reviews\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil { // the reset may overtake the head
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an answer that broke off ended with %v", err)
	}
	if c, err = r.dial(ctx, vip); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: reviews\r\n\r\n")
	time.Sleep(10 * time.Millisecond)
	c.Close()
	select {
	case <-gone:
	case <-ctx.Done():
		t.Error("the endpoint was not told that the client has gone")
	}
}
