// Package nodepods is capture's source of pods in Kubernetes: it watches the pods of one node and the labels of namespaces,
// tells capture which pods there are, and writes on each pod whether it is captured.
//
// A pod comes to capture by one of two ways. The CNI plugin asks for a pod that is being started, before its first packet
// (Resolve adds what the plugin cannot know). Every other pod, which was there before the mesh was or was labelled later,
// is found here: its network namespace by way of a process of it (find.go).
//
// The annotation ambient.istio.io/redirection says "enabled" when the pod is captured, "pending" when it should be and is
// not yet; without it control planes tell the other nodes that the pod speaks plaintext.
package nodepods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

const (
	annotation = "ambient.istio.io/redirection"
	enabled    = "enabled"
	pending    = "pending"

	workers     = 4
	resolveWait = 5 * time.Second        // for the pod's labels to be known
	resolveStep = 20 * time.Millisecond  // between looks at them
	settle      = 200 * time.Millisecond // between a change of namespaces and the writing of Memory
	minBackoff  = 50 * time.Millisecond
	maxBackoff  = 10 * time.Second
	tellAfter   = 4 // tries of a pod that failed: what goes on by then is not of the moment, a right that is missing for example
)

// Capture is what is told of pods: *capture.Manager.
type Capture interface {
	// Set has a pod captured or left alone, as its labels say. Blocks until it is.
	Set(ctx context.Context, p *podsock.Pod) (podsock.Result, error)
	// Remove forgets a pod that is gone. Blocks until nothing of it remains.
	Remove(ctx context.Context, uid string) error
	// List returns all pods.
	List() []podsock.State
}

// Config configures a Source. All but Memory and Logger is mandatory.
type Config struct {
	// API is the API server.
	API API
	// Node is the node's name.
	Node string
	// Find looks for the network namespace of a running pod; NewFinder makes it.
	Find func(Running) (path string, err error)
	// Self is the UID of the pod that the process runs in. "" means that the mesh is never told to leave the node.
	Self string
	// Memory is the file that is left for the CNI plugin; "" for none.
	Memory string
	// ProbePorts says that capture wants the ports of the pods' probes.
	ProbePorts bool
	// Logger, nil for none.
	Logger *slog.Logger
}

// Source watches the pods of a node. It is safe for concurrent use.
type Source struct {
	cfg        Config
	log        *slog.Logger
	capture    Capture // from Run on
	pods       cache.SharedIndexInformer
	podList    listers.PodLister
	namespaces cache.SharedIndexInformer
	nsList     listers.NamespaceLister
	queue      workqueue.TypedRateLimitingInterface[key]
	remember   chan struct{} // the Memory may have changed
	leaving    chan struct{} // wish has changed
	wish       atomic.Pointer[string]
	withdrawn  atomic.Bool // no pod is said to be in the mesh, and none is touched
	late       atomic.Uint64

	mu   sync.Mutex
	told map[types.UID]map[string]string // the last events of a pod, by what they are about; guarded by mu
}

// key names a pod, and not only its name: a pod of the same name may follow.
type key struct {
	types.NamespacedName
	uid types.UID
}

func keyOf(p *corev1.Pod) key {
	return key{types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, p.UID}
}

// New returns a Source; Run starts it.
func New(cfg Config) *Source {
	s := &Source{cfg: cfg, log: cfg.Logger, remember: make(chan struct{}, 1), leaving: make(chan struct{}, 1), told: map[types.UID]map[string]string{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.pods, s.namespaces = s.watch(cfg.API.Pods(cfg.Node), &corev1.Pod{}), s.watch(cfg.API.Namespaces(), &corev1.Namespace{})
	s.podList, s.nsList = listers.NewPodLister(s.pods.GetIndexer()), listers.NewNamespaceLister(s.namespaces.GetIndexer())
	s.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](minBackoff, maxBackoff))
	return s
}

func (s *Source) watch(lw cache.ListerWatcher, kind runtime.Object) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformer(lw, kind, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	_ = i.SetTransform(s.slim) // fails only once it runs
	return i
}

