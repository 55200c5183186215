package filter

import (
	rulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// mutation changes headers, in the order of its configuration.
type mutation struct {
	name
	mutations
}

type mutations struct{ request, response []change }

// change is one step: headers set or removed, or those removed whose name matches.
type change struct {
	ops    *route.HeaderOps
	remove *route.StringMatcher
}

func compileMutations(p *mutationv3.Mutations) (m mutations, err error) {
	switch {
	case len(p.GetQueryParameterMutations()) > 0:
		return m, field.Errorf("query_parameter_mutations", "not supported")
	case len(p.GetRequestTrailersMutations()) > 0, len(p.GetResponseTrailersMutations()) > 0:
		return m, field.Errorf("request_trailers_mutations", "changes of trailers are not supported")
	}
	if m.request, err = compileChanges("request_mutations", p.GetRequestMutations()); err != nil {
		return m, err
	}
	m.response, err = compileChanges("response_mutations", p.GetResponseMutations())
	return m, err
}

func compileChanges(name string, list []*rulesv3.HeaderMutation) ([]change, error) {
	var out []change
	for i, p := range list {
		var c change
		var err error
		switch a := p.GetAction().(type) {
		case *rulesv3.HeaderMutation_Remove:
			c.ops, err = route.CompileHeaderOps("append", nil, "remove", []string{a.Remove})
		case *rulesv3.HeaderMutation_Append:
			c.ops, err = route.CompileHeaderOps("append", []*corev3.HeaderValueOption{a.Append}, "remove", nil)
		case *rulesv3.HeaderMutation_RemoveOnMatch_:
			c.remove, err = route.CompileString(a.RemoveOnMatch.GetKeyMatcher())
			err = field.At(err, "remove_on_match.key_matcher")
		default:
			err = field.Errorf("action", "required")
		}
		if err != nil {
			return nil, field.Index(err, name, i)
		}
		out = append(out, c)
	}
	return out, nil
}

func compileMutation(p *mutationv3.HeaderMutation) (Filter, error) {
	m, err := compileMutations(p.GetMutations())
	return &mutation{mutations: m}, field.At(err, "mutations")
}

func compileMutationPart(p *mutationv3.HeaderMutationPerRoute) (any, error) {
	m, err := compileMutations(p.GetMutations())
	return &m, field.At(err, "mutations")
}

func apply(list []change, h *message.Header, c *route.Context) {
	for i := range list {
		if m := list[i].remove; m != nil {
			h.DelFunc(func(f message.Field) bool { return m.Match(f.Name) })
			continue
		}
		list[i].ops.Apply(h, c)
	}
}

// Request implements Filter.
func (f *mutation) Request(x *Exchange) Action {
	v, off := x.settings(f.name.name)
	if off {
		return Continue
	}
	apply(f.request, &x.Req.Header, x.Context())
	if own, ok := v.(*mutations); ok {
		apply(own.request, &x.Req.Header, x.Context())
	}
	return Continue
}

// Answer implements Answering.
func (f *mutation) Answer(x *Exchange) {
	v, off := x.settings(f.name.name)
	if off {
		return
	}
	apply(f.response, &x.Resp.Header, x.Context())
	if own, ok := v.(*mutations); ok {
		apply(own.response, &x.Resp.Header, x.Context())
	}
}
