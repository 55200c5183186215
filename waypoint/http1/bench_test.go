//go:build !race

package http1

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// BenchmarkBulk moves bodies of 64 MiB through a proxy of both codecs; cpu-ms/GB is that of the loop's thread.
func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	for _, c := range []struct{ name, head string }{
		{"length", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)},
		{"to-the-end", "HTTP/1.1 200 OK\r\n\r\n"}, // chunked on the client's side
	} {
		b.Run(c.name, func(b *testing.B) {
			l := running(b)
			up, _ := rawServer(b, func(k io.ReadWriteCloser) {
				for {
					one := make([]byte, 1)
					for n := 0; n < 4; n++ { // the empty line
						if _, err := io.ReadFull(k, one); err != nil {
							return
						}
						if one[0] != '\r' && one[0] != '\n' {
							n = -1
						}
					}
					io.WriteString(k, c.head)
					p := make([]byte, 1<<20)
					for range size >> 20 {
						if _, err := k.Write(p); err != nil {
							return
						}
					}
					if c.name == "to-the-end" {
						return
					}
				}
			})
			addr := listen(b, l, ServerConfig{}, (&proxy{t: b, l: l, addr: up}).handler)
			k, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			cpu := func() (ns int64) {
				l.OnLoop(func() {
					var u unix.Rusage
					unix.Getrusage(unix.RUSAGE_THREAD, &u)
					ns = u.Utime.Nano() + u.Stime.Nano()
				})
				return ns
			}
			before := cpu()
			b.SetBytes(size)
			p := make([]byte, 1<<20)
			for b.Loop() {
				io.WriteString(k, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
				readHead(b, k)
				for n := 0; n < size; {
					m, err := k.Read(p)
					if n += m; err != nil {
						b.Fatal(err)
					}
				}
				if c.name == "to-the-end" { // what is left of the chunks' frames
					k.Close()
					if k, err = net.Dial("tcp", addr); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(cpu()-before)/1e6/(float64(size)*float64(b.N)/1e9), "cpu-ms/GB")
		})
	}
}

// BenchmarkProxy moves small requests through a proxy of both codecs, 32 clients at a time; cpu-us/req is that of the
// loop's thread.
func BenchmarkProxy(b *testing.B) {
	front, back := running(b), running(b)
	up := listen(b, back, ServerConfig{}, func(*ServerConn) message.ServerHandler {
		return &ponger{resp: *response(200, "content-length", "1024", "content-type", "text/plain", "server", "x"), body: make([]byte, 1024)}
	})
	addr := listen(b, front, ServerConfig{}, (&proxy{t: b, l: front, addr: up}).handler)
	cpu := func() (ns int64) {
		front.OnLoop(func() {
			var u unix.Rusage
			unix.Getrusage(unix.RUSAGE_THREAD, &u)
			ns = u.Utime.Nano() + u.Stime.Nano()
		})
		return ns
	}
	const clients = 32
	var wg sync.WaitGroup
	before := cpu()
	for range clients {
		k, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer k.Close()
		wg.Go(func() {
			p := make([]byte, 4096)
			for range b.N/clients + 1 {
				io.WriteString(k, benchHead)
				n := 0
				for want := -1; want < 0 || n < want; {
					m, err := k.Read(p[n:])
					if err != nil {
						b.Error(err)
						return
					}
					n += m
					if i := bytes.Index(p[:n], []byte("\r\n\r\n")); i >= 0 {
						want = i + 4 + 1024
					}
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(cpu()-before)/1e3/float64(b.N), "cpu-us/req")
}
