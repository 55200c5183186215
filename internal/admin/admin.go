// Package admin is the HTTP face of a program towards its operator: state, log levels, profiles and shutdown on the admin
// port, readiness and metrics on theirs. The paths and their answers are those of Istio's node proxy, so that its tools
// work (section 9.1 of the protocol).
//
// It knows nothing of what it shows: the program hands in sections of the dump, log levels and handlers.
package admin

import (
	"context"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Config sets up the admin handler. Nil parts answer 404.
type Config struct {
	// Dump are the top-level members of /config_dump, in order.
	Dump []Section
	// Levels are changed by /logging.
	Levels LogLevels
	// Quit starts the shutdown; it must not block. Called by /quitquitquit, at most once per request.
	Quit func()
	// Extra are more paths, shown on the index.
	Extra map[string]http.Handler
}

// New returns the handler of the admin port.
func New(cfg Config) http.Handler {
	mux := &paths{}
	if cfg.Dump != nil {
		mux.add("/config_dump", "current state", dumpHandler(cfg.Dump))
	}
	if cfg.Levels != nil {
		mux.add("/logging", "log levels: POST, or POST ?level=<level>, ?level=<scope>=<level>,..., ?reset", loggingHandler(cfg.Levels))
	}
	if cfg.Quit != nil {
		mux.add("/quitquitquit", "shut down: POST", quitHandler(cfg.Quit))
	}
	mux.add("/debug/pprof/profile", "CPU profile: ?seconds=10", http.HandlerFunc(cpuProfile))
	mux.add("/debug/pprof/heap", "heap profile", http.HandlerFunc(heapProfile))
	mux.add("/debug/pprof/heap/profiling", "heap profiling: ?activate=true|false", new(heapSwitch))
	mux.add("/debug/pprof/goroutine", "stacks of all goroutines", http.HandlerFunc(goroutines))
	for path, h := range cfg.Extra {
		mux.add(path, "", h)
	}
	return mux
}

// paths serves exact paths and an index of them; anything else is 404.
type paths struct {
	list []entry
}

type entry struct {
	path, help string
	handler    http.Handler
}

func (p *paths) add(path, help string, h http.Handler) {
	i, _ := slices.BinarySearchFunc(p.list, path, func(e entry, path string) int {
		switch {
		case e.path < path:
			return -1
		case e.path > path:
			return 1
		}
		return 0
	})
	p.list = slices.Insert(p.list, i, entry{path, help, h})
}

// ServeHTTP implements http.Handler.
func (p *paths) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, e := range p.list {
		if e.path == r.URL.Path {
			e.handler.ServeHTTP(w, r)
			return
		}
	}
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, "<!DOCTYPE html>\n<title>admin</title>\n<table>\n")
	for _, e := range p.list {
		fmt.Fprintf(w, "<tr><td><a href=\"%s\">%s</a><td>%s\n", html.EscapeString(e.path), html.EscapeString(e.path), html.EscapeString(e.help))
	}
	fmt.Fprint(w, "</table>\n")
}

// text answers with one line of text.
func text(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, format+"\n", args...)
}

func quitHandler(quit func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			text(w, http.StatusMethodNotAllowed, "usage: POST /quitquitquit")
			return
		}
		text(w, http.StatusOK, "shutdown now")
		quit()
	})
}

// headerTimeout is how long a client may take to send the head of a request.
const headerTimeout = 2 * time.Second

// stopTimeout is how long requests may take to end when a server stops.
const stopTimeout = time.Second

// Listen opens the addresses, host:port each, to be given to Serve, which closes them. The name localhost stands for the
// loopback addresses of both families, of which one may be missing. On error nothing stays open.
func Listen(ctx context.Context, addrs ...string) ([]net.Listener, error) {
	var out []net.Listener
	fail := func(err error) ([]net.Listener, error) {
		for _, l := range out {
			l.Close()
		}
		return nil, err
	}
	var lc net.ListenConfig
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return fail(fmt.Errorf("listen on %q: %w", addr, err))
		}
		if host != "localhost" {
			l, err := lc.Listen(ctx, "tcp", addr)
			if err != nil {
				return fail(fmt.Errorf("listen on %q: %w", addr, err))
			}
			out = append(out, l)
			continue
		}
		l4, err4 := lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
		if err4 == nil {
			out = append(out, l4)
			_, port, _ = net.SplitHostPort(l4.Addr().String()) // port 0 means the same one twice
		}
		l6, err6 := lc.Listen(ctx, "tcp6", net.JoinHostPort("::1", port))
		if err6 == nil {
			out = append(out, l6)
		}
		if err4 != nil && err6 != nil {
			return fail(fmt.Errorf("listen on %q: %w", addr, errors.Join(err4, err6)))
		}
	}
	return out, nil
}

// Serve serves HTTP/1.1 on the listeners until ctx is done, then lets running requests end for a second. It closes the
// listeners, returns after everything it started has ended, and returns nil unless a listener failed. log gets the errors of
// connections.
func Serve(ctx context.Context, log *slog.Logger, h http.Handler, listeners ...net.Listener) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	errs := make(chan error, len(listeners))
	var wg sync.WaitGroup
	for _, l := range listeners {
		wg.Go(func() { errs <- srv.Serve(l) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
