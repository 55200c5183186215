package listener

import "strings"

// Names chooses chains by the server name of TLS clients. It is immutable.
type Names struct {
	exact    map[string]*TCP
	suffixes map[string]*TCP
	none     *TCP
}

// Lookup is the chain for a server name, "" if the client sent none: the exact name, the longest suffix, or what is for
// all others; nil: the connection is refused.
func (n *Names) Lookup(name string) *TCP {
	name = strings.ToLower(name)
	if t := n.exact[name]; t != nil {
		return t
	}
	for rest := name; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return n.none
		}
		if t := n.suffixes[rest[i:]]; t != nil {
			return t
		}
		rest = rest[i+1:]
	}
}

// target is the choice as forward needs it.
func (x *choice) target() *Target {
	t := &Target{}
	if x == nil {
		return t
	}
	t.HTTP, t.H2C = x.chain(pickHTTP1).http(), x.chain(pickH2C).http()
	t.TCP = x.chain(pickOther).tcp()
	if tls := x.choiceOf(pickTLS); tls != nil && tls.names != nil {
		t.Names = tls.names.compile()
	} else if tls != nil && tls.leaf != nil && tls.leaf.TCP != nil && tls.leaf.TCP != t.TCP {
		t.Names = &Names{none: tls.leaf.TCP}
	} else if t.TCP != nil && t.TCP.ReadsName {
		t.Names = &Names{none: t.TCP}
	}
	return t
}

// pick says what was found out.
type pick uint8

const (
	pickHTTP1 pick = iota
	pickH2C
	pickOther
	pickTLS
)

// choiceOf walks down to what decides about the protocol.
func (x *choice) choiceOf(p pick) *choice {
	for x != nil && x.leaf == nil && x.names == nil {
		switch p {
		case pickHTTP1:
			x = x.http1
		case pickH2C:
			x = x.h2c
		case pickOther:
			x = x.other
		default:
			x = x.tls
		}
	}
	return x
}

// chain is the chain for a protocol; nil: refused.
func (x *choice) chain(p pick) *Chain {
	if y := x.choiceOf(p); y != nil {
		return y.leaf
	}
	return nil
}

func (c *Chain) http() *HTTP {
	if c == nil {
		return nil
	}
	return c.HTTP
}

func (c *Chain) tcp() *TCP {
	if c == nil {
		return nil
	}
	return c.TCP
}

func (ns *names) compile() *Names {
	of := func(x *choice) *TCP { return x.chain(pickTLS).tcp() }
	n := &Names{exact: map[string]*TCP{}, suffixes: map[string]*TCP{}, none: of(ns.none)}
	for k, x := range ns.exact {
		if t := of(x); t != nil {
			n.exact[k] = t
		}
	}
	for k, x := range ns.suffixes {
		if t := of(x); t != nil {
			n.suffixes[k] = t
		}
	}
	return n
}
