package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

const (
	maxBody      = 1 << 20
	stopDeadline = 5 * time.Second
)

// serveSocket serves the protocol of package podsock at path, for our own user only, until ctx is done.
func (m *Manager) serveSocket(ctx context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for pods: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("restrict socket: %w", err)
	}
	srv := &http.Server{
		Handler:           m.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopDeadline)
		defer cancel()
		if srv.Shutdown(c) != nil {
			srv.Close()
		}
	})
	err = srv.Serve(&checkedListener{UnixListener: l, m: m})
	if !stop() {
		<-done
		return nil
	}
	return fmt.Errorf("serve pods: %w", err)
}

// checkedListener accepts connections of our own user only: for a moment the socket's mode was the default.
type checkedListener struct {
	*net.UnixListener
	m *Manager
}

// Accept implements net.Listener.
func (l *checkedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err = zds.CheckPeer(c, uint32(os.Geteuid())); err == nil {
			return c, nil
		}
		l.m.log.Warn("connection to pods socket refused", "err", err)
		c.Close()
	}
}

func (m *Manager) handler() http.Handler {
	mux := http.NewServeMux()
	set := func(w http.ResponseWriter, r *http.Request) { m.serveSet(w, r) }
	mux.HandleFunc("POST /v1/pods/add", set)
	mux.HandleFunc("POST /v1/pods/update", set)
	mux.HandleFunc("POST /v1/pods/remove", m.serveRemove)
	mux.HandleFunc("POST /v1/sandboxes/add", func(w http.ResponseWriter, r *http.Request) {
		s, err := decode[podsock.Sandbox](r.Body)
		if err != nil {
			answer(w, nil, err)
			return
		}
		res, err := m.SetSandbox(r.Context(), s)
		answer(w, res, err)
	})
	mux.HandleFunc("POST /v1/sandboxes/remove", func(w http.ResponseWriter, r *http.Request) {
		s, err := decode[podsock.Sandbox](r.Body)
		if err == nil {
			err = m.RemoveSandbox(r.Context(), s)
		}
		answer(w, podsock.Result{Result: podsock.Removed}, err)
	})
	mux.HandleFunc("GET /v1/pods", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.List(), nil) })
	mux.HandleFunc("GET /metrics", m.ServeMetrics)
	return mux
}

func (m *Manager) serveSet(w http.ResponseWriter, r *http.Request) {
	p, err := decode[podsock.Pod](r.Body)
	if err != nil {
		answer(w, nil, err)
		return
	}
	res, err := m.Set(r.Context(), &p)
	answer(w, res, err)
}

func (m *Manager) serveRemove(w http.ResponseWriter, r *http.Request) {
	p, err := decode[podsock.Pod](r.Body)
	if err == nil {
		err = m.Remove(r.Context(), p.UID)
	}
	answer(w, podsock.Result{Result: podsock.Removed}, err)
}

func decode[T podsock.Pod | podsock.Sandbox](body io.Reader) (v T, err error) {
	if err := json.NewDecoder(io.LimitReader(body, maxBody)).Decode(&v); err != nil {
		return v, refuse("decode pod: %w", err)
	}
	return v, nil
}

// answer sends v, or err: 422 for what will be refused again, 503 for what may go better later.
func answer(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		e := &podsock.Error{Status: http.StatusServiceUnavailable, Text: err.Error(), Retry: true}
		if isRefusal(err) {
			e.Status, e.Retry = http.StatusUnprocessableEntity, false
		}
		status, v = e.Status, e
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller may be gone
}
