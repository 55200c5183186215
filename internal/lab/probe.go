package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Until the first success a probe is repeated faster than its period, so that a lab is up soon.
const eagerProbe = 200 * time.Millisecond

// probeLoop keeps the container's readiness up to date until ctx ends.
func (c *container) probeLoop(ctx context.Context, sb *sandbox) {
	pr := c.spec.ReadinessProbe
	period := seconds(pr.PeriodSeconds, 10)
	timeout := seconds(pr.TimeoutSeconds, 1)
	failures, successes := 0, 0
	if !sleep(ctx, time.Duration(pr.InitialDelaySeconds)*time.Second) {
		return
	}
	for {
		c.pod.l.mu.Lock()
		running, ready := c.running, c.ready
		c.pod.l.mu.Unlock()
		var err error
		if running {
			pctx, cancel := context.WithTimeout(ctx, timeout)
			err = c.probe(pctx, sb)
			cancel()
		} else {
			err = fmt.Errorf("container is not running")
		}
		if err == nil {
			failures, successes = 0, successes+1
		} else {
			failures, successes = failures+1, 0
		}
		switch {
		case !ready && err == nil && successes >= max(1, int(pr.SuccessThreshold)):
			c.pod.update(func() { c.ready, c.reason = c.running, "" })
		case ready && failures >= int(max(1, orDefault(pr.FailureThreshold, 3))):
			c.pod.update(func() { c.ready, c.reason = false, "readiness probe: "+err.Error() })
		case !ready && err != nil && running:
			c.pod.update(func() { c.reason = "readiness probe: " + err.Error() })
		}
		wait := period
		if !ready {
			wait = min(period, eagerProbe)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func seconds(v, or int32) time.Duration { return time.Duration(orDefault(v, or)) * time.Second }

func orDefault(v, or int32) int32 {
	if v == 0 {
		return or
	}
	return v
}

// probe asks once, from inside of the pod.
func (c *container) probe(ctx context.Context, sb *sandbox) error {
	pr := c.spec.ReadinessProbe
	switch {
	case pr.HTTPGet != nil:
		return c.probeHTTP(ctx, sb, pr.HTTPGet)
	case pr.TCPSocket != nil:
		conn, err := sb.spaces.net.dial(ctx, c.target(pr.TCPSocket.Host, pr.TCPSocket.Port))
		if err == nil {
			conn.Close()
		}
		return err
	case pr.Exec != nil && len(pr.Exec.Command) > 0:
		cmd := exec.CommandContext(ctx, pr.Exec.Command[0], pr.Exec.Command[1:]...)
		cmd.Env = c.environ()
		if err := sb.spaces.start(cmd, sb.cg); err != nil {
			return err
		}
		return cmd.Wait()
	}
	return fmt.Errorf("probe has none of httpGet, tcpSocket, exec")
}

func (c *container) probeHTTP(ctx context.Context, sb *sandbox, g *corev1.HTTPGetAction) error {
	target := c.target(g.Host, g.Port)
	client := sb.spaces.net.httpClient()
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+"/", nil)
	if err != nil {
		return err
	}
	req.URL.Path = g.Path
	req.Header.Set("User-Agent", "kube-probe/lab")
	for _, h := range g.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
		} else {
			req.Header.Add(h.Name, h.Value)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// target is host:port of a probe: the pod's own address unless it names another.
func (c *container) target(host string, port intstr.IntOrString) string {
	if host == "" {
		host = c.pod.addrs[0].String()
	}
	n := port.IntValue()
	if port.Type == intstr.String {
		n = int(namedPort(c.pod, port.StrVal))
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}

// namedPort finds a container port by its name, or a number written as a string; 0 if there is none.
func namedPort(p *pod, name string) uint16 {
	for _, c := range p.spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == name {
				return uint16(cp.ContainerPort)
			}
		}
	}
	n, _ := strconv.ParseUint(name, 10, 16)
	return uint16(n)
}

// dial connects from inside of the namespace; addr is IP:port.
func (n *netNS) dial(ctx context.Context, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := n.Do(func() (err error) {
		// With one literal address the dialer makes the socket on the calling thread.
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// httpClient is a client whose connections are made inside of the namespace. Redirects are not followed.
func (n *netNS) httpClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return n.dial(ctx, addr) },
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
