//go:build linux

package redirect

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns/netnstest"
)

func BenchmarkRootAttach(b *testing.B) {
	w := newWorld(b)
	l, err := Listen(w.a.ns)
	netnstest.Must(b, err)
	defer l.Close()
	p := Pod{UID: "a", NS: w.a.ns, Addrs: w.a.addrs(), Listeners: l}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			netnstest.Must(b, w.node.Attach(p), w.node.Remove("a"))
		}
	})
	netnstest.Must(b, w.node.Attach(p))
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			netnstest.Must(b, w.node.Attach(p))
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			w.node.Verify("a")
		}
	})
}

func BenchmarkRootExemptAndPrepareApp(b *testing.B) {
	w := newWorld(b)
	fd, err := unix.FcntlInt(uintptr(w.node.ExemptFD()), unix.F_DUPFD_CLOEXEC, 3)
	netnstest.Must(b, err)
	e, err := OpenExempt(fd)
	netnstest.Must(b, err)
	defer e.Close()
	for _, x := range []struct {
		name string
		do   func(fd int) error
	}{
		{"socket", func(int) error { return nil }},
		{"exempt", e.Mark},
		{"prepare", func(fd int) error { return PrepareApp(fd, w.c.addrs()[0], AppOptions{Dst: w.a.addrs()[0]}) }},
	} {
		b.Run(x.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fd, err := w.a.ns.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
				netnstest.Must(b, err, x.do(fd), unix.Close(fd))
			}
		})
	}
}
