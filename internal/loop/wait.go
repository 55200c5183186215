package loop

import (
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultHold makes a loop that is woken 50 times a second count as busy.
const DefaultHold = 40 * time.Millisecond

// procsMu makes a change of GOMAXPROCS of its reading and setting.
var procsMu sync.Mutex

// addProcs sees to it that goroutines have as many Ps as they would have without the loops that hold theirs.
func addProcs(n int) {
	procsMu.Lock()
	defer procsMu.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

// maxPause is the longest sleep that counts for the mean: after an idle time it takes some messages to count as busy again.
const maxPause = 100 * time.Millisecond

// wait fills l.events. It sleeps if there is nothing to do.
//
// There are two ways to sleep. An ordinary system call gives the Go scheduler the loop's P: the runtime's monitor takes
// it away within 20 us, and at the end of the call the loop has to find another and wakes the monitor, which looks round
// some more. For a loop that is woken by every single message these threads cost more than the message. So a busy loop,
// one whose sleeps are much shorter than Config.Hold on average, keeps its P and sleeps in a raw system call, which to the
// scheduler is running code. The signal by which the runtime stops running code, for the garbage collector as for others'
// turns, ends that sleep too (EINTR). After Hold without an event it sleeps in the ordinary way: an idle process has no
// thread that runs.
func (l *Loop) wait() int {
	if len(l.due) > 0 {
		return max(0, l.poll(0))
	}
	since := time.Since(start)
	ms := l.timers.wait(since)
	if l.pause < l.hold/2 {
		hold := int(l.hold / time.Millisecond)
		n := l.poll(least(ms, hold))
		l.slept(since)
		if n != 0 || ms >= 0 && ms <= hold {
			return max(0, n) // EINTR: the runtime wants the thread
		}
		ms = l.timers.wait(time.Since(start))
	} else if n := l.poll(0); n != 0 || ms == 0 {
		return max(0, n)
	}
	l.stats.Waits++
	n, _, _ := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, uintptr(ms), 0, 0)
	l.slept(since)
	return max(0, int(n))
}

// poll waits for at most ms milliseconds, without the scheduler's knowledge. It returns -1 when a signal ended it.
func (l *Loop) poll(ms int) int {
	n, _, _ := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, uintptr(ms), 0, 0)
	return int(n)
}

// slept takes a sleep that began at since into the mean.
func (l *Loop) slept(since time.Duration) {
	l.pause += (min(time.Since(start)-since, maxPause) - l.pause) / 8
}

// least is the shorter of two times in milliseconds, of which the first may be -1 for ever.
func least(ms, limit int) int {
	if ms < 0 {
		return limit
	}
	return min(ms, limit)
}
