package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ktesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

// versioned makes the fake number the versions of Secrets and Leases and refuse writes to an old one, as an API server.
func versioned(s *fakeServer) {
	last := 0
	for _, verb := range []string{"create", "update"} {
		s.PrependReactor(verb, "*", func(a ktesting.Action) (bool, runtime.Object, error) {
			o := a.(ktesting.CreateAction).GetObject().(metav1.Object)
			if r := a.GetResource().Resource; r != "secrets" && r != "leases" {
				return false, nil, nil
			}
			if verb == "update" {
				have, err := s.Tracker().Get(a.GetResource(), o.GetNamespace(), o.GetName())
				if err == nil && have.(metav1.Object).GetResourceVersion() != o.GetResourceVersion() {
					return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), o.GetName(), errors.New("changed"))
				}
			}
			last++
			o.SetResourceVersion(fmt.Sprint(last))
			return false, nil, nil
		})
	}
}

func open(t *testing.T, s *fakeServer) *ca.Authority {
	t.Helper()
	a, err := ca.OpenAuthority(t.Context(), ca.AuthorityConfig{Vault: NewVault(s.client(), "istio-system"), TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// running runs an authority for a while of a synctest bubble.
func running(t *testing.T, a *ca.Authority) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestReplicasShareOneRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t)
		versioned(s)
		// Whoever looks for the secret first sees none: all make a root, and one wins.
		var group sync.WaitGroup
		authorities := make([]*ca.Authority, 5)
		for i := range authorities {
			group.Go(func() { authorities[i] = open(t, s) })
		}
		group.Wait()
		for _, a := range authorities {
			if !bytes.Equal(a.RootPEM(), authorities[0].RootPEM()) {
				t.Fatal("replicas have different roots")
			}
			running(t, a)
		}
		u, err := s.Resource(secrets).Namespace("istio-system").Get(t.Context(), ownSecret, metav1.GetOptions{})
		if err != nil || u.Object["type"] != ownType || at(u.Object, "data")[certFileName] == nil || at(u.Object, "data")["root-cert.pem"] == nil {
			t.Errorf("secret: %v, %v", u, err)
		}

		if err := authorities[1].Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		for _, a := range authorities {
			if n := bytes.Count(a.RootPEM(), []byte("BEGIN")); n != 2 || !bytes.Equal(a.RootPEM(), authorities[1].RootPEM()) {
				t.Errorf("a replica publishes %d roots during a rotation, want the same 2", n)
			}
			if err := a.Rotate(t.Context()); !errors.Is(err, ca.ErrRotating) {
				t.Errorf("a second rotation: %v", err)
			}
		}

		s.remove(t, secrets, "istio-system", ownSecret)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if a := open(t, s); !bytes.Equal(a.RootPEM(), authorities[0].RootPEM()) {
			t.Error("a secret that somebody deleted came back with another root")
		}
	})
}

const certFileName = "ca-cert.pem"

// racing is a vault in which somebody else is faster once.
type racing struct {
	*Vault
	other func()
}

func (r *racing) Save(ctx context.Context, files map[string][]byte, version string) (string, error) {
	if f := r.other; f != nil {
		r.other = nil
		f()
	}
	return r.Vault.Save(ctx, files, version)
}

func TestARaceForTheFirstRootIsDecidedByTheConflict(t *testing.T) {
	s := newFake(t)
	versioned(s)
	var other *ca.Authority
	v := &racing{Vault: NewVault(s.client(), "istio-system"), other: func() { other = open(t, s) }}
	a, err := ca.OpenAuthority(t.Context(), ca.AuthorityConfig{Vault: v, TrustDomain: "cluster.local"})
	if err != nil || !bytes.Equal(a.RootPEM(), other.RootPEM()) {
		t.Errorf("two roots: %v", err)
	}
}

