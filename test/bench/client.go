package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// checked is the first byte of an upload that the server is to answer with count and sum.
const checked = 1

// clientResult is what a client prints when it is done.
type clientResult struct {
	Ops    uint64        `json:"ops"`
	Bytes  uint64        `json:"bytes"`
	Wall   time.Duration `json:"wall_ns"`
	Errors uint64        `json:"errors"`
	Error  string        `json:"error,omitempty"` // the first one
	P50    time.Duration `json:"p50_ns,omitempty"`
	P90    time.Duration `json:"p90_ns,omitempty"`
	P99    time.Duration `json:"p99_ns,omitempty"`
	P999   time.Duration `json:"p999_ns,omitempty"`
}

// The phases of a client; the harness samples when they change.
const (
	warming = iota
	measuring
	stopping
)

// A client is one run of one workload.
type client struct {
	host       netip.Addr
	offset     int // added to the server's ports
	kind       kind
	conns      int
	streams    int // requests at a time on a connection
	size, rate int

	phase      atomic.Int32
	ops, bytes atomic.Uint64
	errs       atomic.Uint64
	firstErr   atomic.Pointer[string]
	latency    []histogram // one for each connection or worker
}

// clientMain runs one workload: it prints START and END around the measured window, waits for a byte on stdin after END,
// and prints its result.
func clientMain(args []string) error {
	c := &client{}
	fs := flag.NewFlagSet("client", flag.ContinueOnError)
	host := fs.String("host", "", "address of the server")
	k := fs.String("kind", "", "what to do")
	fs.IntVar(&c.offset, "offset", 0, "added to the server's ports")
	fs.IntVar(&c.conns, "conns", 1, "connections")
	fs.IntVar(&c.streams, "streams", 1, "requests at a time on a connection of HTTP/2")
	fs.IntVar(&c.size, "size", 1024, "bytes of a message")
	fs.IntVar(&c.rate, "rate", 0, "messages a second")
	window := fs.Duration("window", time.Second, "measured time")
	warm := fs.Duration("warm", 500*time.Millisecond, "time before it")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	if c.host, err = netip.ParseAddr(*host); err != nil {
		return err
	}
	c.kind = kind(*k)
	switch c.kind {
	case "check":
		return c.check()
	case "idle":
		return c.idle()
	}
	return c.measure(*warm, *window)
}

func (c *client) measure(warm, window time.Duration) error {
	c.latency = make([]histogram, c.conns)
	if err := c.start(); err != nil {
		return err
	}
	time.Sleep(warm)
	c.phase.Store(measuring)
	begin := time.Now()
	fmt.Println("START")
	time.Sleep(window)
	c.phase.Store(stopping)
	r := clientResult{Wall: time.Since(begin)}
	fmt.Println("END")
	var b [1]byte
	if _, err := os.Stdin.Read(b[:]); err != nil {
		return err
	}
	r.Ops, r.Bytes, r.Errors = c.ops.Load(), c.bytes.Load(), c.errs.Load()
	if e := c.firstErr.Load(); e != nil {
		r.Error = *e
	}
	h := &histogram{}
	for i := range c.latency {
		h.merge(&c.latency[i])
	}
	r.P50, r.P90, r.P99, r.P999 = h.quantile(.5), h.quantile(.9), h.quantile(.99), h.quantile(.999)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// start begins the work; the process's end ends it.
func (c *client) start() error {
	if c.kind == connect {
		for i := range c.conns {
			go c.connects(i)
		}
		return nil
	}
	port := map[kind]int{bulkUp: sinkPort, bulkDown: sourcePort, pingPong: echoPort, stalled: echoPort}[c.kind]
	if p, ok := requestPorts[c.kind]; ok {
		port = p
	}
	work := map[kind]func(int, net.Conn){
		bulkUp: c.up, bulkDown: c.down, pingPong: c.roundTrips, stalled: c.roundTrips,
		http1Requests: c.requests1, http2Requests: c.requests2, grpcUnary: c.requests2, grpcStreams: c.requests2,
	}[c.kind]
	if work == nil {
		return fmt.Errorf("kind %q is not known", c.kind)
	}
	if c.kind == stalled {
		if err := c.stall(); err != nil {
			return err
		}
	}
	open := make([]net.Conn, c.conns)
	for i := range open {
		var err error
		if open[i], err = c.dial(port); err != nil {
			return err
		}
	}
	for i, conn := range open {
		go work(i, conn)
	}
	return nil
}

// stall opens a download that nobody reads and an upload that goes as fast as it can.
func (c *client) stall() error {
	s, err := c.dial(sourcePort)
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err := s.Read(b[:]); err != nil {
		return err
	}
	u, err := c.dial(sinkPort)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, bulkBuffer)
		for {
			if _, err := u.Write(buf); err != nil {
				c.fail(err)
				return
			}
		}
	}()
	return nil
}

