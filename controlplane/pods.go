package controlplane

import (
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// pods is the ca.Pods of the current objects. Safe for any goroutine.
type pods struct {
	mu      sync.Mutex
	byName  map[kube.Name]podFacts
	running map[placement]int // pods that are not terminal
	changed chan struct{}     // closed at the next change
}

// placement is a service account on a node.
type placement struct{ node, namespace, account string }

type podFacts struct {
	pod   ca.Pod
	place placement
}

func newPods() *pods {
	return &pods{byName: map[kube.Name]podFacts{}, running: map[placement]int{}, changed: make(chan struct{})}
}

// update takes in what differs between two sets of objects.
func (p *pods) update(objects, old *kube.Objects) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for _, key := range objects.Diff(old) {
		pod, ok := objects.Lookup(key).(*corev1.Pod)
		if !ok {
			if _, had := p.byName[key.Name]; !had || key.Kind != "Pod" {
				continue
			}
		}
		p.dropLocked(key.Name)
		if ok {
			p.putLocked(key.Name, pod)
		}
		changed = true
	}
	if changed {
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

func (p *pods) putLocked(name kube.Name, pod *corev1.Pod) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	f := podFacts{
		pod: ca.Pod{
			UID: string(pod.UID), Node: pod.Spec.NodeName,
			Terminal: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		},
		place: placement{node: pod.Spec.NodeName, namespace: name.Namespace, account: account},
	}
	p.byName[name] = f
	if !f.pod.Terminal && f.pod.Node != "" {
		p.running[f.place]++
	}
}

func (p *pods) dropLocked(name kube.Name) {
	f, ok := p.byName[name]
	if !ok {
		return
	}
	delete(p.byName, name)
	if !f.pod.Terminal && f.pod.Node != "" {
		if p.running[f.place]--; p.running[f.place] == 0 {
			delete(p.running, f.place)
		}
	}
}

// Lookup implements ca.Pods.
func (p *pods) Lookup(namespace, name string) (ca.Pod, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.byName[kube.Name{Namespace: namespace, Name: name}]
	return f.pod, ok
}

// RunsOn implements ca.Pods.
func (p *pods) RunsOn(node, namespace, serviceAccount string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running[placement{node, namespace, serviceAccount}] > 0
}

// Changed implements ca.Pods.
func (p *pods) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}