// slim drops what nobody here reads.
func (s *Source) slim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		o.ManagedFields = nil
		spec := corev1.PodSpec{HostNetwork: o.Spec.HostNetwork, ServiceAccountName: o.Spec.ServiceAccountName, NodeName: o.Spec.NodeName}
		if s.cfg.ProbePorts {
			spec.InitContainers, spec.Containers = probesOnly(o.Spec.InitContainers), probesOnly(o.Spec.Containers)
		}
		o.Spec = spec
	case *corev1.Namespace:
		o.ManagedFields, o.Annotations = nil, nil
	}
	return o, nil
}

// Run watches, and tells capture, until ctx is done; then it returns nil. Pods stay captured. It returns an error only if it
// cannot begin.
func (s *Source) Run(ctx context.Context, capture Capture) error {
	s.capture = capture
	if _, err := s.pods.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(o any, _ bool) { s.changed(o) },
		UpdateFunc: func(_, o any) { s.changed(o) },
		DeleteFunc: s.changed,
	}); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	if _, err := s.namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    s.namespaceChanged,
		UpdateFunc: func(_, o any) { s.namespaceChanged(o) },
		DeleteFunc: s.namespaceChanged,
	}); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.pods.RunWithContext(ctx); return nil })
	g.Go(func() error { s.namespaces.RunWithContext(ctx); return nil })
	g.Go(func() error {
		defer s.queue.ShutDown()
		if !cache.WaitForCacheSync(ctx.Done(), s.Synced) {
			return nil
		}
		s.log.Info("pods of the node are known", "pods", len(s.pods.GetStore().ListKeys()))
		s.forgotten()
		var work errgroup.Group
		for range workers {
			work.Go(func() error {
				for s.next(ctx) {
				}
				return nil
			})
		}
		s.keepMemory(ctx)
		s.queue.ShutDown()
		return work.Wait()
	})
	return g.Wait()
}

// Late is how many pods ran before they were captured.
func (s *Source) Late() uint64 { return s.late.Load() }

// Synced says that all pods of the node and all namespaces are known.
func (s *Source) Synced() bool { return s.pods.HasSynced() && s.namespaces.HasSynced() }

func (s *Source) changed(o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	if p, ok := o.(*corev1.Pod); ok {
		s.queue.Add(keyOf(p))
		s.mayRemember()
	}
}

func (s *Source) namespaceChanged(o any) {
	if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	if ns, ok := o.(*corev1.Namespace); ok {
		pods, _ := s.podList.Pods(ns.Name).List(everything)
		for _, p := range pods {
			s.queue.Add(keyOf(p))
		}
		s.mayRemember()
	}
}

// forgotten removes the pods that capture recovered and that were deleted while it was away.
func (s *Source) forgotten() {
	there := map[string]bool{}
	for _, o := range s.pods.GetStore().List() {
		there[string(o.(*corev1.Pod).UID)] = true
	}
	for _, p := range s.capture.List() {
		if !there[p.UID] {
			s.queue.Add(key{types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, types.UID(p.UID)})
		}
	}
}

// next works on one pod. false means that the queue is closed.
func (s *Source) next(ctx context.Context) bool {
	k, closed := s.queue.Get()
	if closed {
		return false
	}
	defer s.queue.Done(k)
	switch err := s.sync(ctx, k); {
	case err == nil:
		s.queue.Forget(k)
	case ctx.Err() == nil:
		level := slog.LevelDebug
		if s.queue.NumRequeues(k) == tellAfter {
			level = slog.LevelWarn
		}
		s.log.Log(ctx, level, "pod is tried again", "pod", k.NamespacedName, "err", err)
		s.queue.AddRateLimited(k)
	}
	return true
}

