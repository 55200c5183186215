package zds

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// File is an owned descriptor. It is safe for concurrent use as far as a descriptor is: who calls FD must see to it that
// Close is not called before it is done with the number.
type File struct {
	mu sync.Mutex
	fd int // guarded by mu; -1 once closed
}

// NewFile takes fd over.
func NewFile(fd int) *File { return &File{fd: fd} }

// FD returns the descriptor, which stays f's, or -1 if f is nil or closed.
func (f *File) FD() int {
	if f == nil {
		return -1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fd
}

// Dup returns a new File of the same open file, close-on-exec.
func (f *File) Dup() (*File, error) {
	if f == nil {
		return nil, unix.EBADF
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor %d: %w", f.fd, err)
	}
	return NewFile(fd), nil
}

// FileID identifies an open namespace or socket: two descriptors with the same FileID are the same object.
type FileID struct{ Dev, Ino uint64 }

// ID returns the identity of what f refers to (Z5, Z13).
func (f *File) ID() (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.FD(), &st); err != nil {
		return FileID{}, fmt.Errorf("stat descriptor %d: %w", f.FD(), err)
	}
	return FileID{Dev: st.Dev, Ino: st.Ino}, nil
}

// Close closes the descriptor. It may be called again, and on nil.
func (f *File) Close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// Files are the descriptors of a pod: its network namespace and, from our capture, its three listening sockets and, if its
// DNS queries are captured, the sockets that these come to. What is not there is nil.
type Files struct {
	NetNS, Outbound, Plaintext, HBONE *File
	// DNS gets datagrams, DNSStream connections.
	DNS, DNSStream *File
}

// HasListeners reports whether the three listening sockets are there.
func (f Files) HasListeners() bool { return f.Outbound != nil && f.Plaintext != nil && f.HBONE != nil }

// HasDNS reports whether the sockets for DNS are there.
func (f Files) HasDNS() bool { return f.DNS != nil && f.DNSStream != nil }

// WithoutDNS returns f without the sockets for DNS, which stay f's.
func (f Files) WithoutDNS() Files {
	f.DNS, f.DNSStream = nil, nil
	return f
}

// Close closes all of them. It may be called again.
func (f Files) Close() error {
	var errs []error
	for _, file := range f.list() {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// Dup returns duplicates of all of them.
func (f Files) Dup() (Files, error) {
	var out Files
	for _, pair := range []struct {
		to   **File
		from *File
	}{{&out.NetNS, f.NetNS}, {&out.Outbound, f.Outbound}, {&out.Plaintext, f.Plaintext}, {&out.HBONE, f.HBONE}, {&out.DNS, f.DNS}, {&out.DNSStream, f.DNSStream}} {
		if pair.from == nil {
			continue
		}
		d, err := pair.from.Dup()
		if err != nil {
			out.Close()
			return Files{}, err
		}
		*pair.to = d
	}
	return out, nil
}

// list returns the descriptors that are there, in the order of the wire.
func (f Files) list() []*File {
	var l []*File
	for _, file := range []*File{f.NetNS, f.Outbound, f.Plaintext, f.HBONE, f.DNS, f.DNSStream} {
		if file != nil {
			l = append(l, file)
		}
	}
	return l
}

// filesOf is the opposite of list: one descriptor is a namespace, listenerFiles are a namespace and its listeners, maxFiles
// also the sockets for DNS.
func filesOf(l []*File) Files {
	f := Files{NetNS: l[0]}
	if len(l) >= listenerFiles {
		f.Outbound, f.Plaintext, f.HBONE = l[1], l[2], l[3]
	}
	if len(l) == maxFiles {
		f.DNS, f.DNSStream = l[4], l[5]
	}
	return f
}

func closeFiles(l []*File) {
	for _, f := range l {
		f.Close()
	}
}
