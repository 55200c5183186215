package scale

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is a process of a test. It is killed at the test's end.
type program struct {
	t   testing.TB
	cmd *exec.Cmd
	log string // file
}

func startProgram(t testing.TB, log, name string, args ...string) *program {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := &program{t: t, cmd: exec.Command(name, args...), log: log}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("%s:\n%s", log, text[max(0, len(text)-4000):])
		}
	})
	return p
}

// kill ends the process as kill -9 does and waits for its end.
func (p *program) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// rss is the resident memory in MB (10^6 bytes): all of it, and the part that is no file's (heap, stacks).
func (p *program) rss() (all, anonymous float64) {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			all = kb * 1024 / 1e6
		case "RssAnon:":
			anonymous = kb * 1024 / 1e6
		}
	}
	return all, anonymous
}

// cpu is the CPU time that the process has used so far; its unit is 10 ms.
func (p *program) cpu() time.Duration {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// controlPlane is the real control plane on loopback, over a directory of manifests. It can be started again.
type controlPlane struct {
	*program
	t             testing.TB
	dir           string // its files
	manifests     string
	listen, admin string
}

var tokenKey = []byte("0123456789abcdef0123456789abcdef")

func startControlPlane(t testing.TB, m *manifests) *controlPlane {
	t.Helper()
	c := &controlPlane{t: t, dir: t.TempDir(), manifests: m.dir, listen: freePort(t), admin: freePort(t)}
	if err := os.WriteFile(filepath.Join(c.dir, "token.key"), tokenKey, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start()
	return c
}

// start starts the program and waits until it serves its configuration.
func (c *controlPlane) start() {
	c.t.Helper()
	c.program = startProgram(c.t, filepath.Join(c.dir, "log"), filepath.Join(binDir, "controlplane"),
		"--manifests="+c.manifests, "--listen="+c.listen, "--admin-address="+c.admin, "--root-ca-out="+c.rootCA(),
		"--ca-dir="+filepath.Join(c.dir, "ca"), "--lab-token-key="+filepath.Join(c.dir, "token.key"))
	waitFor(c.t, "control plane ready", func() bool { return httpGet("http://"+c.admin+"/ready") != nil })
}

func (c *controlPlane) rootCA() string { return filepath.Join(c.dir, "root.pem") }

// token is that of a node's proxy.
func (c *controlPlane) token(node string) string {
	return c.sign(map[string]any{"namespace": "istio-system", "serviceAccount": "ztunnel", "pod": "ztunnel-" + node, "uid": "uid-" + node, "node": node})
}

// sign makes a token of claims, good for a day.
func (c *controlPlane) sign(claims map[string]any) string {
	claims["exp"] = time.Now().Add(24 * time.Hour).Unix()
	body, err := json.Marshal(claims)
	if err != nil {
		c.t.Fatal(err)
	}
	first := base64.RawURLEncoding.EncodeToString(body)
	mac := hmac.New(sha256.New, tokenKey)
	mac.Write([]byte(first))
	return first + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// clientState is a client of /debug/syncz, with the fields that tests look at.
type clientState struct {
	Client string
	Types  []struct {
		TypeURL, State, NACK string
		Resources            int
	}
}

// clients are the control plane's clients as /debug/syncz shows them.
func (c *controlPlane) clients() []clientState {
	var list []clientState
	_ = json.Unmarshal(httpGet("http://"+c.admin+"/debug/syncz"), &list)
	return list
}

// startProxy starts the real node proxy of a node. Nobody tells it of pods, so that it needs no privileges.
func startProxy(t testing.TB, c *controlPlane, node string) (p *program, admin string) {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(c.token(node)), 0o600); err != nil {
		t.Fatal(err)
	}
	admin = freePort(t)
	p = startProgram(t, filepath.Join(dir, "log"), filepath.Join(binDir, "ztunnel"), "proxy", "--node="+node, "--run-dir="+dir,
		"--xds-address=https://"+c.listen, "--root-ca="+c.rootCA(), "--token="+token, "--cluster-id=Kubernetes",
		"--admin-address="+admin, "--metrics-address="+freePort(t), "--ready-address="+freePort(t))
	return p, admin
}

// rustProxy starts the Rust ztunnel that ZTUNNEL_BIN names; nil when it names none.
func rustProxy(t testing.TB, c *controlPlane, node string) *program {
	t.Helper()
	bin := ""
	for _, e := range os.Environ() {
		if v, ok := cutEnv(e, "ZTUNNEL_BIN"); ok {
			bin = v
		}
	}
	if bin == "" {
		return nil
	}
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(c.token(node)), 0o600); err != nil {
		t.Fatal(err)
	}
	return startProgram(t, filepath.Join(dir, "log"), "env", "-i", "XDS_ADDRESS=https://"+c.listen, "CA_ADDRESS=https://"+c.listen,
		"XDS_ROOT_CA="+c.rootCA(), "CA_ROOT_CA="+c.rootCA(), "AUTH_TOKEN="+token, "NODE_NAME="+node, "POD_NAME=ztunnel-"+node,
		"POD_NAMESPACE=istio-system", "CLUSTER_ID=Kubernetes", "INPOD_UDS="+filepath.Join(dir, "none.sock"), bin, "proxy", "ztunnel")
}

func httpGet(url string) []byte {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	return bytes.TrimSpace(body)
}

// freePort is a loopback address that was free a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// waitFor waits until ok says so. It is for what other processes do, which cannot be waited for in another way.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited %v for: %s", within, what)
		}
		<-tick.C
	}
}
