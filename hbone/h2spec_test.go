package hbone_test

import (
	"crypto/tls"
	"encoding/xml"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/hbone/hbonetest"
)

// h2specExceptions are the cases of h2spec that a server of CONNECT tunnels need not, or must not, pass.
var h2specExceptions = map[string]string{
	"generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream":                                                                                 noBody,
	"generic/2: Sends a PRIORITY frame on half-closed (remote) stream":                                                                                      noBody,
	"http2/4.2: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE":                                                                  "h2spec sends 16 KiB + 1, and we announce 1 MiB",
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the DATA frame payload length":                      noLength,
	"http2/8.1.2.6: Sends a HEADERS frame with the \"content-length\" header field which does not equal the sum of the multiple DATA frames payload length": noLength,
}

const (
	noBody   = "it waits for a DATA frame, and refusals have no body (H17)"
	noLength = "the request is refused anyway, and its body not looked at"
)

// TestH2SpecFindsNothingButTheKnownExceptions runs https://github.com/summerwind/h2spec, named by H2SPEC_BIN, through a
// forwarder that holds the client certificate which h2spec cannot. h2spec sends GET and POST, which are answered 400.
func TestH2SpecFindsNothingButTheKnownExceptions(t *testing.T) {
	bin := os.Getenv("H2SPEC_BIN")
	if bin == "" {
		t.Skip("H2SPEC_BIN does not name h2spec")
	}
	l := hbonetest.Loop(t)
	ca := hbonetest.NewCA(t)
	var srv *hbone.Server
	l.OnLoop(func() {
		srv = hbone.NewServer(l, hbone.ServerConfig{Handler: hbonetest.HandlerFunc(func(s *hbone.Stream, _ *hbone.Request) { s.Accept(nil) })})
	})
	addr := hbonetest.Listen(t, l, srv, ca.Config("spiffe://cluster.local/ns/s/sa/server"))
	port := forward(t, addr.String(), ca.Config("spiffe://cluster.local/ns/c/sa/client"))
	report := filepath.Join(t.TempDir(), "report.xml")
	out, err := exec.Command(bin, "-p", strconv.Itoa(port), "-o", "3", "-j", report).CombinedOutput()
	if err != nil {
		t.Log(err) // it fails if a case does
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Package string `xml:"package,attr"`
				Class   string `xml:"classname,attr"`
				Failure string `xml:"failure"`
				Error   string `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			n++
			bad := strings.TrimSpace(c.Failure + c.Error)
			name := c.Package + ": " + c.Class
			reason, known := h2specExceptions[name]
			switch {
			case bad != "" && !known:
				t.Errorf("%s\n%s", name, bad)
			case bad != "":
				t.Logf("exception: %s (%s)", name, reason)
			case known:
				t.Errorf("passes, though it is listed as an exception: %s", name)
			}
		}
	}
	t.Logf("%d cases", n)
	if n < 100 {
		t.Errorf("only %d cases were run\n%s", n, out)
	}
}

// forward accepts plain connections and continues them over TLS.
func forward(t *testing.T, addr string, cfg *tls.Config) (port int) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	one := func(in net.Conn) {
		defer in.Close()
		out, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return
		}
		defer out.Close()
		done := make(chan struct{})
		go func() {
			io.Copy(in, out)
			in.Close()
			close(done)
		}()
		io.Copy(out, in)
		out.Close()
		<-done
	}
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { one(in) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}
