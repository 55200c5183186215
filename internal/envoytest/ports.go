package envoytest

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

// The kernel gives sockets that ask for any port one from 32768 on: what is below stays free until somebody takes it by
// number.
const firstPort, lastPort = 10000, 32000

// Addrs are n loopback addresses with different ports on which nobody listens, for programs that are told where to listen.
func Addrs(t testing.TB, n int) []netip.AddrPort {
	t.Helper()
	var out []netip.AddrPort
	for range 100 * n {
		if len(out) == n {
			return out
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(firstPort+rand.IntN(lastPort-firstPort)))
		l, err := net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()).String())
		if err != nil {
			continue
		}
		defer l.Close() // at the end: until then no port comes twice
		out = append(out, at)
	}
	t.Fatalf("%d of %d free ports found", len(out), n)
	return nil
}
