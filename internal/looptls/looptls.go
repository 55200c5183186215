// Package looptls drives the standard crypto/tls.Conn on an event loop.
//
// # Two lives
//
// A Conn begins with its handshake, on an ordinary goroutine that blocks (Client, Server). It reads one record at a
// time, so that crypto/tls is never left holding the beginning of the application data. Nothing of the goroutine
// remains afterwards. Then Attach hands the connection to a loop, and from there on every method is loop only.
//
// # What lies below the tls.Conn on a loop
//
// To crypto/tls it looks like any net.Conn, with two habits:
//
//   - Read serves one whole record out of the loop's buffer. When there is none it returns os.ErrDeadlineExceeded, a read
//     deadline that passed, after which tls.Conn.Read may be called again.
//   - Write takes everything, because a tls.Conn is dead after any failed write: what the socket refuses is queued. Callers
//     stop producing while Queued is high.
//
// Write can be called from inside tls.Conn.Read (the answer to a KeyUpdate, an alert), with crypto/tls' locks held.
// It therefore never tears anything down; a dead socket is remembered and reported by the method that was called.
//
// Plaintext is read back over the place of its own ciphertext, which crypto/tls has copied by then: a burst needs one
// buffer and stays in cache.
//
// crypto/tls allocates one small object (24 bytes) for each record received. Nothing else on the byte path allocates.
package looptls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/loop"
)

const (
	headerLen = 5
	// recordPlain is the most plaintext in a record.
	recordPlain = 16 << 10
	// maxRecord13 is the longest record that a TLS 1.3 peer may send: a header, and the plaintext with 256 bytes of
	// content type, padding and tag (RFC 8446 section 5.2).
	maxRecord13 = headerLen + recordPlain + 256
	// maxRecord is the same for earlier versions (RFC 5246 section 6.2.3), and the longest of all.
	maxRecord = headerLen + recordPlain + 2048
	// maxQueued is the ciphertext that is held for a peer that takes none, in bytes. Callers stop far below; beyond it
	// only a peer that makes us answer and does not read can get.
	maxQueued = 16 << 20
)

// ErrQueueFull means that the peer does not read what it makes us send.
var ErrQueueFull = errors.New("peer does not read: too much is waiting to be sent")

// errInsideRecord would be a fault of this package or of crypto/tls.
var errInsideRecord = errors.New("handshake ended inside a record")

var parts = sync.Pool{New: func() any { return new([maxRecord]byte) }}

// Conn is a TLS connection for use on a loop. Make it with Client or Server.
type Conn struct {
	tc *tls.Conn
	w  wire

	// immutable
	longest int // record that the peer may send

	// loop only
	part    *[maxRecord]byte // the beginning of a record whose end has not arrived; nil if there is none
	partLen int
	sealed  int64
	closed  bool
	readErr error
}

// Client does a client's handshake on fd, a connected non-blocking stream socket. It blocks until the handshake is done
// or ctx is. fd stays the caller's: on success it is to be given to Loop.Add and the result to Attach, on error it is to
// be closed. cfg should have DynamicRecordSizingDisabled set, else it is copied for each connection.
func Client(ctx context.Context, fd int, cfg *tls.Config) (*Conn, error) {
	return shake(ctx, fd, cfg, tls.Client)
}

// Server is Client for the other end.
func Server(ctx context.Context, fd int, cfg *tls.Config) (*Conn, error) {
	return shake(ctx, fd, cfg, tls.Server)
}

