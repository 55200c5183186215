package lab

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// reconcileLoop makes the machine follow the objects, whenever somebody called wake, until ctx ends; then it ends the
// pods and waits for them.
func (l *Lab) reconcileLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		}
		l.reconcile(ctx)
	}
}

// reconcile decides with the lock held and then writes without it. What is written goes in the order that keeps traffic
// whole: a pod that is to end leaves the VIPs before its processes are told.
func (l *Lab) reconcile(ctx context.Context) {
	l.mu.Lock()
	l.followGateways()
	l.scaleDeployments(ctx)
	l.followPods(ctx)
	ending := l.endingPods()
	vips := l.vipPorts()
	docs := l.render()
	hosts := l.hostFiles()
	updates := l.captureUpdates()
	l.mu.Unlock()

	for _, n := range l.nodes {
		if err := n.vips.program(vips); err != nil && ctx.Err() == nil {
			l.log.Error("VIPs are out of date", "node", n.name, "err", err)
		}
	}
	if err := l.pub.publish(l.paths.manifests(), docs); err != nil && ctx.Err() == nil {
		l.log.Error("manifests for the control plane are out of date", "err", err)
	}
	for path, text := range hosts {
		l.pub.hosts(path, text)
	}
	for _, p := range updates {
		l.wg.Go(p.captureUpdate)
	}
	for _, p := range ending {
		p.cancel()
	}
}

// followPods starts pods whose objects came and marks those whose objects went. With Lab.mu held.
func (l *Lab) followPods(ctx context.Context) {
	for k, o := range l.objects {
		if o.pod == nil {
			continue
		}
		p := l.pods[k]
		switch {
		case p == nil:
			l.startPodLocked(ctx, k, o.uid, &o.pod.Spec, o.pod.Labels, o.pod.Annotations, "", "")
		case p.uid != o.uid:
			p.stopLocked()
		case !p.stopping:
			if !maps.Equal(p.labels, o.pod.Labels) || !maps.Equal(p.annotations, o.pod.Annotations) {
				p.labels, p.annotations, p.doc = o.pod.Labels, o.pod.Annotations, nil
			}
		}
	}
	for k, p := range l.pods {
		if p.owner == "" && l.objects[k] == nil {
			p.stopLocked()
		}
		if p.owner != "" && l.objects[key{Kind: "Deployment", Namespace: k.Namespace, Name: p.owner}] == nil {
			p.stopLocked()
		}
	}
}

func (l *Lab) endingPods() []*pod {
	var out []*pod
	for _, p := range l.pods {
		if p.stopping && p.ctx.Err() == nil {
			out = append(out, p)
		}
	}
	return out
}

// stopLocked takes the pod out of service; its processes end after the VIPs followed.
func (p *pod) stopLocked() {
	if !p.stopping {
		p.stopping, p.doc = true, nil
	}
}

// startPodLocked places a pod and starts its goroutine. Without a free address it stays away until something changes.
func (l *Lab) startPodLocked(ctx context.Context, k key, uid string, spec *corev1.PodSpec, labels, annotations map[string]string, owner, hash string) {
	n := l.place(spec, owner, k.Namespace)
	if n == nil || ctx.Err() != nil {
		return
	}
	p := &pod{
		l: l, key: k, uid: uid, created: now(), spec: *spec, owner: owner, hash: hash, node: n,
		labels: labels, annotations: annotations,
	}
	if spec.HostNetwork {
		p.addrs = n.addrs
	} else {
		addrs, err := n.pods.take()
		if err != nil {
			l.log.Warn("pod has no address", "pod", k.String(), "node", n.name, "err", err)
			return
		}
		p.addrs = addrs
	}
	n.links++
	p.link = "pod" + itoa(n.links)
	p.containers = newContainers(p)
	p.ctx, p.cancel = context.WithCancel(ctx)
	l.pods[k] = p
	l.wg.Go(func() { p.run(p.ctx) })
}

