package diagnose

import (
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
	"github.com/ambit-mesh/ambit/controlplane/translate"
)

// Labels and annotations by which objects ask for the mesh.
const (
	labelMode        = "istio.io/dataplane-mode"
	modeAmbient      = "ambient"
	modeNone         = "none"
	redirection      = "ambient.istio.io/redirection"
	sidecarStatus    = "sidecar.istio.io/status"
	labelUseWaypoint = "istio.io/use-waypoint"
	labelWaypointNS  = "istio.io/use-waypoint-namespace"
	labelWaypointFor = "istio.io/waypoint-for"
)

// analysis is a World that is being analysed.
type analysis struct {
	*World
	findings
	objects *kube.Objects
	result  translate.Result
	// problems are all that the control plane would tell, statuses what it would write.
	problems []kube.Problem
	statuses []status.Status
	// pods by namespace, running or about to be.
	pods map[string][]*corev1.Pod
	// services that have a waypoint, by host and namespace.
	bound map[kube.Key]bool
}

// Analyze finds what is wrong with the objects of users. It is for clusters, labs and manifests alike.
func Analyze(w *World) []Finding {
	a := analyse(w)
	a.said()
	a.enrolment()
	a.waypoints()
	a.policies()
	a.services()
	a.routes()
	a.addresses()
	return slices.DeleteFunc(a.sorted(), a.unknowable)
}

// Check finds what is wrong with the mesh itself, and pods that are not as they should be in it.
func Check(w *World) []Finding {
	a := analyse(w)
	a.mesh()
	a.nodes()
	a.clocks()
	a.certificates()
	a.captured()
	return a.sorted()
}

// Preflight finds what keeps a mesh from being installed.
func Preflight(w *World) []Finding {
	a := &analysis{World: w, objects: w.Objects}
	a.platform()
	a.clocks()
	return a.sorted()
}

// analyse goes the control plane's way.
func analyse(w *World) *analysis {
	a := &analysis{World: w, objects: w.Objects, pods: map[string][]*corev1.Pod{}, bound: map[kube.Key]bool{}}
	if w.Manifests {
		a.objects = deployed(w.Objects)
	}
	for _, p := range a.sortedPods() {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			a.pods[p.Namespace] = append(a.pods[p.Namespace], p)
		}
	}
	a.result = translate.Build(translate.Config{RootNamespace: w.system(), TrustDomain: a.trustDomain()}, a.objects)
	var addresses []*workloadpb.Address
	for _, name := range slices.Sorted(maps.Keys(a.result.Addresses)) {
		addresses = append(addresses, a.result.Addresses[name].Message.(*workloadpb.Address))
	}
	for k, s := range a.result.Status {
		for _, c := range s.Conditions {
			if c.Type == "istio.io/WaypointBound" && c.Status == "True" {
				a.bound[k] = true
			}
		}
	}
	x := envoy.NewIndex(envoy.Config{RootNamespace: w.system()}, a.objects, addresses)
	a.problems = slices.Concat(w.Problems, a.result.Problems)
	if !w.Lab {
		a.problems = append(a.problems, gateway.NewPlanner(gateway.Settings{Image: "waypoint"}).Update(a.objects).Problems...)
	}
	for _, name := range x.Waypoints() {
		a.problems = append(a.problems, x.Build(name, nil).Problems...)
	}
	a.statuses = status.Compute(status.Input{
		Objects: a.objects, Translated: a.result.Status, Routes: x.RouteParents(), Problems: a.problems, ClusterDomain: "cluster.local",
	})
	return a
}

// workloads are kinds that make pods, of which manifests say nothing that is read here.
var workloads = []kube.Kind{"StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet", "ReplicationController"}

// workloadsKnown says whether the pods of a namespace are known. Manifests may have policies alone, for what is elsewhere.
func (a *analysis) workloadsKnown(namespace string) bool {
	if !a.Manifests {
		return true
	}
	return len(a.pods[namespace]) > 0 && !slices.ContainsFunc(a.Problems, func(p kube.Problem) bool {
		return p.Object.Namespace == namespace && slices.Contains(workloads, p.Object.Kind)
	})
}

