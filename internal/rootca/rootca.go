// Package rootca makes the TLS configuration with which a node component dials the control plane, and reads its token.
//
// Both the root certificates and the token are files that Kubernetes replaces while we run. They are read when they
// are used: the roots at each handshake, the token for each call. So no watcher is needed and none can be missed
// (X10, C10).
package rootca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// ClientConfig verifies a server against the roots in the PEM file path, for any one of names (DNS names or IP
// addresses). names[0] is sent as SNI unless it is an address. TLS 1.2 and later, no client certificate.
func ClientConfig(path string, names ...string) (*tls.Config, error) {
	if len(names) == 0 {
		return nil, errors.New("no server name to verify")
	}
	if _, err := load(path); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         names[0],
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // VerifyConnection does it, with the roots of the moment and for several names
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verify(path, names, cs.PeerCertificates)
		},
	}, nil
}

func verify(path string, names []string, certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return errors.New("the server sent no certificate")
	}
	roots, err := load(path)
	if err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   time.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if _, err := certs[0].Verify(opts); err != nil {
		return fmt.Errorf("verify server certificate with roots %q: %w", path, err)
	}
	for _, name := range names {
		if err = certs[0].VerifyHostname(name); err == nil {
			return nil
		}
	}
	return fmt.Errorf("verify server certificate: want one of %q: %w", names, err)
}

func load(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read root certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read root certificates %q: no certificate in it", path)
	}
	return pool, nil
}

// TokenFile returns a function that reads the token in a file, without white space around it.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		token := strings.TrimSpace(string(data))
		if token == "" {
			return "", fmt.Errorf("read token %q: the file is empty", path)
		}
		return token, nil
	}
}

// HostPort takes the host and port out of an address such as https://istiod.istio-system.svc:15012, or the same
// without a scheme. Plaintext (http) is refused.
func HostPort(address string) (host, hostPort string, err error) {
	hostPort = address
	if strings.Contains(address, "://") {
		u, err := url.Parse(address)
		if err != nil {
			return "", "", fmt.Errorf("parse address %q: %w", address, err)
		}
		if u.Scheme != "https" {
			return "", "", fmt.Errorf("parse address %q: want https, got %s", address, u.Scheme)
		}
		if u.Path != "" && u.Path != "/" {
			return "", "", fmt.Errorf("parse address %q: it has a path", address)
		}
		hostPort = u.Host
	}
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", "", fmt.Errorf("parse address %q: %w", address, err)
	}
	if host == "" || port == "" {
		return "", "", fmt.Errorf("parse address %q: want host:port", address)
	}
	return host, hostPort, nil
}

// Dial connects to the control plane by TCP, within 5 s, with the keepalive of the Rust ztunnel (X10): first probe
// after 300 s, then every 75 s, 9 times.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         5 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9},
	}
	return d.DialContext(ctx, "tcp", address)
}