// podGone is the last word of a pod's goroutine.
func (l *Lab) podGone(p *pod) {
	os.RemoveAll(p.dir())
	l.mu.Lock()
	if !p.spec.HostNetwork {
		p.node.pods.free(p.addrs)
	}
	delete(l.pods, p.key)
	l.mu.Unlock()
	l.pub.forgetHosts(filepath.Join(p.dir(), "hosts"))
	l.wake()
}

// fits tells whether a node may run the spec.
func (l *Lab) fits(n *node, spec *corev1.PodSpec) bool {
	if spec.NodeName != "" {
		return spec.NodeName == n.name
	}
	labels := n.labels()
	for k, v := range spec.NodeSelector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// place chooses the fitting node with the fewest pods of the same owner, then with the fewest pods.
func (l *Lab) place(spec *corev1.PodSpec, owner, namespace string) *node {
	type load struct{ own, all int }
	loads := map[*node]load{}
	for _, p := range l.pods {
		ld := loads[p.node]
		ld.all++
		if owner != "" && p.owner == owner && p.key.Namespace == namespace {
			ld.own++
		}
		loads[p.node] = ld
	}
	var best *node
	for _, n := range l.nodes {
		if !l.fits(n, spec) {
			continue
		}
		a, b := loads[n], loads[best]
		if best == nil || a.own < b.own || a.own == b.own && a.all < b.all {
			best = n
		}
	}
	return best
}

// labels are those of the Node object.
func (n *node) labels() map[string]string {
	i := strings.TrimPrefix(n.name, "node-")
	return map[string]string{
		"kubernetes.io/hostname":        n.name,
		"kubernetes.io/os":              "linux",
		"topology.kubernetes.io/region": "region-1",
		"topology.kubernetes.io/zone":   "zone-" + i,
	}
}

// pending says what is not yet as the objects want it, a line each; empty when every pod that should be there is Ready
// or ended with success.
func (l *Lab) pending() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for k, o := range l.objects {
		if o.pod != nil && (l.pods[k] == nil || l.pods[k].uid != o.uid) {
			out = append(out, "pod/"+k.Namespace+"/"+k.Name+": is being created")
		}
		if o.deploy != nil {
			if s := l.deploymentStatus(o); !s.settled {
				out = append(out, "deployment/"+k.Namespace+"/"+k.Name+": "+s.String())
			}
		}
	}
	for _, p := range l.pods {
		if !p.stopping && p.captureStale() {
			out = append(out, "pod/"+p.key.Namespace+"/"+p.key.Name+": capture is being told"+p.why())
			continue
		}
		if p.stopping || p.readyLocked() || p.phaseLocked() == corev1.PodSucceeded {
			continue
		}
		out = append(out, "pod/"+p.key.Namespace+"/"+p.key.Name+": "+p.statusWord()+p.why())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// statusWord is the STATUS column of kubectl; with Lab.mu held.
func (p *pod) statusWord() string {
	if p.stopping {
		return "Terminating"
	}
	initDone, inits := 0, 0
	for _, c := range p.containers {
		if c.init {
			inits++
			if c.finished && c.exitCode == 0 {
				initDone++
			}
			continue
		}
		if !c.running && !c.finished && c.reason != "" {
			if c.restarts == 0 {
				return "Error"
			}
			return "CrashLoopBackOff"
		}
	}
	if initDone < inits {
		return "Init:" + itoa(initDone) + "/" + itoa(inits)
	}
	switch ph := p.phaseLocked(); ph {
	case corev1.PodPending:
		if p.reason != "" {
			return "Pending"
		}
		return "ContainerCreating"
	case corev1.PodSucceeded:
		return "Completed"
	case corev1.PodFailed:
		return "Error"
	default:
		return string(ph)
	}
}

// why adds what is known about a pod that does not get on.
func (p *pod) why() string {
	reasons := map[string]bool{}
	if p.reason != "" {
		reasons[p.reason] = true
	}
	for _, c := range p.containers {
		if c.reason != "" {
			reasons[c.reason] = true
		}
	}
	if len(reasons) == 0 {
		return ""
	}
	return " (" + strings.Join(slices.Sorted(maps.Keys(reasons)), "; ") + ")"
}

// ctxAlive tells whether the lab still runs.
func (l *Lab) ctxAlive() bool {
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}
