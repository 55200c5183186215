package filter

import (
	"net/netip"
	"net/url"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// entry is one key and value of a descriptor: what a limit is about.
type entry struct{ key, value string }

// descriptorRule makes a descriptor of a request, or none.
type descriptorRule struct {
	stage   uint32
	hits    uint64 // what a request counts for; 0: one
	actions []descriptorAction
}

// Which rate_limits count besides the route's own (VhRateLimitsOptions).
const (
	hostLimitsOverridden = iota // the virtual host's, if the route has none
	hostLimitsIncluded          // the virtual host's too
	hostLimitsIgnored
)

// CompileLimits compiles the rate_limits of a route or of a virtual host, for route.Options.
func CompileLimits(list []*routev3.RateLimit) (any, error) {
	r, err := compileDescriptors(list)
	return r, err
}

// routeLimits are the rules that the route and its virtual host have, as Envoy chooses them.
func (x *Exchange) routeLimits(option int) (own, host []descriptorRule) {
	a := x.RouteAction()
	if a == nil {
		return nil, nil
	}
	own, _ = a.Limits.([]descriptorRule)
	if a.IncludeHostLimits {
		option = hostLimitsIncluded
	}
	if option == hostLimitsIncluded || option == hostLimitsOverridden && len(own) == 0 {
		host, _ = x.Route().Host.Limits.([]descriptorRule)
	}
	return own, host
}

// descriptorAction appends an entry. keep is false if there is no descriptor at all; an entry may be left out too.
type descriptorAction func(d []entry, x *Exchange) (out []entry, keep bool)

func compileDescriptors(list []*routev3.RateLimit) ([]descriptorRule, error) {
	var out []descriptorRule
	for i, p := range list {
		r := descriptorRule{stage: p.GetStage().GetValue(), hits: p.GetHitsAddend().GetNumber().GetValue()}
		switch {
		case p.GetLimit() != nil:
			return nil, field.Index(field.Errorf("limit", "not supported: the service has the limits"), "rate_limits", i)
		case p.GetHitsAddend().GetFormat() != "":
			return nil, field.Index(field.Errorf("hits_addend.format", "not supported; number is"), "rate_limits", i)
		case p.GetApplyOnStreamDone():
			return nil, field.Index(field.Errorf("apply_on_stream_done", "not supported"), "rate_limits", i)
		}
		if len(p.GetActions()) == 0 {
			return nil, field.Index(field.Errorf("actions", "at least one is required"), "rate_limits", i)
		}
		for k, a := range p.GetActions() {
			c, err := compileDescriptorAction(a)
			if err != nil {
				return nil, field.Index(field.Index(err, "actions", k), "rate_limits", i)
			}
			r.actions = append(r.actions, c)
		}
		out = append(out, r)
	}
	return out, nil
}

// descriptor applies the actions; nil: there is none.
func (r *descriptorRule) descriptor(x *Exchange) []entry {
	var d []entry
	for _, a := range r.actions {
		var keep bool
		if d, keep = a(d, x); !keep {
			return nil
		}
	}
	return d
}

func compileDescriptorAction(p *routev3.RateLimit_Action) (descriptorAction, error) {
	switch a := p.GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_GenericKey_:
		e := entry{orElse(a.GenericKey.GetDescriptorKey(), "generic_key"), a.GenericKey.GetDescriptorValue()}
		return func(d []entry, _ *Exchange) ([]entry, bool) { return append(d, e), true }, nil
	case *routev3.RateLimit_Action_DestinationCluster_:
		return func(d []entry, x *Exchange) ([]entry, bool) {
			c := x.RouteAction()
			if c == nil {
				return d, false
			}
			return append(d, entry{"destination_cluster", c.ClusterName(x.Req)}), true
		}, nil
	case *routev3.RateLimit_Action_SourceCluster_:
		return func(d []entry, x *Exchange) ([]entry, bool) { return append(d, entry{"source_cluster", x.Local}), true }, nil
	case *routev3.RateLimit_Action_RemoteAddress_:
		return func(d []entry, x *Exchange) ([]entry, bool) {
			return append(d, entry{"remote_address", x.RemoteIP().String()}), true
		}, nil
	case *routev3.RateLimit_Action_MaskedRemoteAddress_:
		return maskedAddress(a.MaskedRemoteAddress)
	case *routev3.RateLimit_Action_RequestHeaders_:
		name, key, skip := lower(a.RequestHeaders.GetHeaderName()), a.RequestHeaders.GetDescriptorKey(), a.RequestHeaders.GetSkipIfAbsent()
		if name == "" || key == "" {
			return nil, field.Errorf("request_headers", "header_name and descriptor_key are required")
		}
		return func(d []entry, x *Exchange) ([]entry, bool) {
			v, ok := route.RequestHeader(x.Req, name)
			if !ok || v == "" {
				return d, skip
			}
			return append(d, entry{key, v}), true
		}, nil
	case *routev3.RateLimit_Action_QueryParameters_:
		name, key, skip := a.QueryParameters.GetQueryParameterName(), a.QueryParameters.GetDescriptorKey(), a.QueryParameters.GetSkipIfAbsent()
		if name == "" || key == "" {
			return nil, field.Errorf("query_parameters", "query_parameter_name and descriptor_key are required")
		}
		return func(d []entry, x *Exchange) ([]entry, bool) {
			_, q, _ := strings.Cut(x.Req.Path, "?")
			values, _ := url.ParseQuery(q)
			if !values.Has(name) {
				return d, skip
			}
			return append(d, entry{key, values.Get(name)}), true
		}, nil
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		return headerValue(a.HeaderValueMatch)
	case *routev3.RateLimit_Action_QueryParameterValueMatch_:
		return queryValue(a.QueryParameterValueMatch)
	case *routev3.RateLimit_Action_Metadata:
		return metadataEntry(a.Metadata)
	}
	return nil, field.Errorf("action_specifier", "unsupported action %T", p.GetActionSpecifier())
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func maskedAddress(p *routev3.RateLimit_Action_MaskedRemoteAddress) (descriptorAction, error) {
	v4, v6 := 32, 128
	if n := p.GetV4PrefixMaskLen(); n != nil {
		v4 = int(n.GetValue())
	}
	if n := p.GetV6PrefixMaskLen(); n != nil {
		v6 = int(n.GetValue())
	}
	if v4 > 32 || v6 > 128 {
		return nil, field.Errorf("masked_remote_address", "a prefix is longer than an address")
	}
	return func(d []entry, x *Exchange) ([]entry, bool) {
		ip := x.RemoteIP()
		n := v6
		if ip.Is4() {
			n = v4
		}
		return append(d, entry{"masked_remote_address", netip.PrefixFrom(ip, n).Masked().String()}), ip.IsValid()
	}, nil
}

func headerValue(p *routev3.RateLimit_Action_HeaderValueMatch) (descriptorAction, error) {
	e := entry{orElse(p.GetDescriptorKey(), "header_match"), p.GetDescriptorValue()}
	expect := p.GetExpectMatch() == nil || p.GetExpectMatch().GetValue()
	var ms []*route.HeaderMatcher
	for i, h := range p.GetHeaders() {
		m, err := route.CompileHeader(h)
		if err != nil {
			return nil, field.At(field.Index(err, "headers", i), "header_value_match")
		}
		ms = append(ms, m)
	}
	return func(d []entry, x *Exchange) ([]entry, bool) {
		all := true
		for _, m := range ms {
			all = all && m.Match(x.Req)
		}
		if all != expect {
			return d, false
		}
		return append(d, e), true
	}, nil
}

func queryValue(p *routev3.RateLimit_Action_QueryParameterValueMatch) (descriptorAction, error) {
	e := entry{orElse(p.GetDescriptorKey(), "query_match"), p.GetDescriptorValue()}
	expect := p.GetExpectMatch() == nil || p.GetExpectMatch().GetValue()
	var ms []func(*message.Request) bool
	for i, q := range p.GetQueryParameters() {
		m, err := route.CompileQuery(q)
		if err != nil {
			return nil, field.At(field.Index(err, "query_parameters", i), "query_parameter_value_match")
		}
		ms = append(ms, m)
	}
	return func(d []entry, x *Exchange) ([]entry, bool) {
		all := true
		for _, m := range ms {
			all = all && m(x.Req)
		}
		if all != expect {
			return d, false
		}
		return append(d, e), true
	}, nil
}

func metadataEntry(p *routev3.RateLimit_Action_MetaData) (descriptorAction, error) {
	if p.GetSource() != routev3.RateLimit_Action_MetaData_DYNAMIC {
		return nil, field.Errorf("metadata.source", "only DYNAMIC is supported")
	}
	if p.GetDescriptorKey() == "" || len(p.GetMetadataKey().GetPath()) == 0 {
		return nil, field.Errorf("metadata", "descriptor_key and metadata_key are required")
	}
	return func(d []entry, x *Exchange) ([]entry, bool) {
		s := x.Metadata(p.GetMetadataKey().GetKey())
		v := ""
		for i, seg := range p.GetMetadataKey().GetPath() {
			f := s.GetFields()[seg.GetKey()]
			if i == len(p.GetMetadataKey().GetPath())-1 {
				v = f.GetStringValue()
			}
			s = f.GetStructValue()
		}
		if v = orElse(v, p.GetDefaultValue()); v == "" {
			return d, p.GetSkipIfAbsent()
		}
		return append(d, entry{p.GetDescriptorKey(), v}), true
	}, nil
}