// namespaceKnown says whether it is known what a namespace asks for.
func (a *analysis) namespaceKnown(name string) bool {
	return !a.Manifests || kube.Get[*corev1.Namespace](a.objects, "", name) != nil
}

// unknowable says whether a finding is that something does not exist of which the manifests may just not tell.
func (a *analysis) unknowable(f Finding) bool {
	if !a.Manifests || !slices.Contains([]string{"AMB0401", "AMB0503", "AMB0509", "AMB0605", "AMB0606", "AMB0609"}, f.Code) {
		return false
	}
	_, name, _ := strings.Cut(f.Object, " ")
	namespace, _, _ := strings.Cut(name, "/")
	return !slices.ContainsFunc(a.objects.Keys(), func(k kube.Key) bool {
		return k.Namespace == namespace && (k.Kind == kube.KindService || k.Kind == kube.KindServiceEntry)
	})
}

func (a *analysis) sortedPods() []*corev1.Pod { return sorted[*corev1.Pod](a.objects) }

// sorted are the objects of a type in order of namespace and name.
func sorted[T kube.Object](o *kube.Objects) []T {
	return slices.SortedFunc(kube.List[T](o), func(x, y T) int { return kube.KeyOf(x).Compare(kube.KeyOf(y)) })
}

// mode is what an object's own label asks for, or its namespace's.
func (a *analysis) mode(p *corev1.Pod) string {
	if own := p.Labels[labelMode]; own == modeAmbient || own == modeNone {
		return own
	}
	if ns := kube.Get[*corev1.Namespace](a.objects, "", p.Namespace); ns != nil {
		return ns.Labels[labelMode]
	}
	return ""
}

// outside says whether a pod is one that the mesh leaves out whatever it asks for: its own, and Kubernetes'.
func (a *analysis) outside(p *corev1.Pod) bool {
	return p.Namespace == a.system() || p.Namespace == "kube-system" || p.Labels[kube.LabelGateway] != ""
}

// inMesh says whether a pod is in the mesh: captured, or a waypoint's.
func inMesh(p *corev1.Pod) bool {
	return p.Annotations[redirection] == "enabled" || p.Labels[kube.LabelGateway] != ""
}

// selects says whether labels match a selector; an empty one selects nothing.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

func podReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// said are the findings that the control plane itself has words for.
func (a *analysis) said() {
	told := map[string][]string{}
	for _, s := range a.statuses {
		conditions := slices.Clone(s.Conditions)
		for _, p := range s.Parents {
			conditions = append(conditions, p.Conditions...)
		}
		for _, c := range conditions {
			a.condition(s.Object, c.Type, string(c.Status), c.Reason, c.Message)
			told[s.Object.String()] = append(told[s.Object.String()], c.Message)
		}
	}
	for _, p := range a.problems {
		code, object, place := codeOf(p), p.Object.String(), p.File
		if strings.HasPrefix(code, "AMB04") && a.inherits(p.Object) {
			object, p.Field, p.Cause = "Namespace "+p.Object.Namespace, "", brief(afterReason(p.Cause))
		}
		p.Object = kube.Key{}
		text := p.Error()
		same := func(m string) bool { return strings.HasPrefix(text, m) || m == p.Cause || m == afterReason(p.Cause) }
		if code == "" || slices.ContainsFunc(told[object], same) {
			continue
		}
		a.add(code, object, "%s", text)
		a.list[len(a.list)-1].Place = place
	}
}

// brief takes off what a text says of the consequences, which differ from object to object.
func brief(text string) string {
	text, _, _ = strings.Cut(text, "; until it can be used")
	return text
}

// afterReason takes a condition's reason off a text.
func afterReason(text string) string {
	if reason, rest, ok := strings.Cut(text, ": "); ok && !strings.Contains(reason, " ") {
		return rest
	}
	return text
}

