package forward

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"

	"github.com/ambit-mesh/ambit/internal/envoytest"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/accesslog"
	"github.com/ambit-mesh/ambit/waypoint/listener"
)

// plainRig is a rig with a plain port for the service, in front of a server that answers all the same.
func plainRig(t testing.TB, two bool, serve func(net.Conn)) (*rig, string) {
	t.Helper()
	at := envoytest.Addrs(t, 1)[0]
	r := newRigWith(t, func(c *Config) {
		c.Plain = []PlainPort{{Listen: at, As: vip}}
		c.Lines = telemetry.NewWriter(telemetry.WriterConfig{Out: io.Discard})
	})
	options := ""
	if two {
		options = h2
	}
	r.cluster("reviews", options, script(t, serve))
	r.routes(`[{"match": {"prefix": "/a"}, "route": {"cluster": "reviews", "timeout": "0s"}}, {"match": {"path": "/b"}, "route": {"cluster": "reviews"}},
	 {"match": {"prefix": "/"}, "route": {"cluster": "reviews", "timeout": "15s", "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}}}]`)
	logs, err := accesslog.Compile([]*accesslogv3.AccessLog{parse(t, &accesslogv3.AccessLog{}, `{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	h := *r.snap.Load().Listener.(targets)[vip].HTTP
	h.Logs = logs
	r.target(&listener.Target{HTTP: &h, H2C: &h})
	return r, at.String()
}

// ask1 sends a request of HTTP/1.1 and reads the answer, without an allocation.
func ask1(c net.Conn, r *bufio.Reader, request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	for blank := false; !blank; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		blank = len(line) == 2
	}
	_, err := r.Discard(10)
	return err
}

func tenBytes1(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	reply := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n0123456789")
	for {
		for blank := false; !blank; {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			blank = len(line) == 2
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// The least of HTTP/2: frames are written by hand, and of what comes only their headers are looked at.
var (
	h2Hello   = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x3f\xff\xff\xff")
	h2Request = []byte("\x00\x00\x1e\x01\x05\x00\x00\x00\x00" + "\x82\x86\x84\x01\x0freviews.default\x00\x03x-a\x03b-c")
	h2Reply   = []byte("\x00\x00\x01\x01\x04\x00\x00\x00\x00\x88" + "\x00\x00\x0a\x00\x01\x00\x00\x00\x000123456789")
)

// frame2 reads a frame, but for its payload.
func frame2(r *bufio.Reader) (typ, flags byte, stream uint32, err error) {
	h, err := r.Peek(9)
	if err != nil {
		return 0, 0, 0, err
	}
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	typ, flags, stream = h[3], h[4], binary.BigEndian.Uint32(h[5:])
	_, err = r.Discard(9 + n)
	return typ, flags, stream, err
}

func tenBytes2(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	if _, err := r.Discard(24); err != nil {
		return
	}
	if _, err := c.Write(h2Hello[24:]); err != nil {
		return
	}
	reply := append([]byte{}, h2Reply...)
	for {
		typ, flags, stream, err := frame2(r)
		switch {
		case err != nil:
			return
		case typ == 4 && flags == 0:
			_, err = c.Write([]byte("\x00\x00\x00\x04\x01\x00\x00\x00\x00"))
		case flags&1 != 0 && typ < 2:
			binary.BigEndian.PutUint32(reply[5:], stream)
			binary.BigEndian.PutUint32(reply[15:], stream)
			_, err = c.Write(reply)
		}
		if err != nil {
			return
		}
	}
}

func TestARequestDoesNotAllocate(t *testing.T) {
	const request1 = "GET /reviews/1?x=y HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			serve := tenBytes1
			if two {
				serve = tenBytes2
			}
			_, addr := plainRig(t, two, serve)
			var c net.Conn
			for err := io.EOF; err != nil; { // until it listens
				c, err = net.Dial("tcp", addr)
			}
			defer c.Close()
			r := bufio.NewReader(c)
			request := []byte(request1)
			ask := func() error { return ask1(c, r, request) }
			if two {
				if _, err := c.Write(h2Hello); err != nil {
					t.Fatal(err)
				}
				request = append([]byte{}, h2Request...)
				request[2] = byte(len(request) - 9)
				id := uint32(1)
				ask = func() error {
					binary.BigEndian.PutUint32(request[5:], id)
					id += 2
					if _, err := c.Write(request); err != nil {
						return err
					}
					for {
						typ, flags, _, err := frame2(r)
						if err != nil || typ < 2 && flags&1 != 0 {
							return err
						}
						if typ == 3 || typ == 7 {
							return errors.New("the request was refused")
						}
					}
				}
			}
			run := func(n int) uint64 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range n {
					if err := ask(); err != nil {
						t.Fatal(err)
					}
				}
				runtime.ReadMemStats(&after)
				return after.Mallocs - before.Mallocs
			}
			run(200)
			if underRace {
				return
			}
			const n = 1000
			least := uint64(math.MaxUint64)
			for range 5 { // what else goes on in the process may allocate
				least = min(least, run(n))
			}
			if least > n/20 {
				t.Errorf("%d allocations in %d requests", least, n)
			}
			t.Logf("%.3f allocations for each request", float64(least)/n)
		})
	}
}
