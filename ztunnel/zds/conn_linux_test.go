package zds

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAPacketOf1024BytesArrivesAndOneMoreByteIsAnError(t *testing.T) {
	a, b := pairOfConns(t)
	if err := a.write(bytes.Repeat([]byte("x"), MaxPacket), nil); err != nil {
		t.Fatal(err)
	}
	if got, _, err := b.read(); err != nil || len(got) != MaxPacket {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := a.write(bytes.Repeat([]byte("x"), MaxPacket+1), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.read(); !errors.Is(err, ErrProtocol) {
		t.Errorf("truncated packet (MSG_TRUNC, Z1): %v", err)
	}
}

func TestDescriptorsArriveCloseOnExec(t *testing.T) {
	a, b := pairOfConns(t)
	f := tempFile(t)
	if err := a.write([]byte("x"), []*File{f}); err != nil {
		t.Fatal(err)
	}
	_, files, err := b.read()
	if err != nil || len(files) != 1 {
		t.Fatalf("got %d descriptors, %v", len(files), err)
	}
	defer closeFiles(files)
	if !sameFile(files[0], f) {
		t.Error("another file arrived")
	}
	flags, err := unix.FcntlInt(uintptr(files[0].FD()), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor is inherited by children: flags %d, %v", flags, err)
	}
}

func TestTooManyDescriptorsAreAnErrorAndAreClosed(t *testing.T) {
	a, b := pairOfConns(t)
	f := tempFile(t)
	before := openFDs(t)
	for _, n := range []int{5, 8, 100} {
		many := make([]*File, n)
		for i := range many {
			many[i] = f
		}
		if err := a.write([]byte("x"), many); err != nil {
			t.Fatal(err)
		}
		_, files, err := b.read()
		if n > maxFiles+2 && !errors.Is(err, ErrProtocol) { // control space is rounded up, so one more may fit
			t.Errorf("%d descriptors (MSG_CTRUNC): %v", n, err)
		}
		if n <= maxFiles+2 && err == nil {
			if _, err := decodeRequest([]byte("\x1a\x00"), files, true); !errors.Is(err, ErrProtocol) {
				t.Errorf("%d descriptors: %v", n, err)
			}
		}
		closeFiles(files)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors leaked", after-before)
	}
}

func TestTheEndOfTheConnectionIsEOF(t *testing.T) {
	a, b := pairOfConns(t)
	a.close()
	if _, _, err := b.read(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want io.EOF", err)
	}
}
