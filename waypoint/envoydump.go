package waypoint

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
)

const anyType = "type.googleapis.com/"

// configDumpHandler serves /config_dump: the member configs in Envoy's shape, which istioctl proxy-config reads
// (?include_eds adds endpoints), and behind it what we have to say ourselves.
func (w *waypoint) configDumpHandler(rw http.ResponseWriter, r *http.Request) {
	sections := append([]admin.Section{{Key: "configs", Value: func() any { return w.envoyConfigs(r.URL.Query().Has("include_eds")) }}}, w.sections()...)
	rw.Header().Set("Content-Type", "application/json")
	// An error here means that the client is gone, or that a resource does not encode; the answer is then visibly cut.
	_ = admin.WriteDump(rw, sections)
}

// envoyConfigs are the elements of configs, each made when it is written.
func (w *waypoint) envoyConfigs(endpoints bool) iter.Seq[any] {
	return func(yield func(any) bool) {
		if !yield(map[string]any{"@type": anyType + "envoy.admin.v3.BootstrapConfigDump", "bootstrap": map[string]any{"node": w.envoyNode()}}) {
			return
		}
		clusters := []any{}
		for _, r := range w.config.rawClusters.sorted() {
			clusters = append(clusters, r.dump("cluster", &clusterv3.Cluster{}))
		}
		if !yield(map[string]any{"@type": anyType + "envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": clusters}) {
			return
		}
		if endpoints {
			list := []any{}
			for _, r := range w.config.rawEndpoints.sorted() {
				list = append(list, r.dump("endpoint_config", &endpointv3.ClusterLoadAssignment{}))
			}
			if !yield(map[string]any{"@type": anyType + "envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs": list}) {
				return
			}
		}
		listeners := []any{}
		for _, r := range w.config.rawListeners.sorted() {
			listeners = append(listeners, map[string]any{"name": r.name, "active_state": r.dump("listener", &listenerv3.Listener{})})
		}
		if !yield(map[string]any{"@type": anyType + "envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": listeners}) {
			return
		}
		yield(map[string]any{"@type": anyType + "envoy.admin.v3.RoutesConfigDump"}) // routes stand in listeners
	}
}

// envoyNode is who we told the control plane that we are.
func (w *waypoint) envoyNode() json.RawMessage {
	n := w.node()
	m := map[string]any{}
	for k, v := range n.Metadata {
		m[k] = v
	}
	labels := map[string]any{}
	for k, v := range n.Labels {
		labels[k] = v
	}
	m["LABELS"] = labels
	s, err := structpb.NewStruct(m)
	if err != nil {
		s = nil // not reached: all values are strings
	}
	return render(&corev3.Node{Id: n.ID, Cluster: n.Cluster, Metadata: s})
}

// dump is a resource with what Envoy says of it.
func (r *raw) dump(key string, m proto.Message) map[string]any {
	out := map[string]any{"version_info": r.version, "last_updated": r.at.UTC().Format(time.RFC3339Nano)}
	body, err := r.unpack()
	if err == nil {
		err = proto.Unmarshal(body, m)
	}
	if err != nil {
		out["error_state"] = map[string]string{"details": err.Error()}
		return out
	}
	var x map[string]json.RawMessage
	if err := json.Unmarshal(render(m), &x); err != nil {
		out["error_state"] = map[string]string{"details": err.Error()}
		return out
	}
	x["@type"], _ = json.Marshal(anyType + m.ProtoReflect().Descriptor().FullName()) // a string always encodes
	out[key] = x
	return out
}

// render is a message in JSON. Types inside it that we do not know are named, and shown without content.
func render(m proto.Message) json.RawMessage {
	b, err := protojson.MarshalOptions{UseProtoNames: true, Resolver: lenient{protoregistry.GlobalTypes}}.Marshal(m)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"error": fmt.Sprint(err)}) // a map of strings always encodes
	}
	return b
}

// lenient finds a type for every name.
type lenient struct{ *protoregistry.Types }

// FindMessageByURL implements protoregistry.MessageTypeResolver.
func (l lenient) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	t, err := l.Types.FindMessageByURL(url)
	if err != nil {
		return unknownType()
	}
	return t, nil
}

// unknownType is a message without fields, for types that are not known.
func unknownType() (protoreflect.MessageType, error) {
	f, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("unknown.proto"), Package: proto.String("ambit"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("Unknown")}},
	}, nil)
	if err != nil {
		return nil, err
	}
	return dynamicpb.NewMessageType(f.Messages().Get(0)), nil
}

// clusterStatuses is /clusters?format=json in Envoy's shape, as far as istioctl proxy-config endpoints reads it.
func (s *store) clusterStatuses() any {
	type m = map[string]any
	list := []m{}
	for _, c := range s.clusters.View().All() {
		hosts := []m{}
		for _, h := range c.Hosts() {
			e := h.Endpoint()
			health := m{"eds_health_status": "HEALTHY"}
			switch e.Health {
			case cluster.Healthy:
			case cluster.Degraded:
				health["eds_health_status"] = "DEGRADED"
			case cluster.Draining:
				health["eds_health_status"] = "DRAINING"
			default:
				health["eds_health_status"] = "UNHEALTHY"
			}
			if h.Ejected() {
				health["failed_outlier_check"] = true
			}
			host := m{
				"health_status": health, "weight": e.Weight, "priority": e.Priority, "hostname": e.Hostname,
				"locality": m{"region": e.Locality.Region, "zone": e.Locality.Zone, "sub_zone": e.Locality.SubZone},
			}
			if e.Addr.IsValid() {
				host["address"] = m{"socket_address": m{"address": e.Addr.Addr().String(), "port_value": e.Addr.Port()}}
			} else {
				host["address"] = m{"envoy_internal_address": m{"server_listener_name": h.String()}}
			}
			hosts = append(hosts, host)
		}
		list = append(list, m{"name": c.Name, "added_via_api": true, "host_statuses": hosts})
	}
	return m{"cluster_statuses": list}
}
