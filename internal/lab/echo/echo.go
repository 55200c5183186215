// Package echo is the lab's built-in image ambit/echo: a server that tells what reached it, and a client that makes
// load and reports what came back.
//
// One port speaks everything: the server looks at the first bytes of a connection and answers HTTP/1.1, HTTP/2 without
// TLS (and gRPC in it), or else raw TCP line by line. Names of the pod come from POD_NAME and POD_NAMESPACE.
package echo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ServerConfig says where a server listens and what it calls itself.
type ServerConfig struct {
	// Addresses are host:port or :port; ":8080" if empty.
	Addresses []string
	// Greet are addresses where the server speaks first, with a line about the connection, and then echoes raw TCP.
	Greet []string
	// FailFile is a path; while there is a file, HTTP requests are answered with 503, but for /healthz. "" is none.
	FailFile string
	// Collector takes spans and logs, as collectors do, and writes a line for each to Log.
	Collector bool
	// Drain is how long the server goes on when it is told to end, so that those who have not heard of it yet are served:
	// answers ask clients to close their connections, and then those under way are completed. Zero ends it at once.
	Drain time.Duration
	// Pod and Namespace are what the server says it is.
	Pod, Namespace string
	// Log gets a line per HTTP request and TCP connection; discarded if nil.
	Log *slog.Logger
}

