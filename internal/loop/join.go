package loop

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// joinChunk is what one read of a relay asks for: two of them stay in a core's second-level cache.
	joinChunk = 64 << 10
	// joinBudget is the number of chunks moved in one direction before other descriptors have their turn.
	joinBudget = 8
	// spliceAfter is the number of bytes after which a direction that fills its chunks is spliced in the kernel.
	spliceAfter = 128 << 10
	// maxPipes is the number of unused pipes that a loop keeps.
	maxPipes = 16
)

// JoinResult says how a Join ended.
type JoinResult struct {
	// AtoB and BtoA are the bytes delivered in each direction.
	AtoB, BtoA int64
	// Err is nil when both directions ended with a FIN, else the first error. Both sockets were then reset.
	Err error
}

// JoinHandler is told once, on the loop, that a Join has ended and both sockets are closed.
type JoinHandler interface {
	Joined(r JoinResult)
}

// Join relays bytes between two stream sockets of one loop until both directions have ended. A FIN in one direction is
// passed on and leaves the other open; a reset on one side resets the other. Small pieces are copied through the loop's
// buffer; a bulk direction goes through a pipe by splice(2), without a copy to user space. While one side takes
// nothing, at most one chunk is held and nothing more is read. Loop only.
type Join struct {
	ab, ba joinHalf
	h      JoinHandler
	ended  bool
}

// joinHalf is one direction.
type joinHalf struct {
	src, dst *FD
	pend     []byte // read and not yet taken by dst
	pipe     *pipe
	moved    int64
	full     bool // the last read filled its chunk
	eof, fin bool // FIN seen on src; passed on to dst
}

// NewJoin starts to relay between a and b, which belong to the loop and to the Join from now on. h is called from a
// later visit, never from here. first is what was already read from a, if anything; it is copied.
func NewJoin(a, b *FD, first []byte, h JoinHandler) *Join {
	j := &Join{h: h}
	j.ab = joinHalf{src: a, dst: b, pend: append([]byte(nil), first...)}
	j.ba = joinHalf{src: b, dst: a}
	a.SetHandler(j)
	b.SetHandler(j)
	a.Wake()
	return j
}

// Counts are the bytes delivered so far.
func (j *Join) Counts() (aToB, bToA int64) { return j.ab.moved, j.ba.moved }

// Abort resets both sockets; it implements Aborter. The handler is called with err before Abort returns.
func (j *Join) Abort(err error) {
	if j.ended {
		return
	}
	j.ended = true
	a, b := j.ab.src, j.ab.dst
	l := a.l
	l.putPipe(&j.ab)
	l.putPipe(&j.ba)
	if err == nil {
		a.Close()
		b.Close()
	} else {
		a.Reset()
		b.Reset()
	}
	j.h.Joined(JoinResult{AtoB: j.ab.moved, BtoA: j.ba.moved, Err: err})
}

// Ready implements Handler.
func (j *Join) Ready(*FD) {
	if j.ended {
		return
	}
	for _, d := range [2]*joinHalf{&j.ab, &j.ba} {
		if err := d.pump(); err != nil {
			j.Abort(err)
			return
		}
	}
	if j.ab.fin && j.ba.fin {
		j.Abort(nil)
		return
	}
	for _, d := range [2]*joinHalf{&j.ab, &j.ba} {
		if d.eof { // nothing reads this socket any more
			if err := d.src.Failed(); err != nil {
				j.Abort(err)
				return
			}
		}
	}
}

// pump moves what it can.
func (d *joinHalf) pump() error {
	if d.fin {
		return nil
	}
	for range joinBudget {
		if drained, err := d.drain(); err != nil || !drained {
			return err
		}
		if d.eof {
			d.fin = true
			d.src.l.putPipe(d)
			return ignoreNotConnected(d.dst.CloseWrite())
		}
		var err error
		if d.full && d.moved >= spliceAfter {
			err = d.spliceIn()
		} else {
			err = d.copy()
		}
		switch err {
		case nil:
		case ErrAgain:
			d.src.l.putPipe(d)
			return nil
		case io.EOF:
			d.eof = true
		default:
			return err
		}
	}
	d.src.Wake()
	return nil
}

// drain writes what is held. It reports whether nothing is left.
func (d *joinHalf) drain() (bool, error) {
	if len(d.pend) > 0 {
		n, err := d.dst.Write(d.pend)
		d.moved += int64(n)
		d.pend = d.pend[n:]
		if err != nil || len(d.pend) > 0 {
			return false, err
		}
		d.pend = nil
	}
	for d.pipe != nil && d.pipe.n > 0 {
		n, e := splice(d.pipe.r, int(d.dst.fd), d.pipe.n)
		switch {
		case e == unix.EAGAIN:
			d.dst.writable = false
			return false, nil
		case e != 0:
			return false, e
		}
		d.pipe.n -= n
		d.moved += int64(n)
	}
	return true, nil
}

func (d *joinHalf) copy() error {
	buf := d.src.l.buf[:joinChunk]
	n, err := d.src.Read(buf)
	if err != nil {
		return err
	}
	d.full = n == joinChunk
	w, err := d.dst.Write(buf[:n])
	d.moved += int64(w)
	if w < n && err == nil {
		d.pend = append([]byte(nil), buf[w:n]...)
	}
	return err
}

// spliceIn moves from the source into the (empty) pipe.
func (d *joinHalf) spliceIn() error {
	if d.pipe == nil {
		p, err := d.src.l.getPipe()
		if err != nil { // out of descriptors: copying still works
			d.full = false
			return d.copy()
		}
		d.pipe = p
	}
	if !d.src.Readable() {
		return ErrAgain
	}
	n, e := splice(int(d.src.fd), d.pipe.w, pipeSize)
	switch {
	case e == unix.EAGAIN:
		d.src.readable = false
		d.full = false
		return ErrAgain
	case e != 0:
		return e
	case n == 0:
		return io.EOF
	}
	d.pipe.n = n
	return nil
}

func ignoreNotConnected(err error) error {
	if err == unix.ENOTCONN { // the peer has closed meanwhile; its reset, if any, is met by the other direction
		return nil
	}
	return err
}

// pipeSize is the capacity asked for, in bytes.
const pipeSize = 256 << 10

// pipe is the kernel buffer that a spliced direction goes through.
type pipe struct {
	r, w int
	n    int // bytes inside
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

func (l *Loop) getPipe() (*pipe, error) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize) // the default of 64 KiB works too
	return &pipe{r: fds[0], w: fds[1]}, nil
}

// putPipe gives back a direction's pipe, so that an idle connection holds none.
func (l *Loop) putPipe(d *joinHalf) {
	p := d.pipe
	if p == nil {
		return
	}
	d.pipe = nil
	if p.n > 0 || len(l.pipes) >= maxPipes {
		p.close()
		return
	}
	l.pipes = append(l.pipes, p)
}

// splice moves up to n bytes without blocking.
func splice(from, to, n int) (int, syscall.Errno) {
	for {
		r, _, e := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}
