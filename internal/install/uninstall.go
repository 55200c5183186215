package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/ztunnel/capture/nodepods"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// Removal says which mesh is removed, and how.
type Removal struct {
	// Cluster is where. Mandatory.
	Cluster *Cluster
	// Namespace is the mesh's. "" means DefaultNamespace.
	Namespace string
	// KeepCA keeps the Secret with the mesh's root: a mesh that is installed later is trusted by what trusts this one.
	KeepCA bool
	// Force goes on without the nodes that do not answer. Pods there keep their redirection, and new ones cannot start, until
	// `ztunnel unload` ran on the node.
	Force bool
	// DryRun says what would be done.
	DryRun bool
	// Drain is how long connections that go through the proxies may go on; then they are cut. 0 means 30 s.
	Drain time.Duration
	// Wait is how long a step may take; 0 means 2 min.
	Wait time.Duration
	// Progress is told what happens, line by line. nil for nobody.
	Progress io.Writer
}

// kinds are those that the chart renders, whoever installed it.
var kinds = []schema.GroupVersionKind{
	{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingWebhookConfiguration"},
	{Group: "apps", Version: "v1", Kind: "DaemonSet"},
	{Group: "apps", Version: "v1", Kind: "Deployment"},
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"},
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
	{Version: "v1", Kind: "Service"},
	{Version: "v1", Kind: "ConfigMap"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole"},
	{Version: "v1", Kind: "ServiceAccount"},
}

// waypointKinds are what a Gateway becomes.
var waypointKinds = []schema.GroupVersionKind{
	{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler"},
	{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"},
	{Group: "apps", Version: "v1", Kind: "Deployment"},
	{Version: "v1", Kind: "Service"},
	{Version: "v1", Kind: "ServiceAccount"},
}

// Uninstall takes the mesh out of the cluster: first what could refuse, then each node, whose pods are let go while the proxies
// still carry what is open, then the control plane and what it made, then the rest. It may be repeated when it ended halfway.
func Uninstall(ctx context.Context, r Removal) error {
	if r.Drain == 0 {
		r.Drain = 30 * time.Second
	}
	if r.Wait == 0 {
		r.Wait = 2 * time.Minute
	}
	u := &uninstall{Removal: r, Config: Config{Cluster: r.Cluster, Namespace: r.Namespace, DryRun: r.DryRun, Progress: r.Progress}}
	if err := u.find(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{u.webhooks, u.nodes, u.controlPlane, u.waypoints, u.made, u.rest, u.ownNamespace, u.left} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// uninstall is a removal at work.
type uninstall struct {
	Removal
	Config
	objects []ref // of the chart
	helm    bool
}

func (u *uninstall) cluster() *Cluster { return u.Removal.Cluster }

// find looks for what was installed, by the record and by the labels.
func (u *uninstall) find(ctx context.Context) error {
	rec, err := u.cluster().record(ctx, u.namespace())
	if err != nil {
		return err
	}
	u.objects = rec.Objects
	for _, k := range kinds {
		list, err := u.cluster().list(ctx, k, labelPart+"="+part)
		if err != nil {
			return err
		}
		for _, o := range list {
			r := refOf(&o)
			if ns := o.GetNamespace(); ns != "" && ns != u.namespace() || o.GetLabels()[labelMaker] == waypointsBy || slices.Contains(u.objects, r) || r.Name == recordName {
				continue
			}
			u.objects = append(u.objects, r)
			u.helm = u.helm || o.GetLabels()[labelMaker] == "Helm"
		}
	}
	if len(u.objects) == 0 && rec.Version == "" {
		return &Refusal{"namespace/" + u.namespace(), "no mesh is installed here", "say where it is with -n"}
	}
	return nil
}

// list lists the objects of a kind in all namespaces; none if the cluster has no such kind.
func (c *Cluster) list(ctx context.Context, k schema.GroupVersionKind, selector string) ([]unstructured.Unstructured, error) {
	m, err := c.mapper.RESTMapping(k.GroupKind(), k.Version)
	if err != nil {
		return nil, nil
	}
	list, err := c.dynamic.Resource(m.Resource).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list objects of kind %s: %w", k.Kind, err)
	}
	for i := range list.Items {
		list.Items[i].SetGroupVersionKind(k)
	}
	return list.Items, nil
}

// remove deletes objects and waits until they are gone.
func (u *uninstall) remove(ctx context.Context, objects []ref) error {
	if len(objects) == 0 {
		return nil
	}
	for _, r := range objects {
		if err := u.cluster().delete(ctx, r, u.Removal.DryRun); err != nil {
			return err
		}
		if u.Removal.DryRun {
			u.say("would delete %s", r)
		}
	}
	if u.Removal.DryRun {
		return nil
	}
	err := u.until(ctx, u.Removal.Wait, func(ctx context.Context) (string, error) {
		for _, r := range objects {
			in, err := u.cluster().resource(r)
			if noKind(err) {
				continue
			}
			if err != nil {
				return "", err
			}
			if _, err = in.Get(ctx, r.Name, metav1.GetOptions{}); err == nil {
				return r.String() + " to be gone", nil
			} else if !apierrors.IsNotFound(err) {
				return "", fmt.Errorf("get %s: %w", r, err)
			}
		}
		return "", nil
	})
	if err == nil {
		for _, r := range objects {
			u.say("%s deleted", r)
		}
	}
	return err
}

func (u *uninstall) take(match func(r ref) bool) (out []ref) {
	for _, r := range u.objects {
		if match(r) {
			out = append(out, r)
		}
	}
	u.objects = slices.DeleteFunc(u.objects, match)
	return out
}

// webhooks go first: nobody answers them later, and they would refuse changes then.
func (u *uninstall) webhooks(ctx context.Context) error {
	return u.remove(ctx, u.take(func(r ref) bool { return strings.HasSuffix(r.Kind, "WebhookConfiguration") }))
}

// nodes takes every node out of the mesh, then ends the node proxies.
func (u *uninstall) nodes(ctx context.Context) error {
	agents := u.take(func(r ref) bool { return r.Kind == "DaemonSet" })
	if len(agents) == 0 {
		return nil
	}
	if !u.Removal.DryRun {
		if err := u.leaveNodes(ctx, agents[0]); err != nil {
			return err
		}
	} else {
		u.say("would have every node leave the mesh")
	}
	if err := u.remove(ctx, agents); err != nil {
		return err
	}
	return u.podsGone(ctx, "app=ztunnel", "the node proxies")
}

// leaveNodes has the agent of each node leave, and waits until each has: nothing may be in the mesh any more, and what was
// open has had its time. Before the first one leaves all are prepared: pods that have left have no identity any more, and
// would be refused on nodes that are still in.
func (u *uninstall) leaveNodes(ctx context.Context, agent ref) error {
	err := u.askNodes(ctx, agent, nodepods.LeavePrepare, u.Removal.Wait, func(node, answer string) string {
		if answer == "" {
			return "node " + node + " to be prepared for the end of the mesh"
		}
		return ""
	})
	if err == nil || u.Removal.Force && ctx.Err() == nil {
		err = errors.Join(err, u.leaveNow(ctx, agent))
	} else {
		u.stay(context.WithoutCancel(ctx), agent)
	}
	if err != nil && u.Removal.Force && ctx.Err() == nil {
		u.say("warning: %v; on such a node run ztunnel unload --pin-dir=/sys/fs/bpf/ambit/NODE --run-dir=/var/run/ambit, "+
			"and take ambit-cni out of its network configuration", err)
		return nil
	}
	return wrap(err, "the nodes did not all leave, and the mesh stays; see kubectl logs -n %s -l app=ztunnel -c capture, "+
		"or go on without them with --force", u.namespace())
}

// leaveNow has the nodes leave, and cuts what is open after the time for it.
func (u *uninstall) leaveNow(ctx context.Context, agent ref) error {
	told := map[string]string{}
	err := u.askNodes(ctx, agent, nodepods.LeaveNow, u.Removal.Wait, func(node, left string) string {
		if left == "" || left == nodepods.LeftPrepared {
			return "node " + node + " to leave the mesh"
		}
		if told[node] != left {
			told[node] = left
			u.say("node %s left the mesh: %s pods with connections of that time", node, left)
		}
		return ""
	})
	if err != nil {
		return err
	}
	open := func(node, left string) string {
		if left == "0" {
			return ""
		}
		return "connections to end on node " + node
	}
	if err = u.askNodes(ctx, agent, nodepods.LeaveNow, u.Removal.Drain, open); errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		u.say("connections that are open still are cut")
		if err = u.askNodes(ctx, agent, nodepods.LeaveCut, cutWait, open); errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = nil // routes of what is left end with capture
		}
	}
	return err
}

// cutWait is how long the nodes may take to cut what is open.
const cutWait = 15 * time.Second

// askNodes writes a wish on the agents and waits, up to a limit, until missing, which is called with each node and its answer, returns "" for
// all.
func (u *uninstall) askNodes(ctx context.Context, agent ref, wish string, limit time.Duration, missing func(node, answer string) string) error {
	return u.until(ctx, limit, func(ctx context.Context) (string, error) {
		list, err := u.agents(ctx, agent)
		if err != nil {
			return "", err
		}
		answers, trouble := map[string]string{}, map[string]string{} // by node, which has two agents while they are replaced
		for _, p := range list {
			node := nodeOf(p)
			if node == "" || p.GetDeletionTimestamp() != nil {
				continue
			}
			if has := p.GetAnnotations()[nodepods.AnnotationLeave]; has != wish && (wish != nodepods.LeavePrepare || has == "") {
				if err := u.ask(ctx, p, wish); err != nil {
					return "", err
				}
			}
			if answer := p.GetAnnotations()[nodepods.AnnotationLeft]; answer != "" || answers[node] == "" {
				answers[node], trouble[node] = answer, fmt.Sprintf(" (pod %s%s)", p.GetName(), troubleOf(p))
			}
		}
		out := ""
		for _, node := range slices.Sorted(maps.Keys(answers)) {
			if m := missing(node, answers[node]); m != "" {
				out = m + trouble[node]
			}
		}
		return out, nil
	})
}

func (u *uninstall) agents(ctx context.Context, agent ref) ([]unstructured.Unstructured, error) {
	list, err := u.cluster().dynamic.Resource(pods).Namespace(agent.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=ztunnel"})
	if err != nil {
		return nil, fmt.Errorf("list the node proxies: %w", err)
	}
	return list.Items, nil
}

// stay takes back that the nodes are to be prepared. If that fails they take it back themselves, later.
func (u *uninstall) stay(ctx context.Context, agent ref) {
	list, err := u.agents(ctx, agent)
	for _, p := range list {
		if p.GetAnnotations()[nodepods.AnnotationLeave] == nodepods.LeavePrepare {
			err = errors.Join(err, u.ask(ctx, p, ""))
		}
	}
	if err != nil {
		u.say("warning: nodes that were prepared for the end of the mesh take plaintext for some minutes still: %v", err)
	}
}

func nodeOf(pod unstructured.Unstructured) string {
	node, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
	return node
}

// ask writes a wish on a node's agent; "" takes it back.
func (u *uninstall) ask(ctx context.Context, p unstructured.Unstructured, wish string) error {
	var value any
	if wish != "" {
		value = wish
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.GetUID(), "annotations": map[string]any{nodepods.AnnotationLeave: value}}})
	if err != nil {
		return err
	}
	_, err = u.cluster().dynamic.Resource(pods).Namespace(p.GetNamespace()).Patch(ctx, p.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another one takes its place
		return nil
	}
	return wrap(err, "ask pod %s to leave its node", p.GetName())
}

func (u *uninstall) podsGone(ctx context.Context, selector, what string) error {
	if u.Removal.DryRun {
		return nil
	}
	return u.until(ctx, u.Removal.Wait, func(ctx context.Context) (string, error) {
		list, err := u.cluster().dynamic.Resource(pods).Namespace(u.namespace()).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return "", fmt.Errorf("list %s: %w", what, err)
		}
		if n := len(list.Items); n > 0 {
			return fmt.Sprintf("%s to end: %d pods", what, n), nil
		}
		return "", nil
	})
}

// controlPlane ends before what it makes is deleted: it would make it again.
func (u *uninstall) controlPlane(ctx context.Context) error {
	if err := u.remove(ctx, u.take(func(r ref) bool { return r.Kind == "Deployment" })); err != nil {
		return err
	}
	return u.podsGone(ctx, "app=ambit-controlplane", "the control plane")
}

// waypoints deletes what Gateways became. The Gateways are the users'.
func (u *uninstall) waypoints(ctx context.Context) error {
	var out []ref
	for _, k := range waypointKinds {
		list, err := u.cluster().list(ctx, k, labelMaker+"="+waypointsBy)
		if err != nil {
			return err
		}
		for _, o := range list {
			out = append(out, refOf(&o))
		}
	}
	return u.remove(ctx, out)
}

// made deletes what else the control plane made: the mesh's root, its copies in each namespace, its lease, and the class of
// waypoints.
func (u *uninstall) made(ctx context.Context) error {
	out := []ref{{schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, u.namespace(), "ambit-controlplane"}}
	if !u.KeepCA {
		out = append(out, ref{schema.GroupVersionKind{Version: "v1", Kind: "Secret"}, u.namespace(), "istio-ca-secret"})
	}
	maps, err := u.cluster().list(ctx, schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, "istio.io/config=true")
	if err != nil {
		return err
	}
	for _, o := range maps {
		if o.GetName() == "istio-ca-root-cert" {
			out = append(out, refOf(&o))
		}
	}
	classes, err := u.cluster().list(ctx, gatewayKind("GatewayClass"), "")
	if err != nil {
		return err
	}
	for _, o := range classes {
		if c, _, _ := unstructured.NestedString(o.Object, "spec", "controllerName"); c == kube.MeshController {
			out = append(out, refOf(&o))
		}
	}
	return u.remove(ctx, out)
}

func gatewayKind(kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "gateway.networking.k8s.io", Version: "v1", Kind: kind}
}

