package install

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// check looks for what is in the way: another mesh, of ours or of Istio's.
func (c *Config) check(ctx context.Context, old *record) error {
	if c.Upgrade && old.Version == "" {
		return &Refusal{"namespace/" + c.namespace(), "no mesh was installed here by ambit install", "say where it is with -n, or run ambit install"}
	}
	list, err := c.Cluster.workloads(ctx)
	if err != nil {
		return err
	}
	for _, o := range list {
		if r := c.conflict(o); r != nil {
			return r
		}
	}
	return nil
}

// workloads are the Deployments and DaemonSets of the cluster.
func (c *Cluster) workloads(ctx context.Context) ([]unstructured.Unstructured, error) {
	d, err := c.dynamic.Resource(deployments).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Deployments: %w", err)
	}
	s, err := c.dynamic.Resource(daemonSets).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list DaemonSets: %w", err)
	}
	return append(d.Items, s.Items...), nil
}

// conflict says why a workload keeps the mesh from being installed; nil if it does not.
func (c *Config) conflict(o unstructured.Unstructured) *Refusal {
	labels := o.GetLabels()
	object := name(&o) + " in namespace " + o.GetNamespace()
	ours := labels[labelPart] == part
	switch {
	case labels["app"] == "istiod" || o.GetName() == "istiod":
		return &Refusal{
			object, "Istio's control plane is installed: both would capture the same pods and write the same ConfigMaps istio-ca-root-cert",
			"remove Istio first (istioctl uninstall --purge), or use Ambit's ztunnel and waypoints under istiod, which needs no installation of Ambit's control plane",
		}
	case o.GetKind() == "DaemonSet" && !ours && (labels["app"] == "ztunnel" || o.GetName() == "ztunnel" || labels["k8s-app"] == "istio-cni-node" || o.GetName() == "istio-cni-node"):
		return &Refusal{object, "another mesh captures the pods of the nodes", "remove it first (istioctl uninstall --purge)"}
	case ours && o.GetNamespace() != c.namespace() && labels[labelMaker] != waypointsBy:
		return &Refusal{
			object, "Ambit is installed in namespace " + o.GetNamespace() + " already, and two would capture the same pods",
			"use -n " + o.GetNamespace() + ", or ambit uninstall -n " + o.GetNamespace() + " first",
		}
	case ours && o.GetNamespace() == c.namespace() && labels[labelMaker] == "Helm":
		return &Refusal{object, "Ambit was installed by Helm", "use helm upgrade, or helm uninstall it first"}
	}
	return nil
}

// hints tells what the mesh can do without, but its users may not.
func (c *Config) hints(ctx context.Context) error {
	for _, h := range []struct{ crd, use, fix string }{
		{"gateways.gateway.networking.k8s.io", "waypoints and routes need the Gateway API", "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.6.3/standard-install.yaml"},
		{"authorizationpolicies.security.istio.io", "policies need Istio's CRDs", "kubectl apply --server-side -f https://raw.githubusercontent.com/istio/api/v1.31.1/kubernetes/customresourcedefinitions.gen.yaml"},
	} {
		_, err := c.Cluster.dynamic.Resource(crds).Get(ctx, h.crd, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			c.say("warning: no CustomResourceDefinition %s: %s; %s", h.crd, h.use, h.fix)
			continue
		}
		if err != nil {
			return fmt.Errorf("get CustomResourceDefinition %s: %w", h.crd, err)
		}
	}
	return nil
}
