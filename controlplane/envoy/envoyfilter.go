package envoy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Of EnvoyFilter a closed part is served: rate limits, and changes of headers and timeouts (docs/decisions/0007). All else
// is refused, and the object with it: a patch that is half applied is none.

const (
	nameRouter  = "envoy.filters.http.router"
	nameManager = "envoy.filters.network.http_connection_manager"
)

// patchSet are the patches of one EnvoyFilter.
type patchSet struct {
	object  *networkingv1alpha3.EnvoyFilter
	key     kube.Key
	patches []*patch
	// flaws are what is refused of it; with any, it does not come into force.
	flaws []kube.Problem
}

// patch is one patch, read and checked. It is immutable.
type patch struct {
	field     string
	applyTo   networking.EnvoyFilter_ApplyTo
	operation networking.EnvoyFilter_Patch_Operation
	match     patchMatch

	// one of them is what the patch brings
	filter  *hcmv3.HttpFilter
	host    *routev3.VirtualHost
	route   *routev3.Route
	cluster *clusterv3.Cluster
	// services are the clusters that the filter calls.
	services []string
}

// patchMatch are the conditions of a patch; what is empty matches all.
type patchMatch struct {
	port                     uint32
	chain, config            string // names of a filter chain, of a route configuration
	anchor                   string // the HTTP filter that the patch goes by
	host, domain             string
	route                    string
	action                   networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_Action
	cluster, service, subset string
}

// readFilters reads all EnvoyFilters, in the order in which they apply: those of the root namespace first, then by
// priority, then by age.
func (x *Index) readFilters() {
	all := oldestFirst(kube.List[*networkingv1alpha3.EnvoyFilter](x.objects))
	root := func(o *networkingv1alpha3.EnvoyFilter) int {
		if o.Namespace == x.cfg.RootNamespace {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b *networkingv1alpha3.EnvoyFilter) int {
		return cmp.Or(cmp.Compare(root(a), root(b)), cmp.Compare(a.Spec.Priority, b.Spec.Priority))
	})
	for _, o := range all {
		x.filters = append(x.filters, readFilter(o))
	}
}

func readFilter(o *networkingv1alpha3.EnvoyFilter) *patchSet {
	s := &patchSet{object: o, key: kube.KeyOf(o)}
	refuse := func(field, cause, accepted string) {
		s.flaws = append(s.flaws, kube.Problem{Severity: kube.Rejected, Object: s.key, Field: field, Cause: cause, Accepted: accepted})
	}
	if len(o.Spec.TargetRefs) == 0 {
		field := "spec.targetRefs"
		if o.Spec.WorkloadSelector != nil {
			field = "spec.workloadSelector"
		}
		refuse(field, "a waypoint goes by targetRefs only", "targetRefs: a Gateway, a Service or a ServiceEntry of the namespace; GatewayClass "+kube.WaypointClass+" in the root namespace")
	}
	if len(o.Spec.ConfigPatches) == 0 {
		refuse("spec.configPatches", "there is no patch", "at least one")
	}
	for i, c := range o.Spec.ConfigPatches {
		r := patchReader{field: indexed("spec.configPatches", i), refuse: refuse}
		s.patches = append(s.patches, r.read(c))
	}
	return s
}

// patchReader reads one patch and refuses what is not served.
type patchReader struct {
	field  string
	refuse func(field, cause, accepted string)
}

