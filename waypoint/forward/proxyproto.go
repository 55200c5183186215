package forward

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// proxySignature begins a header of version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the header of the PROXY protocol, version 1 or 2, for a client that wanted to go to dest. Without a client
// it says that the connection is our own.
//
// Version 2: signature (12), version and command (1), family and transport (1), length of what follows (2), source and
// destination address (4 or 16 each), source and destination port (2 each).
func proxyHeader(version int, client, dest netip.AddrPort) []byte {
	known := client.IsValid() && dest.IsValid()
	src, dst := client.Addr().Unmap(), dest.Addr().Unmap()
	four := src.Is4() && dst.Is4()
	if known && !four { // of different families: both as IPv6
		src, dst = netip.AddrFrom16(src.As16()).WithZone(""), netip.AddrFrom16(dst.As16()).WithZone("")
	}
	if version == 1 {
		switch {
		case !known:
			return []byte("PROXY UNKNOWN\r\n")
		case four:
			return fmt.Appendf(nil, "PROXY TCP4 %v %v %d %d\r\n", src, dst, client.Port(), dest.Port())
		}
		return fmt.Appendf(nil, "PROXY TCP6 %v %v %d %d\r\n", src, dst, client.Port(), dest.Port())
	}
	h := []byte(proxySignature)
	if !known {
		return append(h, 0x20, 0, 0, 0) // LOCAL
	}
	family := byte(0x21) // TCP over IPv6
	if four {
		family = 0x11
	}
	a, b := src.AsSlice(), dst.AsSlice()
	h = append(h, 0x21, family)
	h = binary.BigEndian.AppendUint16(h, uint16(len(a)+len(b)+4))
	h = append(append(h, a...), b...)
	h = binary.BigEndian.AppendUint16(h, client.Port())
	return binary.BigEndian.AppendUint16(h, dest.Port())
}
