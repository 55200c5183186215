package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// clusterSource asks a cluster by its API server.
type clusterSource struct {
	cfg       *rest.Config
	clients   *kubernetes.Clientset
	dynamic   dynamic.Interface
	system    string
	resources map[schema.GroupVersion]*metav1.APIResourceList
}

func openCluster(f *kubeFlags, system string) (*clusterSource, string, error) {
	cfg, namespace, err := f.config()
	if err != nil {
		return nil, "", err
	}
	s := &clusterSource{cfg: cfg, system: system, resources: map[schema.GroupVersion]*metav1.APIResourceList{}}
	if s.clients, err = kubernetes.NewForConfig(cfg); err == nil {
		s.dynamic, err = dynamic.NewForConfig(cfg)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return s, namespace, nil
}

// reached marks an error that did not come from an API server.
func reached(err error) error {
	var answer apierrors.APIStatus
	if err == nil || errors.As(err, &answer) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// resource finds under which name a kind is served; false when it is not.
func (s *clusterSource) resource(kind kube.Kind) (schema.GroupVersionResource, bool, error) {
	group, versions := kind.Versions()
	for _, v := range versions {
		gv := schema.GroupVersion{Group: group, Version: v}
		if s.resources[gv] == nil {
			list, err := s.clients.Discovery().ServerResourcesForGroupVersion(gv.String())
			if err != nil && !apierrors.IsNotFound(err) {
				return schema.GroupVersionResource{}, false, reached(err)
			}
			if list == nil {
				list = &metav1.APIResourceList{}
			}
			s.resources[gv] = list
		}
		for _, r := range s.resources[gv].APIResources {
			if r.Kind == string(kind) && !strings.Contains(r.Name, "/") {
				return gv.WithResource(r.Name), true, nil
			}
		}
	}
	return schema.GroupVersionResource{}, false, nil
}

func (s *clusterSource) world(ctx context.Context) (*diagnose.World, error) {
	w := &diagnose.World{System: s.system, Version: version}
	var err error
	if w.KubeVersion, w.ServerTime, err = s.server(ctx); err != nil {
		return nil, err
	}
	w.Now = time.Now()
	var objects []kube.Object
	for _, kind := range kube.Kinds() {
		if kind == kube.KindReplicaSet || kind == kube.KindServiceAccount {
			continue
		}
		gvr, ok, err := s.resource(kind)
		if err != nil {
			return nil, err
		}
		if !ok {
			w.Missing = append(w.Missing, kind)
			continue
		}
		list, problems, err := s.list(ctx, gvr)
		if err != nil {
			if apierrors.IsForbidden(err) {
				w.Unread = append(w.Unread, err.Error())
				continue
			}
			return nil, reached(err)
		}
		objects, w.Problems = append(objects, list...), append(w.Problems, problems...)
	}
	w.Objects = kube.NewObjects(objects...)
	for p := range kube.List[*corev1.Pod](w.Objects) {
		if x, ok := programOf(p); ok {
			w.Proxies = append(w.Proxies, x)
		}
	}
	slices.SortFunc(w.Proxies, func(a, b diagnose.Proxy) int { return strings.Compare(a.String(), b.String()) })
	policies, err := s.clients.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err == nil {
		w.NetworkPolicies = policies.Items
	} else if w.Unread = append(w.Unread, err.Error()); !apierrors.IsForbidden(err) {
		return nil, reached(err)
	}
	return w, nil
}

// server asks the API server for its version, and its clock.
func (s *clusterSource) server(ctx context.Context) (string, time.Time, error) {
	client, err := rest.HTTPClientFor(s.cfg)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	host, _, err := rest.DefaultServerUrlFor(s.cfg)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host.JoinPath("version").String(), nil)
	if err != nil {
		return "", time.Time{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer resp.Body.Close()
	var v struct{ GitVersion string }
	_ = json.NewDecoder(resp.Body).Decode(&v) // who may not ask gets no version
	now, _ := http.ParseTime(resp.Header.Get("Date"))
	return v.GitVersion, now, nil
}

func (s *clusterSource) list(ctx context.Context, gvr schema.GroupVersionResource) (out []kube.Object, problems []kube.Problem, err error) {
	o := metav1.ListOptions{Limit: 500}
	for {
		page, err := s.dynamic.Resource(gvr).List(ctx, o)
		if err != nil {
			return nil, nil, err
		}
		for i := range page.Items {
			u := &page.Items[i]
			u.SetManagedFields(nil)
			body, err := u.MarshalJSON()
			if err != nil {
				return nil, nil, fmt.Errorf("encode object: %w", err)
			}
			obj, found := kube.DecodeStored(body)
			problems = append(problems, found...)
			if obj != nil {
				out = append(out, obj)
			}
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return out, problems, nil
		}
	}
}

// admin forwards a port to the pod, through the API server.
func (s *clusterSource) admin(ctx context.Context, p *diagnose.Proxy, method, path string) ([]byte, error) {
	t, upgrader, err := spdy.RoundTripperFor(s.cfg)
	if err != nil {
		return nil, err
	}
	url := s.clients.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward").URL()
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: t}, http.MethodPost, url),
		[]string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", portOf(p))}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	defer func() { close(stop) }()
	select {
	case err := <-ended:
		return nil, fmt.Errorf("forward a port to pod %s/%s: %w", p.Namespace, p.Name, err)
	case <-ctx.Done():
		return nil, fmt.Errorf("forward a port to pod %s/%s: %w", p.Namespace, p.Name, ctx.Err())
	case <-ready:
	}
	local, err := f.GetPorts()
	if err != nil {
		return nil, err
	}
	return exchange(ctx, &http.Transport{DisableKeepAlives: true}, method, fmt.Sprintf("http://127.0.0.1:%d%s", local[0].Local, path))
}

func (s *clusterSource) logs(ctx context.Context, w io.Writer, p *diagnose.Proxy, o logOptions) error {
	if p.Role == diagnose.Ztunnel && o.part == "" {
		o.part = "proxy"
	}
	q := &corev1.PodLogOptions{Container: o.part, Follow: o.follow}
	if o.tail >= 0 {
		q.TailLines = &o.tail
	}
	cfg := rest.CopyConfig(s.cfg)
	cfg.Timeout = 0 // a log that is followed has no end
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	body, err := clients.CoreV1().Pods(p.Namespace).GetLogs(p.Name, q).Stream(ctx)
	if err != nil {
		return reached(err)
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// of is where objects of a kind and a namespace are.
func (s *clusterSource) of(k kube.Key) (dynamic.ResourceInterface, error) {
	gvr, ok, err := s.resource(k.Kind)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("the cluster does not know the kind %s", k.Kind)
	case k.Namespace == "":
		return s.dynamic.Resource(gvr), nil
	}
	return s.dynamic.Resource(gvr).Namespace(k.Namespace), nil
}

func (s *clusterSource) label(ctx context.Context, k kube.Key, l label, dry bool) error {
	r, err := s.of(k)
	if err != nil {
		return err
	}
	var to any
	if l.value != "" {
		to = l.value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{l.name: to}}})
	if err != nil {
		return err
	}
	_, err = r.Patch(ctx, k.Name.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "ambit", DryRun: dryRunOf(dry)})
	return reached(err)
}

func (s *clusterSource) apply(ctx context.Context, o kube.Object, dry bool) error {
	r, err := s.of(kube.KeyOf(o))
	if err != nil {
		return err
	}
	body, err := plain(o)
	if err != nil {
		return err
	}
	_, err = r.Apply(ctx, o.GetName(), &unstructured.Unstructured{Object: body}, metav1.ApplyOptions{FieldManager: "ambit", Force: true, DryRun: dryRunOf(dry)})
	return reached(err)
}

func (s *clusterSource) remove(ctx context.Context, k kube.Key, dry bool) error {
	r, err := s.of(k)
	if err != nil {
		return err
	}
	return reached(r.Delete(ctx, k.Name.Name, metav1.DeleteOptions{DryRun: dryRunOf(dry)}))
}

func dryRunOf(dry bool) []string {
	if dry {
		return []string{metav1.DryRunAll}
	}
	return nil
}