func (c *client) dial(port int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	d.SetMultipathTCP(false)
	conn, err := d.Dial("tcp", net.JoinHostPort(c.host.String(), strconv.Itoa(port+c.offset)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (c *client) fail(err error) {
	if c.phase.Load() == stopping {
		return
	}
	c.errs.Add(1)
	s := err.Error()
	c.firstErr.CompareAndSwap(nil, &s)
}

func (c *client) up(_ int, conn net.Conn) {
	b := make([]byte, bulkBuffer)
	for c.phase.Load() < stopping {
		n, err := conn.Write(b)
		if err != nil {
			c.fail(err)
			return
		}
		if c.phase.Load() == measuring {
			c.bytes.Add(uint64(n))
		}
	}
}

func (c *client) down(_ int, conn net.Conn) {
	b := make([]byte, bulkBuffer)
	for c.phase.Load() < stopping {
		n, err := conn.Read(b)
		if err != nil {
			c.fail(err)
			return
		}
		if c.phase.Load() == measuring {
			c.bytes.Add(uint64(n))
		}
	}
}

// slack is how late the runtime's timer may wake a paced connection before its lateness counts as latency.
const slack = 2 * time.Millisecond

// roundTrips sends messages on one connection. With a rate it is an open loop: a message's latency counts from when it
// should have been sent, so that a stall is not hidden by the messages that it held back.
func (c *client) roundTrips(i int, conn net.Conn) {
	out, in := message(c.size), make([]byte, c.size)
	var next time.Time
	var every time.Duration
	if c.rate > 0 {
		every = time.Duration(c.conns) * time.Second / time.Duration(c.rate)
		next = time.Now().Add(every * time.Duration(i) / time.Duration(c.conns))
	}
	for c.phase.Load() < stopping {
		begin := time.Now()
		if every > 0 {
			if d := next.Sub(begin); d > 0 {
				time.Sleep(d)
			}
			if begin = time.Now(); begin.Sub(next) > slack {
				begin = next
			}
			next = next.Add(every)
		}
		if err := roundTrip(conn, out, in); err != nil {
			c.fail(err)
			return
		}
		c.done(i, begin)
	}
}

// connects opens, uses and closes connections, one after the other. It closes by reset, so that the client's ports are
// free again at once.
func (c *client) connects(i int) {
	out, in := message(c.size), make([]byte, c.size)
	for c.phase.Load() < stopping {
		begin := time.Now()
		conn, err := c.dial(echoPort)
		if err != nil {
			c.fail(err)
			time.Sleep(time.Millisecond) // a broken system must not spin
			continue
		}
		err = errors.Join(conn.SetLinger(0), roundTrip(conn, out, in), conn.Close())
		if err != nil {
			c.fail(err)
			continue
		}
		c.done(i, begin)
	}
}

func (c *client) done(i int, begin time.Time) {
	if c.phase.Load() == measuring {
		c.latency[i].add(time.Since(begin))
		c.ops.Add(1)
	}
}

func roundTrip(conn net.Conn, out, in []byte) error {
	if _, err := conn.Write(out); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, in); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return errors.New("echo differs from what was sent")
	}
	return nil
}

// message is size bytes that are not all alike.
func message(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}

const checkBytes = 32 << 20

// check sends random bytes to the sink and to the echo, half-closes, and compares sums.
func (c *client) check() error {
	data := message(checkBytes)
	want := sha256.Sum256(data)
	up, err := c.dial(sinkPort)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := send(up, []byte{checked}, data); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	answer, err := io.ReadAll(up)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if len(answer) != 8+len(want) || binary.BigEndian.Uint64(answer) != checkBytes || !bytes.Equal(answer[8:], want[:]) {
		return fmt.Errorf("upload: server's count and sum differ (%d bytes of answer)", len(answer))
	}
	both, err := c.dial(echoPort)
	if err != nil {
		return err
	}
	defer both.Close()
	sent := make(chan error, 1)
	go func() { sent <- send(both, data) }()
	h := sha256.New()
	n, err := io.Copy(h, both)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	if n != checkBytes || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("echo: %d bytes came back of %d, or not the same", n, checkBytes)
	}
	fmt.Println("CHECKED")
	return nil
}

// send writes the parts and half-closes.
func send(conn *net.TCPConn, parts ...[]byte) error {
	for _, p := range parts {
		if _, err := conn.Write(p); err != nil {
			return err
		}
	}
	return conn.CloseWrite()
}

// idle opens connections, uses each once, prints START, and holds them until a byte comes on stdin.
func (c *client) idle() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) // dialling says so if it was not enough
	}
	out, in := message(c.size), make([]byte, c.size)
	held := make([]net.Conn, 0, c.conns)
	for range c.conns {
		conn, err := c.dial(echoPort)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(held), err)
		}
		if err := roundTrip(conn, out, in); err != nil {
			return fmt.Errorf("connection %d: %w", len(held), err)
		}
		held = append(held, conn)
	}
	fmt.Println("START")
	var b [1]byte
	if _, err := os.Stdin.Read(b[:]); err != nil {
		return err
	}
	for _, conn := range held { // all must still be alive
		if err := roundTrip(conn, out, in); err != nil {
			return fmt.Errorf("after the quiet time: %w", err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(clientResult{Ops: uint64(len(held))})
}
