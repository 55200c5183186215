package http2

import (
	"net/http"
	"strconv"
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// sink counts what it is sent.
type sink struct {
	n    int
	done chan error
}

func (k *sink) Interim(*message.Response)    {}
func (k *sink) Head(*message.Response, bool) {}
func (k *sink) Data(p []byte) int            { k.n += len(p); return len(p) }
func (k *sink) End(*message.Header)          { k.done <- nil }
func (k *sink) Failed(err error)             { k.done <- err }
func (k *sink) Room()                        {}

// BenchmarkBulk fetches bodies of 64 MiB on one loop, by one stream and by eight.
func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	for _, streams := range []int{1, 8} {
		b.Run(strconv.Itoa(streams), func(b *testing.B) {
			l := running(b)
			addr := listen(b, l, ServerConfig{}, &echo{}, &echo{})
			cc := connect(b, l, addr, ClientConfig{}, &echo{})
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				done := make(chan error, streams)
				l.OnLoop(func() {
					for range streams {
						q := &message.Request{Method: "GET", Scheme: "http", Authority: "a", Path: "/bytes/" + strconv.Itoa(size/streams)}
						if _, err := cc.Open(q, true, &sink{done: done}); err != nil {
							done <- err
						}
					}
				})
				for range streams {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkGoClient has net/http's client ask our server, and BenchmarkGoBoth its own, to tell what ours costs.
func BenchmarkGoClient(b *testing.B) {
	l := running(b)
	ask(b, listen(b, l, ServerConfig{}, &echo{}, &echo{}))
}

func BenchmarkGoBoth(b *testing.B) {
	ask(b, goServer(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200) })))
}

func ask(b *testing.B, addr string) {
	c := goClient()
	defer c.CloseIdleConnections()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := c.Get("http://" + addr + "/x")
			if err != nil {
				b.Error(err)
				return
			}
			resp.Body.Close()
		}
	})
}
