package loop

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnAddressIsTheSameThroughASocketAddress(t *testing.T) {
	for s, family := range map[string]int{"10.1.2.3:80": unix.AF_INET, "[fd00::1]:65535": unix.AF_INET6, "0.0.0.0:0": unix.AF_INET} {
		ap := netip.MustParseAddrPort(s)
		if got := AddrPort(Sockaddr(ap)); got != ap || Family(ap) != family {
			t.Errorf("%s became %s, family %d", ap, got, Family(ap))
		}
	}
	mapped := &unix.SockaddrInet6{Addr: netip.MustParseAddr("10.1.2.3").As16(), Port: 80}
	if got := AddrPort(mapped); got != netip.MustParseAddrPort("10.1.2.3:80") {
		t.Errorf("a mapped address became %s", got)
	}
	if got := AddrPort(&unix.SockaddrUnix{Name: "x"}); got.IsValid() {
		t.Errorf("a path became %s", got)
	}
}
