package rootca_test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/rootca"
)

// serve runs a TLS server whose certificate is for example.com and 127.0.0.1, and returns its address and root file.
func serve(t *testing.T) (address, rootFile string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshakes that we break off
	s.StartTLS()
	t.Cleanup(s.Close)
	rootFile = filepath.Join(t.TempDir(), "root.pem")
	writePEM(t, rootFile, s)
	return s.Listener.Addr().String(), rootFile
}

func writePEM(t *testing.T, path string, s *httptest.Server) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, address, rootFile string, names ...string) error {
	t.Helper()
	cfg, err := rootca.ClientConfig(rootFile, names...)
	if err != nil {
		return err
	}
	return connect(address, cfg)
}

func connect(address string, cfg *tls.Config) error {
	c, err := tls.Dial("tcp", address, cfg)
	if err == nil {
		c.Close()
	}
	return err
}

func TestServerMustHaveOneOfTheNames(t *testing.T) {
	address, root := serve(t)
	for names, ok := range map[string]bool{"example.com": true, "127.0.0.1": true, "istiod.istio-system.svc": false, "istiod.istio-system.svc example.com": true} {
		if err := dial(t, address, root, strings.Fields(names)...); (err == nil) != ok {
			t.Errorf("names %q: got %v, want accepted %v", names, err, ok)
		}
	}
}

func TestRootsAreReadAtEachHandshake(t *testing.T) {
	address, root := serve(t)
	cfg, err := rootca.ClientConfig(root, "example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := connect(address, cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := connect(address, cfg); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Errorf("got %v after the roots were taken away", err)
	}
}

func TestMissingRootsAreAnError(t *testing.T) {
	if _, err := rootca.ClientConfig(filepath.Join(t.TempDir(), "none"), "example.com"); err == nil {
		t.Error("no error for a missing file")
	}
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	token := rootca.TokenFile(path)
	if _, err := token(); err == nil {
		t.Error("no error for a missing file")
	}
	for content, want := range map[string]string{"abc\n": "abc", " x ": "x", "\n": ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := token(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", content, got, err, want)
		}
	}
}

func TestHostPort(t *testing.T) {
	tests := []struct{ address, host, hostPort string }{
		{"https://istiod.istio-system.svc:15012", "istiod.istio-system.svc", "istiod.istio-system.svc:15012"},
		{"https://[::1]:15012/", "::1", "[::1]:15012"},
		{"10.0.0.1:15012", "10.0.0.1", "10.0.0.1:15012"},
		{"http://10.0.0.1:15012", "", ""},
		{"https://10.0.0.1", "", ""},
		{"https://10.0.0.1:1/x", "", ""},
		{":15012", "", ""},
		{"", "", ""},
	}
	for _, tt := range tests {
		host, hostPort, err := rootca.HostPort(tt.address)
		if (err == nil) != (tt.host != "") || err == nil && (host != tt.host || hostPort != tt.hostPort) {
			t.Errorf("HostPort(%q) = %q, %q, %v; want %q, %q", tt.address, host, hostPort, err, tt.host, tt.hostPort)
		}
	}
}
