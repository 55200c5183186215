package xds

// Type URLs of the resources that the mesh's programs exchange.
const (
	// AddressType is istio.workload.Address: a workload or a service.
	AddressType = "type.googleapis.com/istio.workload.Address"
	// WorkloadType is istio.workload.Workload, which waypoints ask for.
	WorkloadType = "type.googleapis.com/istio.workload.Workload"
	// AuthorizationType is istio.security.Authorization: an L4 policy.
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"

	// ListenerType is Envoy's LDS.
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	// RouteType is Envoy's RDS.
	RouteType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	// ClusterType is Envoy's CDS.
	ClusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	// EndpointType is Envoy's EDS.
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	// SecretType is Envoy's SDS.
	SecretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	// ExtensionType is Envoy's ECDS.
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)
