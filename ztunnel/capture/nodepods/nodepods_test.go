package nodepods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	watchapi "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// fakeCapture captures what wants to be.
type fakeCapture struct {
	mu      sync.Mutex
	pods    map[string]podsock.Pod
	fail    error
	problem string // set before use
	removed []string
}

func (c *fakeCapture) Set(_ context.Context, p *podsock.Pod) (podsock.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.pods[p.UID]
	n := *p
	if n.Netns == "" {
		n.Netns = old.Netns
	}
	c.pods[p.UID] = n
	if !p.WantsMesh() || p.HostNetwork {
		return podsock.Result{Result: podsock.Skipped, Problem: c.problem}, nil
	}
	return podsock.Result{Result: podsock.Captured, Problem: c.problem}, c.fail
}

func (c *fakeCapture) Remove(_ context.Context, uid string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, uid)
	c.removed = append(c.removed, uid)
	return nil
}

func (c *fakeCapture) List() (out []podsock.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid, p := range c.pods {
		out = append(out, podsock.State{UID: uid, Netns: p.Netns, Namespace: p.Namespace, Name: p.Name})
	}
	return out
}

func (c *fakeCapture) get(uid string) (podsock.Pod, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pods[uid]
	return p, ok
}

func (c *fakeCapture) failWith(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

// fakeAPI is the API of client-go's fake.
type fakeAPI struct{ c *fake.Clientset }

func (a fakeAPI) Pods(node string) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return a.c.CoreV1().Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watchapi.Interface, error) {
			return a.c.CoreV1().Pods("").Watch(ctx, o)
		},
	}, a.c)
}

func (a fakeAPI) Namespaces() cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return a.c.CoreV1().Namespaces().List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watchapi.Interface, error) {
			return a.c.CoreV1().Namespaces().Watch(ctx, o)
		},
	}, a.c)
}

func (a fakeAPI) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return a.c.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (a fakeAPI) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	_, err := a.c.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func (a fakeAPI) Event(ctx context.Context, e *corev1.Event) error {
	e.Name = e.GenerateName + e.Reason // the fake does not generate names
	_, err := a.c.CoreV1().Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
	return err
}

// world is a Source on a fake API server.
type world struct {
	*Source
	t       *testing.T
	client  *fake.Clientset
	capture *fakeCapture
	memory  string
	found   error
	lines   lines
}

// lines is a log that is read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t *testing.T, c *fakeCapture, pods ...*corev1.Pod) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewClientset(), capture: c, memory: filepath.Join(t.TempDir(), podsock.MemoryFile)}
	for name, l := range map[string]map[string]string{
		"shop": {"istio.io/dataplane-mode": "ambient"}, "plain": nil,
	} {
		w.must(w.client.Tracker().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}}))
	}
	for _, p := range pods {
		w.must(w.client.Tracker().Add(p))
	}
	w.Source = New(Config{
		API: fakeAPI{w.client}, Logger: slog.New(slog.NewTextHandler(&w.lines, nil)), Node: "n1", Self: "uid-self", Memory: w.memory,
		Find: func(r Running) (string, error) { return "/proc/7/ns/net", w.found },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// annotated waits until the annotation of a pod has a value.
func (w *world) annotated(namespace, name, want string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("annotation %q of %s/%s", want, namespace, name), func() bool {
		p, err := w.client.CoreV1().Pods(namespace).Get(w.t.Context(), name, metav1.GetOptions{})
		return err == nil && p.Annotations[annotation] == want
	})
}

// event waits for an event on a pod and returns what it says.
func (w *world) event(namespace, name, reason string) (text string) {
	w.t.Helper()
	w.eventually("event "+reason, func() bool {
		list, err := w.client.CoreV1().Events(namespace).List(w.t.Context(), metav1.ListOptions{})
		w.must(err)
		i := slices.IndexFunc(list.Items, func(e corev1.Event) bool { return e.InvolvedObject.Name == name && e.Reason == reason })
		if i >= 0 {
			text = list.Items[i].Message
		}
		return i >= 0
	})
	return text
}

func (w *world) update(p *corev1.Pod) {
	w.t.Helper()
	_, err := w.client.CoreV1().Pods(p.Namespace).Update(w.t.Context(), p, metav1.UpdateOptions{})
	w.must(err)
}

func pod(namespace, name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}},
			ContainerStatuses: []corev1.ContainerStatus{{ContainerID: "containerd://abc"}},
		},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func newCapture() *fakeCapture { return &fakeCapture{pods: map[string]podsock.Pod{}} }

