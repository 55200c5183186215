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
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// source is where a command finds a mesh: a cluster or a lab.
type source interface {
	// world lists the objects and the programs of the mesh, which are not asked yet.
	world(ctx context.Context) (*diagnose.World, error)
	// admin sends a request to a program's administration: method GET or POST, path with its query.
	admin(ctx context.Context, p *diagnose.Proxy, method, path string) ([]byte, error)
	// logs copies the log of a program of the mesh.
	logs(ctx context.Context, w io.Writer, p *diagnose.Proxy, o logOptions) error
	changer
}

// changer changes objects. With dry the API server checks the change and does not make it.
type changer interface {
	// label sets a label of an object, or takes it away if l.value is "".
	label(ctx context.Context, k kube.Key, l label, dry bool) error
	// apply creates or changes an object, remove deletes it.
	apply(ctx context.Context, o kube.Object, dry bool) error
	remove(ctx context.Context, k kube.Key, dry bool) error
}

// label is a label of an object.
type label struct{ name, value string }

// logOptions choose what of a log is copied.
type logOptions struct {
	part   string // container of a pod, or part of a lab's ztunnel; "" = the one that moves bytes
	follow bool
	tail   int64 // lines from the end; negative = all
}

// meshFlags are those of all commands that ask a mesh.
type meshFlags struct {
	kubeFlags
	lab    string
	system string
	all    bool
	output format
	watch  bool
	chosen selector
}

// register declares the flags of all commands.
func (f *meshFlags) register(c *cobra.Command) {
	f.kubeFlags.register(c)
	fs := c.PersistentFlags()
	fs.StringVar(&f.lab, "lab", "", "name of a lab on this machine to be asked instead of a cluster")
	fs.StringVar(&f.system, "system-namespace", "istio-system", "namespace of the mesh")
	fs.BoolVarP(&f.all, "all-namespaces", "A", false, "objects of all namespaces")
}

// registerOutput declares -o.
func (f *meshFlags) registerOutput(c *cobra.Command) {
	c.PersistentFlags().VarP(&f.output, "output", "o", "one of "+strings.Join(f.output.accepted(), ", "))
}

// registerWatch declares -w.
func (f *meshFlags) registerWatch(c *cobra.Command) {
	c.Flags().BoolVarP(&f.watch, "watch", "w", false, "go on, and print what changes")
}

// open finds the mesh. namespace is the one that was asked for, "" with -A.
func (f *meshFlags) open() (s source, namespace string, err error) {
	if f.lab != "" {
		s, err = openLab(f.lab)
		if namespace = f.namespace; namespace == "" {
			namespace = "default"
		}
	} else {
		s, namespace, err = openCluster(&f.kubeFlags, f.system)
	}
	if f.all {
		namespace = ""
	}
	return s, namespace, err
}

// registerSelector declares -l.
func (f *meshFlags) registerSelector(c *cobra.Command, what string) {
	c.PersistentFlags().VarP(&f.chosen, "selector", "l", what+" by their labels, as kubectl's: a=b,c!=d,e in (f,g),h")
}

// objectOrLabels is the check of the arguments of a command that takes OBJECT or -l.
func (f *meshFlags) objectOrLabels() cobra.PositionalArgs {
	return arguments(func(c *cobra.Command, args []string) error {
		if len(args) > 0 && f.chosen.Selector != nil {
			return errors.New("OBJECT and --selector; accepted: one of them")
		}
		for _, arg := range args {
			if ofControlPlane(arg) {
				continue
			}
			if _, _, err := object(arg); err != nil {
				return err
			}
		}
		return cobra.MaximumNArgs(1)(c, args)
	})
}

// selector is the value of -l; nil chooses everything.
type selector struct{ labels.Selector }

func (s *selector) String() string {
	if s.Selector == nil {
		return ""
	}
	return s.Selector.String()
}

// Type is the value's name in the help.
func (s *selector) Type() string { return "SELECTOR" }

// Set reads a selector of labels.
func (s *selector) Set(text string) error {
	x, err := labels.Parse(text)
	if err != nil {
		return fmt.Errorf("%w; accepted: a=b, a!=b, a in (b,c), a notin (b,c), a, !a, joined by commas", err)
	}
	if s.Selector = x; x.Empty() {
		s.Selector = nil
	}
	return nil
}

// ask fills in what the programs of the mesh that are ready say of themselves, all at a time.
func ask(ctx context.Context, s source, w *diagnose.World, roles ...string) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i := range w.Proxies {
		p := &w.Proxies[i]
		if !p.Ready || len(roles) > 0 && !slices.Contains(roles, p.Role) {
			continue
		}
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
			defer cancel()
			if err := askOne(ctx, s, p); err != nil {
				p.Error = err.Error()
			}
		})
	}
	wg.Wait()
}

func askOne(ctx context.Context, s source, p *diagnose.Proxy) error {
	if p.Role != diagnose.ControlPlane {
		err := askDump(ctx, s, p, "/config_dump")
		if err == nil && p.Dump.Envoy {
			err = askDump(ctx, s, p, "/config_dump?include_eds") // which it leaves out otherwise
		}
		return err
	}
	c := &diagnose.Control{}
	body, err := s.admin(ctx, p, http.MethodGet, "/debug/syncz")
	if err == nil {
		err = json.Unmarshal(body, &c.Clients)
	}
	if err != nil {
		return err
	}
	if body, err = s.admin(ctx, p, http.MethodGet, "/debug/ca"); err == nil {
		err = json.Unmarshal(body, c)
	}
	if body, verr := s.admin(ctx, p, http.MethodGet, "/version"); verr == nil { // older ones do not say
		err = errors.Join(err, json.Unmarshal(body, c))
	}
	p.Control = c
	return err
}