func (r *patchReader) read(c *networking.EnvoyFilter_EnvoyConfigObjectPatch) *patch {
	p := &patch{field: r.field, applyTo: c.GetApplyTo(), operation: c.GetPatch().GetOperation()}
	r.context(c.GetMatch())
	if c.GetPatch().GetFilterClass() != networking.EnvoyFilter_Patch_UNSPECIFIED {
		r.refuse(r.field+".patch.filterClass", "classes of filters are not served", "match with subFilter, and INSERT_BEFORE or INSERT_AFTER")
	}
	accepted := "MERGE"
	switch p.applyTo {
	case networking.EnvoyFilter_HTTP_FILTER:
		accepted = "INSERT_FIRST, INSERT_BEFORE, INSERT_AFTER, ADD"
		p.filter = r.httpFilter(c.GetPatch().GetValue(), p)
	case networking.EnvoyFilter_VIRTUAL_HOST:
		p.host = &routev3.VirtualHost{}
		r.value(c.GetPatch().GetValue(), p.host, "rate_limits", "typed_per_filter_config", "request_headers_to_add", "request_headers_to_remove",
			"response_headers_to_add", "response_headers_to_remove", "include_request_attempt_count", "include_attempt_count_in_response")
		r.limits("rate_limits", p.host.RateLimits)
		r.perFilter(p.host.TypedPerFilterConfig)
	case networking.EnvoyFilter_HTTP_ROUTE:
		p.route = &routev3.Route{}
		r.value(c.GetPatch().GetValue(), p.route, "route", "typed_per_filter_config", "request_headers_to_add", "request_headers_to_remove",
			"response_headers_to_add", "response_headers_to_remove")
		if a := p.route.GetRoute(); a != nil {
			r.only("route.", a, "rate_limits", "include_vh_rate_limits", "timeout", "idle_timeout", "max_stream_duration", "retry_policy")
			if a.RetryPolicy != nil {
				r.only("route.retry_policy.", a.RetryPolicy, "retry_on", "num_retries", "per_try_timeout", "per_try_idle_timeout", "retriable_status_codes", "retry_back_off")
			}
			r.limits("route.rate_limits", a.RateLimits)
		}
		r.perFilter(p.route.TypedPerFilterConfig)
	case networking.EnvoyFilter_CLUSTER:
		p.cluster = &clusterv3.Cluster{}
		if p.operation == networking.EnvoyFilter_Patch_ADD {
			r.refuse(r.field+".patch.operation", "no cluster can be added: services of the mesh have theirs", "MERGE; a filter names a service as outbound|PORT||HOST")
			return p
		}
		r.value(c.GetPatch().GetValue(), p.cluster, "connect_timeout", "dns_refresh_rate", "respect_dns_ttl", "dns_lookup_family")
	default:
		r.refuse(r.field+".applyTo", p.applyTo.String()+" is not served", "HTTP_FILTER, VIRTUAL_HOST, HTTP_ROUTE, CLUSTER")
		return p
	}
	if op := p.operation.String(); !slices.Contains(strings.Split(accepted, ", "), op) {
		r.refuse(r.field+".patch.operation", op+" of "+p.applyTo.String()+" is not served", accepted)
	}
	p.match = r.match(c.GetMatch(), p)
	return p
}

func (r *patchReader) context(m *networking.EnvoyFilter_EnvoyConfigObjectMatch) {
	switch m.GetContext() {
	case networking.EnvoyFilter_ANY, networking.EnvoyFilter_WAYPOINT, networking.EnvoyFilter_SIDECAR_INBOUND:
	default:
		r.refuse(r.field+".match.context", m.GetContext().String()+" is not that of a waypoint", "WAYPOINT, ANY, SIDECAR_INBOUND")
	}
	if len(m.GetProxy().GetMetadata()) > 0 || m.GetProxy().GetProxyVersion() != "" {
		r.refuse(r.field+".match.proxy", "waypoints are not told apart by version or metadata", "targetRefs")
	}
}