// sync makes capture and the annotation say what the pod's labels say.
func (s *Source) sync(ctx context.Context, k key) error {
	p, err := s.podList.Pods(k.Namespace).Get(k.Name)
	if err != nil || p.UID != k.uid || terminal(p) {
		s.mu.Lock()
		delete(s.told, k.uid)
		s.mu.Unlock()
		return s.capture.Remove(ctx, string(k.uid))
	}
	s.own(p)
	if s.withdrawn.Load() {
		return s.report(ctx, p, podsock.Result{Result: podsock.Skipped}, nil)
	}
	spec, err := s.describe(p)
	if err != nil {
		return err
	}
	known := s.netnsOf(spec.UID)
	if known == "" {
		if len(spec.Addresses) == 0 {
			return nil // it is being started: the CNI plugin will ask, or its addresses come
		}
		if spec.Netns, err = s.locate(p, spec); err != nil {
			return s.report(ctx, p, podsock.Result{Result: podsock.Captured}, fmt.Errorf("find its network namespace: %w", err))
		}
	}
	res, err := s.capture.Set(ctx, spec)
	if known == "" && res.Result == podsock.Captured && p.Annotations[annotation] == "" {
		if s.tell(ctx, p, noticeLate, "the pod ran before the mesh captured it: its new connections are captured, those that were open stay as they are") {
			s.late.Add(1)
		}
	}
	return s.report(ctx, p, res, err)
}

// locate finds the namespace of a pod that is to be captured. For others it does not look.
func (s *Source) locate(p *corev1.Pod, spec *podsock.Pod) (string, error) {
	if spec.HostNetwork || !spec.WantsMesh() {
		return "", nil
	}
	r := Running{UID: spec.UID, Addresses: spec.Addresses}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if _, id, ok := strings.Cut(c.ContainerID, "://"); ok {
			r.Containers = append(r.Containers, id)
		}
	}
	return s.cfg.Find(r)
}

// netnsOf is the namespace that capture knows for a pod, "" if none.
func (s *Source) netnsOf(uid string) string {
	for _, p := range s.capture.List() {
		if p.UID == uid {
			return p.Netns
		}
	}
	return ""
}

// describe is the pod as capture wants it, without its network namespace.
func (s *Source) describe(p *corev1.Pod) (*podsock.Pod, error) {
	ns, err := s.nsList.Get(p.Namespace)
	if err != nil {
		return nil, fmt.Errorf("look up namespace %q: %w", p.Namespace, err)
	}
	out := &podsock.Pod{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.Spec.ServiceAccountName,
		Labels: p.Labels, Annotations: p.Annotations, NamespaceLabels: ns.Labels, HostNetwork: p.Spec.HostNetwork,
	}
	if s.cfg.ProbePorts {
		out.ProbePorts = probePorts(&p.Spec)
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	return out, nil
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Resolve is a pod that the CNI plugin asks for, as the cluster describes it. It blocks until the pod's labels are known,
// for some seconds at most. After it the pod is looked at again, so that its annotation is written.
func (s *Source) Resolve(ctx context.Context, sb podsock.Sandbox) (podsock.Pod, error) {
	p, err := s.await(ctx, sb)
	if err != nil {
		return podsock.Pod{}, err
	}
	spec, err := s.describe(p)
	if err != nil {
		return podsock.Pod{}, err
	}
	spec.Netns = sb.Netns
	if len(sb.Addresses) > 0 {
		spec.Addresses = sb.Addresses
	}
	return *spec, nil
}

// Admitted says that capture has done what it was asked to after Resolve.
func (s *Source) Admitted(p podsock.Pod) {
	s.queue.Add(key{types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, types.UID(p.UID)})
}

// await waits until the informer has the pod, and asks the API server if it does not see it.
func (s *Source) await(ctx context.Context, sb podsock.Sandbox) (*corev1.Pod, error) {
	wait, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	tick := time.NewTicker(resolveStep)
	defer tick.Stop()
	for {
		if s.namespaces.HasSynced() {
			if p, err := s.podList.Pods(sb.Namespace).Get(sb.Name); err == nil && (sb.UID == "" || string(p.UID) == sb.UID) {
				return p, nil
			}
		}
		select {
		case <-wait.Done():
		case <-tick.C:
			continue
		}
		break
	}
	if !s.namespaces.HasSynced() {
		return nil, errors.New("the cluster's namespaces are not known yet: the API server has not answered")
	}
	p, err := s.cfg.API.Pod(ctx, sb.Namespace, sb.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("the API server knows no pod %s/%s", sb.Namespace, sb.Name)
	case err != nil:
		return nil, fmt.Errorf("ask the API server for the pod: %w", err)
	case sb.UID != "" && string(p.UID) != sb.UID:
		return nil, fmt.Errorf("the pod's UID is %s, the runtime starts %s", p.UID, sb.UID)
	}
	return p, nil
}