func TestAGivenAuthorityIsUsed(t *testing.T) {
	dir := t.TempDir()
	given, err := ca.OpenAuthority(t.Context(), ca.AuthorityConfig{Dir: dir, TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	s := newFake(t)
	versioned(s)
	v := NewVault(s.client(), "istio-system")
	files := map[string][]byte{}
	for _, name := range []string{certFileName, "ca-key.pem", "root-cert.pem", "cert-chain.pem"} {
		files[name] = read(t, dir, name)
	}
	if _, err := v.Save(t.Context(), files, ""); err != nil {
		t.Fatal(err)
	}
	u, err := s.Resource(secrets).Namespace("istio-system").Get(t.Context(), ownSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	u.SetName(givenSecret)
	if _, err := s.Resource(secrets).Namespace("istio-system").Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a := open(t, s)
	if phase, _ := a.Phase(); phase != "plugged" || !bytes.Equal(a.RootPEM(), given.RootPEM()) {
		t.Errorf("phase %s", phase)
	}
	if err := a.Rotate(t.Context()); !errors.Is(err, ca.ErrPlugged) {
		t.Errorf("rotation: %v", err)
	}
}

func TestEveryNamespaceHasTheRoot(t *testing.T) {
	s := newFake(t)
	c := s.client()
	objects := func(manifests string) *kube.Objects {
		list, problems := kube.Decode("x", []byte(manifests))
		for _, p := range problems {
			t.Fatal(p.Error())
		}
		return kube.NewObjects(list...)
	}
	root := func(ns string) string {
		u, err := s.Resource(configMaps).Namespace(ns).Get(t.Context(), rootMap, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(at(u.Object, "data")[rootKey])
	}
	namespaces := "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n---\n" +
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: going, deletionTimestamp: '2026-01-01T00:00:00Z'}\n---\n"
	if err := c.PublishRoot(t.Context(), objects(namespaces), []byte("one")); err != nil {
		t.Fatal(err)
	}
	expect(t, "a", root("a"), "one")
	expect(t, "b", root("b"), "one")
	expect(t, "a namespace that goes", strings.Contains(root("going"), "not found"), true)

	s.ClearActions()
	known := namespaces + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: a}\ndata: {root-cert.pem: one}\n---\n" +
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: b}\ndata: {root-cert.pem: changed}\n"
	if err := c.PublishRoot(t.Context(), objects(known), []byte("one")); err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Actions() {
		if a.GetNamespace() != "b" {
			t.Errorf("%s in namespace %q, where nothing differs", a.GetVerb(), a.GetNamespace())
		}
	}
	if err := c.PublishRoot(t.Context(), objects(known), []byte("two")); err != nil {
		t.Fatal(err)
	}
	expect(t, "a after a rotation", root("a"), "two")
}

func TestProblemsBecomeEvents(t *testing.T) {
	s := newFake(t, strict)
	s.serve(peerAuthentications, "PeerAuthentication")
	e := NewEvents(s.client())
	p := kube.Problem{Object: kube.Key{Kind: kube.KindPeerAuthentication, Name: kube.Name{Namespace: "shop", Name: "strict"}}, Field: "spec.x", Cause: "bad"}
	gone := p
	gone.Object.Name.Name = "gone"
	for range 2 {
		if err := e.Report(t.Context(), []kube.Problem{p, gone, {Cause: "about no object"}}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Resource(events).Namespace("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("got %v, %v", list, err)
	}
	got := list.Items[0].Object
	expect(t, "message", got["message"], any("spec.x: bad"))
	expect(t, "reason", got["reason"], any("MeshRejected"))
	expect(t, "object", at(got, "involvedObject")["kind"], any("PeerAuthentication"))
}

// leader says which replicas lead.
type leader struct {
	mu  sync.Mutex
	now map[string]int
	max int
}

func (l *leader) lead(name string) func(context.Context) {
	return func(ctx context.Context) {
		l.mu.Lock()
		l.now[name]++
		l.max = max(l.max, len(l.now))
		l.mu.Unlock()
		<-ctx.Done()
		l.mu.Lock()
		delete(l.now, name)
		l.mu.Unlock()
	}
}

func (l *leader) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.now)
}

func TestOneReplicaLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t)
		versioned(s)
		l := &leader{now: map[string]int{}}
		replica := func(name string) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- NewLease(s.client(), "istio-system", "x", name, nil).Lead(ctx, l.lead(name))
			}()
			return func() { cancel(); <-done }
		}
		stopA := replica("a")
		time.Sleep(time.Second)
		stopB := replica("b")
		time.Sleep(time.Minute)
		expect(t, "leaders", l.String(), "map[a:1]")
		stopA()
		time.Sleep(3 * time.Second)
		expect(t, "after the leader gave the lease back", l.String(), "map[b:1]")

		// The leader cannot write any more: it stops before another may lead.
		var cut bool
		var mu sync.Mutex
		s.PrependReactor("update", "leases", func(a ktesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			o := a.(ktesting.UpdateAction).GetObject().(runtime.Unstructured).UnstructuredContent()
			if cut && at(o, "spec")["holderIdentity"] != "c" {
				return true, nil, errors.New("no route")
			}
			return false, nil, nil
		})
		stopC := replica("c")
		time.Sleep(10 * time.Second)
		expect(t, "leaders before the cut", l.String(), "map[b:1]")
		mu.Lock()
		cut = true
		mu.Unlock()
		time.Sleep(13 * time.Second)
		expect(t, "leaders when the lease has not run out yet", l.String(), "map[]")
		time.Sleep(10 * time.Second)
		expect(t, "leaders when it has", l.String(), "map[c:1]")
		stopB()
		stopC()
		expect(t, "leaders at once, ever", l.max, 1)
	})
}

