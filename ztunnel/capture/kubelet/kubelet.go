// Package kubelet finds the kubelet of a node and follows it through its restarts, so that its probes are told from what
// other processes send from the same address (redirection.md 7).
package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/procfs"
)

// None is how a kubelet is recognised that was not found, or could not be: its probes are captured.
const None = "none"

// names are those of the programs that have a kubelet in them: that of Kubernetes, MicroK8s' and K3s'.
var names = []string{"kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"}

const (
	soon   = 100 * time.Millisecond // between looks for the kubelet, and twice as long after each
	late   = time.Second            // ... up to this
	look   = 500 * time.Millisecond // at the end of the context, while it lives
	again  = 30 * time.Second       // between repairs of what recognises it
	failed = 5 * time.Second        // after an error
)

// Config configures a Watcher.
type Config struct {
	// Proc is the /proc of the node: of the machine's first PID namespace, or of the container that is the node. Mandatory.
	Proc string
	// Set makes a process the kubelet; 0: none. It returns in which way it is recognised. Mandatory.
	Set func(pid int) (how string, err error)
	// Logger, nil for none.
	Logger *slog.Logger
}

// Watcher follows the kubelet. It is safe for concurrent use.
type Watcher struct {
	cfg  Config
	log  *slog.Logger
	how  atomic.Pointer[string]
	said string // Run only: the last problem in the log
}

// New returns a Watcher; Run starts it.
func New(cfg Config) *Watcher {
	w := &Watcher{cfg: cfg, log: cfg.Logger}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.setHow(None)
	return w
}

// How says in which way the kubelet is recognised now, in Set's words, or None.
func (w *Watcher) How() string { return *w.how.Load() }

func (w *Watcher) setHow(how string) { w.how.Store(&how) }

// Run follows the kubelet until ctx is done; then it returns nil, and who was the kubelet stays it. The process must be in
// the node's network namespace.
func (w *Watcher) Run(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := soon; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		err := w.follow(ctx)
		switch {
		case err == nil:
			wait = soon
		case errors.Is(err, errNotFound):
			wait = min(2*wait, late)
		default:
			wait = failed
		}
		if err != nil {
			w.setHow(None)
			if err.Error() != w.said {
				w.said = err.Error()
				w.log.Error("kubelet is not recognised: its probes of pods are captured, and fail where policy admits no plaintext", "err", err)
			}
		}
		pause.Reset(wait)
	}
}

// follow finds the kubelet, has it recognised, and returns nil when it has ended or ctx is done.
func (w *Watcher) follow(ctx context.Context) error {
	pid, started, err := w.find()
	if err != nil {
		_, serr := w.cfg.Set(0)
		return errors.Join(err, serr)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has just ended
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// From here on the number is nobody else's unless the descriptor says so.
	if s, err := procfs.ReadStat(filepath.Join("/proc", strconv.Itoa(pid))); err != nil || s.Started != started {
		return fmt.Errorf("watch process %d: %s has the processes of another PID namespace than ours (hostPID)", pid, w.cfg.Proc)
	}
	for ctx.Err() == nil {
		how, err := w.cfg.Set(pid)
		if err != nil {
			return err
		}
		if w.How() != how {
			w.setHow(how)
			w.said = ""
			w.log.Info("kubelet is recognised: its probes go straight to pods", "pid", pid, "by", how)
		}
		if ended(ctx, fd, again) {
			w.setHow(None)
			w.log.Info("kubelet has ended", "pid", pid)
			_, err := w.cfg.Set(0)
			return err
		}
	}
	return nil
}

// ended waits until the process of a pidfd ends; false after a time, or when ctx is done.
func ended(ctx context.Context, fd int, wait time.Duration) bool {
	for end := time.Now().Add(wait); ctx.Err() == nil && time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(look/time.Millisecond))
		if err == nil && n > 0 {
			return true
		}
	}
	return false
}

var errNotFound = errors.New("no kubelet found")

// find looks for the kubelet: a process of one of the names, root's, in the node's network namespace and in the PID
// namespace of proc, and not in a pod. Of several it is the oldest.
func (w *Watcher) find() (pid int, started uint64, err error) {
	own, err := netns.Current()
	if err != nil {
		return 0, 0, err
	}
	defer own.Close()
	list, err := os.ReadDir(w.cfg.Proc)
	if err != nil {
		return 0, 0, fmt.Errorf("list processes: %w", err)
	}
	node := node{proc: w.cfg.Proc, net: own.ID()}
	var others []string
	for _, e := range list {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		s, err := procfs.ReadStat(filepath.Join(w.cfg.Proc, e.Name()))
		if err != nil || !slices.Contains(names, s.Name) || pid != 0 && s.Started >= started {
			continue
		}
		if why := node.notKubelet(e.Name()); why != "" {
			others = append(others, fmt.Sprintf("process %d %s", n, why))
			continue
		}
		pid, started = n, s.Started
	}
	if pid == 0 {
		err = fmt.Errorf("%w among the processes of %s by the names %s", errNotFound, w.cfg.Proc, strings.Join(names, ", "))
		if len(others) > 0 {
			err = fmt.Errorf("%w; %s", err, strings.Join(others, "; "))
		}
		return 0, 0, err
	}
	return pid, started, nil
}

// node is where the kubelet must be.
type node struct {
	proc string
	net  netns.ID
}

// notKubelet says why a process is not the kubelet, whatever its name; "" if it is.
func (n *node) notKubelet(pid string) string {
	if id, err := fileID(filepath.Join(n.proc, pid, "ns/net")); err != nil || id != n.net {
		return "is in another network namespace"
	}
	status, err := os.ReadFile(filepath.Join(n.proc, pid, "status"))
	switch {
	case err != nil:
		return "has ended"
	case !bytes.Contains(status, []byte("\nUid:\t0\t0\t")):
		return "is not root's"
	case !bytes.Contains(status, []byte("\nNSpid:\t"+pid+"\n")): // else it has a number in each namespace
		return "is in a PID namespace of its own"
	}
	if inContainer(n.proc, pid) && !inContainer(n.proc, "1") {
		return "is in a container"
	}
	return ""
}

func fileID(path string) (netns.ID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return netns.ID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return netns.ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// container is the name of a cgroup of pods or containers.
var container = regexp.MustCompile(`kubepods|[0-9a-f]{64}`)

func inContainer(proc, pid string) bool {
	b, err := os.ReadFile(filepath.Join(proc, pid, "cgroup"))
	return err != nil || container.Match(b)
}