// Serve answers until ctx ends or a listener fails. Open connections are closed then, after the time to drain.
func Serve(ctx context.Context, cfg ServerConfig) error {
	if len(cfg.Addresses)+len(cfg.Greet) == 0 {
		cfg.Addresses = []string{":8080"}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg: cfg, web: newQueue(), conns: map[net.Conn]bool{}}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	hs := &http.Server{Handler: s, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	told := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(told))
	listen := func(addr string, handle func(net.Conn)) error {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		wg.Go(func() { <-ctx.Done(); ln.Close() })
		wg.Go(func() { cancel(s.accept(ctx, ln, handle)) })
		return nil
	}
	var err error
	for _, a := range cfg.Addresses {
		err = errors.Join(err, listen(a, s.sort))
	}
	for _, a := range cfg.Greet {
		err = errors.Join(err, listen(a, s.greet))
	}
	if err != nil {
		cancel(err)
	}
	wg.Go(func() { _ = hs.Serve(s.web) })
	select {
	case <-told.Done():
		s.drain(ctx, hs)
		cancel(context.Cause(told))
	case <-ctx.Done():
	}
	s.web.Close()
	hs.Close()
	s.closeAll()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// drain serves on until the time for it is over or ctx is done, and then completes what is under way.
func (s *server) drain(ctx context.Context, hs *http.Server) {
	if s.cfg.Drain <= 0 {
		return
	}
	s.draining.Store(true)
	t := time.NewTimer(s.cfg.Drain)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = hs.Shutdown(ctx) // what is left after the time is cut
}

type server struct {
	cfg      ServerConfig
	web      *queue
	draining atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (s *server) accept(ctx context.Context, ln net.Listener, handle func(net.Conn)) error {
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		go handle(conn) // ends with the connection, which closeAll closes
	}
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *server) forget(c net.Conn) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// methods are the beginnings by which HTTP is told from raw TCP; PRI is HTTP/2's preface.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ", "PRI * "}

// sort hands a connection to the HTTP server or the raw echo.
func (s *server) sort(conn net.Conn) {
	br := bufio.NewReaderSize(conn, 16<<10)
	var head []byte
	for n := 1; ; n++ {
		b, err := br.Peek(n)
		if err != nil {
			s.raw(conn, br)
			return
		}
		head = b
		possible := false
		for _, m := range methods {
			if bytes.HasPrefix(head, []byte(m)) {
				s.web.put(&peeked{Conn: conn, r: br, closed: func() { s.forget(conn) }})
				return
			}
			possible = possible || strings.HasPrefix(m, string(head))
		}
		if !possible {
			s.raw(conn, br)
			return
		}
	}
}

func (s *server) greet(conn net.Conn) {
	fmt.Fprintf(conn, "pod=%s namespace=%s peer=%s local=%s\n", s.cfg.Pod, s.cfg.Namespace, conn.RemoteAddr(), conn.LocalAddr())
	s.raw(conn, bufio.NewReader(conn))
}

// raw echoes bytes as they come. The line "who?" is answered with what the server knows about the connection.
func (s *server) raw(conn net.Conn, r *bufio.Reader) {
	defer s.forget(conn)
	s.cfg.Log.Info("tcp", "peer", conn.RemoteAddr().String())
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			out := buf[:n]
			if string(out) == "who?\n" {
				out = fmt.Appendf(nil, "pod=%s namespace=%s peer=%s local=%s\n", s.cfg.Pod, s.cfg.Namespace, conn.RemoteAddr(), conn.LocalAddr())
			}
			if _, err := conn.Write(out); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// ServeHTTP answers a request with its description. /status/NNN answers with that status, /bytes/N with N bytes,
// /delay/DURATION after that time.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.cfg.Log.Info("http", "method", r.Method, "path", r.URL.Path, "peer", r.RemoteAddr, "proto", r.Proto)
	if s.draining.Load() {
		w.Header().Set("Connection", "close") // of HTTP/2 the server sends GOAWAY
	}
	if s.cfg.Collector && s.collect(w, r) {
		return
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.grpc(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	text := s.describe(r)
	status, size := http.StatusOK, 0
	fmt.Sscanf(r.URL.Path, "/status/%d", &status)
	if s.fails() && r.URL.Path != "/healthz" {
		status = http.StatusServiceUnavailable
	}
	if d, ok := strings.CutPrefix(r.URL.Path, "/delay/"); ok {
		pause(r.Context(), d)
	}
	if n, _ := fmt.Sscanf(r.URL.Path, "/bytes/%d", &size); n == 1 {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.CopyN(w, zeros{}, int64(size))
		return
	}
	if status < 200 || status > 599 {
		status = http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
	if len(body) > 0 {
		fmt.Fprintf(w, "body=%d\n", len(body))
		_, _ = w.Write(body)
	}
}

// fails says whether the server has been told to fail.
func (s *server) fails() bool {
	if s.cfg.FailFile == "" {
		return false
	}
	_, err := os.Stat(s.cfg.FailFile)
	return err == nil
}

// pause waits for a time such as 500ms, at most a minute, or until the client has gone.
func pause(ctx context.Context, text string) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return
	}
	t := time.NewTimer(min(d, time.Minute))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *server) describe(r *http.Request) string {
	var b strings.Builder
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	fmt.Fprintf(&b, "pod=%s\nnamespace=%s\nmethod=%s\npath=%s\nproto=%s\nhost=%s\npeer=%s\nlocal=%v\n",
		s.cfg.Pod, s.cfg.Namespace, r.Method, r.URL.RequestURI(), r.Proto, r.Host, r.RemoteAddr, local)
	names := make([]string, 0, len(r.Header))
	for n := range r.Header {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		for _, v := range r.Header[n] {
			fmt.Fprintf(&b, "header.%s=%s\n", n, v)
		}
	}
	return b.String()
}

// grpc answers any unary call whose message has a string in field 1 with the description and that string, and the health
// check of gRPC with "serving".
func (s *server) grpc(w http.ResponseWriter, r *http.Request) {
	msg, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	if err != nil || grpcBody(msg) == nil {
		w.Header().Set("Grpc-Status", "3")
		w.Header().Set("Grpc-Message", "not one unary message")
		return
	}
	answer := grpcMessage(s.describe(r) + grpcText(msg))
	if r.URL.Path == "/grpc.health.v1.Health/Check" {
		answer = []byte{0, 0, 0, 0, 2, 0x08, 1} // HealthCheckResponse{status: SERVING}
	}
	_, _ = w.Write(answer)
	w.Header().Set("Grpc-Status", "0")
}

// grpcMessage frames a protobuf message with text as field 1: flag (1 byte), length (4), tag, varint length, text.
func grpcMessage(text string) []byte {
	pb := append([]byte{0x0a}, binary.AppendUvarint(nil, uint64(len(text)))...)
	pb = append(pb, text...)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(pb))), pb...)
}

// grpcBody is the message in a frame that is not compressed; nil if it is not exactly one.
func grpcBody(frame []byte) []byte {
	if len(frame) < 5 || frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:5])) != len(frame)-5 {
		return nil
	}
	return frame[5:]
}

// grpcText is the inverse of grpcMessage; empty for anything else.
func grpcText(msg []byte) string {
	if len(msg) < 6 || msg[5] != 0x0a {
		return ""
	}
	n, used := binary.Uvarint(msg[6:])
	if used <= 0 || n > uint64(len(msg)-6-used) {
		return ""
	}
	return string(msg[6+used:][:n])
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// peeked is a connection some bytes of which were looked at.
type peeked struct {
	net.Conn
	r      *bufio.Reader
	closed func()
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }
func (p *peeked) Close() error               { p.closed(); return nil }

// queue is a net.Listener of connections that were accepted elsewhere.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue() *queue { return &queue{conns: make(chan net.Conn), done: make(chan struct{})} }

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { q.once.Do(func() { close(q.done) }); return nil }
func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }
