package kubelet

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

// waitVar has the test binary do nothing until its standard input ends.
const waitVar = "AMBIT_TEST_WAIT"

func TestMain(m *testing.M) {
	if os.Getenv(waitVar) != "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// kernel notes who is the kubelet.
type kernel struct {
	mu   sync.Mutex
	pids []int
}

func (k *kernel) set(pid int) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.pids) == 0 || k.pids[len(k.pids)-1] != pid {
		k.pids = append(k.pids, pid)
	}
	return "process", nil
}

func (k *kernel) all() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.pids)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so within 10 s: %s", what)
		}
	}
}

func TestRootTheKubeletIsFollowedThroughItsRestarts(t *testing.T) {
	netnstest.RequireRoot(t)
	node := netnstest.New(t)
	start := func(name string) *exec.Cmd {
		exe, err := os.Executable()
		path := filepath.Join(t.TempDir(), name)
		netnstest.Must(t, err, os.Symlink(exe, path))
		cmd := exec.Command(path)
		cmd.Env = append(os.Environ(), waitVar+"=1")
		_, err = cmd.StdinPipe() // open as long as we are
		netnstest.Must(t, err)
		netnstest.Start(t, node, cmd)
		return cmd
	}
	k := &kernel{}
	w := New(Config{Proc: "/proc", Set: k.set, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- node.Do(func() error { return w.Run(ctx) }) }()
	defer func() {
		cancel()
		netnstest.Must(t, <-done)
	}()
	start("other")
	eventually(t, "nobody is the kubelet", func() bool { return slices.Equal(k.all(), []int{0}) })
	if how := w.How(); how != None {
		t.Errorf("recognised by %q", how)
	}
	first := start("kubelet")
	eventually(t, "the first is", func() bool { return w.How() == "process" })
	netnstest.Must(t, first.Process.Kill())
	_ = first.Wait() // killed
	eventually(t, "it is not any more", func() bool { return w.How() == None })
	second := start("kubelite")
	eventually(t, "the second is", func() bool { return w.How() == "process" })
	if got, want := k.all(), []int{0, first.Process.Pid, 0, second.Process.Pid}; !slices.Equal(got, want) {
		t.Errorf("the kubelet was %v, want %v", got, want)
	}
}
