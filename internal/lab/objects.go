package lab

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

type key = manifest.Key

// object is an object with what an API server adds to it. Guarded by Lab.mu.
type object struct {
	m       *manifest.Object
	uid     string
	created time.Time
	data    []byte // as published, for kinds that have no status

	// One of these for the kinds that the lab acts on.
	pod    *corev1.Pod
	deploy *appsv1.Deployment
	hash   string // of the Deployment's template
	svc    *corev1.Service
	vips   []netip.Addr
	// gateway owns the object; zero for what a user made.
	gateway key
}

// Result says what an Apply or Delete did to one object.
type Result struct {
	// Object is kind/name, or kind/namespace/name.
	Object string `json:"object"`
	// Action is created, configured, unchanged or deleted.
	Action string `json:"action"`
	// Warning names what the lab does not do as a cluster would; empty if there is nothing to say.
	Warning string `json:"warning,omitempty"`
}

func newUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Apply creates or changes objects. Either all are taken or, with an error, none.
func (l *Lab) Apply(objs []*manifest.Object) ([]Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	namespaces := map[string]bool{}
	for _, o := range objs {
		if o.Kind.Name == "Namespace" {
			namespaces[o.Name] = true
		}
	}
	fresh := make([]*object, 0, len(objs))
	for _, m := range objs {
		o, err := l.admit(m, namespaces)
		errs = append(errs, err)
		fresh = append(fresh, o)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var out []Result
	for _, o := range fresh {
		r := Result{Object: o.m.Key().String(), Action: "created", Warning: warning(o)}
		if old := l.objects[o.m.Key()]; old != nil {
			r.Action = "configured"
			if reflect.DeepEqual(old.m.Data, o.m.Data) {
				r.Action = "unchanged"
			}
		}
		l.objects[o.m.Key()] = o
		out = append(out, r)
	}
	l.wake()
	return out, nil
}

// admit turns a manifest into an object or says why it cannot be; with Lab.mu held.
func (l *Lab) admit(m *manifest.Object, namespaces map[string]bool) (*object, error) {
	refuse := func(field, cause, accepted string) error {
		file, line := m.Position()
		return &manifest.Error{File: file, Line: line, Object: m.Key().String(), Field: field, Cause: cause, Accepted: accepted}
	}
	if m.Namespace != "" && !namespaces[m.Namespace] && l.objects[key{Kind: "Namespace", Name: m.Namespace}] == nil {
		return nil, refuse("metadata.namespace", fmt.Sprintf("namespace %q does not exist", m.Namespace), strings.Join(l.namespacesLocked(), ", "))
	}
	old := l.objects[m.Key()]
	o := &object{m: m, uid: newUID(), created: time.Now().UTC().Truncate(time.Second)}
	if old != nil {
		o.uid, o.created, o.vips = old.uid, old.created, old.vips
	}
	var err error
	switch m.Kind.Name {
	case "Pod":
		o.pod = &corev1.Pod{}
		if err = m.Decode(o.pod); err == nil {
			if old != nil && !reflect.DeepEqual(old.pod.Spec, o.pod.Spec) {
				return nil, refuse("spec", "the spec of a pod that exists cannot change", "new labels and annotations; else delete the pod first")
			}
			err = l.placeable(&o.pod.Spec, refuse, "spec")
		}
	case "Deployment":
		o.deploy = &appsv1.Deployment{}
		if err = m.Decode(o.deploy); err == nil {
			o.hash = templateHash(o.deploy)
			err = l.placeable(&o.deploy.Spec.Template.Spec, refuse, "spec.template.spec")
		}
	case "Service":
		o.svc = &corev1.Service{}
		if err = m.Decode(o.svc); err == nil {
			if err = l.allocateVIPs(o, old, refuse); err == nil {
				o.data = encode(renderService(o))
			}
		}
	default:
		o.data, err = publishable(o)
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (l *Lab) namespacesLocked() []string {
	var out []string
	for k := range l.objects {
		if k.Kind == "Namespace" {
			out = append(out, k.Name)
		}
	}
	sort.Strings(out)
	return out
}

type refusal func(field, cause, accepted string) error

// placeable tells whether some node takes pods of the spec.
func (l *Lab) placeable(spec *corev1.PodSpec, refuse refusal, path string) error {
	var names []string
	for _, n := range l.nodes {
		names = append(names, n.name)
		if l.fits(n, spec) {
			return nil
		}
	}
	if spec.NodeName != "" {
		return refuse(path+".nodeName", fmt.Sprintf("no node %q", spec.NodeName), strings.Join(names, ", "))
	}
	return refuse(path+".nodeSelector", "no node has these labels",
		"kubernetes.io/hostname: "+strings.Join(names, " or ")+"; see: ambit lab get nodes -o yaml")
}

// allocateVIPs gives a service its cluster IPs: those it asks for, those it had, or new ones.
func (l *Lab) allocateVIPs(o, old *object, refuse refusal) error {
	s := &o.svc.Spec
	if s.Type == corev1.ServiceTypeExternalName || s.ClusterIP == corev1.ClusterIPNone {
		l.clusters.free(o.vips)
		o.vips = nil
		return nil
	}
	if o.vips != nil {
		return nil
	}
	asked := s.ClusterIPs
	if len(asked) == 0 && s.ClusterIP != "" {
		asked = []string{s.ClusterIP}
	}
	for _, a := range asked {
		ip, err := netip.ParseAddr(a)
		if err != nil || !l.clusters.claim(ip) {
			l.clusters.free(o.vips)
			return refuse("spec.clusterIP", fmt.Sprintf("%q is no free address of a service", a), fmt.Sprintf("None, or one in %v", l.clusters.ranges))
		}
		o.vips = append(o.vips, ip)
	}
	if len(asked) > 0 {
		return nil
	}
	ips, err := l.clusters.take()
	if err != nil {
		return refuse("spec", err.Error(), "")
	}
	for _, ip := range ips {
		if wantsFamily(s, ip) {
			o.vips = append(o.vips, ip)
		} else {
			l.clusters.free([]netip.Addr{ip})
		}
	}
	return nil
}

// wantsFamily: a service has all families of the lab unless it says which (a cluster would give it only the first).
func wantsFamily(s *corev1.ServiceSpec, ip netip.Addr) bool {
	if len(s.IPFamilies) == 0 {
		return true
	}
	for _, f := range s.IPFamilies {
		if (f == corev1.IPv6Protocol) == ip.Is6() {
			return true
		}
	}
	return false
}

// warning names what the lab passes over in an object.
func warning(o *object) string {
	switch {
	case o.svc != nil && o.svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP:
		return "spec.sessionAffinity is ignored by the lab"
	case o.svc != nil && (o.svc.Spec.Type == corev1.ServiceTypeNodePort || o.svc.Spec.Type == corev1.ServiceTypeLoadBalancer):
		return "the lab serves the cluster IP only, no node port and no load balancer"
	case o.m.Kind.Name == "Gateway":
		return waypointWarning(o)
	case o.pod != nil:
		return podWarning(&o.pod.Spec)
	case o.deploy != nil:
		return podWarning(&o.deploy.Spec.Template.Spec)
	}
	return ""
}

func podWarning(s *corev1.PodSpec) string {
	var ignored []string
	if len(s.Volumes) > 0 {
		ignored = append(ignored, "volumes")
	}
	for _, c := range s.Containers {
		if c.LivenessProbe != nil {
			ignored = append(ignored, "livenessProbe")
		}
		if c.StartupProbe != nil {
			ignored = append(ignored, "startupProbe")
		}
		if c.Lifecycle != nil {
			ignored = append(ignored, "lifecycle")
		}
	}
	if len(ignored) == 0 {
		return ""
	}
	return "ignored by the lab: " + strings.Join(ignored, ", ")
}

// Delete removes objects; with a namespace goes what is in it. Objects that do not exist are an error, after the others
// were removed. Pods end within their grace period, after Delete returned.
func (l *Lab) Delete(keys []manifest.Key) ([]Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Result
	var errs []error
	for _, k := range keys {
		if l.objects[k] == nil && k.Kind == "Pod" && l.pods[k] != nil && !l.pods[k].stopping {
			l.pods[k].stopLocked() // of a Deployment, which will replace it
			out = append(out, Result{Object: k.String(), Action: "deleted"})
			continue
		}
		if l.objects[k] == nil {
			errs = append(errs, fmt.Errorf("%s: no such object", k))
			continue
		}
		l.forget(k)
		out = append(out, Result{Object: k.String(), Action: "deleted"})
		if k.Kind == "Namespace" {
			for inside := range maps.Keys(l.objects) {
				if inside.Namespace == k.Name {
					l.forget(inside)
				}
			}
		}
	}
	l.wake()
	return out, errors.Join(errs...)
}

func (l *Lab) forget(k key) {
	l.clusters.free(l.objects[k].vips)
	delete(l.objects, k)
}

// baseObjects are what a fresh cluster has.
func (l *Lab) baseObjects() {
	var objs []*manifest.Object
	for _, ns := range []string{"default", systemNS} {
		objs = append(objs, manifest.New("Namespace", "", ns, map[string]any{"labels": map[string]any{"kubernetes.io/metadata.name": ns}}))
	}
	class := manifest.New("GatewayClass", "", waypointClass, nil)
	class.Data["spec"] = map[string]any{"controllerName": meshController}
	if _, err := l.Apply(append(objs, class)); err != nil {
		panic(err) // our own objects are right
	}
}

// publishable is an object's JSON with uid and creation time.
func publishable(o *object) ([]byte, error) {
	doc := maps.Clone(o.m.Data)
	meta, _ := doc["metadata"].(map[string]any)
	meta = maps.Clone(meta)
	meta["uid"], meta["creationTimestamp"] = o.uid, o.created.Format(time.RFC3339)
	if o.m.Kind.Name == "Namespace" {
		labels, _ := meta["labels"].(map[string]any)
		labels = maps.Clone(labels)
		if labels == nil {
			labels = map[string]any{}
		}
		labels["kubernetes.io/metadata.name"] = o.m.Name
		meta["labels"] = labels
	}
	doc["metadata"] = meta
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.m.Key(), err)
	}
	return append(b, '\n'), nil
}

func podKey(namespace, name string) key { return key{Kind: "Pod", Namespace: namespace, Name: name} }
