package forward

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"
)

func frame(size int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), bytes.Repeat([]byte{1}, size)...)
}

func TestMessagesOfGRPCAreCountedHoweverTheirBytesAreCut(t *testing.T) {
	var all []byte
	sizes := []int{0, 1, 5, 0, 0, 70_000, 255, 256, 3}
	for _, n := range sizes {
		all = append(all, frame(n)...)
	}
	for _, cut := range []int{1, 2, 3, 4, 5, 6, 7, 100, 16384, len(all)} {
		f := frames{on: true}
		if n := testing.AllocsPerRun(1, func() {
			f = frames{on: true}
			for p := all; len(p) > 0; p = p[min(cut, len(p)):] {
				f.count(p[:min(cut, len(p))])
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		if f.n != int64(len(sizes)) {
			t.Errorf("in pieces of %d: %d messages, want %d", cut, f.n, len(sizes))
		}
	}
}

func TestMetricsOfGRPCHaveTheNumberOfMessages(t *testing.T) {
	r := newRig(t)
	r.cluster("reviews", h2, backend2(t, func(w http.ResponseWriter, q *http.Request) {
		io.Copy(io.Discard, q.Body)
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status")
		for range 5 {
			w.Write(frame(10))
		}
		w.(http.Flusher).Flush()
		w.Header().Set("grpc-status", "0")
	}))
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "reviews"}}]`)
	req, _ := http.NewRequest("POST", "http://reviews:9080/a.B/C", io.MultiReader(bytes.NewReader(frame(3)), bytes.NewReader(frame(0))))
	req.Header.Set("content-type", "application/grpc")
	resp, err := r.client2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	var text strings.Builder
	r.proxy.workers[0].loop.OnLoop(func() { err = r.metrics.Expose(&text) })
	if err != nil {
		t.Fatal(err)
	}
	for metric, want := range map[string]string{"istio_request_messages_total": "2", "istio_response_messages_total": "5"} {
		ok := false
		for line := range strings.Lines(text.String()) {
			ok = ok || strings.HasPrefix(line, metric+"{") && strings.HasSuffix(line, " "+want+"\n") &&
				strings.Contains(line, `request_protocol="grpc"`) && strings.Contains(line, `grpc_response_status="0"`)
		}
		if !ok {
			t.Errorf("%s is not %s", metric, want)
		}
	}
}
