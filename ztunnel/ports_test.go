package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/telemetry"
)

// portsOf opens the ports of a proxy that is nothing else, and serves them until stop is called.
func portsOf(t *testing.T, cfg ProxyConfig) (n *node, stop func()) {
	t.Helper()
	n = &node{cfg: cfg, registry: telemetry.NewRegistry(telemetry.Config{}), admin: http.NotFoundHandler(), alone: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	list, err := n.ports(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, p := range list {
		wg.Go(func() {
			if err := p.serve(ctx); err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return n, stop
}

// free finds addresses that nobody has.
func free(t *testing.T, addresses ...*string) {
	t.Helper()
	for _, to := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		*to = l.Addr().String()
	}
}

// askReady is what is said of readiness there, or why nothing is.
func askReady(network, address string) string {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}}
	resp, err := c.Get("http://localhost/healthz/ready")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

func TestANewProxyHasItsOwnReadinessWhileTheOldOneHasThePorts(t *testing.T) {
	var cfg ProxyConfig
	free(t, &cfg.ReadyAddress, &cfg.MetricsAddress, &cfg.AdminAddress)
	ready := cfg.ReadyAddress
	of := func(pod string) ProxyConfig {
		cfg.ReadySocket = fmt.Sprintf("@ambit-test-%d-%s", os.Getpid(), pod)
		return cfg
	}
	before, stop := portsOf(t, of("old"))
	<-before.alone
	after, _ := portsOf(t, of("new"))
	after.ready.Pending("state manager")
	if got := askReady("tcp", ready); !strings.HasPrefix(got, "ready") {
		t.Errorf("the port is the old one's, which is ready: %q", got)
	}
	if got := askReady("unix", after.cfg.ReadySocket); !strings.Contains(got, "state manager") {
		t.Errorf("the socket is the new one's, which is not: %q", got)
	}
	select {
	case <-after.alone:
		t.Error("the new one takes itself for alone")
	case <-time.After(2 * portRetry):
	}
	stop()
	select {
	case <-after.alone:
	case <-time.After(10 * time.Second):
		t.Fatal("the new one does not notice that the old one has ended")
	}
	if got := askReady("tcp", ready); !strings.Contains(got, "state manager") {
		t.Errorf("the port is the new one's now: %q", got)
	}
	after.ready.Done("state manager")
	if got := askReady("tcp", ready); !strings.HasPrefix(got, "ready") {
		t.Errorf("the new one is ready: %q", got)
	}
}

func TestAPortThatIsTakenIsAnErrorWhereNoPredecessorIsExpected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := &node{cfg: ProxyConfig{ReadyAddress: "127.0.0.1:0", MetricsAddress: l.Addr().String(), AdminAddress: "127.0.0.1:0"}, registry: telemetry.NewRegistry(telemetry.Config{})}
	if _, err := n.ports(t.Context(), slog.New(slog.DiscardHandler)); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("got %v, want what port is in use", err)
	}
}

// A new capture says that it is ready to follow, takes nothing while the old one is there, and goes on where that ended.
func TestRootANewCaptureWaitsForTheOldOneAndFollows(t *testing.T) {
	m := newMesh(t)
	stop := m.capture()
	m.proxy(nil, nil)
	m.add()
	cfg := testConfig(m.dir, testLog(t))
	cfg.ReadySocket = filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- RunCapture(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	ready := func() string { return askReady("unix", cfg.ReadySocket) }
	for end := time.Now().Add(10 * time.Second); !strings.Contains(ready(), "ready to follow"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the new one says %q", ready())
		}
	}
	if _, err := m.pods.List(t.Context()); err != nil {
		t.Fatalf("the old one does not answer beside it: %v", err)
	}
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
	stop()
	m.await()
	if strings.Contains(ready(), "ready to follow") {
		t.Error("the new one still waits")
	}
	m.state("captured")
	m.wantFetch(m.pod, peerIP+":80", "out "+peerIP+":80")
	m.server(m.peer, peerIP+":80", "peer")
	if _, err := m.pods.Update(t.Context(), m.spec(false)); err != nil {
		t.Fatal(err)
	}
	m.wantFetch(m.pod, peerIP+":80", "peer")
}
