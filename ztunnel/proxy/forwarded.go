package proxy

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
)

// The other headers of a CONNECT request (H13).
const (
	HeaderForwarded   = "forwarded"
	HeaderTraceparent = "traceparent"
	// HeaderForwardedNetwork carries the client's network on the inner CONNECT of a double tunnel.
	HeaderForwardedNetwork = "x-forwarded-network"
)

// AppendForwarded appends the value of the forwarded header (RFC 7239): the client's address and, if a service is known,
// its hostname.
//
//	for="10.20.1.7:40112";host=pay.shop.svc.cluster.local
func AppendForwarded(b []byte, client netip.AddrPort, host string) []byte {
	b = append(b, `for="`...)
	b = client.AppendTo(b)
	b = append(b, '"')
	if host != "" {
		b = append(b, ";host="...)
		b = append(b, host...)
	}
	return b
}

// ForwardedHost returns the host of a forwarded header, or "" (H16). Quotes are optional. Of several elements the first
// host wins. A header with non-ASCII or control bytes has none.
func ForwardedHost(value string) string {
	if len(value) > maxBaggage || !printable(value) {
		return ""
	}
	for value != "" {
		var pair string
		pair, value = cutPair(value)
		key, host, ok := strings.Cut(pair, "=")
		if !ok || !strings.EqualFold(strings.Trim(key, " "), "host") {
			continue
		}
		host = strings.Trim(host, " ")
		if len(host) >= 2 && host[0] == '"' && host[len(host)-1] == '"' {
			host = host[1 : len(host)-1]
		}
		if host != "" && !strings.ContainsAny(host, `"\`) {
			return host
		}
		return ""
	}
	return ""
}

// cutPair cuts at the first ';' or ',' that is not inside quotes.
func cutPair(s string) (pair, rest string) {
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case ';', ',':
			if !quoted {
				return s[:i], s[i+1:]
			}
		}
	}
	return s, ""
}

// AppendTraceparent appends a new traceparent: 00-<32 hex>-<16 hex>-00, random. r may be nil.
func AppendTraceparent(b []byte, r *rand.Rand) []byte {
	var raw [24]byte
	for i := 0; i < len(raw); i += 8 {
		x := randUint64(r)
		if x == 0 {
			x = 1 // an id of all zeros is invalid
		}
		for j := range 8 {
			raw[i+j] = byte(x >> (8 * j))
		}
	}
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, raw[:16])
	b = append(b, '-')
	b = hex.AppendEncode(b, raw[16:])
	return append(b, "-00"...)
}

func randUint64(r *rand.Rand) uint64 {
	if r != nil {
		return r.Uint64()
	}
	return rand.Uint64()
}
