package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
	corev1 "k8s.io/api/core/v1"
)

// pod is a pod of the lab. Its goroutine (run) plays the kubelet.
type pod struct {
	// Immutable.
	l       *Lab
	key     key
	uid     string
	created time.Time
	spec    corev1.PodSpec
	owner   string // Deployment it belongs to, or empty
	hash    string // of the Deployment's template
	node    *node
	addrs   []netip.Addr
	link    string // the node's end of its interface
	cancel  context.CancelFunc
	ctx     context.Context

	// Guarded by Lab.mu.
	labels, annotations map[string]string
	containers          []*container
	sandbox             *sandbox // nil until built and after it was taken down
	stopping            bool     // no endpoint any more, will end
	reason              string   // why it does not get on
	captured            bool
	captureSent         string // what capture was told last
	capturing           int    // requests under way about a running pod
	doc                 []byte // rendered; nil when something changed

	captureMu sync.Mutex // one request to capture at a time
}

// sandbox is what a pod has on the machine.
type sandbox struct {
	spaces *spaces
	cg     *cgroup
	hosts  string // path of its /etc/hosts
}

func (p *pod) dir() string           { return p.l.paths.podDir(p.key.Namespace, p.key.Name) }
func (p *pod) logOf(c string) string { return filepath.Join(p.dir(), c+".log") }

func (p *pod) nsName() string {
	if p.spec.HostNetwork {
		return p.l.paths.nodeNS(p.node.name)
	}
	return p.l.paths.podNS(p.key.Namespace, p.key.Name)
}

// nameserver is the pod's, of a family that it has.
func (p *pod) nameserver() netip.Addr {
	if len(p.addrs) > 0 && p.addrs[0].Is6() {
		return nameV6
	}
	return nameV4
}

func (p *pod) account() string {
	if p.spec.ServiceAccountName != "" {
		return p.spec.ServiceAccountName
	}
	return "default"
}

// run is the life of the pod: it returns when the pod was told to stop and nothing of it is left.
func (p *pod) run(ctx context.Context) {
	defer p.l.podGone(p)
	var sb *sandbox
	ok := p.retry(ctx, "build sandbox", func() (err error) {
		sb, err = p.build()
		return err
	})
	if !ok {
		p.teardown(sb)
		return
	}
	p.update(func() { p.sandbox = sb })
	// Nothing of the pod may run before capture says that its traffic is taken: no packet in plaintext.
	if p.retry(ctx, "capture", p.captureNow) {
		p.update(func() { p.reason = "" })
		p.runContainers(ctx, sb)
	}
	p.update(func() { p.sandbox = nil })
	p.captureRemove()
	p.teardown(sb)
}

// retry calls f until it succeeds; false when ctx ended before.
func (p *pod) retry(ctx context.Context, what string, f func() error) bool {
	for wait := 100 * time.Millisecond; ; wait = min(wait*2, 5*time.Second) {
		if ctx.Err() != nil {
			return false
		}
		err := f()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		p.l.log.Warn("pod does not start", "pod", p.key.String(), "step", what, "err", err)
		p.update(func() { p.reason = fmt.Sprintf("%s: %v", what, err) })
		if !sleep(ctx, wait) {
			return false
		}
	}
}

// update changes the pod's status and has it looked at.
func (p *pod) update(f func()) {
	p.l.mu.Lock()
	f()
	p.doc = nil
	p.l.mu.Unlock()
	p.l.wake()
}

