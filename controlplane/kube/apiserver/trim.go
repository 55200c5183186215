package apiserver

import (
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// keptMetadata is what of an object's metadata is read. Its generation changes with the spec only.
var keptMetadata = []string{
	"name", "namespace", "uid", "labels", "annotations", "ownerReferences", "creationTimestamp", "deletionTimestamp", "generation",
}

// keptData are the keys of ConfigMaps that are read: mesh-wide settings, roots of backends, the mesh's root as we wrote it,
// and what is laid over the objects of waypoints.
var keptData = append([]string{"mesh", "ca.crt", rootKey}, gateway.OverlayKeys...)

// trim removes from an object, as the API server holds it, what nobody here reads. So a heartbeat of a node or a new
// condition of a route is no change, and 10,000 pods cost memory for their addresses and ports and not for their
// volumes. What translation or the authority begin to read must be kept here too; a test compares what both make of
// whole and of trimmed objects.
func trim(kind kube.Kind, o map[string]any) {
	metadata := at(o, "metadata")
	keep(metadata, keptMetadata...)
	annotations := at(metadata, "annotations")
	delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
	status := at(o, "status")
	switch kind {
	case kube.KindPod:
		trimPod(o, status)
	case kube.KindNode, kube.KindNamespace:
		keep(o, "apiVersion", "kind", "metadata")
		delete(metadata, "generation")
		if kind != kube.KindNamespace {
			delete(metadata, "annotations")
		}
	case kube.KindConfigMap:
		keep(o, "apiVersion", "kind", "metadata", "data")
		delete(metadata, "annotations")
		keep(at(o, "data"), keptData...)
	case kube.KindEndpointSlice:
		delete(metadata, "annotations") // the time of the last change, among others
		delete(metadata, "generation")
	case kube.KindGateway, kube.KindServiceEntry:
		keep(status, "addresses")
	default:
		delete(o, "status")
	}
}

func trimPod(o, status map[string]any) {
	spec := at(o, "spec")
	keep(spec, "nodeName", "serviceAccountName", "serviceAccount", "hostNetwork", "containers", "initContainers")
	for _, list := range []string{"containers", "initContainers"} {
		containers, _ := spec[list].([]any)
		for _, c := range containers {
			c, _ := c.(map[string]any)
			keep(c, "name", "ports", "restartPolicy")
		}
	}
	keep(status, "phase", "podIP", "podIPs", "conditions")
	conditions, _ := status["conditions"].([]any)
	ready := []any{}
	for _, c := range conditions {
		if c, _ := c.(map[string]any); c["type"] == "Ready" {
			keep(c, "type", "status")
			ready = append(ready, c)
		}
	}
	if status != nil {
		status["conditions"] = ready
	}
}

// at is the object in a field, nil when there is none.
func at(o map[string]any, field string) map[string]any {
	m, _ := o[field].(map[string]any)
	return m
}

// keep deletes all fields but the named ones.
func keep(o map[string]any, fields ...string) {
	kept := make(map[string]any, len(fields))
	for _, f := range fields {
		if v, ok := o[f]; ok {
			kept[f] = v
		}
	}
	clear(o)
	for f, v := range kept {
		o[f] = v
	}
}
