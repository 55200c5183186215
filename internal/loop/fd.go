package loop

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrAgain is returned by FD.Read when there is nothing to read now; the handler will be called when there is.
var ErrAgain = errors.New("no data now")

// ErrClosed is returned by operations on an FD that was closed.
var ErrClosed = errors.New("descriptor closed")

// maxIov is the number of pieces of one FD.Writev.
const maxIov = 64

const readEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

// FD is a non-blocking descriptor registered with a loop. The zero FD is closed. Loop only.
type FD struct {
	l  *Loop // nil before Register
	h  Handler
	fd int32 // -1 once closed or detached

	readable, writable, hup, failed, queued bool
	abrupt                                  bool // ResetOnClose is in force
}

// Add registers a non-blocking descriptor and takes it over: it is closed by FD.Close or at the latest when the loop
// ends. On error the descriptor stays the caller's. A descriptor counts as readable and writable until a call shows
// otherwise; the handler is first called when the kernel says so.
func (l *Loop) Add(fd int, h Handler) (*FD, error) {
	f := &FD{}
	if err := l.Register(f, fd, h); err != nil {
		return nil, err
	}
	return f, nil
}

// Register is Add into an FD that the caller embeds in its own state. f must be zero, closed or detached.
func (l *Loop) Register(f *FD, fd int, h Handler) error {
	return l.register(f, fd, h, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
}

// RegisterListener is Register for a listening socket that other loops watch too: a connection wakes as few of those that
// sleep as the kernel can, instead of all. The handler accepts until there is nothing left.
func (l *Loop) RegisterListener(f *FD, fd int, h Handler) error {
	return l.register(f, fd, h, unix.EPOLLIN|unix.EPOLLET|unix.EPOLLEXCLUSIVE)
}

func (l *Loop) register(f *FD, fd int, h Handler, events uint32) error {
	*f = FD{l: l, h: h, fd: int32(fd), readable: true, writable: true, queued: f.queued}
	for len(l.fds) <= fd {
		l.fds = append(l.fds, nil)
	}
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		f.fd = -1
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	l.fds[fd] = f
	l.stats.FDs++
	return nil
}

// note records what the kernel announced and has the handler visited.
func (f *FD) note(events uint32) {
	if events&readEvents != 0 {
		f.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.hup = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.writable = true
	}
	if events&unix.EPOLLERR != 0 {
		f.failed = true
	}
	f.Wake()
}

// Fd is the descriptor number, or -1 once closed or detached.
func (f *FD) Fd() int {
	if f.Closed() {
		return -1
	}
	return int(f.fd)
}

// Loop is the loop that f belongs to.
func (f *FD) Loop() *Loop { return f.l }

// Readable says that a Read may return something other than ErrAgain.
func (f *FD) Readable() bool { return f.readable && !f.Closed() }

// Writable says that the last Write was not cut short, or that the kernel has announced room since.
func (f *FD) Writable() bool { return f.writable && !f.Closed() }

// HungUp says that the peer's FIN, or an error, was announced.
func (f *FD) HungUp() bool { return f.hup }

// Failed is the error that the kernel announced for the socket (a reset by the peer, for example) and that no call has
// returned yet, or nil. It tells of a dead peer where nothing is read any more.
func (f *FD) Failed() error {
	if !f.failed || f.Closed() {
		return nil
	}
	f.failed = false
	if e, err := unix.GetsockoptInt(int(f.fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && e != 0 {
		return syscall.Errno(e)
	}
	return nil
}

// Closed says that f was closed or detached.
func (f *FD) Closed() bool { return f.l == nil || f.fd < 0 }

// SetHandler replaces the handler.
func (f *FD) SetHandler(h Handler) { f.h = h }

// Wake has the handler visited in the next turn, or in this one if its visits have not begun.
func (f *FD) Wake() {
	if !f.queued && !f.Closed() {
		f.queued = true
		f.l.due = append(f.l.due, f)
	}
}

// Read reads once. It returns at least one byte, or ErrAgain, io.EOF, ErrClosed or the errno.
func (f *FD) Read(p []byte) (int, error) {
	if f.Closed() {
		return 0, ErrClosed
	}
	for f.readable {
		r, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			f.readable = false
			return 0, ErrAgain
		case e != 0:
			return 0, e
		case r == 0:
			return 0, io.EOF
		}
		if int(r) < len(p) && !f.hup {
			f.readable = false
		}
		return int(r), nil
	}
	return 0, ErrAgain
}

// Readv is Read into several pieces, one after the other. It looks at the first 64 of them only. None may be empty.
func (f *FD) Readv(bufs [][]byte) (int, error) {
	if f.Closed() {
		return 0, ErrClosed
	}
	k, want := min(len(bufs), maxIov), 0
	for i, b := range bufs[:k] {
		f.l.iov[i].Base = unsafe.SliceData(b)
		f.l.iov[i].SetLen(len(b))
		want += len(b)
	}
	for f.readable {
		r, _, e := syscall.RawSyscall(unix.SYS_READV, uintptr(f.fd), uintptr(unsafe.Pointer(&f.l.iov[0])), uintptr(k))
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			f.readable = false
			return 0, ErrAgain
		case e != 0:
			return 0, e
		case r == 0:
			return 0, io.EOF
		}
		if int(r) < want && !f.hup {
			f.readable = false
		}
		return int(r), nil
	}
	return 0, ErrAgain
}

// Write writes as much of p as the socket takes now. A short count with a nil error means that the socket is full: the
// handler is called when there is room again. Other errors are ErrClosed or the errno.
func (f *FD) Write(p []byte) (int, error) { return f.send(p, unix.MSG_NOSIGNAL) }

// WriteMore is Write with the hint that more follows at once, so that the kernel need not send a short segment.
func (f *FD) WriteMore(p []byte) (int, error) { return f.send(p, unix.MSG_NOSIGNAL|unix.MSG_MORE) }

func (f *FD) send(p []byte, flags uintptr) (int, error) {
	if f.Closed() {
		return 0, ErrClosed
	}
	done := 0
	for done < len(p) {
		r, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(f.fd), uintptr(unsafe.Pointer(&p[done])), uintptr(len(p)-done), flags, 0, 0)
		switch e {
		case 0:
			done += int(r)
		case unix.EINTR:
		case unix.EAGAIN:
			f.writable = false
			return done, nil
		default:
			return done, e
		}
	}
	return done, nil
}