// match reads the conditions.
func (r *patchReader) match(m *networking.EnvoyFilter_EnvoyConfigObjectMatch, p *patch) patchMatch {
	var out patchMatch
	at := r.field + ".match."
	kind := ""
	switch t := m.GetObjectTypes().(type) {
	case nil:
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener:
		kind = "listener"
		l := t.Listener
		chain := l.GetFilterChain()
		out.port, out.chain, out.anchor = cmp.Or(l.GetPortNumber(), chain.GetDestinationPort()), chain.GetName(), chain.GetFilter().GetSubFilter().GetName()
		r.only2(at+"listener.", l, "portNumber, filterChain, name", "port_number", "filter_chain", "name")
		r.only2(at+"listener.filterChain.", chain, "name, filter, destinationPort", "name", "filter", "destination_port")
		r.manager(at+"listener.filterChain.filter.name", chain.GetFilter().GetName())
		if n := l.GetName(); n != "" && n != nameMainInternal {
			r.refuse(at+"listener.name", "patches are for the listener "+nameMainInternal, nameMainInternal+", or no name")
		}
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Waypoint:
		kind = "waypoint"
		w := t.Waypoint
		out.port, out.route, out.anchor = w.GetPortNumber(), w.GetRoute().GetName(), w.GetFilter().GetSubFilter().GetName()
		r.manager(at+"waypoint.filter.name", w.GetFilter().GetName())
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration:
		kind = "routeConfiguration"
		c := t.RouteConfiguration
		out.port, out.config, out.host, out.domain = c.GetPortNumber(), c.GetName(), c.GetVhost().GetName(), c.GetVhost().GetDomainName()
		out.route, out.action = c.GetVhost().GetRoute().GetName(), c.GetVhost().GetRoute().GetAction()
		r.only2(at+"routeConfiguration.", c, "portNumber, name, vhost", "port_number", "name", "vhost")
	case *networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster:
		kind = "cluster"
		c := t.Cluster
		out.port, out.service, out.subset, out.cluster = c.GetPortNumber(), c.GetService(), c.GetSubset(), c.GetName()
	}
	want := map[networking.EnvoyFilter_ApplyTo][]string{
		networking.EnvoyFilter_HTTP_FILTER: {"listener", "waypoint"}, networking.EnvoyFilter_VIRTUAL_HOST: {"routeConfiguration", "waypoint"},
		networking.EnvoyFilter_HTTP_ROUTE: {"routeConfiguration", "waypoint"}, networking.EnvoyFilter_CLUSTER: {"cluster"},
	}[p.applyTo]
	if kind != "" && !slices.Contains(want, kind) {
		r.refuse(at+kind, "it says nothing about a "+p.applyTo.String(), strings.Join(want, ", "))
	}
	if p.operation == networking.EnvoyFilter_Patch_INSERT_AFTER && out.anchor == nameRouter {
		r.refuse(r.field+".patch.operation", "nothing comes after the router", "INSERT_BEFORE")
	}
	return out
}

func (r *patchReader) manager(field, name string) {
	if name != "" && name != nameManager {
		r.refuse(field, "filter "+name+" has no HTTP filters", nameManager)
	}
}

// only2 refuses conditions that are not served.
func (r *patchReader) only2(at string, m proto.Message, accepted string, fields ...string) {
	if other := otherField(m, fields); other != nil {
		r.refuse(at+other.JSONName(), "the condition is not served", accepted)
	}
}

// otherField is a field that is set and not one of a list, nil when there is none.
func otherField(m proto.Message, fields []string) protoreflect.FieldDescriptor {
	var out protoreflect.FieldDescriptor
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(fields, string(f.Name())) && (out == nil || f.Number() < out.Number()) {
			out = f
		}
		return true
	})
	return out
}

// only refuses fields of the value that are not served.
func (r *patchReader) only(at string, m proto.Message, fields ...string) {
	if other := otherField(m, fields); other != nil {
		r.refuse(r.field+".patch.value."+at+string(other.Name()), "the field is not served", strings.Join(fields, ", "))
	}
}

var jsonPlace = regexp.MustCompile(`^proto:[\s\x{a0}]*(?:syntax error[\s\x{a0}]*)?(?:\(line[\s\x{a0}]*\d+:\d+\):)?[\s\x{a0}]*`)

