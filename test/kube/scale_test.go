package kube

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// size is that of a cluster of objects that nothing stands behind.
type size struct{ nodes, services, pods int }

const (
	scaleSpaces = 10
	// subscribers are clients of the control plane beside the two real node proxies.
	subscribers = 20
	// changesASecond is how many pods change.
	changesASecond = 100
)

// TestSoakScaleOnAnAPIServer fills the API server of the bed with nodes, services and pods that do not exist and changes pods.
// It is no part of the other tests on a cluster: make kube-scale. With AMBIT_SOAK=1 it has 10,000 pods.
func TestSoakScaleOnAnAPIServer(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	s, seconds := size{nodes: 50, services: 100, pods: 1000}, 5
	if os.Getenv("AMBIT_SOAK") != "" {
		s, seconds = size{nodes: 500, services: 1000, pods: 10000}, 30
	}
	var spaces []string
	for i := range scaleSpaces {
		spaces = append(spaces, fmt.Sprintf("km-scale-%d", i))
	}
	m := newMesh(t, spaces...)
	f := newFakes(t, m, s)
	empty := f.controlPlane(t)
	t.Logf("control plane before: %s", empty)
	began := time.Now()
	f.fill(t)
	written := time.Since(began)
	var subs []*subscriber
	for i := range subscribers {
		subs = append(subs, f.subscribe(t, i))
	}
	for i := range s.pods {
		eventuallyWithin(t, 3*time.Minute, "the clients to know all pods", func() error {
			if !subs[0].knows(f.uid(i)) {
				return fmt.Errorf("%s is not there", f.uid(i))
			}
			return nil
		})
	}
	f.quiet(t, subs)
	full := f.controlPlane(t)
	t.Logf("%d nodes, %d services, %d pods written in %.0f s; then %d clients got %d resources each; control plane: %s, %.1f s CPU since before",
		s.nodes, s.services, s.pods, written.Seconds(), len(subs)+2, subs[0].total().resources, full, full.cpu-empty.cpu)

	before := make([]received, len(subs))
	for i, sub := range subs {
		before[i] = sub.mark()
	}
	changes := changesASecond * seconds
	took := f.change(t, changes)
	var times, ours []time.Duration // since the write began, and since the API server had it
	for i := range changes {
		last := time.Time{}
		for _, sub := range subs {
			eventuallyWithin(t, 2*time.Minute, "the ACK of a change", func() error {
				at := sub.ack(f.uid(i))
				if at.IsZero() {
					return fmt.Errorf("none of %s", f.uid(i))
				}
				if at.After(last) {
					last = at
				}
				return nil
			})
		}
		times, ours = append(times, last.Sub(f.began[i])), append(ours, last.Sub(f.written[i]))
	}
	f.quiet(t, subs)
	after := f.controlPlane(t)
	slices.Sort(times)
	slices.Sort(ours)
	t.Logf("from the API server's answer to the last ACK: median %v, p99 %v", ours[changes/2].Round(time.Millisecond), ours[changes*99/100].Round(time.Millisecond))
	t.Logf("%d changes in %.1f s (%.0f a second), from before the write to the API server to the last ACK of %d clients: median %v, p99 %v, longest %v; control plane: %s, %.2f s CPU",
		changes, took.Seconds(), float64(changes)/took.Seconds(), len(subs), times[changes/2].Round(time.Millisecond), times[changes*99/100].Round(time.Millisecond),
		times[changes-1].Round(time.Millisecond), after, after.cpu-full.cpu)
	for i, sub := range subs {
		now := sub.total()
		got := received{now.responses - before[i].responses, now.resources - before[i].resources, now.removed - before[i].removed}
		if i == 0 {
			t.Logf("each client got %d resources in %d responses", got.resources, got.responses)
		}
		// The bed's own pods may change meanwhile, a few.
		if got.resources < changes || got.resources > changes+50 || got.removed > 5 {
			t.Errorf("client %d got %+v for %d changes", i, got, changes)
		}
	}
}