// build makes the pod's namespaces, interface and files. What a failed attempt left is replaced.
func (p *pod) build() (_ *sandbox, err error) {
	p.teardown(nil)
	if err := os.MkdirAll(p.dir(), 0o755); err != nil {
		return nil, fmt.Errorf("create pod directory: %w", err)
	}
	p.l.mu.Lock()
	secret := p.l.secret
	p.l.mu.Unlock()
	if err := p.writeToken(secret); err != nil {
		return nil, err
	}
	sb := &sandbox{hosts: filepath.Join(p.dir(), "hosts")}
	if sb.cg, err = p.l.cg.sub("pod-" + p.uid); err != nil {
		return nil, err
	}
	var ns *netNS
	if p.spec.HostNetwork {
		ns, err = openNS(p.nsName())
	} else if ns, err = createNS(p.nsName()); err == nil {
		err = p.node.plugPod(ns, p.link, p.addrs)
	}
	if err != nil {
		if ns != nil {
			ns.Close()
		}
		return nil, err
	}
	search := fmt.Sprintf("# Nobody is at this address: pods of the mesh have its DNS proxy, all have services in /etc/hosts.\nnameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		p.nameserver(), p.key.Namespace)
	files := map[string]string{"hosts": p.hosts(), "resolv.conf": search, "hostname": p.key.Name + "\n"}
	var binds []bindFile
	for name, text := range files {
		from := filepath.Join(p.dir(), name)
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			ns.Close()
			return nil, fmt.Errorf("write pod's %s: %w", name, err)
		}
		binds = append(binds, bindFile{from, "/etc/" + name})
	}
	if sb.spaces, err = newSpaces(ns, p.key.Name, binds); err != nil {
		ns.Close()
		return nil, err
	}
	return sb, nil
}

// teardown ends all processes of the pod and takes away what build made; sb may be nil.
func (p *pod) teardown(sb *sandbox) {
	var errs []error
	if sb != nil {
		errs = append(errs, sb.cg.kill(), sb.cg.remove())
		sb.spaces.Close()
	}
	if !p.spec.HostNetwork {
		// The link first: the namespace may live on for a while in the hands of capture.
		errs = append(errs, p.node.ns.DeleteLink(p.link))
		errs = append(errs, netns.Delete(p.nsName()))
	}
	if err := errors.Join(errs...); err != nil && p.l.ctxAlive() {
		p.l.log.Warn("pod leaves something behind", "pod", p.key.String(), "err", err)
	}
}

// runContainers runs init containers one after the other, then the others until ctx ends; then it ends them within the
// grace period.
func (p *pod) runContainers(ctx context.Context, sb *sandbox) {
	// Processes outlive ctx by the grace period: kill is what ends them.
	kctx, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	var wg sync.WaitGroup
	for _, c := range p.containers {
		if c.init && !c.runInit(ctx, sb) {
			return
		}
	}
	for _, c := range p.containers {
		if c.init {
			continue
		}
		wg.Go(func() { c.runMain(ctx, sb) })
		if c.spec.ReadinessProbe != nil {
			wg.Go(func() { c.probeLoop(ctx, sb) })
		}
	}
	<-ctx.Done()
	grace := 30 * time.Second
	if s := p.spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	timer := time.AfterFunc(grace, func() {
		if kctx.Err() == nil {
			sb.cg.kill()
		}
	})
	defer timer.Stop()
	for _, c := range p.containers {
		c.terminate()
	}
	wg.Wait()
}

// ready tells whether the pod serves; with Lab.mu held.
func (p *pod) readyLocked() bool {
	if p.stopping || p.sandbox == nil {
		return false
	}
	for _, c := range p.containers {
		if !c.init && !c.ready {
			return false
		}
	}
	return true
}

func (p *pod) phaseLocked() corev1.PodPhase {
	running, done, failed := 0, 0, 0
	for _, c := range p.containers {
		switch {
		case c.init && !c.finished:
			return corev1.PodPending
		case c.init:
		case c.finished && c.exitCode == 0:
			done++
		case c.finished:
			failed++
		case c.running || c.restarts > 0:
			running++
		}
	}
	switch {
	case running > 0:
		return corev1.PodRunning
	case failed > 0:
		return corev1.PodFailed
	case done > 0:
		return corev1.PodSucceeded
	default:
		return corev1.PodPending
	}
}

// sleep waits; false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
