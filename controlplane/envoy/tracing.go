package envoy

import (
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// peerFields are what tags tell of both ends: a tag's suffix and the field of the peer object.
var peerFields = []struct{ tag, field string }{
	{"app", "app"}, {"app_version", "version"}, {"canonical_revision", "revision"}, {"canonical_service", "service"},
	{"cluster_id", "cluster"}, {"instance_name", "name"}, {"namespace", "namespace"}, {"workload", "workload"}, {"workload_type", "type"},
}

// tracing is there for every chain: without a provider it decides sampling only (3.8).
func (b *builder) tracing(at target) *hcmv3.HttpConnectionManager_Tracing {
	t := &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling: &typev3.Percent{Value: 100}, RandomSampling: &typev3.Percent{Value: 1}, OverallSampling: &typev3.Percent{Value: 100},
	}
	for _, kind := range []string{"allow", "deny"} {
		t.CustomTags = append(t.CustomTags,
			dryRunTag("istio.authorization.dry_run."+kind+"_policy.name", "istio_dry_run_"+kind+"_shadow_effective_policy_id"),
			dryRunTag("istio.authorization.dry_run."+kind+"_policy.result", "istio_dry_run_"+kind+"_shadow_engine_result"))
	}
	t.CustomTags = append(t.CustomTags, literalTag("istio.canonical_revision", "latest"), literalTag("istio.canonical_service", b.gateway.Name), literalTag("istio.cluster_id", b.cfg.ClusterID))
	for _, f := range peerFields {
		t.CustomTags = append(t.CustomTags, stateTag("istio.destination_"+f.tag, "upstream_peer_obj", f.field))
	}
	t.CustomTags = append(t.CustomTags, literalTag("istio.mesh_id", b.cfg.MeshID), literalTag("istio.namespace", b.gateway.Namespace))
	for _, f := range peerFields {
		t.CustomTags = append(t.CustomTags, stateTag("istio.source_"+f.tag, "downstream_peer_obj", f.field))
	}
	b.applyTracing(t, at)
	return t
}

func literalTag(name, value string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: value}}}
}

func stateTag(name, object, field string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Value{Value: "%FILTER_STATE(" + object + ":FIELD:" + field + ")%"}}
}

func dryRunTag(name, key string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Metadata_{Metadata: &tracingv3.CustomTag_Metadata{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Request_{Request: &metadatav3.MetadataKind_Request{}}},
		MetadataKey: &metadatav3.MetadataKey{Key: "envoy.filters.http.rbac", Path: []*metadatav3.MetadataKey_PathSegment{
			{Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: key}},
		}},
	}}}
}
