// Package field names the field of a configuration resource that an error is about.
package field

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Error is an error about one field.
type Error struct {
	// Path is the way to the field, such as "virtual_hosts[0].routes[2].match".
	Path string
	// Err says what is wrong with it.
	Err error
}

// Error implements error.
func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// At puts a part in front of the path that err is about. A nil err stays nil.
func At(err error, part string) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && err == error(e) {
		return &Error{Path: part + "." + e.Path, Err: e.Err}
	}
	return &Error{Path: part, Err: err}
}

// Index is At for an element of a list.
func Index(err error, list string, i int) error {
	if err == nil {
		return nil
	}
	return At(err, fmt.Sprintf("%s[%d]", list, i))
}

// Key is At for an entry of a map.
func Key(err error, m, key string) error {
	if err == nil {
		return nil
	}
	return At(err, fmt.Sprintf("%s[%q]", m, key))
}

// Errorf is an error about the field part.
func Errorf(part, format string, args ...any) error {
	return &Error{Path: part, Err: fmt.Errorf(format, args...)}
}

// Unsupported is an error about the field of a oneof that is set and is not supported, or about the oneof itself if none is.
func Unsupported(m proto.Message, oneof string) error {
	r := m.ProtoReflect()
	o := r.Descriptor().Oneofs().ByName(protoreflect.Name(oneof))
	if o != nil && r.IsValid() {
		if f := r.WhichOneof(o); f != nil {
			return Errorf(string(f.Name()), "unsupported")
		}
	}
	return Errorf(oneof, "required")
}

// Duration reads a duration: def if it is not there, an error if it is malformed or negative.
func Duration(part string, d *durationpb.Duration, def time.Duration) (time.Duration, error) {
	if d == nil {
		return def, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, At(err, part)
	}
	if v := d.AsDuration(); v >= 0 {
		return v, nil
	}
	return 0, Errorf(part, "negative duration %v", d.AsDuration())
}

// Range is a CidrRange: there are two of the same form, envoy.config.core.v3's and xds.core.v3's.
type Range interface {
	GetAddressPrefix() string
	GetPrefixLen() *wrapperspb.UInt32Value
}

// CIDR reads a range of addresses. Bits behind the prefix are dropped, as in Envoy.
func CIDR(c Range) (netip.Prefix, error) {
	ip, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, Errorf("address_prefix", "%q is not an address", c.GetAddressPrefix())
	}
	p, err := ip.Prefix(int(c.GetPrefixLen().GetValue()))
	if err != nil {
		return netip.Prefix{}, Errorf("prefix_len", "%d is too long for %v", c.GetPrefixLen().GetValue(), ip)
	}
	return p, nil
}

// Addr reads a socket address that names an IP address and a port.
func Addr(a *corev3.SocketAddress) (netip.AddrPort, error) {
	ip, err := netip.ParseAddr(a.GetAddress())
	if err != nil {
		return netip.AddrPort{}, Errorf("address", "%q is not an address", a.GetAddress())
	}
	port, err := Port(a)
	return netip.AddrPortFrom(ip, port), err
}

// Port reads the port of a socket address.
func Port(a *corev3.SocketAddress) (uint16, error) {
	if a.GetNamedPort() != "" {
		return 0, Errorf("named_port", "unsupported")
	}
	if a.GetPortValue() > 65535 {
		return 0, Errorf("port_value", "not a port: %d", a.GetPortValue())
	}
	return uint16(a.GetPortValue()), nil
}
