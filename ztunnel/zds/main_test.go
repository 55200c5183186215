package zds

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pairOfConns returns both ends of a SOCK_SEQPACKET connection.
func pairOfConns(t *testing.T) (a, b *packetConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*packetConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "zds")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = &packetConn{c: c.(*net.UnixConn)}
		t.Cleanup(func() { conns[i].close() })
	}
	return conns[0], conns[1]
}

// tempFile returns a File that differs from all others.
func tempFile(t *testing.T) *File {
	t.Helper()
	fd, err := unix.Open(filepath.Join(t.TempDir(), "f"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f := NewFile(fd)
	t.Cleanup(func() { f.Close() })
	return f
}

func tempFiles(t *testing.T) Files {
	return Files{NetNS: tempFile(t), Outbound: tempFile(t), Plaintext: tempFile(t), HBONE: tempFile(t), DNS: tempFile(t), DNSStream: tempFile(t)}
}

// openFDs counts the descriptors of the process.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