func TestAPodThatRanBeforeTheMeshIsFoundAndCaptured(t *testing.T) {
	w := newWorld(t, newCapture(), pod("shop", "a"), pod("plain", "b"))
	w.annotated("shop", "a", enabled)
	got, _ := w.capture.get("uid-a")
	if got.Netns != "/proc/7/ns/net" || len(got.Addresses) != 2 || got.ServiceAccount != "sa" || got.NamespaceLabels["istio.io/dataplane-mode"] != "ambient" {
		t.Errorf("capture was told %+v", got)
	}
	if n := w.Late(); n != 1 {
		t.Errorf("%d pods ran before the mesh, want 1", n)
	}
	w.event("shop", "a", "StartedBeforeCapture")
	w.eventually("the pod outside", func() bool { p, ok := w.capture.get("uid-b"); return ok && p.Netns == "" })
	w.annotated("plain", "b", "")
}

func TestLabelsChangeWhetherAPodIsInTheMesh(t *testing.T) {
	w := newWorld(t, newCapture(), pod("plain", "b"))
	in := pod("plain", "b", func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"} })
	w.update(in)
	w.annotated("plain", "b", enabled)
	w.update(pod("plain", "b", func(p *corev1.Pod) { p.Annotations = map[string]string{annotation: enabled} }))
	w.annotated("plain", "b", "")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "plain", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}}
	_, err := w.client.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{})
	w.must(err)
	w.annotated("plain", "b", enabled)
}

func TestAPodThatCannotBeCapturedIsMarkedAndTriedAgain(t *testing.T) {
	c := newCapture()
	c.fail = errors.New("no room for listeners")
	w := newWorld(t, c, pod("shop", "a"))
	w.annotated("shop", "a", pending)
	if text := w.event("shop", "a", "CaptureFailed"); !strings.Contains(text, "no room for listeners") {
		t.Errorf("the event says %q", text)
	}
	c.failWith(nil)
	w.annotated("shop", "a", enabled)
}

// TestAnAnnotationThatCannotBeWrittenIsInTheLog: nobody would know why other nodes take the pod for one outside the mesh.
func TestAnAnnotationThatCannotBeWrittenIsInTheLog(t *testing.T) {
	w := newWorld(t, newCapture(), pod("shop", "a"))
	w.annotated("shop", "a", enabled)
	w.client.PrependReactor("patch", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("cannot patch resource pods/status")
	})
	w.update(pod("shop", "a", func(p *corev1.Pod) {
		p.Labels, p.Annotations = map[string]string{"istio.io/dataplane-mode": "none"}, map[string]string{annotation: enabled}
	}))
	w.eventually("the line", func() bool {
		return strings.Contains(w.lines.String(), `level=WARN msg="pod is tried again" pod=shop/a err="annotate pod shop/a: cannot patch resource pods/status"`)
	})
}

func TestASettingThatIsIgnoredIsAnEvent(t *testing.T) {
	c := newCapture()
	c.problem = "annotation x makes no sense"
	w := newWorld(t, c, pod("shop", "a"), pod("plain", "b"))
	w.event("shop", "a", "MeshSettingIgnored")
	w.event("plain", "b", "MeshSettingIgnored")
	w.annotated("shop", "a", enabled)
	w.annotated("plain", "b", "")
}