func shake(ctx context.Context, fd int, cfg *tls.Config, role func(net.Conn, *tls.Config) *tls.Conn) (*Conn, error) {
	if !cfg.DynamicRecordSizingDisabled {
		cfg = cfg.Clone()
		cfg.DynamicRecordSizingDisabled = true
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // not a TCP socket in tests
	file := os.NewFile(uintptr(dup), "tls")
	defer file.Close()
	c := &Conn{}
	c.w.file = file
	c.w.local, c.w.remote = addrs(fd)
	c.tc = role(&c.w, cfg)
	if err := c.tc.HandshakeContext(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("handshake: %w", cause)
		}
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if c.w.hn != 0 || c.w.need != 0 {
		return nil, errInsideRecord
	}
	c.w.file = nil
	c.longest = maxRecord
	if c.tc.ConnectionState().Version == tls.VersionTLS13 {
		c.longest = maxRecord13
	}
	return c, nil
}

// Attach puts c on f's loop. It is called once, before f's first event. f stays the caller's to close.
func (c *Conn) Attach(f *loop.FD) { c.w.fd = f }

// State describes the connection. It may be called from any goroutine.
func (c *Conn) State() tls.ConnectionState { return c.tc.ConnectionState() }

// BytesSealed is the plaintext encrypted so far, in bytes. crypto/tls never changes its key on its own, so the owner
// should replace the connection after 128 GB (RFC 8446 section 5.5).
func (c *Conn) BytesSealed() int64 { return c.sealed }

// Queued is the ciphertext that the socket has not taken yet, in bytes.
func (c *Conn) Queued() int { return c.w.out.Len() }

// ReadRecords reads once from the socket, at most budget bytes and at most the loop's buffer, and calls fn with the
// plaintext of each complete record. The plaintext lies in the loop's buffer and is valid until that is used again,
// which fn must not do; fn may call Write. The result is nil if there may be more to read, loop.ErrAgain if there is
// not, io.EOF after the peer's close_notify, io.ErrUnexpectedEOF after a FIN without one, the error of fn, loop.ErrClosed
// if fn has closed the descriptor, or the error that ended the connection.
func (c *Conn) ReadRecords(budget int, fn func(plain []byte) error) error {
	return c.readInto(c.w.fd.Loop().Buffer(), budget, fn)
}

// readInto is ReadRecords with a buffer of the caller's, at least 2*maxRecord long, in which fn finds the plaintext.
func (c *Conn) readInto(buf []byte, budget int, fn func(plain []byte) error) error {
	if c.readErr != nil {
		return c.readErr
	}
	have := 0
	if c.part != nil {
		have = copy(buf, c.part[:c.partLen])
	}
	n, err := c.w.fd.Read(buf[have:min(max(budget, 2*maxRecord), len(buf))])
	if err != nil {
		if err != loop.ErrAgain {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			c.fail(err)
		}
		return err
	}
	rest, err := c.records(buf[:have+n], fn)
	if err != nil {
		c.fail(err)
		return err
	}
	c.keep(rest)
	if !c.w.fd.Readable() {
		return loop.ErrAgain
	}
	return nil
}

// records opens the whole records of p and returns what is left behind them.
func (c *Conn) records(p []byte, fn func([]byte) error) (rest []byte, err error) {
	for len(p) >= headerLen {
		size := headerLen + (int(p[3])<<8 | int(p[4]))
		if size > len(p) {
			if size <= c.longest {
				break
			}
			size = len(p) // too long: crypto/tls refuses it by its header, with the right alert
		}
		n, err := c.open(p[:size])
		if n > 0 {
			if err := fn(p[:n]); err != nil {
				return nil, err
			}
			if c.w.fd.Closed() {
				return nil, loop.ErrClosed
			}
		}
		if err != nil {
			return nil, err
		}
		p = p[size:]
	}
	return p, nil
}

// open has crypto/tls decrypt one record in place.
func (c *Conn) open(rec []byte) (int, error) {
	c.w.in = rec
	n, err := c.tc.Read(rec)
	c.w.in = nil
	if c.w.err != nil { // while answering; Read itself may have returned nil
		return n, c.w.err
	}
	if err == os.ErrDeadlineExceeded { // a record without application data
		err = nil
	}
	return n, err
}

// keep stores the beginning of a record until the rest arrives.
func (c *Conn) keep(p []byte) {
	switch {
	case len(p) > 0:
		if c.part == nil {
			c.part = parts.Get().(*[maxRecord]byte)
		}
		c.partLen = copy(c.part[:], p)
	case c.part != nil:
		c.dropPart()
	}
}

func (c *Conn) dropPart() {
	parts.Put(c.part)
	c.part, c.partLen = nil, 0
}

func (c *Conn) fail(err error) {
	c.readErr = err
	if c.part != nil {
		c.dropPart()
	}
}

// Write encrypts all of p and sends it, as records of 16 KiB. What the socket refuses is queued; Flush sends it. The
// error, if any, is that of a dead connection. p may be reused at once.
func (c *Conn) Write(p []byte) error {
	if c.w.err != nil {
		return c.w.err
	}
	c.sealed += int64(len(p))
	c.w.left = len(p)
	_, err := c.tc.Write(p)
	c.w.left = 0
	if c.w.err != nil {
		return c.w.err
	}
	return err
}

// Flush sends what is queued, as far as the socket takes it. It is called when the socket has become writable.
func (c *Conn) Flush() error {
	if c.w.err != nil {
		return c.w.err
	}
	if _, err := c.w.out.WriteTo(c.w.fd); err != nil {
		c.w.err = err
		return err
	}
	return nil
}

// CloseNotify tells the peer that no more will be sent, if nothing is queued in front of that. It must not be called from
// the fn of ReadRecords. The descriptor stays open. Calling it again does nothing.
func (c *Conn) CloseNotify() {
	if c.closed || c.w.err != nil {
		return
	}
	c.closed = true
	if c.w.out.Len() == 0 {
		c.tc.Close()
	}
}
