package envoy

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// plainHashable is what stands in Envoy for Istio's factory of filter state.
const plainHashable = "envoy.hashable_string"

// istioOnly says whether a filter's configuration is of a type that only Istio's build of Envoy has: peer metadata,
// metadata exchange and statistics.
func istioOnly(a *anypb.Any) bool {
	return strings.HasSuffix(a.GetTypeUrl(), "/udpa.type.v1.TypedStruct") || strings.HasSuffix(a.GetTypeUrl(), "/stats.PluginConfig")
}

// Plain are the resources without filters that only Istio's build of Envoy has, for clients whose metadata does not say
// that they are one (ISTIO_VERSION) or know its filters.
func Plain(list []Resource) []Resource {
	out := make([]Resource, len(list))
	for i, r := range list {
		out[i] = r
		switch m := r.Message.(type) {
		case *clusterv3.Cluster:
			if len(m.Filters) > 0 {
				c := clone(m)
				c.Filters = without(c.Filters, (*clusterv3.Filter).GetTypedConfig)
				out[i] = NewResource(r.Name, c)
			}
		case *listenerv3.Listener:
			l := clone(m)
			for _, chain := range l.FilterChains {
				plainChain(chain)
			}
			out[i] = NewResource(r.Name, l)
		}
	}
	return out
}

func without[F any](filters []F, config func(F) *anypb.Any) []F {
	var out []F
	for _, f := range filters {
		if !istioOnly(config(f)) {
			out = append(out, f)
		}
	}
	return out
}

func plainChain(chain *listenerv3.FilterChain) {
	chain.Filters = without(chain.Filters, (*listenerv3.Filter).GetTypedConfig)
	for _, f := range chain.Filters {
		change := func(m proto.Message, edit func()) {
			if f.GetTypedConfig().UnmarshalTo(m) == nil {
				edit()
				f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(m)}
			}
		}
		var manager hcmv3.HttpConnectionManager
		var state netstatev3.Config
		switch {
		case f.GetTypedConfig().MessageIs(&manager):
			change(&manager, func() { plainManager(&manager) })
		case f.GetTypedConfig().MessageIs(&state):
			change(&state, func() { plainState(state.OnNewConnection) })
		}
	}
}

func plainManager(m *hcmv3.HttpConnectionManager) {
	m.HttpFilters = without(m.HttpFilters, (*hcmv3.HttpFilter).GetTypedConfig)
	for _, f := range m.HttpFilters {
		var state httpstatev3.Config
		if f.GetTypedConfig().MessageIs(&state) && f.GetTypedConfig().UnmarshalTo(&state) == nil {
			plainState(state.OnRequestHeaders)
			f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(&state)}
		}
	}
}

func plainState(values []*statev3.FilterStateValue) {
	for _, v := range values {
		if v.FactoryKey == hashable {
			v.FactoryKey = plainHashable
		}
	}
}
