package route

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

type hashKind uint8

const (
	hashHeader hashKind = iota
	hashCookie
	hashSource
	hashQuery
	hashState
)

type hashPolicy struct {
	kind     hashKind
	name     string
	terminal bool
	rewrite  *RegexRewrite
	path     string
	ttl      time.Duration
	make     bool // a client without the cookie gets one
	attrs    string
}

// HashInput is what a hash may be made of.
type HashInput struct {
	Req           *message.Request
	Source, Local netip.AddrPort
	// State looks up filter state; nil means there is none.
	State func(key string) (string, bool)
}

func compileHash(ps []*routev3.RouteAction_HashPolicy) ([]hashPolicy, error) {
	var out []hashPolicy
	for i, p := range ps {
		h, err := compileHashPolicy(p)
		if err != nil {
			return nil, field.Index(err, "hash_policy", i)
		}
		out = append(out, h)
	}
	return out, nil
}

func compileHashPolicy(p *routev3.RouteAction_HashPolicy) (h hashPolicy, err error) {
	h.terminal = p.GetTerminal()
	switch s := p.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		h.kind, h.name = hashHeader, lower(s.Header.GetHeaderName())
		if s.Header.GetRegexRewrite() != nil {
			if h.rewrite, err = CompileRewrite(s.Header.GetRegexRewrite()); err != nil {
				return h, field.At(err, "header.regex_rewrite")
			}
		}
	case *routev3.RouteAction_HashPolicy_Cookie_:
		h.kind, h.name, h.path, h.make = hashCookie, s.Cookie.GetName(), s.Cookie.GetPath(), s.Cookie.GetTtl() != nil
		if h.ttl, err = field.Duration("cookie.ttl", s.Cookie.GetTtl(), 0); err != nil {
			return h, err
		}
		for _, a := range s.Cookie.GetAttributes() {
			h.attrs += "; " + a.GetName()
			if a.GetValue() != "" {
				h.attrs += "=" + a.GetValue()
			}
		}
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		if !s.ConnectionProperties.GetSourceIp() {
			return h, field.Errorf("connection_properties", "no property named")
		}
		h.kind, h.name = hashSource, "source_ip"
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		h.kind, h.name = hashQuery, s.QueryParameter.GetName()
	case *routev3.RouteAction_HashPolicy_FilterState_:
		h.kind, h.name = hashState, s.FilterState.GetKey()
	default:
		return h, field.Unsupported(p, "policy_specifier")
	}
	if h.name == "" {
		return h, field.Errorf("policy_specifier", "empty name")
	}
	return h, nil
}

// Hash is the request's hash by the route's policies, and whether there is one; without it the balancer draws a random
// one. cookie, if not "", is a set-cookie field for the answer: it makes the client come back with the same hash.
func (f *Forward) Hash(in *HashInput) (hash uint64, ok bool, cookie string) {
	for i := range f.hash {
		p := &f.hash[i]
		v, found, c := p.value(in)
		if c != "" {
			cookie = c
		}
		if found {
			if ok { // rotating keeps equal policies from cancelling each other out
				hash = hash<<1 | hash>>63
			}
			hash ^= v
			ok = true
		}
		if p.terminal && ok {
			break
		}
	}
	return hash, ok, cookie
}

// HasHash says whether the route has hash policies.
func (f *Forward) HasHash() bool { return len(f.hash) > 0 }

func (p *hashPolicy) value(in *HashInput) (v uint64, ok bool, cookie string) {
	switch p.kind {
	case hashHeader:
		v, ok = p.headerHash(in.Req)
	case hashCookie:
		s, _ := Cookie(&in.Req.Header, p.name)
		switch {
		case s != "":
			v, ok = xxhash.Sum64String(s), true
		case p.make:
			s = strconv.FormatUint(xxhash.Sum64String(in.Source.String()+in.Local.String()), 16)
			s = strings.Repeat("0", 16-len(s)) + s
			return xxhash.Sum64String(s), true, p.setCookie(s)
		}
	case hashSource:
		if in.Source.IsValid() {
			v, ok = HashAddr(in.Source.Addr()), true
		}
	case hashQuery:
		var s string
		if s, ok = queryParameter(queryOf(in.Req.Path), p.name); ok {
			v = xxhash.Sum64String(s)
		}
	case hashState:
		if in.State != nil {
			var s string
			if s, ok = in.State(p.name); ok {
				v = xxhash.Sum64String(s)
			}
		}
	}
	return v, ok, ""
}

// headerHash hashes a header. Several values count in sorted order, as in Envoy.
func (p *hashPolicy) headerHash(r *message.Request) (uint64, bool) {
	if p.name[0] == ':' || p.name == "host" {
		v, ok := RequestHeader(r, p.name)
		return xxhash.Sum64String(p.rewrite.Replace(v)), ok
	}
	first, n := "", 0
	for _, f := range r.Header.Fields() {
		if f.Name == p.name {
			if n == 0 {
				first = f.Value
			}
			n++
		}
	}
	if n < 2 {
		return xxhash.Sum64String(p.rewrite.Replace(first)), n == 1
	}
	values := make([]string, 0, n)
	for _, f := range r.Header.Fields() {
		if f.Name == p.name {
			values = append(values, p.rewrite.Replace(f.Value))
		}
	}
	slices.Sort(values)
	var h uint64
	d := xxhash.New()
	for _, v := range values {
		d.ResetWithSeed(h)
		d.WriteString(v)
		h = d.Sum64()
	}
	return h, true
}

func (p *hashPolicy) setCookie(value string) string {
	s := p.name + `="` + value + `"`
	if p.ttl > 0 {
		s += "; Max-Age=" + strconv.FormatInt(int64(p.ttl/time.Second), 10)
	}
	if p.path != "" {
		s += "; Path=" + p.path
	}
	return s + p.attrs + "; HttpOnly"
}

// HashAddr is the hash of a client's address, for requests and connections alike.
func HashAddr(a netip.Addr) uint64 {
	var b [64]byte
	return xxhash.Sum64(a.AppendTo(b[:0]))
}
