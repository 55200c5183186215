package handshake

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors keeps connections from taking the last descriptors of the process, which the control plane, readiness and
// a proxy's own logs need too (B8). The kernel hands out the lowest number that is free, so a number near the limit says
// how many are in use. All methods may be called from any goroutine.
type Descriptors struct {
	accept int // connections are accepted below this number
	dial   int // and carried on below this one
	// crowded says that accept was reached; it is looked at again before each connection.
	crowded atomic.Bool
	// Warned is for what is said about that.
	Warned Seldom
}

// NewDescriptors reads the process's limit. A quarter of it, 256 at most, is not for accepting; half of that not for
// dialling either.
func NewDescriptors() (*Descriptors, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return nil, fmt.Errorf("read limit of descriptors: %w", err)
	}
	return limitDescriptors(int(min(l.Cur, 1<<30))), nil
}

func limitDescriptors(limit int) *Descriptors {
	reserve := min(limit/4, 256)
	return &Descriptors{accept: limit - reserve, dial: limit - reserve/2}
}

// Accepted notes the descriptor of a new connection.
func (d *Descriptors) Accepted(fd int) {
	if fd >= d.accept {
		d.crowded.Store(true)
	}
}

// Full tells whether accepting is to pause. probe is any descriptor.
func (d *Descriptors) Full(probe int) bool {
	if !d.crowded.Load() {
		return false
	}
	fd, err := unix.FcntlInt(uintptr(probe), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return true
	}
	unix.Close(fd)
	if fd < d.accept {
		d.crowded.Store(false)
		return false
	}
	return true
}

// Seldom lets one of many equal messages through in each seldomPause. The zero value is ready.
type Seldom struct {
	next    atomic.Int64 // of the loop's clock, in nanoseconds
	skipped atomic.Int64
}

const seldomPause = 10 * time.Second

// Now tells whether to speak at this time, and how many times it was held back before.
func (s *Seldom) Now(at time.Duration) (skipped int64, ok bool) {
	next := s.next.Load()
	if int64(at) < next || !s.next.CompareAndSwap(next, int64(at+seldomPause)) {
		s.skipped.Add(1)
		return 0, false
	}
	return s.skipped.Swap(0), true
}

// MayDial tells whether a connection that was accepted as fd leaves a descriptor to carry it on with.
func (d *Descriptors) MayDial(fd int) bool { return fd < d.dial }