// condition makes a finding of a condition that does not hold.
func (a *analysis) condition(k kube.Key, kind, state, reason, message string) {
	code := ""
	switch kind {
	case "istio.io/WaypointBound":
		if state != "False" {
			return
		}
		code = a.waypointCode(k, reason)
	case "istio.io/WaypointMissing":
		if state == "True" {
			code = "AMB0401"
		}
	case "ZtunnelAccepted":
		code = "AMB0502"
	case "WaypointAccepted":
		code = targetCode(reason, message)
	case "Accepted", "ResolvedRefs", "Programmed":
		code = a.gatewayCode(k, kind, state, message)
	}
	switch {
	case code == "":
	case strings.HasPrefix(code, "AMB04") && a.inherits(k):
		a.add(code, "Namespace "+k.Namespace, "%s", brief(message))
	case kind == "Accepted" && code == "AMB0606", state == "False", kind == "istio.io/WaypointMissing":
		a.add(code, k.String(), "%s", message)
	}
}

// waypointCode tells why an object is not bound to the waypoint that it asks for.
func (a *analysis) waypointCode(k kube.Key, reason string) string {
	switch reason {
	case "AttachmentDenied":
		return "AMB0404"
	case "UnsupportedTrafficType":
		return "AMB0405"
	case "CanarySameAsPrimary", "CanaryInvalidWeight":
		return "AMB0410"
	}
	switch g := a.asked(k); {
	case g == nil:
		return "AMB0401"
	case g.Spec.GatewayClassName != kube.WaypointClass && len(g.Status.Addresses) == 0:
		return "AMB0403"
	default:
		return "AMB0402"
	}
}

// inherits says whether it is its namespace that asks for an object's waypoint.
func (a *analysis) inherits(k kube.Key) bool {
	o := a.objects.Lookup(k)
	if o == nil || k.Namespace == "" || k.Kind == kube.KindGateway {
		return false
	}
	_, own := o.GetLabels()[labelUseWaypoint]
	ns := kube.Get[*corev1.Namespace](a.objects, "", k.Namespace)
	return !own && ns != nil && ns.Labels[labelUseWaypoint] != ""
}

// asked is the Gateway that an object, or its namespace, asks for as its waypoint.
func (a *analysis) asked(k kube.Key) *gatewayv1.Gateway {
	o := a.objects.Lookup(k)
	if o == nil {
		return nil
	}
	name, namespace := waypointOf(o.GetLabels(), k.Namespace)
	if name == "" {
		if ns := kube.Get[*corev1.Namespace](a.objects, "", k.Namespace); ns != nil {
			name, namespace = waypointOf(ns.Labels, k.Namespace)
		}
	}
	return kube.Get[*gatewayv1.Gateway](a.objects, namespace, name)
}

// waypointOf reads the name of a waypoint from labels; "" when they ask for none.
func waypointOf(labels map[string]string, namespace string) (name, in string) {
	if ns := labels[labelWaypointNS]; ns != "" {
		namespace = ns
	}
	if name = labels[labelUseWaypoint]; name == modeNone {
		name = ""
	}
	return name, namespace
}

func targetCode(reason, message string) string {
	switch {
	case reason == "TargetNotFound", strings.Contains(message, "does not exist"):
		return "AMB0503"
	case reason == "AncestorNotBound", strings.Contains(message, "is not bound to a waypoint"):
		return "AMB0504"
	case strings.Contains(message, "every token"):
		return "AMB0508"
	case reason == "Invalid":
		return "AMB0901"
	}
	return "AMB0902"
}

// gatewayCode is that of a condition of a route or a Gateway.
func (a *analysis) gatewayCode(k kube.Key, kind, state, message string) string {
	switch {
	case k.Kind == kube.KindGateway && kind == "Accepted":
		return "AMB0409"
	case k.Kind == kube.KindGateway && kind == "Programmed" && !a.Manifests:
		return "AMB0402"
	case k.Kind == kube.KindGateway || k.Kind == kube.KindGatewayClass:
		return ""
	case kind == "Accepted" && (state == "False" || strings.Contains(message, "has no effect until")):
		return "AMB0606"
	case kind == "ResolvedRefs":
		return "AMB0609"
	}
	return ""
}