func TestStatusesAreWrittenOnce(t *testing.T) {
	const theirs = "2026-01-01T00:00:00Z"
	gateways := schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	services := schema.GroupVersionResource{Version: "v1", Resource: "services"}
	s := newFake(t, `{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, status: {conditions: [{type: other, status: "True", lastTransitionTime: "`+theirs+`"}]}}`,
		`{apiVersion: v1, kind: Service, metadata: {name: old, namespace: shop}, status: {conditions: [{type: istio.io/WaypointBound, status: "True", reason: WaypointAccepted}]}}`,
		`{apiVersion: v1, kind: Service, metadata: {name: foreign, namespace: shop}, status: {conditions: [{type: Programmed, status: "True", reason: Theirs}]}}`)
	s.create(t, gateways, `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: ingress, namespace: shop}, status: {conditions: [{type: Programmed, status: "True", reason: Theirs}]}}`)
	s.create(t, gateways, `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop}}`)
	s.serve(gateways, "Gateway")
	condition := func(kind, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason}
	}
	web := status.Status{Object: kube.Key{Kind: kube.KindService, Name: kube.Name{Namespace: "shop", Name: "web"}}, Conditions: []metav1.Condition{condition("istio.io/WaypointBound", "WaypointAccepted")}}
	wp := status.Status{
		Object:     kube.Key{Kind: kube.KindGateway, Name: kube.Name{Namespace: "shop", Name: "wp"}},
		Conditions: []metav1.Condition{condition("Programmed", "Programmed")},
		Addresses:  []gatewayv1.GatewayStatusAddress{{Type: new(gatewayv1.HostnameAddressType), Value: "wp.shop.svc.cluster.local"}},
	}
	w := NewStatuses(s.client())
	conditionsOf := func(gvr schema.GroupVersionResource, name string) string {
		u, err := s.Resource(gvr).Namespace("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, c := range list {
			c := c.(map[string]any)
			out = append(out, fmt.Sprint(c["type"], "=", c["status"], " ", c["reason"]))
		}
		if addresses, _, _ := unstructured.NestedSlice(u.Object, "status", "addresses"); len(addresses) > 0 {
			out = append(out, fmt.Sprint(addresses))
		}
		return strings.Join(out, ", ")
	}
	publish := func(want ...status.Status) {
		t.Helper()
		if err := w.PublishStatus(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	conflicts := 1
	s.PrependReactor("update", "gateways", func(ktesting.Action) (bool, runtime.Object, error) {
		if conflicts--; conflicts >= 0 {
			return true, nil, apierrors.NewConflict(gateways.GroupResource(), "wp", errors.New("changed"))
		}
		return false, nil, nil
	})
	publish(web, wp)
	const foreign = "Programmed=True Theirs"
	expect(t, "web", conditionsOf(services, "web"), "other=True <nil>, istio.io/WaypointBound=True WaypointAccepted")
	expect(t, "wp", conditionsOf(gateways, "wp"), "Programmed=True Programmed, [map[type:Hostname value:wp.shop.svc.cluster.local]]")
	expect(t, "a service that is bound no more", conditionsOf(services, "old"), "")
	expect(t, "somebody else's service", conditionsOf(services, "foreign"), foreign)
	expect(t, "somebody else's Gateway", conditionsOf(gateways, "ingress"), foreign)
	s.ClearActions()
	publish(web, wp)
	expect(t, "requests when nothing changed", len(s.Actions()), 0)
	w.now = func() time.Time { return time.Now().Add(2 * relistAfter) }
	publish(web, wp)
	writes := 0
	for _, a := range s.Actions() {
		if a.GetVerb() == "update" {
			writes++
		}
	}
	expect(t, "writes after listing again", writes, 0)
	publish()
	expect(t, "web at the end", conditionsOf(services, "web"), "other=True <nil>")
}

// TestAStatusThatAnObjectCannotHaveIsTold: an API server whose definition of a kind has no status says "not found", as it does of
// objects that are gone.
func TestAStatusThatAnObjectCannotHaveIsTold(t *testing.T) {
	entries := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	s := newFake(t)
	s.create(t, entries, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: vm, namespace: shop, labels: {istio.io/use-waypoint: gone}}}`)
	s.serve(entries, "WorkloadEntry")
	w := NewStatuses(s.client())
	publish := func(name string) error {
		return w.PublishStatus(t.Context(), []status.Status{{
			Object:     kube.Key{Kind: kube.KindWorkloadEntry, Name: kube.Name{Namespace: "shop", Name: name}},
			Conditions: []metav1.Condition{{Type: "istio.io/WaypointBound", Status: metav1.ConditionFalse, Reason: "WaypointIsNotReady"}},
		}})
	}
	w.listed = time.Now()
	w.served = map[kube.Kind]schema.GroupVersionResource{kube.KindWorkloadEntry: entries}
	w.have = map[kube.Key]status.Status{}
	without := true
	s.PrependReactor("update", "workloadentries", func(a ktesting.Action) (bool, runtime.Object, error) {
		if without && a.GetSubresource() == "status" {
			return true, nil, apierrors.NewNotFound(entries.GroupResource(), "vm")
		}
		return false, nil, nil
	})
	if err := publish("deleted"); err != nil {
		t.Errorf("an object that is gone: %v", err)
	}
	err := publish("vm")
	if err == nil || !strings.Contains(err.Error(), "write status of WorkloadEntry shop/vm") || !strings.Contains(err.Error(), "subresources.status") {
		t.Errorf("a definition without a status: %v", err)
	}
	s.ClearActions()
	if err := publish("vm"); err != nil || len(s.Actions()) > 0 {
		t.Errorf("again: %v, %d requests", err, len(s.Actions()))
	}
	without = false
	w.have = map[kube.Key]status.Status{} // as when they are listed again
	if err := publish("vm"); err != nil {
		t.Fatal(err)
	}
	u, err := s.Resource(entries).Namespace("shop").Get(t.Context(), "vm", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions"); len(list) != 1 {
		t.Errorf("conditions %v", list)
	}
}

func TestAWebhookGetsTheRoots(t *testing.T) {
	s := newFake(t, `{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: hook}, webhooks: [{name: a, clientConfig: {service: {name: x}}}, {name: b, clientConfig: {caBundle: b2xk}}]}`)
	for range 2 { // the second time there is nothing to do
		if err := s.client().PublishWebhook(t.Context(), "hook", []byte("roots")); err != nil {
			t.Fatal(err)
		}
	}
	have, err := s.Resource(webhooks).Get(t.Context(), "hook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, _, _ := unstructured.NestedSlice(have.Object, "webhooks")
	for _, w := range list {
		if got, _, _ := unstructured.NestedString(w.(map[string]any), "clientConfig", "caBundle"); got != "cm9vdHM=" {
			t.Errorf("got %v", w)
		}
	}
	if name, _, _ := unstructured.NestedString(list[0].(map[string]any), "clientConfig", "service", "name"); name != "x" {
		t.Errorf("the rest is another: %v", list[0])
	}
	if n := len(slices.DeleteFunc(s.Actions(), func(a ktesting.Action) bool { return a.GetVerb() != "update" })); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
	if err := s.client().PublishWebhook(t.Context(), "none", []byte("roots")); err != nil {
		t.Errorf("without a configuration: %v", err)
	}
}
