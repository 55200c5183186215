package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection that keeps the borders of messages. read may run beside write; neither may run twice at a time.
type conn interface {
	// read blocks for the next message. The descriptors are the caller's. io.EOF says that the peer closed.
	read() ([]byte, []*File, error)
	// write sends a message; the descriptors stay the caller's. It blocks for DefaultTimeout at most.
	write(b []byte, files []*File) error
	// setReadDeadline bounds read; the zero time takes the bound away.
	setReadDeadline(t time.Time) error
	close() error
}

// packetConn is a SOCK_SEQPACKET socket.
type packetConn struct{ c *net.UnixConn }

func dial(ctx context.Context, path string) (conn, error) {
	c, err := (&net.Dialer{Timeout: DefaultTimeout}).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", path, err)
	}
	return &packetConn{c: c.(*net.UnixConn)}, nil
}

func (p *packetConn) read() ([]byte, []*File, error) {
	buf := make([]byte, MaxPacket)
	oob := make([]byte, unix.CmsgSpace(4*(maxFiles+1)))
	n, oobn, flags, _, err := p.c.ReadMsgUnix(buf, oob) // MSG_CMSG_CLOEXEC is set by the net package
	if err != nil {
		return nil, nil, err
	}
	files, err := parseRights(oob[:oobn])
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = protocolError("message of more than %d bytes", MaxPacket)
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = protocolError("message with too many descriptors")
	}
	if err != nil {
		closeFiles(files)
		return nil, nil, err
	}
	if n == 0 {
		closeFiles(files)
		return nil, nil, io.EOF // SEQPACKET cannot tell an empty message from the end; both end the connection (Z3)
	}
	return buf[:n], files, nil
}

// parseRights collects the descriptors of all control messages. On error those found so far are returned too.
func parseRights(oob []byte) ([]*File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, protocolError("parse control message: %w", err)
	}
	var files []*File
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, protocolError("parse descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, NewFile(fd))
		}
	}
	return files, nil
}

func (p *packetConn) write(b []byte, files []*File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = f.FD()
		}
		oob = unix.UnixRights(fds...)
	}
	if err := p.c.SetWriteDeadline(time.Now().Add(DefaultTimeout)); err != nil {
		return err
	}
	n, oobn, err := p.c.WriteMsgUnix(b, oob, nil)
	if err == nil && (n != len(b) || oobn != len(oob)) {
		err = io.ErrShortWrite
	}
	return err
}

func (p *packetConn) setReadDeadline(t time.Time) error { return p.c.SetReadDeadline(t) }

func (p *packetConn) close() error {
	err := p.c.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// CheckPeer returns an error unless the process at the other end of c, when it connected, ran as uid.
func CheckPeer(c *net.UnixConn, uid uint32) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, sockErr); err != nil {
		return fmt.Errorf("read credentials of peer: %w", err)
	}
	if cred.Uid != uid {
		return fmt.Errorf("peer runs as uid %d, not %d", cred.Uid, uid)
	}
	return nil
}
