package forward

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The judge is h2spec, which speaks HTTP/2 without TLS to the service; each of its connections is a stream of a tunnel.
func TestH2SpecPassesThroughTheWaypoint(t *testing.T) {
	bin := os.Getenv("H2SPEC_BIN")
	if bin == "" {
		t.Skip("H2SPEC_BIN does not name h2spec")
	}
	r := newRig(t)
	r.cluster("reviews", "", backend(t, func(w http.ResponseWriter, q *http.Request) {
		io.Copy(io.Discard, q.Body)
		io.WriteString(w, "hello")
	}))
	r.routes(toReviews)
	only := *r.snap.Load().Listener.Lookup(vip)
	only.HTTP = nil // an invalid preface would otherwise be taken for HTTP/1, and be answered with 400
	r.target(&only)
	_, port, _ := net.SplitHostPort(script(t, func(c net.Conn) {
		s, err := r.dial(t.Context(), vip)
		if err != nil {
			return
		}
		defer s.Close()
		go func() {
			io.Copy(s, c)
			s.(interface{ CloseWrite() error }).CloseWrite()
		}()
		io.Copy(c, s)
	}))
	out, err := exec.Command(bin, "-h", "127.0.0.1", "-p", port, "-o", "3").CombinedOutput()
	text := string(out)
	t.Log(text[max(0, strings.LastIndex(text, "Finished")):])
	if err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}
