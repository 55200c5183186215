package cni

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

const prev = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/a"}],` +
	`"ips":[{"address":"10.244.1.7/24","gateway":"10.244.1.1","interface":0},{"address":"fd00::7/64","interface":0}]}`

// node is a capture that answers what the test says, and the plugin's arguments for a pod of it.
type node struct {
	dir  string
	args skel.CmdArgs
	got  []string
}

func newNode(t *testing.T, answer func(path string) (int, string)) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	if answer != nil {
		l, err := net.Listen("unix", filepath.Join(n.dir, "pods.sock"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			n.got = append(n.got, r.URL.Path+" "+string(b))
			status, body := answer(r.URL.Path)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close(); <-done })
	}
	n.args = skel.CmdArgs{
		ContainerID: "c", Netns: "/run/netns/a", IfName: "eth0",
		Args:      "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=uid-1",
		StdinData: n.config(prev),
	}
	return n
}

func (n *node) config(prev string) []byte {
	c := `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","socket":"` + n.dir + `/pods.sock","memory":"` + n.dir +
		`/namespaces.json","agent":["istio-system/ztunnel-"]`
	if prev != "" {
		c += `,"prevResult":` + prev
	}
	return []byte(c + "}")
}

// output runs f and returns what it writes to standard output, which is the protocol.
func output(t *testing.T, f func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdout
	os.Stdout = w
	err = f()
	os.Stdout = old
	w.Close()
	b, _ := io.ReadAll(r)
	r.Close()
	return string(b), err
}

func TestACapturedPodGetsTheResultOfTheChainUnchanged(t *testing.T) {
	n := newNode(t, func(string) (int, string) { return 200, `{"result":"captured"}` })
	before := time.Now()
	out, err := output(t, func() error { return add(&n.args) })
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal([]byte(prev), &want)
	if g, w := asJSON(got), asJSON(want); g != w {
		t.Errorf("printed %s\nwant    %s", g, w)
	}
	want1 := `/v1/sandboxes/add {"uid":"uid-1","namespace":"shop","name":"web-0","netns":"/run/netns/a","addresses":["10.244.1.7","fd00::7"],"begun":"`
	var told struct{ Begun time.Time }
	if len(n.got) != 1 || !strings.HasPrefix(n.got[0], want1) {
		t.Fatalf("capture was told %q\nwant %q", n.got, want1)
	}
	_, body, _ := strings.Cut(n.got[0], " ")
	if err := json.Unmarshal([]byte(body), &told); err != nil || told.Begun.Before(before) || time.Now().Before(told.Begun) {
		t.Errorf("it began at %s: %v", told.Begun, err)
	}
}

func asJSON(v any) string { b, _ := json.Marshal(v); return string(b) }

func TestTheFirstPluginOfAChainPrintsAResultOfItsOwn(t *testing.T) {
	n := newNode(t, func(string) (int, string) { return 200, `{"result":"skipped"}` })
	n.args.StdinData = n.config("")
	out, err := output(t, func() error { return add(&n.args) })
	if err != nil || !strings.Contains(out, `"cniVersion": "1.0.0"`) {
		t.Errorf("printed %q, %v", out, err)
	}
}

func TestAPodThatCannotBeCapturedDoesNotStart(t *testing.T) {
	n := newNode(t, func(string) (int, string) { return 422, `{"error":"pod uid \"\" is not 1 to 64 printable characters"}` })
	_, err := output(t, func() error { return add(&n.args) })
	var e *types.Error
	if !errors.As(err, &e) || e.Code != tryAgain || !strings.Contains(e.Msg, "pod shop/web-0 is not captured: pod uid") {
		t.Errorf("got %v", err)
	}
}

func TestAPodIsAskedForAgainUntilItIsCaptured(t *testing.T) {
	calls := 0
	n := newNode(t, func(string) (int, string) {
		if calls++; calls < 3 {
			return 503, `{"error":"the proxy has not answered","retry":true}`
		}
		return 200, `{"result":"captured"}`
	})
	if _, err := output(t, func() error { return add(&n.args) }); err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestAPodThatIsNotCapturedInTimeSaysWhy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	n := newNode(t, func(string) (int, string) {
		if calls++; calls == 2 {
			cancel() // the time is over before capture answers again
		}
		return 503, `{"error":"redirect pod: no such table","retry":true}`
	})
	c, err := parse(n.args.StdinData)
	if err != nil {
		t.Fatal(err)
	}
	s, _, _ := sandbox(&n.args)
	if err := c.admit(ctx, s); err == nil || !strings.Contains(err.Error(), "pod shop/web-0 is not captured: redirect pod: no such table") {
		t.Errorf("got %v", err)
	}
}

func TestWhileCaptureIsAwayOnlyPodsKnownToBeOutsideTheMeshStart(t *testing.T) {
	for mode, want := range map[string]string{
		podsock.ModeOutside: "", podsock.ModeMixed: "by their own label", podsock.ModeAmbient: `namespace "shop" is in the mesh`,
		"": "is not known without it", "nonsense": "is in the mesh",
	} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, nil)
			m := podsock.Memory{Namespaces: map[string]string{}}
			if mode != "" {
				m.Namespaces["shop"] = mode
			}
			if err := m.Write(filepath.Join(n.dir, podsock.MemoryFile)); err != nil {
				t.Fatal(err)
			}
			c, err := parse(n.args.StdinData)
			if err != nil {
				t.Fatal(err)
			}
			s, _, _ := sandbox(&n.args)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			<-ctx.Done()
			err = c.admit(ctx, s)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "kubectl get pods")) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

func TestPodsOfTheNodeAgentNeverWaitForIt(t *testing.T) {
	n := newNode(t, nil)
	n.args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-x7k2p;K8S_POD_UID=u"
	if _, err := output(t, func() error { return add(&n.args) }); err != nil {
		t.Error(err)
	}
}

func TestASandboxIsDeletedWhateverIsWrong(t *testing.T) {
	n := newNode(t, nil)
	for name, change := range map[string]func(*skel.CmdArgs){
		"capture is away":  func(*skel.CmdArgs) {},
		"no namespace":     func(a *skel.CmdArgs) { a.Netns = "" },
		"no configuration": func(a *skel.CmdArgs) { a.StdinData = nil },
		"strange args":     func(a *skel.CmdArgs) { a.Args = "x" },
	} {
		a := n.args
		change(&a)
		if err := del(&a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADeletedSandboxIsNamedWithItsNamespace(t *testing.T) {
	n := newNode(t, func(string) (int, string) { return 200, "{}" })
	if err := del(&n.args); err != nil {
		t.Fatal(err)
	}
	want := `/v1/sandboxes/remove {"uid":"uid-1","namespace":"shop","name":"web-0","netns":"/run/netns/a"}`
	if len(n.got) != 1 || n.got[0] != want {
		t.Errorf("capture was told %q", n.got)
	}
}

func TestTheNodeIsNotReadyWhileCaptureDoesNotAnswer(t *testing.T) {
	var e *types.Error
	if err := status(&newNode(t, nil).args); !errors.As(err, &e) || e.Code != notReady {
		t.Errorf("got %v", err)
	}
	if err := status(&newNode(t, func(string) (int, string) { return 200, "[]" }).args); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestAConfigurationWithoutSocketIsRefused(t *testing.T) {
	for _, c := range []string{`{`, `{"cniVersion":"1.0.0","name":"n","type":"ambit-cni"}`, `{"cniVersion":"1.0.0","socket":"/s","prevResult":{"ips":7}}`} {
		if _, err := parse([]byte(c)); err == nil {
			t.Errorf("%s was taken", c)
		}
	}
}