func askDump(ctx context.Context, s source, p *diagnose.Proxy, path string) error {
	body, err := s.admin(ctx, p, http.MethodGet, path)
	if err == nil {
		p.Dump, err = diagnose.ReadDump(body)
	}
	return err
}

// exchange makes one request over a connection that dial opens.
func exchange(ctx context.Context, t http.RoundTripper, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body[:min(len(body), 512)])))
	}
	return body, err
}

// object reads what a user typed: KIND/NAME, or NAME of a pod.
func object(arg string) (kube.Kind, string, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		kind, name = "pod", arg
	}
	for k, words := range kindWords {
		if slices.Contains(words, strings.ToLower(kind)) && name != "" {
			return k, name, nil
		}
	}
	return "", "", usageError{fmt.Errorf("object %q; accepted: [pod/]NAME, deploy/NAME, svc/NAME, ns/NAME, ztunnel/NODE, waypoint/NAME", arg)}
}

// Words for what is no kind of an object.
const (
	kindZtunnel  kube.Kind = "ztunnel"
	kindWaypoint kube.Kind = "waypoint"
)

var kindWords = map[kube.Kind][]string{
	kube.KindPod: {"pod", "pods", "po"}, kube.KindDeployment: {"deployment", "deployments", "deploy"},
	kube.KindService: {"service", "services", "svc"}, kube.KindNamespace: {"namespace", "namespaces", "ns"},
	kindZtunnel: {"ztunnel", "node"}, kindWaypoint: {"waypoint", "gateway", "gtw"},
}

// target finds what OBJECT or -l means: programs of the mesh, and that of which alone something is shown, nil = of all. -l
// means what serves pods and Services, or the programs that alone have such labels.
func (f *meshFlags) target(w *diagnose.World, namespace string, args []string) ([]*diagnose.Proxy, *diagnose.Subject, error) {
	if f.chosen.Selector != nil {
		s := diagnose.Select(w, namespace, f.chosen.Selector)
		list := s.Programs(w)
		if list != nil {
			return list, nil, nil
		}
		for i := range w.Proxies {
			if p := &w.Proxies[i]; s.Served(p) {
				list = append(list, p)
			}
		}
		return list, s, nil
	}
	list, err := programs(w, namespace, args)
	if err != nil || len(args) == 0 {
		return list, nil, err
	}
	kind, name, _ := object(args[0])
	if ofControlPlane(args[0]) || kind == kindZtunnel || kind == kindWaypoint { // a program of the mesh
		return list, nil, nil
	}
	s, err := diagnose.Find(w, kind, namespace, name)
	return list, s, err
}

// ofControlPlane says whether an argument is controlplane, or controlplane/POD.
func ofControlPlane(arg string) bool {
	role, _, _ := strings.Cut(arg, "/")
	return role == diagnose.ControlPlane
}

// programs are those that an argument means: controlplane, ztunnel/NODE, waypoint/NAME, or those that serve a pod, a
// Deployment or a Service; without an argument all.
func programs(w *diagnose.World, namespace string, args []string) ([]*diagnose.Proxy, error) {
	var out []*diagnose.Proxy
	pick := func(f func(p *diagnose.Proxy) bool) {
		for i := range w.Proxies {
			if f(&w.Proxies[i]) {
				out = append(out, &w.Proxies[i])
			}
		}
	}
	if len(args) == 0 {
		pick(func(*diagnose.Proxy) bool { return true })
		return out, nil
	}
	if ofControlPlane(args[0]) {
		_, name, named := strings.Cut(args[0], "/")
		pick(func(p *diagnose.Proxy) bool { return p.Role == diagnose.ControlPlane && (!named || p.Name == name) })
		return found(out, args[0])
	}
	kind, name, err := object(args[0])
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindZtunnel:
		pick(func(p *diagnose.Proxy) bool { return p.Role == diagnose.Ztunnel && (p.Node == name || p.Name == name) })
	case kindWaypoint:
		pick(func(p *diagnose.Proxy) bool {
			return p.Role == diagnose.Waypoint && (p.Gateway == name || p.Name == name) && (namespace == "" || p.Namespace == namespace)
		})
	default:
		subject, err := diagnose.Find(w, kind, namespace, name)
		if err != nil {
			return nil, err
		}
		pick(subject.Served)
	}
	return found(out, args[0])
}

func found(list []*diagnose.Proxy, what string) ([]*diagnose.Proxy, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("no program of the mesh serves %s", what)
	}
	return list, nil
}

// programOf is the Proxy that a pod of a cluster is, false for other pods.
func programOf(p *corev1.Pod) (diagnose.Proxy, bool) {
	x := diagnose.Proxy{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName}
	switch {
	case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded:
		return x, false
	case p.Labels["app"] == "ztunnel":
		x.Role = diagnose.Ztunnel
		for _, c := range p.Spec.Containers {
			x.Plugin = x.Plugin || slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--cni-conf-dir=") })
		}
	case p.Labels["app"] == "ambit-controlplane":
		x.Role = diagnose.ControlPlane
	case p.Labels[kube.LabelManaged] == kube.ManagedByMesh:
		x.Role, x.Gateway = diagnose.Waypoint, p.Labels[kube.LabelGateway]
	default:
		return x, false
	}
	x.Ready = slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	return x, true
}

// portOf is the port of a program's administration, on loopback of its network.
func portOf(p *diagnose.Proxy) int {
	if p.Role == diagnose.ControlPlane {
		return 15014
	}
	return 15000
}
