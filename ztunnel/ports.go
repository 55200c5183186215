package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/admin"
)

// readiness is the port of which the predecessor's end is known: it is given up first.
const readiness = "readiness"

// portRetry is the pause between attempts to get a port that our predecessor has.
const portRetry = 100 * time.Millisecond

// port is an address where the proxy serves HTTP.
type port struct {
	name string
	// serve blocks until ctx is done.
	serve func(ctx context.Context) error
}

// ports opens the proxy's ports for whoever looks after it; where a predecessor may have them they are opened by serve.
func (n *node) ports(ctx context.Context, log *slog.Logger) ([]port, error) {
	var out []port
	for _, p := range []struct {
		name, address string
		h             http.Handler
	}{
		{readiness, n.cfg.ReadyAddress, n.ready.Handler()},
		{"metrics", n.cfg.MetricsAddress, admin.MetricsHandler(n.registry.Handler())},
		{"admin", n.cfg.AdminAddress, n.admin},
	} {
		l, err := admin.Listen(ctx, p.address)
		if err != nil && (n.cfg.ReadySocket == "" || !errors.Is(err, unix.EADDRINUSE)) {
			return nil, fmt.Errorf("listen for the %s port: %w", p.name, err)
		}
		out = append(out, port{p.name, func(ctx context.Context) error {
			if l == nil {
				log.Info("another proxy has the port: waiting for its end", "port", p.name, "address", p.address)
				var err error
				if l, err = listenSoon(ctx, p.address); err != nil {
					return unlessDone(ctx, fmt.Errorf("listen for the %s port: %w", p.name, err))
				}
			}
			if p.name == readiness {
				close(n.alone)
			}
			return admin.Serve(ctx, log, p.h, l...)
		}})
	}
	if n.cfg.ReadySocket == "" {
		return out, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", n.cfg.ReadySocket)
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	return append(out, port{"readiness socket", func(ctx context.Context) error { return admin.Serve(ctx, log, n.ready.Handler(), l) }}), nil
}

// listenSoon waits until nobody else has the address.
func listenSoon(ctx context.Context, address string) ([]net.Listener, error) {
	for {
		l, err := admin.Listen(ctx, address)
		if err == nil || !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		if !pause(ctx, portRetry) {
			return nil, ctx.Err()
		}
	}
}
