package kube

// Names by which a Gateway and what is made of it find each other (controlplane.md 5.2).
const (
	// WaypointClass is the class of Gateways that are waypoints.
	WaypointClass = "istio-waypoint"
	// MeshController is the controller of that class.
	MeshController = "istio.io/mesh-controller"
	// LabelGateway is on the objects and pods of a Gateway and names it.
	LabelGateway = "gateway.networking.k8s.io/gateway-name"
	// LabelManaged is on them too: ManagedByMesh when they are a waypoint's.
	LabelManaged  = "gateway.istio.io/managed"
	ManagedByMesh = "istio.io-mesh-controller"
)
