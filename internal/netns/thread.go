//go:build linux

package netns

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// moved holds the threads that Do has in a foreign namespace, by thread id: from there the way back of Socket is not home.
var moved sync.Map

// home is the program's own namespace, that of its main thread. It is asked for before any thread enters another one.
var home = sync.OnceValues(func() (int, error) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open own network namespace: %w", err)
	}
	return fd, nil
})

// Do runs f on a new thread inside of the namespace and returns its error. The thread ends with f, whatever f does; what
// f starts with go does not run in the namespace, but a process that f starts does. Costs about 50 us.
func (n *NS) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %v: %w", n, err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that ends afterwards, and so may be left in any namespace.
func onOwnThread(f func() error) error {
	if _, err := home(); err != nil {
		return err
	}
	errc := make(chan error, 1)
	go ownThread(f, errc)
	return <-errc
}

func ownThread(f func() error, errc chan<- error) {
	runtime.LockOSThread()
	tid := unix.Gettid()
	if tid == os.Getpid() {
		// The main thread would be parked for ever in the foreign namespace. Hold it, so that f gets another one.
		errc <- onOwnThread(f)
		runtime.UnlockOSThread()
		return
	}
	// Not unlocked: the thread ends with this goroutine. A panic of f ends the program as everywhere.
	moved.Store(tid, struct{}{})
	err := f()
	moved.Delete(tid)
	errc <- err
}

// Socket makes a socket inside of the namespace, close-on-exec and non-blocking. It costs 2 to 3 us more than socket(2)
// and does not block. If the calling thread cannot come back the error wraps ErrStranded.
func (n *NS) Socket(domain, typ, proto int) (int, error) {
	back, err := home()
	if err != nil {
		return -1, err
	}
	runtime.LockOSThread()
	if _, ok := moved.Load(unix.Gettid()); ok {
		// Inside of Do: the way back leads to where Do is.
		back, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			return -1, fmt.Errorf("open current network namespace: %w", err)
		}
		defer unix.Close(back)
	}
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return -1, fmt.Errorf("enter network namespace %v: %w", n, err)
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if serr := unix.Setns(back, unix.CLONE_NEWNET); serr != nil {
		// Still locked.
		if err == nil {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("%w: leave %v: %w", ErrStranded, n, serr)
	}
	runtime.UnlockOSThread()
	if err != nil {
		return -1, fmt.Errorf("make socket in %v: %w", n, err)
	}
	return fd, nil
}