func TestPodsThatEndedAreForgotten(t *testing.T) {
	c := newCapture()
	c.pods["uid-old"] = podsock.Pod{UID: "uid-old", Namespace: "shop", Name: "old"} // recovered, and deleted meanwhile
	w := newWorld(t, c, pod("shop", "a"), pod("shop", "b"))
	w.annotated("shop", "b", enabled)
	w.update(pod("shop", "a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
	w.must(w.client.CoreV1().Pods("shop").Delete(t.Context(), "b", metav1.DeleteOptions{}))
	w.eventually("the end of all", func() bool { return len(c.List()) == 0 })
}

func TestAPodThatIsBeingStartedIsLeftToTheCNIPlugin(t *testing.T) {
	w := newWorld(t, newCapture())
	done := make(chan podsock.Pod)
	go func() {
		p, err := w.Resolve(t.Context(), podsock.Sandbox{
			UID: "uid-new", Namespace: "shop", Name: "new", Netns: "/run/netns/x", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")},
		})
		if err != nil {
			t.Error(err)
		}
		done <- p
	}()
	starting := pod("shop", "new", func(p *corev1.Pod) {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending}
		p.Labels = map[string]string{"app": "x"}
	})
	_, err := w.client.CoreV1().Pods("shop").Create(t.Context(), starting, metav1.CreateOptions{})
	w.must(err)
	p := <-done
	if p.Netns != "/run/netns/x" || p.Labels["app"] != "x" || p.Addresses[0].String() != "10.1.0.9" || !p.WantsMesh() {
		t.Errorf("%+v", p)
	}
	if _, told := w.capture.get("uid-new"); told {
		t.Error("capture was told before the plugin asked")
	}
	_, err = w.capture.Set(t.Context(), &p)
	w.must(err)
	w.Admitted(p)
	w.annotated("shop", "new", enabled)
	if n := w.Late(); n != 0 {
		t.Errorf("%d pods ran before the mesh", n)
	}
}

func TestASandboxOfAnotherPodOfTheSameNameIsRefused(t *testing.T) {
	w := newWorld(t, newCapture(), pod("shop", "a"))
	for _, tc := range []struct {
		sb   podsock.Sandbox
		want string
	}{
		{podsock.Sandbox{UID: "uid-other", Namespace: "shop", Name: "a"}, "the pod's UID is uid-a, the runtime starts uid-other"},
		{podsock.Sandbox{UID: "uid-x", Namespace: "shop", Name: "x"}, "knows no pod shop/x"},
	} {
		w.eventually(tc.want, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := w.Resolve(ctx, tc.sb)
			return err != nil && strings.Contains(err.Error(), tc.want)
		})
	}
}

func TestWhatIsKnownOfNamespacesIsLeftForThePlugin(t *testing.T) {
	w := newWorld(t, newCapture(), pod("plain", "b"))
	w.eventually("the file", func() bool {
		m := podsock.ReadMemory(w.memory)
		return m.Namespaces["shop"] == podsock.ModeAmbient && m.Namespaces["plain"] == podsock.ModeOutside
	})
	w.update(pod("plain", "b", func(p *corev1.Pod) { p.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"} }))
	w.eventually("the pod's own label in it", func() bool { return podsock.ReadMemory(w.memory).Namespaces["plain"] == podsock.ModeMixed })
}

// TestTheMeshLeavesTheNodeOfWhosePodThatIsAsked: the annotation counts on the agent's own pod, and on no other.
func TestTheMeshLeavesTheNodeOfWhosePodThatIsAsked(t *testing.T) {
	ask := func(wish string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{AnnotationLeave: wish} }
	}
	w := newWorld(t, newCapture(), pod("shop", "a"), pod("plain", "other", ask(LeaveNow)), pod("plain", "self"))
	w.annotated("shop", "a", enabled)
	w.eventually("the pods to be looked at", func() bool { _, ok := w.capture.get("uid-other"); return ok })
	select {
	case <-w.Leaving():
		t.Fatal("another pod was asked")
	default:
	}
	for _, s := range []struct{ asked, want string }{{LeavePrepare, LeavePrepare}, {"", ""}, {LeavePrepare, LeavePrepare}, {LeaveNow, LeaveNow}} {
		w.update(pod("plain", "self", ask(s.asked)))
		w.eventually("the wish to be seen", func() bool {
			select {
			case <-w.Leaving():
				return w.Leave() == s.want
			default:
				return false
			}
		})
	}
	w.update(pod("plain", "self", ask(LeavePrepare)))
	before, _ := w.capture.get("uid-a")
	w.Withdraw()
	if w.Leave() != LeaveNow {
		t.Error("it was taken back")
	}
	w.annotated("shop", "a", "")
	if after, _ := w.capture.get("uid-a"); len(after.Annotations) != len(before.Annotations) {
		t.Error("capture was told of the pod before the other nodes could know")
	}
	w.Release()
	w.annotated("shop", "a", enabled) // the fake does not leave
	w.must(w.TellLeft(t.Context(), "3"))
	p, err := w.client.CoreV1().Pods("plain").Get(t.Context(), "self", metav1.GetOptions{})
	w.must(err)
	if p.Annotations[AnnotationLeft] != "3" {
		t.Errorf("%v", p.Annotations)
	}
}
