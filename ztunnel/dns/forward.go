package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// dialer makes the sockets by which a pod's nameserver is asked, in the pod's network namespace: non-blocking and
// connected, a stream possibly not yet.
type dialer interface {
	socket(ns *netns.NS, to netip.AddrPort, typ int) (fd int, err error)
}

// nodeDialer makes sockets that redirection leaves alone.
type nodeDialer struct {
	exempt *redirect.Exempt // for streams
	mark   uint32           // for datagrams
}

// SetupNode tells how capture redirects the pods of this node. It is called before the first pod; again after a restart of
// capture, it holds for queries that come later. The descriptor in setup stays the caller's.
func (s *Server) SetupNode(setup zds.Setup) error {
	fd, err := unix.FcntlInt(uintptr(setup.Exempt.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicate map of exempt sockets: %w", err)
	}
	exempt, err := redirect.OpenExempt(fd)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The map of before stays open: a query may be using it, and this happens rarely.
	s.dial = &nodeDialer{exempt, redirect.DNSMark(setup.Mark, setup.Mask)}
	return nil
}

func (d *nodeDialer) socket(ns *netns.NS, to netip.AddrPort, typ int) (int, error) {
	family := unix.AF_INET6
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		family = unix.AF_INET
		addr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := ns.Socket(family, typ, 0)
	if err != nil {
		return -1, err
	}
	if typ == unix.SOCK_STREAM {
		err = d.exempt.Mark(fd)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(d.mark))
	}
	if err == nil {
		err = unix.Connect(fd, addr)
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// dial connects to the nameserver. The file's reads and writes end at deadline, or when the pod ends; the caller calls
// done, which closes it.
func (p *pod) dial(d dialer, to netip.AddrPort, typ int, deadline time.Time) (f *os.File, done func(), err error) {
	fd, err := d.socket(p.ns, to, typ)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %v: %w", to, err)
	}
	f = os.NewFile(uintptr(fd), to.String())
	unwatch := context.AfterFunc(p.ctx, func() { f.Close() })
	done = func() { unwatch(); f.Close() }
	if err = f.SetDeadline(deadline); err == nil && typ == unix.SOCK_STREAM {
		err = connected(f)
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("connect to %v: %w", to, err)
	}
	return f, done, nil
}

// connected waits until a connecting socket is connected.
func connected(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = rc.Write(func(fd uintptr) bool {
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(pfd, 0); n == 0 || errors.Is(err, unix.EINTR) {
			return false
		}
		e, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if result = err; err == nil && e != 0 {
			result = unix.Errno(e)
		}
		return true
	})
	return errors.Join(err, result)
}

// buffers are as large as a message can be.
var buffers = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// attempts is how often a datagram is sent. The client sends again, too, but later than one of two nameservers may need.
const attempts = 2

// exchangeDatagram asks with an ID of its own from a port of its own, and takes only the answer to that (B29).
func (p *pod) exchangeDatagram(d dialer, q *query) ([]byte, error) {
	end := time.Now().Add(p.s.cfg.Timeout)
	f, done, err := p.dial(d, q.to, unix.SOCK_DGRAM, end)
	if err != nil {
		return nil, err
	}
	defer done()
	out := slices.Clone(q.b)
	binary.BigEndian.PutUint16(out, uint16(rand.Uint32()))
	buf := make([]byte, answerSize(out))
	for i := range attempts {
		if _, err := f.Write(out); err != nil {
			return nil, err
		}
		if i < attempts-1 {
			err = f.SetReadDeadline(time.Now().Add(p.s.cfg.Timeout / 3))
		} else {
			err = f.SetReadDeadline(end)
		}
		if err != nil {
			return nil, err
		}
		n, err := readAnswer(f, buf, out)
		if err == nil {
			b := slices.Clone(buf[:n])
			copy(b, q.b[:2])
			return b, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("no answer in %v", p.s.cfg.Timeout)
}

// answerSize is the largest answer that a nameserver may give to a query by a datagram: what the query says that it takes
// (RFC 6891, 6.2.3), and not less than is usual.
func answerSize(query []byte) int {
	m := new(dns.Msg)
	if m.Unpack(query) != nil {
		return maxPayload
	}
	if o := m.IsEdns0(); o != nil {
		return max(int(o.UDPSize()), maxPayload)
	}
	return maxPayload
}

// readAnswer reads datagrams until one is the answer.
func readAnswer(f *os.File, buf, query []byte) (int, error) {
	for {
		n, err := f.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) { // which is what a file says to an empty datagram
			return 0, err
		}
		if answers(buf[:n], query) {
			return n, nil
		}
	}
}

// exchangeStream asks over a connection of its own.
func (p *pod) exchangeStream(d dialer, q *query) ([]byte, error) {
	f, done, err := p.dial(d, q.to, unix.SOCK_STREAM, time.Now().Add(p.s.cfg.Timeout))
	if err != nil {
		return nil, err
	}
	defer done()
	if err := writeMessage(f, q.b); err != nil {
		return nil, err
	}
	b, err := readMessage(f)
	if err != nil {
		return nil, err
	}
	if !answers(b, q.b) {
		return nil, errors.New("answer to another question")
	}
	return b, nil
}

// handOver makes the rest of the client's connection the nameserver's.
func (p *pod) handOver(d dialer, q *query) error {
	f, done, err := p.dial(d, q.to, unix.SOCK_STREAM, time.Now().Add(p.s.cfg.Timeout))
	if err != nil {
		return err
	}
	defer done()
	if err := writeMessage(f, q.b); err != nil {
		return err
	}
	q.take(f)
	return nil
}

// writeMessage writes a message with its length before it (RFC 1035, 4.2.2), in one piece.
func writeMessage(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(b)+2), uint16(len(b))), b...))
	return err
}

// readMessage reads one.
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}
