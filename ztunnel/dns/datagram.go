package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// takeDatagrams serves the pod's datagrams until the pod is stopped. A buffer is held only while there are some.
func (p *pod) takeDatagrams() {
	rc, err := p.datagrams.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Read(func(fd uintptr) bool {
		p.receive(int(fd))
		return p.ctx.Err() != nil
	}) // an error says that the socket was closed
}

// drainDatagrams serves those that wait.
func (p *pod) drainDatagrams() {
	rc, err := p.datagrams.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { p.receive(int(fd)) })
}

// receive serves datagrams until none is left.
func (p *pod) receive(fd int) {
	buf := buffers.Get().(*[1 << 16]byte)
	defer buffers.Put(buf)
	var oob [128]byte
	for {
		n, oobn, flags, from, err := unix.Recvmsg(fd, buf[:], oob[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || from == nil:
			continue
		}
		peer := addrPort(from)
		to, ok := originalDst(oob[:oobn])
		if !ok || to.Port() != port || peer.Port() == 0 || !isQuery(buf[:n]) {
			continue // no query, or not captured: somebody found the socket's own port
		}
		p.serve(query{b: buf[:n], to: to, reply: func(b []byte) { p.sendBack(to, peer, b) }})
	}
}

// originalDst reads IP_ORIGDSTADDR or IPV6_ORIGDSTADDR, a struct sockaddr_in or sockaddr_in6:
//
//	0  family (16 bits, the machine's order)
//	2  port (16 bits)
//	4  IPv4: address (32 bits)
//	8  IPv6: address (128 bits), behind the flow label
func originalDst(oob []byte) (netip.AddrPort, bool) {
	for len(oob) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), binary.BigEndian.Uint16(data[2:])), true
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:24])).Unmap(), binary.BigEndian.Uint16(data[2:])), true
		}
	}
	return netip.AddrPort{}, false
}

// sendBack sends a datagram to the client that seems to come from the nameserver.
func (p *pod) sendBack(from, to netip.AddrPort, b []byte) {
	err := p.back.send(from, to, b)
	if errors.Is(err, unix.EMSGSIZE) && len(b) > headerLen {
		short := failure(b, int(b[3]&rcodeMask))
		short[2] |= 1 << 1 // TC
		err = p.back.send(from, to, short)
	}
	if err != nil && p.ctx.Err() == nil {
		p.s.log.Warn("answer not sent", "src.workload", p.name, "src.namespace", p.namespace, "client", to, "err", err)
	}
}

// replier sends datagrams from foreign addresses inside of a pod. A socket that is bound to a nameserver's address and port
// 53 would do as well, but then the pod could not run a DNS server of its own: it is a raw socket per family, made when it
// is needed first.
type replier interface {
	send(from, to netip.AddrPort, b []byte) error
	Close() error
}

func newReplier(ns *netns.NS) replier { return &rawSockets{ns: ns, fd4: -1, fd6: -1} }

type rawSockets struct {
	ns *netns.NS

	mu       sync.Mutex
	fd4, fd6 int // guarded by mu; -1: not made yet
	closed   bool
}

func (r *rawSockets) send(from, to netip.AddrPort, b []byte) error {
	family, fd, dst := unix.AF_INET6, &r.fd6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, fd, dst = unix.AF_INET, &r.fd4, &unix.SockaddrInet4{Addr: to.Addr().As4()}
	}
	packet := datagram(from, to, b)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return unix.EBADF
	}
	if *fd < 0 {
		made, err := r.ns.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		*fd = made
	}
	if err := unix.Sendto(*fd, packet, unix.MSG_DONTWAIT, dst); err != nil {
		return fmt.Errorf("send raw packet: %w", err)
	}
	return nil
}

func (r *rawSockets) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, fd := range []*int{&r.fd4, &r.fd6} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
	return nil
}

const udpHeaderLen = 8

// datagram makes the packet of a datagram: IP header (the kernel fills in ID and checksum of IPv4), UDP header, payload.
// Both addresses are of one family.
func datagram(from, to netip.AddrPort, b []byte) []byte {
	length := udpHeaderLen + len(b)
	var p []byte
	if to.Addr().Is4() {
		src, dst := from.Addr().As4(), to.Addr().As4()
		p = make([]byte, 0, 20+length)
		p = append(p, 0x45, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(20+length))
		p = append(p, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
		p = append(append(p, src[:]...), dst[:]...)
	} else {
		src, dst := from.Addr().As16(), to.Addr().As16()
		p = make([]byte, 0, 40+length)
		p = append(p, 0x60, 0, 0, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(length))
		p = append(p, unix.IPPROTO_UDP, 64)
		p = append(append(p, src[:]...), dst[:]...)
	}
	head := len(p)
	p = binary.BigEndian.AppendUint16(p, from.Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = binary.BigEndian.AppendUint16(p, uint16(length))
	p = append(p, 0, 0)
	p = append(p, b...)
	sum := checksum(from.Addr().AsSlice(), to.Addr().AsSlice(), p[head:])
	binary.BigEndian.PutUint16(p[head+6:], sum)
	return p
}

// checksum is that of a UDP datagram over the pseudo header and itself (RFC 768, RFC 8200 8.1).
func checksum(src, dst, segment []byte) uint16 {
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(segment))
	for _, part := range [][]byte{src, dst, segment} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint32(part[len(part)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if out := ^uint16(sum); out != 0 {
		return out
	}
	return 0xffff
}