// Writev is Write of several pieces. It looks at the first 64 of them only; the count tells what was taken.
func (f *FD) Writev(bufs [][]byte) (int, error) {
	if f.Closed() {
		return 0, ErrClosed
	}
	k, want := 0, 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if k == maxIov {
			break
		}
		f.l.iov[k].Base = &b[0]
		f.l.iov[k].SetLen(len(b))
		want += len(b)
		k++
	}
	if k == 0 {
		return 0, nil
	}
	for {
		msg := unix.Msghdr{Iov: &f.l.iov[0]}
		msg.SetIovlen(k)
		r, _, e := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		switch e {
		case 0:
			if int(r) < want {
				f.writable = false
			}
			return int(r), nil
		case unix.EINTR:
		case unix.EAGAIN:
			f.writable = false
			return 0, nil
		default:
			return 0, e
		}
	}
}

// The values of SO_LINGER with which close(2) sends a RST, and a FIN.
var lingerReset, lingerFIN = unix.Linger{Onoff: 1}, unix.Linger{}

// ResetOnClose has the peer of a TCP socket see a RST when the socket is closed before CloseWrite, even if it is closed by
// the death of this process: a FIN would tell the peer that it has had all there was.
func (f *FD) ResetOnClose() { f.linger(true) }

// ResetsOnClose notes that ResetOnClose is in force already: an accepted socket has it from its listener.
func (f *FD) ResetsOnClose() { f.abrupt = true }

func (f *FD) linger(abrupt bool) {
	if f.abrupt == abrupt || f.Closed() {
		return
	}
	f.abrupt = abrupt
	v := &lingerFIN
	if abrupt {
		v = &lingerReset
	}
	unix.SetsockoptLinger(int(f.fd), unix.SOL_SOCKET, unix.SO_LINGER, v) // fails only on what is not a socket
}

// CloseWrite sends a FIN; reading goes on.
func (f *FD) CloseWrite() error {
	if f.Closed() {
		return ErrClosed
	}
	f.linger(false)
	return unix.Shutdown(int(f.fd), unix.SHUT_WR)
}

// ConnectError is the outcome of a non-blocking connect: nil once the socket is connected, ErrAgain while it is not.
func (f *FD) ConnectError() error {
	if f.Closed() {
		return ErrClosed
	}
	if !f.writable {
		return ErrAgain
	}
	e, err := unix.GetsockoptInt(int(f.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if e != 0 {
		return syscall.Errno(e)
	}
	if _, err := PeerAddr(int(f.fd)); err == unix.ENOTCONN {
		f.writable = false
		return ErrAgain
	}
	return nil
}

// Unsent is the number of bytes written to a TCP socket that its peer's window has not let out yet. A Reset would drop
// them; those that were sent are the peer's.
func (f *FD) Unsent() int {
	if f.Closed() {
		return 0
	}
	n, err := unix.IoctlGetInt(int(f.fd), unix.SIOCOUTQNSD)
	if err != nil { // not a TCP socket
		return 0
	}
	return n
}

// Detach takes f out of the loop without closing it and returns the descriptor, which is now the caller's, or -1.
func (f *FD) Detach() int {
	if f.Closed() {
		return -1
	}
	fd := int(f.fd)
	unix.EpollCtl(f.l.ep, unix.EPOLL_CTL_DEL, fd, nil)
	f.forget()
	return fd
}

func (f *FD) forget() {
	f.l.fds[f.fd] = nil
	f.l.stats.FDs--
	f.fd = -1
}

// Close closes the descriptor. Closing twice is allowed. The handler is not called any more.
func (f *FD) Close() error {
	if f.Closed() {
		return nil
	}
	fd := int(f.fd)
	// a duplicate of the descriptor may be open elsewhere: close alone would then leave the registration behind
	unix.EpollCtl(f.l.ep, unix.EPOLL_CTL_DEL, fd, nil)
	f.forget()
	return unix.Close(fd)
}

// Reset closes a TCP socket with a RST instead of a FIN.
func (f *FD) Reset() error {
	if f.Closed() {
		return nil
	}
	f.linger(true)
	return f.Close()
}