// rest deletes what remains of the chart, and the record.
func (u *uninstall) rest(ctx context.Context) error {
	objects := slices.Clone(u.objects)
	slices.Reverse(objects)
	return u.remove(ctx, append(objects, ref{schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, u.namespace(), recordName}))
}

// ownNamespace deletes the mesh's namespace if Install made it and nobody else has anything in it.
func (u *uninstall) ownNamespace(ctx context.Context) error {
	ns, err := u.cluster().dynamic.Resource(namespaces).Get(ctx, u.namespace(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get namespace %q: %w", u.namespace(), err)
	}
	if ns.GetLabels()[labelMaker] != maker || ns.GetLabels()[labelPart] != part {
		u.say("namespace/%s stays: it was there before the mesh", u.namespace())
		return nil
	}
	others, err := u.others(ctx)
	if err != nil {
		return err
	}
	if len(others) > 0 && !u.Removal.DryRun {
		u.say("namespace/%s stays: others have objects in it (%s)", u.namespace(), strings.Join(others, ", "))
		return nil
	}
	return u.remove(ctx, []ref{{schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, "", u.namespace()}})
}

// userKinds are those that users write for the mesh, or may have put into its namespace.
var userKinds = []schema.GroupVersionKind{
	{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy"},
	{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"},
	{Group: "security.istio.io", Version: "v1", Kind: "RequestAuthentication"},
	{Group: "telemetry.istio.io", Version: "v1", Kind: "Telemetry"},
	{Group: "networking.istio.io", Version: "v1", Kind: "VirtualService"},
	{Group: "networking.istio.io", Version: "v1", Kind: "DestinationRule"},
	{Group: "networking.istio.io", Version: "v1", Kind: "ServiceEntry"},
	gatewayKind("Gateway"), gatewayKind("HTTPRoute"), gatewayKind("GRPCRoute"),
}

// others names objects in the mesh's namespace that are not the mesh's.
func (u *uninstall) others(ctx context.Context) ([]string, error) {
	var out []string
	for _, k := range append([]schema.GroupVersionKind{
		{Version: "v1", Kind: "Pod"}, {Version: "v1", Kind: "Service"}, {Version: "v1", Kind: "PersistentVolumeClaim"},
		{Version: "v1", Kind: "ConfigMap"}, {Version: "v1", Kind: "Secret"},
		{Group: "apps", Version: "v1", Kind: "Deployment"}, {Group: "apps", Version: "v1", Kind: "StatefulSet"}, {Group: "apps", Version: "v1", Kind: "DaemonSet"},
	}, userKinds...) {
		list, err := u.cluster().list(ctx, k, "")
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			if o.GetNamespace() == u.namespace() && o.GetDeletionTimestamp() == nil && o.GetName() != "kube-root-ca.crt" {
				out = append(out, name(&o))
			}
		}
	}
	return out, nil
}

// left tells what of the mesh's language stays in the cluster, without effect.
func (u *uninstall) left(ctx context.Context) error {
	var out []string
	for _, k := range userKinds {
		list, err := u.cluster().list(ctx, k, "")
		if err != nil {
			return err
		}
		if len(list) > 0 {
			out = append(out, fmt.Sprintf("%d %s", len(list), k.Kind))
		}
	}
	spaces, err := u.cluster().list(ctx, schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, podsock.LabelMode+"="+podsock.LabelIn)
	if err != nil {
		return err
	}
	if len(spaces) > 0 {
		out = append(out, fmt.Sprintf("%d namespaces with the label %s=%s", len(spaces), podsock.LabelMode, podsock.LabelIn))
	}
	if len(out) > 0 {
		u.say("left, because they are yours, and without effect now: %s", strings.Join(out, ", "))
	}
	if u.helm {
		u.say("Helm takes the mesh for installed still: helm uninstall ambit -n %s", u.namespace())
	}
	return nil
}