// value reads the value of a patch, of which only some fields are served.
func (r *patchReader) value(v *structpb.Struct, into proto.Message, fields ...string) {
	if len(v.GetFields()) == 0 {
		r.refuse(r.field+".patch.value", "there is none", strings.Join(fields, ", "))
		return
	}
	v = clone(v)
	unwrap(v.Fields["typed_config"], v.Fields["typedConfig"])
	for _, name := range []string{"typed_per_filter_config", "typedPerFilterConfig"} {
		for _, c := range v.Fields[name].GetStructValue().GetFields() {
			unwrap(c)
		}
	}
	if r.unknownType(v) {
		return
	}
	body, err := protojson.Marshal(v)
	if err == nil {
		err = protojson.Unmarshal(body, into)
	}
	if err != nil {
		r.refuse(r.field+".patch.value", strings.ReplaceAll(jsonPlace.ReplaceAllString(err.Error(), ""), "\u00a0", " "), "Envoy's "+string(into.ProtoReflect().Descriptor().FullName())+" with "+strings.Join(fields, ", "))
		return
	}
	r.only("", into, fields...)
	if err := tidy(into.ProtoReflect()); err != nil {
		r.refuse(r.field+".patch.value", err.Error(), "values that Envoy accepts")
	}
}

// tidy makes the values of headers such that a client takes them, and finds expressions that it would refuse.
func tidy(m protoreflect.Message) (err error) {
	switch t := m.Interface().(type) {
	case *corev3.HeaderValue:
		t.Value = headerValue(t.Value)
	case *matcherv3.RegexMatcher:
		_, err = regexp.Compile(t.Regex)
	case *anypb.Any:
		inner, err := t.UnmarshalNew()
		if err != nil {
			return err
		}
		if err := tidy(inner.ProtoReflect()); err != nil {
			return err
		}
		t.Value = marshal(inner)
		return nil
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
				err = tidy(x.Message())
				return err == nil
			})
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = tidy(v.List().Get(i).Message())
			}
		default:
			err = tidy(v.Message())
		}
		return err == nil
	})
	return err
}

// unwrap turns a TypedStruct into what it stands for.
func unwrap(list ...*structpb.Value) {
	for _, v := range list {
		f := v.GetStructValue().GetFields()
		switch strings.TrimPrefix(f["@type"].GetStringValue(), "type.googleapis.com/") {
		case "udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct":
		default:
			continue
		}
		name := f["type_url"].GetStringValue()
		if name == "" {
			name = f["typeUrl"].GetStringValue()
		}
		inner := f["value"].GetStructValue()
		if inner == nil {
			inner = &structpb.Struct{}
		}
		if inner.Fields == nil {
			inner.Fields = map[string]*structpb.Value{}
		}
		inner.Fields["@type"] = structpb.NewStringValue("type.googleapis.com/" + strings.TrimPrefix(name, "type.googleapis.com/"))
		v.Kind = &structpb.Value_StructValue{StructValue: inner}
	}
}

// servedTypes are the types of filters that a patch may bring, and of their settings for routes.
var servedTypes = []proto.Message{&localv3.LocalRateLimit{}, &limitv3.RateLimit{}, &headermutationv3.HeaderMutation{}}

var servedParts = []proto.Message{&localv3.LocalRateLimit{}, &limitv3.RateLimitPerRoute{}, &headermutationv3.HeaderMutationPerRoute{}}

func typeNames(list []proto.Message) string {
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = string(m.ProtoReflect().Descriptor().FullName())
	}
	return strings.Join(names, ", ")
}

