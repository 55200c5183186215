package echo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// ClientConfig says what a client asks and how often.
type ClientConfig struct {
	// URL is http://host:port/path, grpc://host:port or tcp://host:port.
	URL string
	// HTTP2 uses HTTP/2 without TLS for http URLs.
	HTTP2  bool
	Method string
	Header http.Header
	// Body is sent with HTTP and gRPC requests, and as the line of a TCP exchange.
	Body string
	// Count is the number of exchanges, 1 if zero. With Duration it is ignored.
	Count int
	// Duration makes the client go on that long.
	Duration time.Duration
	// Rate is exchanges a second; as fast as possible if zero.
	Rate float64
	// Fresh opens a new connection for each exchange.
	Fresh bool
	// Timeout is that of one exchange, 10 s if zero.
	Timeout time.Duration
	// Parallel is the number of exchanges that may be under way, 1 if zero. Without Fresh each of them keeps a connection.
	Parallel int
}

// Summary is what came of a run.
type Summary struct {
	OK     int `json:"ok"`
	Failed int `json:"failed"`
	// Errors counts the failures by their text, without addresses of the client.
	Errors map[string]int `json:"errors,omitempty"`
	// First is the body of the first answer.
	First string `json:"first,omitempty"`
	// Pods counts the answers by the pod that gave them.
	Pods map[string]int `json:"pods,omitempty"`
	// P99 is the time in which 99 of 100 exchanges that succeeded were over, in seconds.
	P99 float64 `json:"p99Seconds"`
	// Longest is the time of the slowest exchange that succeeded, in seconds.
	Longest float64 `json:"longestSeconds"`
	// FirstFailure is when the first exchange failed.
	FirstFailure time.Time `json:"firstFailure,omitzero"`
}

// Run makes the exchanges and returns when they are done or ctx ended. The error is about the configuration only;
// exchanges that failed are counted.
func Run(ctx context.Context, cfg ClientConfig) (*Summary, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("parse URL: %w", err)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Count == 0 {
		cfg.Count = 1
	}
	c := &client{cfg: cfg, url: u, sum: &Summary{Errors: map[string]int{}}}
	switch u.Scheme {
	case "http", "grpc":
		c.http = newHTTPClient(cfg, u.Scheme == "grpc")
	case "tcp":
	default:
		return nil, fmt.Errorf("scheme %q: accepted: http, grpc, tcp", u.Scheme)
	}
	c.loop(ctx)
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	if n := len(c.times); n > 0 {
		slices.Sort(c.times)
		c.sum.P99, c.sum.Longest = c.times[n*99/100].Seconds(), c.times[n-1].Seconds()
	}
	return c.sum, nil
}

type client struct {
	cfg  ClientConfig
	url  *url.URL
	http *http.Client

	mu    sync.Mutex
	sum   *Summary
	times []time.Duration // of those that succeeded
}

func newHTTPClient(cfg ClientConfig, grpc bool) *http.Client {
	t := &http.Transport{DisableKeepAlives: cfg.Fresh, MaxIdleConnsPerHost: 1024}
	if cfg.HTTP2 || grpc {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// loop starts exchanges at the configured pace, each in a worker that is free.
func (c *client) loop(ctx context.Context) {
	if c.cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Duration)
		defer cancel()
	}
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range max(1, c.cfg.Parallel) {
		wg.Go(func() { c.worker(context.WithoutCancel(ctx), work) })
	}
	pace := newPace(c.cfg.Rate)
	for i := 0; c.cfg.Duration > 0 || i < c.cfg.Count; i++ {
		pace.wait(ctx)
		select {
		case work <- struct{}{}:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
}

// pace keeps a rate on average: what is late by less than a second is made up for, so that a machine short of CPU does not
// lower the load in silence.
type pace struct {
	interval time.Duration // 0 is no pace
	due      time.Time
	timer    *time.Timer
}

func newPace(rate float64) *pace {
	p := &pace{due: time.Now()}
	if rate > 0 {
		p.interval = time.Duration(float64(time.Second) / rate)
		p.timer = time.NewTimer(0)
	}
	return p
}

// wait blocks until the next one is due or ctx is done.
func (p *pace) wait(ctx context.Context) {
	if p.interval == 0 {
		return
	}
	p.due = p.due.Add(p.interval)
	d := time.Until(p.due)
	if d < -time.Second {
		p.due = time.Now()
	}
	if d <= 0 {
		return
	}
	p.timer.Reset(d)
	select {
	case <-p.timer.C:
	case <-ctx.Done():
	}
}

func (c *client) worker(ctx context.Context, work <-chan struct{}) {
	var line lineConn
	defer line.close()
	for range work {
		begin := time.Now()
		ectx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
		body, err := c.exchange(ectx, &line)
		cancel()
		c.count(body, err, time.Since(begin))
	}
}

func (c *client) count(body string, err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.sum.Failed++; c.sum.Failed == 1 {
			c.sum.FirstFailure = time.Now()
		}
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = fmt.Errorf("%s: %w", op.Op, op.Err)
		}
		c.sum.Errors[err.Error()]++
		return
	}
	if c.sum.OK == 0 {
		c.sum.First = body
	}
	if pod, ok := strings.CutPrefix(body, "pod="); ok {
		pod, _, _ = strings.Cut(pod, "\n")
		if c.sum.Pods == nil {
			c.sum.Pods = map[string]int{}
		}
		c.sum.Pods[pod]++
	}
	c.sum.OK++
	c.times = append(c.times, took)
}

func (c *client) exchange(ctx context.Context, line *lineConn) (string, error) {
	switch c.url.Scheme {
	case "tcp":
		return line.exchange(ctx, c.url.Host, c.cfg.Body, c.cfg.Fresh)
	case "grpc":
		return c.grpc(ctx)
	}
	req, err := http.NewRequestWithContext(ctx, c.cfg.Method, c.url.String(), bytes.NewReader([]byte(c.cfg.Body)))
	if err != nil {
		return "", err
	}
	for k, v := range c.cfg.Header {
		req.Header[k] = v
	}
	if h := c.cfg.Header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode >= 400 {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return string(b), nil
}

func (c *client) grpc(ctx context.Context) (string, error) {
	u := "http://" + c.url.Host + "/ambit.echo.v1.Echo/Echo"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(grpcMessage(c.cfg.Body)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	if status != "0" {
		return "", fmt.Errorf("grpc status %q", status)
	}
	return grpcText(b), nil
}

// lineConn is a TCP connection on which lines are exchanged.
type lineConn struct {
	conn net.Conn
	r    *bufio.Reader
}

func (l *lineConn) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

func (l *lineConn) exchange(ctx context.Context, addr, text string, fresh bool) (answer string, err error) {
	if fresh {
		l.close()
	}
	if l.conn == nil {
		if l.conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr); err != nil {
			l.conn = nil
			return "", err
		}
		l.r = bufio.NewReader(l.conn)
	}
	if text == "" {
		text = "who?"
	}
	deadline, _ := ctx.Deadline()
	_ = l.conn.SetDeadline(deadline)
	if _, err = io.WriteString(l.conn, text+"\n"); err == nil {
		answer, err = l.r.ReadString('\n')
	}
	if err != nil {
		l.close()
	}
	return answer, err
}
