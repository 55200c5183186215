package hbone

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Authority is the target of a CONNECT request.
type Authority struct {
	// Host is a host name in lower case, without a trailing dot; empty if the target is an address.
	Host string
	// Addr is the target's address, unmapped; the zero Addr if it is a host name.
	Addr netip.Addr
	// Port is never 0.
	Port uint16
}

// IsName says that the target is a host name.
func (a Authority) IsName() bool { return a.Host != "" }

// AddrPort is the target if it is an address; otherwise it is not valid.
func (a Authority) AddrPort() netip.AddrPort {
	if a.IsName() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr, a.Port)
}

// String is the form for :authority, with brackets round an IPv6 address.
func (a Authority) String() string {
	if a.IsName() {
		return a.Host + ":" + strconv.Itoa(int(a.Port))
	}
	return a.AddrPort().String()
}

var errAuthority = errors.New("want host:port, address:port or [address]:port")

// ParseAuthority parses an :authority. The port is mandatory (H12); zones, user information, and numbers in the forms of
// inet_aton are refused.
func ParseAuthority(s string) (Authority, error) {
	a, err := parseAuthority(s)
	if err != nil {
		return Authority{}, fmt.Errorf("parse authority %q: %w", s, err)
	}
	return a, nil
}

func parseAuthority(s string) (a Authority, err error) {
	at := strings.LastIndexByte(s, ':')
	if at <= 0 || len(s) > 300 {
		return a, errAuthority
	}
	host, port := s[:at], s[at+1:]
	if a.Port, err = parsePort(port); err != nil {
		return a, err
	}
	if host[0] == '[' {
		if !strings.HasSuffix(host, "]") {
			return a, errAuthority
		}
		ip, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return a, errAuthority
		}
		a.Addr = ip.Unmap()
		return a, nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if !ip.Is4() {
			return a, errAuthority
		}
		a.Addr = ip
		return a, nil
	}
	a.Host, err = parseName(host)
	return a, err
}

func parsePort(s string) (uint16, error) {
	if len(s) == 0 || len(s) > 5 || s[0] < '1' || s[0] > '9' { // no sign, no leading zero
		return 0, errors.New("port not in 1-65535")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, errors.New("port not in 1-65535")
	}
	return uint16(n), nil
}

// parseName checks a host name: labels of letters, digits, - and _, the last of which is not a number.
func parseName(s string) (string, error) {
	bad := errors.New("bad host name")
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", bad
	}
	var label string
	for rest, more := s, true; more; {
		label, rest, more = strings.Cut(rest, ".")
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", bad
		}
		for i := range len(label) {
			c := label[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "", bad
			}
		}
	}
	if looksNumeric(label) {
		return "", bad
	}
	return s, nil
}

// looksNumeric finds last labels that some resolvers take for a part of an IPv4 address.
func looksNumeric(label string) bool {
	if strings.HasPrefix(label, "0x") {
		return true
	}
	return strings.Trim(label, "0123456789") == ""
}
