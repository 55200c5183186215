package loop

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is room for the address of an IPv4 or IPv6 socket, as the kernel writes it:
//
//	family (16, of the host's order) | port (16, big-endian) | IPv4 address (32), or flow label (32), IPv6 address (128), scope (32)
type sockaddr [28]byte

// addrPort is the address; v4-mapped ones become IPv4. It is not valid for other families.
func (a *sockaddr) addrPort() netip.AddrPort {
	port := uint16(a[2])<<8 | uint16(a[3])
	switch *(*uint16)(unsafe.Pointer(a)) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(a[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

// Accept takes a connection off a listener's queue, as a non-blocking descriptor that is not inherited. Unlike unix.Accept4
// it allocates nothing. Any goroutine.
func Accept(fd int) (conn int, peer netip.AddrPort, err error) {
	var a sockaddr
	n := uint32(len(a))
	r, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&n)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, peer, e
	}
	return int(r), a.addrPort(), nil
}

// LocalAddr is the address that a socket is bound to: of an accepted one, where the connection was made to. Any goroutine.
func LocalAddr(fd int) (netip.AddrPort, error) { return name(unix.SYS_GETSOCKNAME, fd) }

// PeerAddr is the address that a socket is connected to. Any goroutine.
func PeerAddr(fd int) (netip.AddrPort, error) { return name(unix.SYS_GETPEERNAME, fd) }

func name(call uintptr, fd int) (netip.AddrPort, error) {
	var a sockaddr
	n := uint32(len(a))
	if _, _, e := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&n))); e != 0 {
		return netip.AddrPort{}, e
	}
	return a.addrPort(), nil
}

// Sockaddr is ap for a socket of its family, which Family names.
func Sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

// Family is AF_INET or AF_INET6, as ap has it.
func Family(ap netip.AddrPort) int {
	if ap.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
