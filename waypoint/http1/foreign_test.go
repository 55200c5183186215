package http1

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a program that has to be here; ok is false if it is not.
func run(t *testing.T, stdin []byte, name string, args ...string) (out string, ok bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Logf("%s is not on this machine", name)
		return "", false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v: %.500s", name, args, err, b)
	}
	return string(b), true
}

func TestCurlIsServed(t *testing.T) {
	l := running(t)
	up := listen(t, l, ServerConfig{}, echo)
	addr := listen(t, l, ServerConfig{}, (&proxy{t: t, l: l, addr: up}).handler)
	url := "http://" + addr + "/x"
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for _, c := range []struct {
		name  string
		stdin []byte
		args  []string
		want  string
	}{
		{"get", nil, []string{"-sw", "%{http_code} %{http_version}", url}, "200 1.1"},
		{"HTTP/1.0", nil, []string{"-s0w", "%{http_code} %{http_version}", url}, "200 1"},
		{"head", nil, []string{"-sI", url}, "HTTP/1.1 200 OK\r\nx-seen: HEAD " + addr + " /x\r\n"},
		{"post", nil, []string{"-sd", "hello", url}, "hello"},
		{"large post that expects 100", big, []string{"-s", "-H", "Expect: 100-continue", "--data-binary", "@-", url}, string(big)},
		{"upload in chunks", big, []string{"-sT", "-", url}, string(big)},
		{"two on one connection", nil, []string{"-sw", "%{num_connects}", url, url}, "10"},
		{"asterisk", nil, []string{"-sD", "-", "-X", "OPTIONS", "--request-target", "*", "http://" + addr}, " *\r\n"},
		{"absolute form", nil, []string{"-sD", "-", "-x", "http://" + addr, "http://other.test/y?z"}, "GET other.test /y?z\r\n"},
	} {
		if got, ok := run(t, c.stdin, "curl", c.args...); ok && !strings.Contains(got, c.want) {
			t.Errorf("%s: got %.300q, want %.300q in it", c.name, got, c.want)
		}
	}
}

const pythonClient = `
import http.client, sys
c = http.client.HTTPConnection(sys.argv[1])
for i in range(20):
    body = b"x" * (i * 10007)
    c.request("POST", "/%d" % i, body=body)
    r = c.getresponse()
    assert r.status == 200 and r.read() == body, i
    c.request("PUT", "/c", body=iter([b"a" * i, b"b" * 70000]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    r = c.getresponse()
    assert r.read() == b"a" * i + b"b" * 70000, i
    c.request("HEAD", "/h")
    r = c.getresponse()
    assert r.read() == b""
print("served")
`

func TestPythonIsServed(t *testing.T) {
	l := running(t)
	up := listen(t, l, ServerConfig{}, echo)
	addr := listen(t, l, ServerConfig{}, (&proxy{t: t, l: l, addr: up}).handler)
	if got, ok := run(t, nil, "python3", "-c", pythonClient, addr); ok && got != "served\n" {
		t.Errorf("got %s", got)
	}
}

func TestAPythonServerIsAsked(t *testing.T) {
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Log("python3 is not on this machine")
		return
	}
	dir := t.TempDir()
	body := strings.Repeat("z", 100_000)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	const server = `
import http.server, functools, sys
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1]))
print(s.server_port, flush=True)
s.serve_forever()
`
	cmd := exec.Command(path, "-c", server, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	port := make([]byte, 16)
	n, err := out.Read(port)
	if err != nil {
		t.Fatal(err)
	}
	l := running(t)
	p := &proxy{t: t, l: l, addr: "127.0.0.1:" + strings.TrimSpace(string(port[:n]))}
	addr := listen(t, l, ServerConfig{}, p.handler)
	for range 3 { // HTTP/1.0, a connection for each
		if got, ok := run(t, nil, "curl", "-s", "http://"+addr+"/f"); ok && got != body {
			t.Errorf("got %d bytes", len(got))
		}
	}
	if got, ok := run(t, nil, "curl", "-sI", "http://"+addr+"/f"); ok && !strings.Contains(got, "\r\ncontent-length: 100000\r\n") {
		t.Errorf("head: got %q", got)
	}
}
