package handshake

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAcceptingPausesBeforeTheLastDescriptorsAndGoesOnWhenSomeAreFree(t *testing.T) { // B8, EMFILE
	probe, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(probe)
	d := limitDescriptors(200)
	if d.accept != 150 || d.dial != 175 {
		t.Fatalf("accept below %d, dial below %d of 200", d.accept, d.dial)
	}
	d.accept = probe + 3
	var used []int
	defer func() {
		for _, fd := range used {
			unix.Close(fd)
		}
	}()
	for len(used) == 0 || used[len(used)-1] < d.accept {
		if d.Full(probe) {
			t.Fatalf("full after %d", len(used))
		}
		fd, err := unix.FcntlInt(uintptr(probe), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		used = append(used, fd)
		d.Accepted(fd)
	}
	if !d.Full(probe) {
		t.Error("not full at the limit")
	}
	for len(used) > 0 && used[len(used)-1] >= probe {
		unix.Close(used[len(used)-1])
		used = used[:len(used)-1]
	}
	if d.Full(probe) {
		t.Error("full though descriptors are free again")
	}
}

func TestAMessageIsSaidSeldom(t *testing.T) {
	var s Seldom
	said := 0
	for at := time.Duration(0); at < 25*time.Second; at += 50 * time.Millisecond {
		if skipped, ok := s.Now(at); ok {
			said++
			if want := int64(199); said > 1 && skipped != want {
				t.Errorf("%d were skipped, want %d", skipped, want)
			}
		}
	}
	if said != 3 {
		t.Errorf("said %d times in 25 s, want 3", said)
	}
}