// fakes are the objects, and what there is to be known of the control plane.
type fakes struct {
	size
	m       *meshWorld
	api     *kubernetes.Clientset
	pid     int    // of the control plane
	address string // of its pod
	roots   string
	began   []time.Time // of changes
	written []time.Time // when the API server had answered
}

func newFakes(t *testing.T, m *meshWorld, s size) *fakes {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = -1, 0 // as fast as the server can
	f := &fakes{size: s, m: m, roots: filepath.Join(t.TempDir(), "roots.pem")}
	if f.api, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	pod := must(t, "", "-n", m.system, "get", "pods", "-l", "app=ambit-controlplane", "-o", "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}")
	name, address, _ := strings.Cut(pod, " ")
	f.address, f.pid = address, processOf(t, m.system, name, "controlplane")
	root := must(t, "", "-n", m.system, "get", "configmap", "istio-ca-root-cert", "-o", `jsonpath={.data.root-cert\.pem}`)
	if err := os.WriteFile(f.roots, []byte(root), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// usage is what a process has used.
type usage struct {
	all, anonymous float64 // MB
	cpu            float64 // seconds
}

func (u usage) String() string {
	return fmt.Sprintf("%.0f MB (%.0f without files)", u.all, u.anonymous)
}

func (f *fakes) controlPlane(t *testing.T) usage {
	t.Helper()
	var u usage
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		name, rest, _ := strings.Cut(line, ":")
		_, _ = fmt.Sscan(rest, &kB)
		switch name {
		case "VmRSS":
			u.all = kB * 1024 / 1e6
		case "RssAnon":
			u.anonymous = kB * 1024 / 1e6
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var user, system float64
	_, _ = fmt.Sscan(fields[11], &user)
	_, _ = fmt.Sscan(fields[12], &system)
	u.cpu = (user + system) / 100
	return u
}

func (f *fakes) namespace(i int) string { return fmt.Sprintf("km-scale-%d", i%f.services%scaleSpaces) }
func (f *fakes) pod(i int) string       { return fmt.Sprintf("app-6d4cf56db6-%05d", i) }
func (f *fakes) uid(i int) string       { return "Kubernetes//Pod/" + f.namespace(i) + "/" + f.pod(i) }

// fill writes the objects. The controller manager, which would find that the nodes are dead, sleeps from then on to the
// end of the test.
func (f *fakes) fill(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for i := range scaleSpaces {
		name := fmt.Sprintf("km-scale-%d", i)
		apply(t, `{apiVersion: v1, kind: Namespace, metadata: {name: `+name+`, labels: {istio.io/dataplane-mode: ambient}}}`)
		eventually(t, "the namespace's account", func() error {
			_, err := f.api.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
			return err
		})
	}
	f.sleepController(t)
	meta := func(name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Labels: labels}
	}
	inParallel(t, f.nodes, func(i int) error {
		zone := map[string]string{corev1.LabelTopologyRegion: "region1", corev1.LabelTopologyZone: fmt.Sprintf("zone%d", i%3), "km-scale": ""}
		_, err := f.api.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: meta(fmt.Sprintf("fake-%d", i), zone),
			Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "km-scale", Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{})
		return err
	})
	inParallel(t, f.services, func(i int) error {
		app := map[string]string{"app": fmt.Sprintf("app-%d", i)}
		// The nodes' kube-proxies are not what is measured.
		_, err := f.api.CoreV1().Services(f.namespace(i)).Create(ctx, &corev1.Service{ObjectMeta: meta(fmt.Sprintf("svc-%d", i), map[string]string{"service.kubernetes.io/service-proxy-name": "none"}),
			Spec: corev1.ServiceSpec{Selector: app, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}, metav1.CreateOptions{})
		return err
	})
	inParallel(t, f.pods, func(i int) error {
		app := map[string]string{"app": fmt.Sprintf("app-%d", i%f.services), "version": "v1", "pod-template-hash": "6d4cf56db6"}
		no, grace := false, int64(0)
		p, err := f.api.CoreV1().Pods(f.namespace(i)).Create(ctx, &corev1.Pod{ObjectMeta: meta(f.pod(i), app),
			Spec: corev1.PodSpec{NodeName: fmt.Sprintf("fake-%d", i%f.nodes), AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
				Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, Containers: []corev1.Container{{Name: "app", Image: "none:1"}}}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		p.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: f.address4(i), PodIPs: []corev1.PodIP{{IP: f.address4(i)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		_, err = f.api.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{})
		return err
	})
	inParallel(t, f.services, func(i int) error {
		ready, port, protocol, name := true, int32(80), corev1.ProtocolTCP, "http"
		slice := &discoveryv1.EndpointSlice{ObjectMeta: meta(fmt.Sprintf("svc-%d-x", i), map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("svc-%d", i)}),
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}}}
		for p := i; p < f.pods; p += f.services {
			node := fmt.Sprintf("fake-%d", p%f.nodes)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{f.address4(p)}, NodeName: &node,
				Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: f.namespace(p), Name: f.pod(p)}})
		}
		_, err := f.api.DiscoveryV1().EndpointSlices(f.namespace(i)).Create(ctx, slice, metav1.CreateOptions{})
		return err
	})
}