// codeOf sorts a problem of the control plane in; "" leaves it to a rule that says it better.
func codeOf(p kube.Problem) string {
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(s string) bool { return strings.Contains(p.Cause, s) })
	}
	switch {
	case strings.HasPrefix(p.Field, "metadata.labels["+labelUseWaypoint) && has("does not exist"):
		return "AMB0401"
	case strings.HasPrefix(p.Field, "metadata.labels["+labelUseWaypoint) && has("AttachmentDenied"):
		return "AMB0404"
	case strings.HasPrefix(p.Field, "metadata.labels["+labelUseWaypoint) && has("UnsupportedTrafficType"):
		return "AMB0405"
	case strings.HasPrefix(p.Field, "metadata.labels["+labelUseWaypoint):
		return "AMB0402"
	case has("has no meaning to this control plane") && !has("istio.io/", "gateway.networking.k8s.io/"):
		return "" // of manifests: what is not the mesh's
	case p.Field == "metadata.labels["+labelWaypointFor+"]":
		return "AMB0407"
	case has("every token of the issuer fails"):
		return "AMB0508"
	case p.Field == "spec.selector" && has("a selector in the root namespace"):
		return "AMB0510"
	case has("is defined by"):
		return "AMB0608"
	case has("has the host"):
		return "" // said of all hosts, whether a waypoint reads them or not
	case has("is older and has"), has("are attached to") && has("are used"):
		return "AMB0607"
	case has("its share of the requests fails", "requests for it fail", "connections for it fail"):
		if has("subset") {
			return "AMB0604"
		}
		return "AMB0609"
	case strings.HasPrefix(p.Field, "spec.parentRefs"):
		return "" // the route's condition says it
	case p.Severity == kube.Rejected:
		return "AMB0901"
	case p.Severity == kube.Ignored:
		return "AMB0902"
	}
	return "AMB0903"
}

// deployed makes of manifests what a cluster would make of them, as far as an analysis needs it: Deployments have a pod,
// waypoints and Services have addresses, and pods that ask for the mesh are in it.
func deployed(o *kube.Objects) *kube.Objects {
	var put []kube.Object
	n := 0
	enrol := func(p *corev1.Pod) *corev1.Pod {
		n++
		p = p.DeepCopy()
		if len(p.Status.PodIPs) == 0 {
			p.Status.PodIP = fmtAddress(18, n)
			p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		mode := p.Labels[labelMode]
		if ns := kube.Get[*corev1.Namespace](o, "", p.Namespace); mode == "" && ns != nil {
			mode = ns.Labels[labelMode]
		}
		if mode == modeAmbient && !p.Spec.HostNetwork {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[redirection] = "enabled"
		}
		return p
	}
	for _, p := range sorted[*corev1.Pod](o) {
		put = append(put, enrol(p))
	}
	for _, d := range sorted[*appsv1.Deployment](o) {
		p := &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
		p.Namespace, p.Name = d.Namespace, d.Name
		put = append(put, enrol(p))
	}
	for _, s := range sorted[*corev1.Service](o) {
		if s.Spec.ClusterIP == "" && s.Spec.Type != corev1.ServiceTypeExternalName {
			n++
			s = s.DeepCopy()
			s.Spec.ClusterIP = fmtAddress(19, n)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			put = append(put, s)
		}
	}
	for _, g := range sorted[*gatewayv1.Gateway](o) {
		if g.Spec.GatewayClassName == kube.WaypointClass && len(g.Status.Addresses) == 0 {
			g = g.DeepCopy()
			kind := gatewayv1.HostnameAddressType
			g.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &kind, Value: g.Name + "." + g.Namespace + ".svc.cluster.local"}}
			put = append(put, g)
		}
	}
	return o.With(put, nil)
}
