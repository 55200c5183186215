// Package envoy makes what a waypoint is told: Envoy v3 clusters, endpoints and listeners, with the names, the metadata
// and the order of filters that istiod gives them, so that an Envoy, an Istio proxy and our own waypoint take them alike.
//
// It is pure: objects, and the services and workloads that translate made of them, go in; resources and problems come
// out. Index prepares one set of objects, Index.Build makes the resources of one waypoint, Resources.Endpoints those
// that depend on where an instance runs.
//
// Routes of the Gateway API become VirtualService rules first, as with Istio, so that there is one way from a rule to a
// route. A rule that cannot be served as written is reported by object, field, cause and what is accepted; a route that
// has nowhere to go answers with an error, and a policy that cannot be read denies. Section numbers such as 3.4 refer to
// the control plane's specification.
//
// Filter types that only Istio's build of Envoy has are in the resources; Plain takes them out for other clients.
package envoy

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Config is what the resources depend on besides the objects. It must not be modified after NewIndex.
type Config struct {
	// TrustDomain and its aliases are those that a waypoint accepts. Default "cluster.local", none.
	TrustDomain        string
	TrustDomainAliases []string
	// ClusterDomain ends the host names of Services. Default "cluster.local".
	ClusterDomain string
	// ClusterID names the cluster in tags and metadata. Default "Kubernetes".
	ClusterID string
	// MeshID is a tag of traces. Default: the trust domain.
	MeshID string
	// RootNamespace is where mesh-wide policies live. Default "istio-system".
	RootNamespace string
	// Mesh is Istio's MeshConfig: providers of authorization, logs and traces. Nil: what the ConfigMap istio of the root
	// namespace says, else nothing.
	Mesh *meshconfig.MeshConfig
}

func (c Config) withDefaults() Config {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.TrustDomain, "cluster.local")
	set(&c.ClusterDomain, "cluster.local")
	set(&c.ClusterID, "Kubernetes")
	set(&c.MeshID, c.TrustDomain)
	set(&c.RootNamespace, "istio-system")
	return c
}

// Resource is one xDS resource. It never changes.
type Resource struct {
	Name string
	// Version is the hex form of the xxhash64 of Body.
	Version string
	// Message is a *clusterv3.Cluster, *endpointv3.ClusterLoadAssignment or *listenerv3.Listener. Read only.
	Message proto.Message
	// Body is the message in wire format.
	Body []byte
}

// NewResource marshals a message.
func NewResource(name string, m proto.Message) Resource {
	body := marshal(m)
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxhash.Sum64(body))
	return Resource{Name: name, Version: hex.EncodeToString(sum[:]), Message: m, Body: body}
}

// marshal writes a message so that equal ones have equal bytes.
func marshal(m proto.Message) []byte {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only a string that is not UTF-8 can do this, and the decoder of manifests lets none in.
		panic("marshal " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
	}
	return body
}

// anyOf packs a message.
func anyOf(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: marshal(m)}
}

// Resources are those of one waypoint.
type Resources struct {
	// Clusters and Listeners are in order of name.
	Clusters, Listeners []Resource
	// Problems are what of the objects that concern the waypoint is not served as written.
	Problems []kube.Problem

	index *Index
	eds   []edsCluster
	// filters are the last good EnvoyFilters that concern the waypoint.
	filters map[kube.Key]*patchSet
}