func (f *fakes) address4(i int) string { return fmt.Sprintf("10.100.%d.%d", i/250, i%250+1) }

// sleepController stops the controller manager until the end, when it finds the objects deleted.
func (f *fakes) sleepController(t *testing.T) {
	t.Helper()
	var pid int
	text, err := os.ReadFile(filepath.Join(bedDir(), "run/kube-controller-manager.pid"))
	if err == nil {
		_, err = fmt.Sscan(string(text), &pid)
	}
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		now := int64(0)
		gone := metav1.DeleteOptions{GracePeriodSeconds: &now}
		var errs []error
		for i := range scaleSpaces {
			name := fmt.Sprintf("km-scale-%d", i)
			errs = append(errs, f.api.CoreV1().Pods(name).DeleteCollection(ctx, gone, metav1.ListOptions{}))
		}
		errs = append(errs, f.api.CoreV1().Pods(f.m.system).DeleteCollection(ctx, gone, metav1.ListOptions{LabelSelector: "km-scale"}))
		errs = append(errs, f.api.CoreV1().Nodes().DeleteCollection(ctx, gone, metav1.ListOptions{LabelSelector: "km-scale"}))
		errs = append(errs, syscall.Kill(pid, syscall.SIGCONT))
		for _, err := range errs {
			if err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
	})
}

