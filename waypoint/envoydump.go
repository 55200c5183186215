package waypoint

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"iter"
	"net/http"
	"regexp"
	"strconv"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/internal/secret"
)

const anyType = "type.googleapis.com/"

// configDumpHandler serves /config_dump: the member configs in Envoy's shape, which istioctl proxy-config reads, and behind it
// what we have to say ourselves. The parameters are Envoy's: include_eds, mask, resource, name_regex; with one of the last
// three there is nothing of our own.
func (w *waypoint) configDumpHandler(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	names := regexp.MustCompile("")
	if v := q.Get("name_regex"); v != "" {
		var err error
		if names, err = regexp.Compile("^(?:" + v + ")$"); err != nil {
			http.Error(rw, fmt.Sprintf("name_regex: %v", err), http.StatusBadRequest)
			return
		}
	}
	configs := w.dumpConfigs(q.Has("include_eds") && q.Get("include_eds") != "false", names)
	mask := paths(q["mask"])
	resource := q.Get("resource")
	var seq iter.Seq[any]
	var status int
	var err error
	switch {
	case resource != "":
		seq, status, err = oneResource(configs, resource, mask)
	default:
		seq, status, err = allConfigs(configs, mask)
	}
	if err != nil {
		http.Error(rw, err.Error(), status)
		return
	}
	sections := []admin.Section{{Key: "configs", Value: func() any { return seq }}}
	if resource == "" && mask == nil && !q.Has("name_regex") {
		sections = append(sections, w.sections()...)
	}
	rw.Header().Set("Content-Type", "application/json")
	// An error here means that the client is gone, or that a resource does not encode; the answer is then visibly cut.
	_ = admin.WriteDump(rw, sections)
}

// dumpConfig is an element of configs: a message of Envoy's with lists of resources.
type dumpConfig struct {
	of    proto.Message
	whole map[string]any // what it has beside the lists
	lists []dumpList
}

// dumpList is a field of one, whose elements are made when they are written.
type dumpList struct {
	field string
	each  iter.Seq[map[string]any]
}

// dumpConfigs are the elements of configs in Envoy's order, with the resources whose names match.
func (w *waypoint) dumpConfigs(endpoints bool, names *regexp.Regexp) []dumpConfig {
	s := w.config
	out := []dumpConfig{
		{of: &adminv3.BootstrapConfigDump{}, whole: map[string]any{"bootstrap": map[string]any{"node": w.envoyNode()}, "last_updated": stamp(w.started)}},
		{of: &adminv3.ClustersConfigDump{}, lists: []dumpList{{"dynamic_active_clusters", s.rawClusters.each(names, func(r *raw) map[string]any {
			return r.dump("cluster", &clusterv3.Cluster{})
		})}}},
	}
	if endpoints {
		out = append(out, dumpConfig{of: &adminv3.EndpointsConfigDump{}, lists: []dumpList{{"dynamic_endpoint_configs", s.rawEndpoints.each(names, func(r *raw) map[string]any {
			return r.dump("endpoint_config", &endpointv3.ClusterLoadAssignment{})
		})}}})
	}
	return append(out,
		dumpConfig{of: &adminv3.ListenersConfigDump{}, lists: []dumpList{{"dynamic_listeners", s.rawListeners.each(names, func(r *raw) map[string]any {
			return map[string]any{"name": r.name, "active_state": r.dump("listener", &listenerv3.Listener{})}
		})}}},
		dumpConfig{of: &adminv3.ScopedRoutesConfigDump{}},
		dumpConfig{of: &adminv3.RoutesConfigDump{}, lists: []dumpList{{"static_route_configs", s.dumpRoutes(names)}}},
		dumpConfig{of: &adminv3.SecretsConfigDump{}, lists: []dumpList{{"dynamic_active_secrets", w.dumpSecrets(names)}}},
	)
}

// each are the resources whose names match.
func (s *rawSet) each(names *regexp.Regexp, dump func(*raw) map[string]any) iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		for _, r := range s.sorted() {
			if names.MatchString(r.name) && !yield(dump(r)) {
				return
			}
		}
	}
}

// dumpRoutes are the route configurations that stand in listeners.
func (s *store) dumpRoutes(names *regexp.Regexp) iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		for _, r := range s.rawListeners.sorted() {
			var l listenerv3.Listener
			body, err := r.unpack()
			if err != nil || proto.Unmarshal(body, &l) != nil {
				continue // the listener's own entry says so
			}
			for _, c := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
				for _, f := range c.GetFilters() {
					var h hcmv3.HttpConnectionManager
					if !f.GetTypedConfig().MessageIs(&h) || f.GetTypedConfig().UnmarshalTo(&h) != nil || h.GetRouteConfig() == nil || !names.MatchString(h.GetRouteConfig().GetName()) {
						continue
					}
					if !yield(map[string]any{"route_config": typed(h.GetRouteConfig()), "last_updated": stamp(r.at)}) {
						return
					}
				}
			}
		}
	}
}

// dumpSecrets are the own certificate and the roots by the names that Istio gives them; of the key it says that there is one.
func (w *waypoint) dumpSecrets(names *regexp.Regexp) iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		for _, st := range w.certs.Snapshot() {
			if st.SVID == nil || st.ID != w.id {
				continue
			}
			_, chain, _ := st.Describe()
			for _, x := range []struct {
				name   string
				secret *tlsv3.Secret
			}{
				{"default", &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
					CertificateChain: inline(encodePEM(chain)), PrivateKey: inline([]byte(secret.Hidden)),
				}}}},
				{"ROOTCA", &tlsv3.Secret{Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(st.SVID.RootPEM)}}}},
			} {
				x.secret.Name = x.name
				entry := map[string]any{"name": x.name, "version_info": strconv.FormatUint(st.SVID.Generation, 10), "last_updated": stamp(st.SVID.NotBefore), "secret": typed(x.secret)}
				if names.MatchString(x.name) && !yield(entry) {
					return
				}
			}
		}
	}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func encodePEM(chain []*x509.Certificate) (out []byte) {
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

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
	out := map[string]any{"version_info": r.version, "last_updated": stamp(r.at)}
	body, err := r.unpack()
	if err == nil {
		err = proto.Unmarshal(body, m)
	}
	if err != nil {
		out["error_state"] = map[string]string{"details": err.Error()}
		return out
	}
	out[key] = typed(m)
	return out
}

// typed is a message in JSON with its type, without secrets; the message is changed.
func typed(m proto.Message) map[string]any {
	secret.Redact(m)
	x := map[string]any{}
	if err := json.Unmarshal(render(m), &x); err != nil {
		x["error"] = err.Error() // not reached: render makes objects
	}
	x["@type"] = typeURL(m)
	return x
}

func typeURL(m proto.Message) string {
	return anyType + string(m.ProtoReflect().Descriptor().FullName())
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
