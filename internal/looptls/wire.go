package looptls

import (
	"net"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
)

// wire is the net.Conn below the tls.Conn. It has a file during the handshake and an FD afterwards.
type wire struct {
	// handshake
	file          *os.File
	local, remote net.Addr
	hdr           [headerLen]byte // of the record being read
	hn, need      int             // bytes of hdr seen; bytes of its body still to come

	// loop only
	fd   *loop.FD
	in   []byte // the rest of the record that is being served
	left int    // plaintext still to come in this Conn.Write
	out  loop.Queue
	err  error // the first write error
	fin  bool  // nothing may follow any more: it is dropped
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.file != nil {
		return w.readShake(p)
	}
	if len(w.in) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	return n, nil
}

// readShake never reads beyond the end of a record.
func (w *wire) readShake(p []byte) (int, error) {
	limit := w.need
	if limit == 0 {
		limit = headerLen - w.hn
	}
	n, err := w.file.Read(p[:min(limit, len(p))])
	if w.need > 0 {
		w.need -= n
		return n, err
	}
	w.hn += copy(w.hdr[w.hn:], p[:n])
	if w.hn == headerLen {
		w.hn, w.need = 0, int(w.hdr[3])<<8|int(w.hdr[4])
	}
	return n, err
}

// Write implements net.Conn. On a loop it takes everything.
func (w *wire) Write(p []byte) (int, error) {
	if w.file != nil {
		return w.file.Write(p)
	}
	if w.fin { // crypto/tls answers even after its close_notify, to a KeyUpdate for example
		return len(p), nil
	}
	if w.err == nil {
		w.err = w.send(p)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

func (w *wire) send(p []byte) error {
	w.left -= recordPlain
	if w.out.Len() > 0 {
		if w.out.Len() > maxQueued {
			return ErrQueueFull
		}
		w.out.Append(p)
		return nil
	}
	send := w.fd.Write
	if w.left > 0 { // more records of the same burst follow at once
		send = w.fd.WriteMore
	}
	n, err := send(p)
	if err != nil {
		return err
	}
	w.out.Append(p[n:])
	return nil
}

// Close implements net.Conn. On a loop the descriptor belongs to the owner of the FD.
func (w *wire) Close() error {
	if w.file != nil {
		return w.file.Close()
	}
	return nil
}

// LocalAddr implements net.Conn.
func (w *wire) LocalAddr() net.Addr { return w.local }

// RemoteAddr implements net.Conn.
func (w *wire) RemoteAddr() net.Addr { return w.remote }

// SetDeadline implements net.Conn. On a loop nothing blocks, so there are no deadlines; crypto/tls sets one around its
// close_notify.
func (w *wire) SetDeadline(t time.Time) error {
	if w.file != nil {
		return w.file.SetDeadline(t)
	}
	return nil
}

// SetReadDeadline implements net.Conn.
func (w *wire) SetReadDeadline(t time.Time) error {
	if w.file != nil {
		return w.file.SetReadDeadline(t)
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.file != nil {
		return w.file.SetWriteDeadline(t)
	}
	return nil
}

// addrs are the two addresses of a TCP socket; zero ones for other sockets.
func addrs(fd int) (local, remote net.Addr) {
	l, _ := loop.LocalAddr(fd)
	r, _ := loop.PeerAddr(fd)
	return net.TCPAddrFromAddrPort(l), net.TCPAddrFromAddrPort(r)
}