// inParallel does things by number.
func inParallel(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	var next atomic.Int64
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && t.Context().Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					t.Errorf("object %d: %v", i, err)
					return
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// change makes pods not Ready, changesASecond of them, and returns how long it took.
func (f *fakes) change(t *testing.T, n int) time.Duration {
	t.Helper()
	f.began, f.written = make([]time.Time, n), make([]time.Time, n)
	patch := []byte(`{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}`)
	tick := time.NewTicker(time.Second / changesASecond)
	defer tick.Stop()
	var group sync.WaitGroup
	start := time.Now()
	for i := range n {
		<-tick.C
		group.Go(func() {
			f.began[i] = time.Now()
			if _, err := f.api.CoreV1().Pods(f.namespace(i)).Patch(t.Context(), f.pod(i), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
				t.Error(err)
			}
			f.written[i] = time.Now()
		})
	}
	group.Wait()
	return time.Since(start)
}

// quiet waits until the clients get nothing more.
func (f *fakes) quiet(t *testing.T, subs []*subscriber) {
	t.Helper()
	eventuallyWithin(t, 3*time.Minute, "the clients to have everything", func() error {
		before := received{}
		for _, sub := range subs {
			before.resources += sub.total().resources
		}
		time.Sleep(5 * time.Second)
		for _, sub := range subs {
			before.resources -= sub.total().resources
		}
		if before.resources != 0 {
			return fmt.Errorf("%d resources came meanwhile", -before.resources)
		}
		return nil
	})
}

// received is what a client got.
type received struct{ responses, resources, removed int }

// subscriber is a node proxy's xDS stream, which looks at what it gets as far as is needed here.
type subscriber struct {
	xds.Transport
	names

	sum   received             // guarded by mu
	news  map[string]string    // since mark: the response in which a resource came last; guarded by mu
	acked map[string]time.Time // responses; guarded by mu
}

// proxyToken is the token of a node proxy on one of the nodes, where there is nothing but its Pod.
func (f *fakes) proxyToken(t *testing.T, i int) string {
	t.Helper()
	no := false
	p, err := f.api.CoreV1().Pods(f.m.system).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("km-scale-%d", i), Labels: map[string]string{"km-scale": ""}},
		Spec: corev1.PodSpec{NodeName: fmt.Sprintf("fake-%d", i), ServiceAccountName: "ztunnel", AutomountServiceAccountToken: &no,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, Containers: []corev1.Container{{Name: "proxy", Image: "none:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.api.CoreV1().ServiceAccounts(f.m.system).CreateToken(t.Context(), "ztunnel", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{"istio-ca"}, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status.Token
}

// subscribe subscribes as a node proxy does, until the test ends, and returns when all is there.
func (f *fakes) subscribe(t *testing.T, i int) *subscriber {
	t.Helper()
	token := f.proxyToken(t, i)
	transport, err := xds.NewTransport(xds.TransportConfig{
		Address: "https://ambit-controlplane." + f.m.system + ".svc:15012", RootCA: f.roots, ClusterID: "Kubernetes",
		Token: func() (string, error) { return token, nil },
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(f.address, "15012"))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &subscriber{Transport: transport, names: names{have: map[string]bool{}}, news: map[string]string{}, acked: map[string]time.Time{}}
	c := xds.NewClient(xds.Config{Transport: s, Node: xds.Node{ID: fmt.Sprintf("ztunnel~10.0.0.%d~fake-%d.%s~%s.svc.cluster.local", i, i, f.m.system, f.m.system)}})
	decode := func(string, []byte) (struct{}, error) { return struct{}{}, nil }
	xds.Subscribe(c, xds.Type[struct{}]{URL: xds.AddressType, Decode: decode}, s, xds.Options{})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-c.Ready():
	case <-time.After(3 * time.Minute):
		t.Fatalf("client %d is not in sync", i)
	}
	return s
}

// Open implements xds.Transport.
func (s *subscriber) Open(ctx context.Context) (xds.Stream, error) {
	st, err := s.Transport.Open(ctx)
	return subscriberStream{st, s}, err
}

type subscriberStream struct {
	xds.Stream
	s *subscriber
}

// Recv implements xds.Stream.
func (st subscriberStream) Recv() (*discoverypb.DeltaDiscoveryResponse, error) {
	resp, err := st.Stream.Recv()
	if err != nil {
		return nil, err
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.s.sum.responses++
	st.s.sum.resources += len(resp.GetResources())
	st.s.sum.removed += len(resp.GetRemovedResources())
	for _, r := range resp.GetResources() {
		st.s.news[r.GetName()] = resp.GetNonce()
	}
	return resp, nil
}

// Send implements xds.Stream.
func (st subscriberStream) Send(req *discoverypb.DeltaDiscoveryRequest) error {
	err := st.Stream.Send(req)
	if nonce := req.GetResponseNonce(); nonce != "" && req.GetErrorDetail() == nil {
		st.s.mu.Lock()
		defer st.s.mu.Unlock()
		st.s.acked[nonce] = time.Now()
	}
	return err
}

// mark forgets what came so far, and returns how much it was.
func (s *subscriber) mark() received {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.news)
	return s.sum
}

func (s *subscriber) total() received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum
}

func (s *subscriber) knows(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have[name]
}

// ack is when the client acknowledged the last news of a resource; zero if it has not.
func (s *subscriber) ack(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked[s.news[name]]
}
