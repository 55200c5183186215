//go:build linux

// Package netns opens, makes and enters network namespaces, and sets up what is in them: interfaces, addresses, routes,
// sysctls. It is the one place that calls setns.
//
// # Threads
//
// A namespace is a property of an OS thread. Nothing of this package leaves a thread of the program in a foreign
// namespace: Do uses a thread that ends, and Socket goes in and comes back on the calling thread (Z12). A socket stays in
// the namespace in which it was made, so afterwards any thread may use it. The main thread never enters a namespace
// through Do: it cannot end, and /proc/PID/ns/net shows its namespace to others.
package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrStranded is wrapped by Socket when the way back failed: the thread is left in the foreign namespace and locked to the
// calling goroutine. The caller must end the goroutine (the thread ends with it) without opening anything on it.
var ErrStranded = errors.New("thread left in a foreign network namespace")

// ID identifies a namespace on this machine as long as it lives; inode numbers are used again afterwards.
type ID struct{ Dev, Ino uint64 }

// IsZero reports whether i names no namespace.
func (i ID) IsZero() bool { return i == ID{} }

// String returns net:[inode], as the links in /proc/PID/ns read.
func (i ID) String() string { return fmt.Sprintf("net:[%d]", i.Ino) }

// NS is an open network namespace; the namespace lives at least as long as the NS is open. Safe for concurrent use.
type NS struct {
	f    *os.File
	id   ID
	path string

	mu     sync.Mutex
	cookie uint64 // guarded by mu; 0: not asked yet
}

// Open opens the namespace at path: a bind mount as in /run/netns, or /proc/PID/ns/net. The caller closes it. Errors wrap
// those of open(2); a file that is no network namespace is refused.
func Open(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w", path, err)
	}
	n, err := FromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %q: %w", path, err)
	}
	n.path = path
	return n, nil
}

// FromFD returns the namespace of a descriptor, and takes the descriptor unless it returns an error.
func FromFD(fd int) (*NS, error) {
	t, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || t != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("check namespace: descriptor %d is not a network namespace: %w", fd, errors.Join(err, unix.EINVAL))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat network namespace: %w", err)
	}
	unix.CloseOnExec(fd)
	return &NS{f: os.NewFile(uintptr(fd), "netns"), id: ID{Dev: uint64(st.Dev), Ino: st.Ino}}, nil
}

// Current returns the calling thread's namespace: the program's own, unless called from Do. The caller closes it.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// New makes a namespace without a name. It ends when the NS is closed and nothing else uses it.
func New() (*NS, error) {
	var n *NS
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		n, err = Current()
		return err
	})
	return n, err
}

// Dup returns a second NS of the same namespace with a descriptor of its own.
func (n *NS) Dup() (*NS, error) {
	fd, err := unix.FcntlInt(n.f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace: %w", err)
	}
	return &NS{f: os.NewFile(uintptr(fd), "netns"), id: n.id, path: n.path}, nil
}

// FD returns the descriptor, which stays n's: -1 after Close.
func (n *NS) FD() int { return int(n.f.Fd()) }

// ID returns the identity of the namespace; it stays valid after Close.
func (n *NS) ID() ID { return n.id }

// Path returns a path at which this process (and a child, by its parent's PID) finds the namespace.
func (n *NS) Path() string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(n.FD())
}

// String returns the path at which n was opened, if any, and its ID.
func (n *NS) String() string {
	if n.path == "" {
		return n.id.String()
	}
	return n.path + " " + n.id.String()
}

// Cookie returns the namespace's cookie, a number that this machine never gives again until it restarts. It needs Linux
// 5.14 (SO_NETNS_COOKIE).
func (n *NS) Cookie() (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cookie != 0 {
		return n.cookie, nil
	}
	fd, err := n.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	n.cookie = c
	return c, nil
}

// Close closes the descriptor. It may be called twice.
func (n *NS) Close() error {
	if err := n.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close network namespace: %w", err)
	}
	return nil
}

// Same reports whether both are the same namespace.
func (n *NS) Same(o *NS) bool { return n.id == o.id }
