package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// requests is a load of HTTP requests out of a pod in open loop: request number i is sent at i/rate, whatever became of
// those before it. Clients are Go's, half of them of HTTP/1.1 and half of HTTP/2 without TLS, each with connections of its
// own that it keeps. The sockets are this process's, made in the pod's network namespace.
type requests struct {
	ns   *netns.NS
	to   netip.AddrPort
	host string
	rate int
}

// requestClients is the number of clients of each version of HTTP.
const requestClients = 4

// lost is a request that was not answered as it should.
type lost struct {
	at     time.Time
	took   time.Duration
	client int
	err    error
}

// answers is what came of a load of requests.
type answers struct {
	sent     int
	took     []time.Duration
	lost     []lost
	pods     map[string]int
	lateness time.Duration
}

// run sends requests until ctx ends and waits for their answers.
func (q *requests) run(ctx context.Context) *answers {
	var clients []*http.Client
	for i := range 2 * requestClients {
		clients = append(clients, q.client(i%2 == 1))
	}
	a := &answers{pods: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for ctx.Err() == nil {
		due := begin.Add(time.Duration(a.sent) * time.Second / time.Duration(q.rate))
		if d := time.Until(due); d > 0 {
			pause.Reset(d)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			continue
		}
		a.lateness = max(a.lateness, time.Since(due))
		n := a.sent % len(clients)
		a.sent++
		wg.Go(func() {
			from := time.Now()
			pod, err := q.once(clients[n])
			took := time.Since(from)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				a.lost = append(a.lost, lost{from, took, n, err})
				return
			}
			a.took = append(a.took, took)
			a.pods[pod]++
		})
	}
	wg.Wait()
	for _, c := range clients {
		c.CloseIdleConnections()
	}
	slices.Sort(a.took)
	return a
}

// client is one with connections of its own.
func (q *requests) client(two bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			f, err := connect(q.ns, q.to, time.Now().Add(loadTimeout))
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return net.FileConn(f)
		},
		MaxIdleConnsPerHost: 1024, DisableCompression: true,
	}
	if two {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Transport: tr, Timeout: loadTimeout}
}

// once is one request; it returns the pod that has answered.
func (q *requests) once(c *http.Client) (pod string, err error) {
	resp, err := c.Get("http://" + q.host + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimPrefix(line, "pod="), nil
}

// zero fails the test if a request was lost.
func (a *answers) zero(t *testing.T) {
	t.Helper()
	kinds := map[string]int{}
	for i, l := range a.lost {
		kinds[l.err.Error()]++
		if i < 10 {
			t.Errorf("request of %s, by client %d, after %.3f s: %v", l.at.Format(stamp), l.client, l.took.Seconds(), l.err)
		}
	}
	for k, n := range kinds {
		t.Errorf("%d x %s", n, k)
	}
	if len(a.took) == 0 {
		t.Error("no request was answered")
	}
}

// words are the figures in one line.
func (a *answers) words() string {
	q := func(p float64) time.Duration {
		if len(a.took) == 0 {
			return 0
		}
		return a.took[min(len(a.took)-1, int(p*float64(len(a.took))))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d requests (generator late by at most %.2f s): %d answered by %d pods, %d lost; p50 %s, p99 %s, longest %s",
		a.sent, a.lateness.Seconds(), len(a.took), len(a.pods), len(a.lost), q(0.5), q(0.99), q(1))
}