// unknownType refuses a value with a filter that is not served.
func (r *patchReader) unknownType(v *structpb.Struct) bool {
	check := func(field string, c *structpb.Value, served []proto.Message) bool {
		name := strings.TrimPrefix(c.GetStructValue().GetFields()["@type"].GetStringValue(), "type.googleapis.com/")
		for _, m := range served {
			if string(m.ProtoReflect().Descriptor().FullName()) == name {
				return false
			}
		}
		r.refuse(r.field+".patch.value."+field, fmt.Sprintf("filters of type %q are not served", name), typeNames(served))
		return true
	}
	bad := false
	for _, name := range []string{"typed_config", "typedConfig"} {
		if c, ok := v.Fields[name]; ok {
			bad = check(name, c, servedTypes) || bad
		}
	}
	for _, name := range []string{"typed_per_filter_config", "typedPerFilterConfig"} {
		parts := v.Fields[name].GetStructValue().GetFields()
		for _, k := range sortedKeys(parts) {
			bad = check(name+"["+k+"]", parts[k], servedParts) || bad
		}
	}
	return bad
}

// reserved are the filters of a chain that settings of a patch must not be taken for.
func reserved(name string) bool {
	switch strings.TrimPrefix(name, "envoy.filters.http.") {
	case "rbac", "ext_authz", "jwt_authn", "cors", "fault", "router", "grpc_stats", "grpc_web", "dynamic_forward_proxy", "istio.stats", "waypoint_upstream_peer_metadata":
		return true
	}
	return name == ""
}

// httpFilter reads a filter.
func (r *patchReader) httpFilter(v *structpb.Struct, p *patch) *hcmv3.HttpFilter {
	f := &hcmv3.HttpFilter{}
	r.value(v, f, "name", "typed_config", "disabled")
	if f.GetTypedConfig() == nil {
		if len(v.GetFields()) > 0 && v.Fields["typed_config"] == nil && v.Fields["typedConfig"] == nil {
			r.refuse(r.field+".patch.value.typed_config", "there is none", typeNames(servedTypes))
		}
		return f
	}
	if reserved(f.Name) {
		r.refuse(r.field+".patch.value.name", fmt.Sprintf("%q is no name for a filter of a patch", f.Name), "for example envoy.filters.http.local_ratelimit")
	}
	if err := flaw(f); err != nil {
		r.refuse(r.field+".patch.value", err.Error(), "values that Envoy accepts")
		return f
	}
	p.services = r.filterConfig(".patch.value.typed_config.", f.GetTypedConfig())
	return f
}

// perFilter checks settings of filters for routes.
func (r *patchReader) perFilter(parts map[string]*anypb.Any) {
	for _, name := range sortedKeys(parts) {
		at := ".patch.value.typed_per_filter_config[" + name + "]"
		if reserved(name) {
			r.refuse(r.field+at, "the filter is not one of a patch", "the name of a filter that a patch inserts")
		}
		if err := flaw(parts[name]); err != nil {
			r.refuse(r.field+at, err.Error(), "values that Envoy accepts")
			continue
		}
		r.filterConfig(at+".", parts[name])
	}
}

