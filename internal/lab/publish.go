package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// publisher writes what changed: a file per object for the control plane, and the pods' /etc/hosts.
type publisher struct {
	mu    sync.Mutex
	files map[string][]byte // by name, as on disk
	host  map[string]string // by path
}

// publish makes dir hold exactly one file per document, apart from kinds that the control plane has no use for. A file
// is replaced by rename, so that a reader sees the old or the new one whole.
func (p *publisher) publish(dir string, docs map[key][]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.files == nil {
		p.files = map[string][]byte{}
	}
	want := make(map[string]bool, len(docs))
	for k, b := range docs {
		if k.Kind == "Deployment" {
			continue
		}
		name := strings.ToLower(k.Kind) + "_" + k.Namespace + "_" + k.Name + ".yaml"
		want[name] = true
		if bytes.Equal(p.files[name], b) {
			continue
		}
		tmp := filepath.Join(dir, "."+name+".tmp")
		if err := os.WriteFile(tmp, b, 0o644); err != nil {
			return fmt.Errorf("publish %s: %w", k, err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("publish %s: %w", k, err)
		}
		p.files[name] = b
	}
	for name := range p.files {
		if !want[name] {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("withdraw %s: %w", name, err)
			}
			delete(p.files, name)
		}
	}
	return nil
}

// hosts rewrites a pod's hosts file in place: it is bind-mounted, so its inode must stay. A pod that is gone has none.
func (p *publisher) hosts(path, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host == nil {
		p.host = map[string]string{}
	}
	if p.host[path] == text {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err == nil && f.Truncate(int64(len(text))) == nil {
		p.host[path] = text
	}
}

func (p *publisher) forgetHosts(path string) {
	p.mu.Lock()
	delete(p.host, path)
	p.mu.Unlock()
}

// render writes every object as an API server would show it; with Lab.mu held.
func (l *Lab) render() map[key][]byte {
	docs := make(map[key][]byte, len(l.objects)+len(l.pods))
	for k, o := range l.objects {
		switch {
		case o.deploy != nil:
			docs[k] = encode(l.renderDeployment(o))
		case o.pod != nil: // rendered from the running pod, if there is one
			if l.pods[k] == nil {
				docs[k] = encode(renderPending(o))
			}
		case k.Kind == "Gateway":
			docs[k] = l.renderGateway(o)
		default:
			docs[k] = o.data
		}
	}
	for k, p := range l.pods {
		if p.doc == nil {
			p.doc = encode(p.render())
		}
		docs[k] = p.doc
	}
	for _, n := range l.nodes {
		docs[key{Kind: "Node", Name: n.name}] = encode(n.render())
	}
	return docs
}

func encode(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // Kubernetes' own types always encode
	}
	return append(b, '\n')
}

func renderService(o *object) *corev1.Service {
	s := o.svc.DeepCopy()
	s.UID, s.CreationTimestamp = types.UID(o.uid), metav1.NewTime(o.created)
	s.Namespace = o.m.Namespace
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if len(o.vips) == 0 {
		return s
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = o.vips[0].String(), nil, nil
	for _, ip := range o.vips {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
		f := corev1.IPv4Protocol
		if ip.Is6() {
			f = corev1.IPv6Protocol
		}
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, f)
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(o.vips) > 1 {
		policy = corev1.IPFamilyPolicyPreferDualStack
	}
	s.Spec.IPFamilyPolicy = &policy
	return s
}

func (l *Lab) renderDeployment(o *object) *appsv1.Deployment {
	d := o.deploy.DeepCopy()
	d.UID, d.CreationTimestamp, d.Namespace = types.UID(o.uid), metav1.NewTime(o.created), o.m.Namespace
	r := l.deploymentStatus(o)
	want := int32(r.want)
	d.Spec.Replicas = &want
	d.Status = appsv1.DeploymentStatus{
		Replicas: int32(len(r.fresh) + len(r.old)), UpdatedReplicas: int32(len(r.fresh)),
		ReadyReplicas: int32(r.available), AvailableReplicas: int32(r.available),
	}
	return d
}

func renderPending(o *object) *corev1.Pod {
	p := o.pod.DeepCopy()
	p.UID, p.CreationTimestamp, p.Namespace = types.UID(o.uid), metav1.NewTime(o.created), o.m.Namespace
	p.Status.Phase = corev1.PodPending
	return p
}

// redirectionAnnotation is what tells the control plane that a pod speaks HBONE.
const redirectionAnnotation = "ambient.istio.io/redirection"

// render is the Pod object of a pod; with Lab.mu held.
func (p *pod) render() *corev1.Pod {
	out := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: p.key.Name, Namespace: p.key.Namespace, UID: types.UID(p.uid), CreationTimestamp: metav1.NewTime(p.created),
			Labels: p.labels, Annotations: maps.Clone(p.annotations),
		},
		Spec: *p.spec.DeepCopy(),
	}
	if p.captured {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[redirectionAnnotation] = "enabled"
	}
	if p.owner != "" {
		yes := true
		out.GenerateName = p.owner + "-" + p.hash + "-"
		out.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.owner + "-" + p.hash, UID: types.UID(p.owner + "-" + p.hash), Controller: &yes,
		}}
	}
	out.Spec.NodeName, out.Spec.ServiceAccountName = p.node.name, p.account()
	if p.stopping {
		t := metav1.NewTime(p.created)
		out.DeletionTimestamp = &t
	}
	out.Status = p.status()
	return out
}

func (p *pod) status() corev1.PodStatus {
	st := corev1.PodStatus{Phase: p.phaseLocked(), HostIP: p.node.addrs[0].String(), Message: strings.Trim(p.why(), " ()")}
	for _, a := range p.node.addrs {
		st.HostIPs = append(st.HostIPs, corev1.HostIP{IP: a.String()})
	}
	st.PodIP = p.addrs[0].String()
	for _, a := range p.addrs {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.String()})
	}
	start := metav1.NewTime(p.created)
	st.StartTime = &start
	ready := corev1.ConditionFalse
	if p.readyLocked() {
		ready = corev1.ConditionTrue
	}
	st.Reason = p.statusWord()
	st.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: ready},
	}
	for _, c := range p.containers {
		cs := c.status()
		if c.init {
			st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
		} else {
			st.ContainerStatuses = append(st.ContainerStatuses, cs)
		}
	}
	return st
}

func (c *container) status() corev1.ContainerStatus {
	s := corev1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, Ready: c.ready, RestartCount: int32(c.restarts)}
	switch {
	case c.running:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.started.UTC().Truncate(1e9))}
	case c.finished:
		s.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: int32(c.exitCode)}
	default:
		s.State.Waiting = &corev1.ContainerStateWaiting{Message: c.reason}
	}
	return s
}

func (n *node) render() *corev1.Node {
	out := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: n.labels()},
	}
	for _, p := range n.podNet {
		out.Spec.PodCIDRs = append(out.Spec.PodCIDRs, p.String())
	}
	out.Spec.PodCIDR = out.Spec.PodCIDRs[0]
	for _, a := range n.addrs {
		out.Status.Addresses = append(out.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	out.Status.Addresses = append(out.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.name})
	out.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return out
}
