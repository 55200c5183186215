package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"
)

// The server's ports, below the ephemeral range.
const (
	sinkPort   = 9001 // reads everything; after the client's half-close answers with count and SHA-256
	sourcePort = 9002 // writes without end
	echoPort   = 9003 // sends back what it reads
)

// serverMain is the application at the other end: one process for each server pod.
func serverMain(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	if err := fs.Parse(args); err != nil {
		return err
	}
	handlers := map[int]func(net.Conn) error{sinkPort: sink, sourcePort: source, echoPort: echo}
	maps.Copy(handlers, requestHandlers)
	var ls []net.Listener
	var wg sync.WaitGroup
	for port, h := range handlers {
		l, err := listen(ctx, ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		ls = append(ls, l)
		wg.Go(func() { acceptAll(l, h) })
	}
	fmt.Println("READY")
	<-ctx.Done()
	for _, l := range ls {
		_ = l.Close() // the process ends
	}
	wg.Wait()
	return nil
}

// listen listens with plain TCP: Go's default of MPTCP listeners would be in the way of nothing, but not plain.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", addr)
}

// acceptAll serves l until it is closed. Connections die with the process.
func acceptAll(l net.Listener, serve func(net.Conn) error) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of descriptors: let some close
			continue
		}
		go func() {
			defer c.Close()
			_ = serve(c) // the client counts errors
		}()
	}
}

const bulkBuffer = 256 << 10

func sink(c net.Conn) error {
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return err
	}
	if first[0] != checked {
		b := make([]byte, bulkBuffer)
		for {
			if _, err := c.Read(b); err != nil {
				return err
			}
		}
	}
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return err
	}
	var count [8]byte
	binary.BigEndian.PutUint64(count[:], uint64(n))
	_, err = c.Write(append(count[:], h.Sum(nil)...))
	return err
}

func source(c net.Conn) error {
	b := make([]byte, bulkBuffer)
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

func echo(c net.Conn) error {
	b := make([]byte, 16<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
	}
}

// relayMain is the splice system: it forwards each of the server's ports, as plainly as Go can.
func relayMain(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	to := fs.String("to", "", "host to forward to, on the same port")
	offset := fs.Int("offset", 0, "added to the port listened on")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, port := range []int{sinkPort, sourcePort, echoPort} {
		l, err := listen(ctx, ":"+strconv.Itoa(port+*offset))
		if err != nil {
			return err
		}
		defer l.Close()
		target := net.JoinHostPort(*to, strconv.Itoa(port))
		go acceptAll(l, func(c net.Conn) error { return forward(ctx, c, target) })
	}
	fmt.Println("READY")
	<-ctx.Done()
	return nil
}

// forward joins two connections; io.Copy between TCP connections is splice(2).
func forward(ctx context.Context, c net.Conn, target string) error {
	var d net.Dialer
	d.SetMultipathTCP(false)
	s, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer s.Close()
	back := make(chan error, 1)
	go func() { back <- copyAndShut(c, s) }()
	return errors.Join(copyAndShut(s, c), <-back)
}

// copyAndShut copies src to dst and passes the end on: a half-close as such, an error by closing both.
func copyAndShut(dst, src net.Conn) error {
	_, err := io.Copy(dst, src)
	if err != nil {
		return errors.Join(err, dst.Close(), src.Close())
	}
	return dst.(*net.TCPConn).CloseWrite()
}
