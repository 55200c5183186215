package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// inside runs f on a thread in the namespace of a pod, or of a node if namespace is empty.
func (m *mesh) inside(namespace, name string, f func() error) error {
	a, err := m.c.Access(m.t.Context(), namespace, name, "")
	if err != nil {
		return err
	}
	return a.Do(f)
}

// dial connects from a pod or node. It may be called from any goroutine.
func (m *mesh) dial(namespace, name string, to netip.AddrPort, timeout time.Duration) (conn *net.TCPConn, err error) {
	err = m.inside(namespace, name, func() error {
		c, err := (&net.Dialer{Timeout: timeout}).DialContext(m.t.Context(), "tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// control calls the control plane's administration from its own host and returns the answer's body.
func (m *mesh) control(method, path string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return m.dial("", "controlplane", netip.MustParseAddrPort("127.0.0.1:15014"), 5*time.Second)
		},
	}}
	req, err := http.NewRequestWithContext(m.t.Context(), method, "http://controlplane"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, body)
	}
	return string(body), err
}
