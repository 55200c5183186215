package dumps

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// answer is what a client got.
type answer struct {
	status  int
	cluster string // of the backend; "" if the waypoint answered
	echo    *echo  // what the backend saw
	body    string // if it is no echo
	header  map[string][]string
	trailer map[string][]string
}

// patience bounds one request.
const patience = 20 * time.Second

// send sends a request on a connection of its own. The error is the connection's.
func send(s side, r *request) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := s.dial(ctx, r.who, r.dst)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	resp, err := exchange(ctx, c, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read body after status %d: %w", resp.StatusCode, err)
	}
	return answerOf(resp, body), nil
}

func exchange(ctx context.Context, c net.Conn, r *request) (*http.Response, error) {
	if r.http2 {
		return exchange2(ctx, c, r)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n", r.method, r.path, r.authority)
	for _, f := range r.header {
		fmt.Fprintf(&b, "%s: %s\r\n", f.name, f.value)
	}
	if r.body != "" {
		fmt.Fprintf(&b, "content-length: %d\r\n", len(r.body))
	}
	b.WriteString("\r\n" + r.body)
	if _, err := c.Write(b.Bytes()); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(c), &http.Request{Method: r.method})
}

func exchange2(ctx context.Context, c net.Conn, r *request) (*http.Response, error) {
	tr := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	tr.Protocols.SetUnencryptedHTTP2(true)
	body := r.body
	if r.grpc {
		body = string(frame([]byte(`{}`)))
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://x/", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		req.Body = http.NoBody
	}
	req.URL = &url.URL{Scheme: "http", Host: "x", Opaque: r.path}
	req.Host = r.authority
	req.Header.Set("user-agent", "")
	for _, f := range r.header {
		req.Header.Add(f.name, f.value)
	}
	return tr.RoundTrip(req)
}

func answerOf(resp *http.Response, body []byte) *answer {
	a := &answer{status: resp.StatusCode, header: resp.Header, trailer: resp.Trailer, cluster: resp.Header.Get(clusterHeader)}
	if len(body) > 5 && strings.HasPrefix(resp.Header.Get("content-type"), "application/grpc") && a.cluster != "" {
		body = body[5:]
	}
	var e echo
	if a.cluster != "" && json.Unmarshal(body, &e) == nil {
		a.echo = &e
		mask(e.Header)
		join(e.Header)
		delete(a.header, "Content-Length")
	} else {
		a.body = string(body)
	}
	mask(a.header)
	return a
}

// uuid is the form of request IDs that a proxy makes.
var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// cookie is the value of a cookie that a proxy makes to know a client again.
var cookie = regexp.MustCompile(`="[0-9a-f]{16}"`)

// mask makes headers comparable: those that tell the time are taken out, generated ones lose their value.
func mask(h map[string][]string) {
	delete(h, "Date")
	delete(h, "X-Envoy-Upstream-Service-Time")
	for i, v := range h["Set-Cookie"] {
		h["Set-Cookie"][i] = cookie.ReplaceAllString(v, `="(generated)"`)
	}
	for i, v := range h["X-Request-Id"] {
		if uuid.MatchString(v) {
			h["X-Request-Id"][i] = "(generated)"
		}
	}
}

// join puts the lines of headers that Envoy knows into one, as it does: they mean the same (RFC 9110 section 5.3). Empty ones say
// nothing.
func join(h map[string][]string) {
	for n, v := range h {
		if n == "Via" || n == "X-Request-Id" || strings.HasPrefix(n, "X-Envoy-") || strings.HasPrefix(n, "X-Forwarded-") {
			h[n] = []string{strings.Join(slices.DeleteFunc(slices.Clone(v), func(s string) bool { return s == "" }), ",")}
		}
	}
}

// line sends a line on a connection that is not HTTP, and returns what came back; "closed" if nothing did. A
// backend that speaks HTTP says that it is none.
func line(s side, who client, dst netip.AddrPort) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := s.dial(ctx, who, dst)
	if err != nil {
		return "closed"
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err.Error()
	}
	if _, err := io.WriteString(c, "some bytes\r\n\r\n"); err != nil {
		return "closed"
	}
	b, _ := io.ReadAll(c) // a reset is as good as an end
	if len(b) == 0 {
		return "closed"
	}
	return string(b)
}