// filterConfig refuses what waypoints do not do of a filter; it returns the clusters that the filter calls.
func (r *patchReader) filterConfig(at string, c *anypb.Any) []string {
	m, err := c.UnmarshalNew()
	if err != nil {
		return nil // flaw has looked at it
	}
	refuse := func(field, cause, accepted string) { r.refuse(r.field+at+field, cause, accepted) }
	switch f := m.(type) {
	case *localv3.LocalRateLimit:
		if other := f.GetLocalRateLimitPerDownstreamConnection(); other {
			refuse("local_rate_limit_per_downstream_connection", "clients share the connections to a waypoint", "false")
		}
		if f.GetLocalClusterRateLimit() != nil {
			refuse("local_cluster_rate_limit", "waypoints do not know their number", "a rate limit service")
		}
		r.bucket(at+"token_bucket", f.GetTokenBucket())
		for i, d := range f.GetDescriptors() {
			r.bucket(at+indexed("descriptors", i)+".token_bucket", d.GetTokenBucket())
		}
		r.actions(at+"rate_limits", f.GetRateLimits())
	case *limitv3.RateLimit:
		r.actions(at+"rate_limits", f.GetRateLimits())
		if t := f.GetRequestType(); t != "" && t != "both" {
			refuse("request_type", fmt.Sprintf("%q: a waypoint does not tell internal requests from others", t), "both")
		}
		for _, o := range []string{"enable_retry_after_header", "metadata_namespace"} {
			if d := f.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(o)); f.ProtoReflect().Has(d) {
				refuse(o, "the field is not served", "no value")
			}
		}
		if f.GetRateLimitService().GetTransportApiVersion() != corev3.ApiVersion_V3 {
			refuse("rate_limit_service.transport_api_version", "only version 3 of the service is spoken", "V3")
		}
		g := f.GetRateLimitService().GetGrpcService().GetEnvoyGrpc()
		if parts := strings.Split(g.GetClusterName(), "|"); g == nil || len(parts) != 4 || parts[0] != "outbound" || parts[2] != "" {
			refuse("rate_limit_service.grpc_service.envoy_grpc.cluster_name", fmt.Sprintf("%q is no service of the mesh", g.GetClusterName()), "outbound|PORT||HOST")
			return nil
		}
		return []string{g.GetClusterName()}
	case *limitv3.RateLimitPerRoute:
		r.actions(at+"rate_limits", f.GetRateLimits())
		if f.GetOverrideOption() != limitv3.RateLimitPerRoute_DEFAULT {
			refuse("override_option", "the field is not served", "vh_rate_limits")
		}
	}
	return nil
}

func (r *patchReader) bucket(at string, b *typev3.TokenBucket) {
	if d := b.GetFillInterval(); d != nil && d.AsDuration() < 50*time.Millisecond {
		r.refuse(r.field+at+".fill_interval", d.AsDuration().String()+" is too short", "at least 0.05s")
	}
}

func (r *patchReader) limits(field string, list []*routev3.RateLimit) {
	for i, l := range list {
		if err := flaw(l); err != nil {
			r.refuse(r.field+".patch.value."+indexed(field, i), err.Error(), "values that Envoy accepts")
		}
	}
	r.actions(".patch.value."+field, list)
}

const servedActions = "generic_key, request_headers, query_parameters, header_value_match, query_parameter_value_match, remote_address, masked_remote_address, destination_cluster, source_cluster, metadata of source DYNAMIC"

// actions refuses descriptors that waypoints do not make.
func (r *patchReader) actions(at string, list []*routev3.RateLimit) {
	for i, l := range list {
		field := r.field + indexed(at, i)
		if l.GetLimit() != nil || l.GetApplyOnStreamDone() || l.GetHitsAddend().GetFormat() != "" || l.GetXRatelimitOption() != 0 {
			r.refuse(field, "limit, apply_on_stream_done, hits_addend.format and x_ratelimit_option are not served", "stage, actions, hits_addend.number")
		}
		for k, a := range l.GetActions() {
			served := true
			switch t := a.GetActionSpecifier().(type) {
			case *routev3.RateLimit_Action_GenericKey_, *routev3.RateLimit_Action_RequestHeaders_, *routev3.RateLimit_Action_QueryParameters_,
				*routev3.RateLimit_Action_HeaderValueMatch_, *routev3.RateLimit_Action_QueryParameterValueMatch_, *routev3.RateLimit_Action_RemoteAddress_,
				*routev3.RateLimit_Action_MaskedRemoteAddress_, *routev3.RateLimit_Action_DestinationCluster_, *routev3.RateLimit_Action_SourceCluster_:
			case *routev3.RateLimit_Action_Metadata:
				served = t.Metadata.GetSource() == routev3.RateLimit_Action_MetaData_DYNAMIC
			default:
				served = false
			}
			if !served {
				r.refuse(indexed(field+".actions", k), "the action is not served", servedActions)
			}
		}
	}
}
