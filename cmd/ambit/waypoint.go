package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
)

const labelUseWaypoint = "istio.io/use-waypoint"

// waypointFlags are those of `waypoint apply` and `waypoint generate`.
type waypointFlags struct {
	meshFlags
	name, traffic, revision string
	enrol, overwrite        bool
	wait                    bool
	timeout                 time.Duration
	dryRun                  dryRun
}

func waypointCommand() *cobra.Command {
	c := &cobra.Command{Use: "waypoint", Short: "Make, list and remove waypoints"}
	c.AddCommand(waypointApply(), waypointGenerate(), waypointList(), waypointStatus(), waypointDelete())
	return c
}

func (f *waypointFlags) registerGateway(c *cobra.Command) {
	f.meshFlags.register(c)
	c.Flags().StringVar(&f.name, "name", "waypoint", "name of the Gateway")
	c.Flags().StringVar(&f.traffic, "for", "", "traffic that it takes: service, workload, all or none (default: service)")
	c.Flags().StringVarP(&f.revision, "revision", "r", "", "label istio.io/rev of the Gateway")
}

// gateway is the Gateway that the flags describe.
func (f *waypointFlags) gateway(namespace string) (*gatewayv1.Gateway, error) {
	g := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Name: f.name, Namespace: namespace, Labels: map[string]string{}},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: kube.WaypointClass, Listeners: []gatewayv1.Listener{
			{Name: "mesh", Port: 15008, Protocol: "HBONE"},
		}},
	}
	if f.traffic != "" {
		if !slices.Contains([]string{"service", "workload", "all", "none"}, f.traffic) {
			return nil, usageError{fmt.Errorf("--for %q; accepted: service, workload, all, none", f.traffic)}
		}
		g.Labels["istio.io/waypoint-for"] = f.traffic
	}
	if f.revision != "" {
		g.Labels["istio.io/rev"] = f.revision
	}
	return g, nil
}

func waypointGenerate() *cobra.Command {
	f := &waypointFlags{}
	c := &cobra.Command{
		Use: "generate", Short: "Print the Gateway of a waypoint", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			g, err := f.gateway(f.namespace)
			if err != nil {
				return err
			}
			m, err := plain(g)
			if err != nil {
				return err
			}
			b, err := yaml.Marshal(m)
			fmt.Fprint(cmd.OutOrStdout(), string(b))
			return err
		},
	}
	f.registerGateway(c)
	return c
}

func waypointApply() *cobra.Command {
	f := &waypointFlags{}
	c := &cobra.Command{
		Use: "apply", Short: "Make a waypoint in a namespace, and wait until it is ready", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.apply(cmd) },
	}
	f.registerGateway(c)
	c.Flags().BoolVar(&f.enrol, "enroll-namespace", false, "have all of the namespace use it (label "+labelUseWaypoint+")")
	c.Flags().BoolVar(&f.overwrite, "overwrite", false, "with --enroll-namespace: also when the namespace uses another waypoint")
	c.Flags().BoolVarP(&f.wait, "wait", "w", true, "wait until it is ready")
	c.Flags().DurationVar(&f.timeout, "timeout", 90*time.Second, "how long to wait")
	f.dryRun.register(c, "change nothing, and say what would be: server has the API server check it")
	return c
}

func (f *waypointFlags) apply(cmd *cobra.Command) error {
	ctx := cmd.Context()
	s, namespace, err := f.open()
	if err != nil {
		return err
	}
	if namespace == "" {
		return usageError{errors.New("-A: a waypoint is of one namespace; accepted: -n NAMESPACE")}
	}
	g, err := f.gateway(namespace)
	if err != nil {
		return err
	}
	if f.dryRun != dryClient {
		if err := s.apply(ctx, g, f.dryRun == dryServer); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "waypoint %s/%s applied%s\n", namespace, f.name, f.dryRun.suffix())
	if f.wait && f.dryRun == dryNone {
		if err := f.await(cmd, s, namespace); err != nil {
			return err
		}
	}
	if !f.enrol {
		return nil
	}
	w, err := s.world(ctx)
	if err != nil {
		return err
	}
	k := kube.Key{Kind: kube.KindNamespace, Name: kube.Name{Name: namespace}}
	if ns := w.Objects.Lookup(k); ns != nil {
		if old := ns.GetLabels()[labelUseWaypoint]; old != "" && old != f.name && !f.overwrite {
			return fmt.Errorf("namespace %s uses waypoint %s; --overwrite has it use %s", namespace, old, f.name)
		}
		if ns.GetLabels()["istio.io/dataplane-mode"] != "ambient" {
			fmt.Fprintf(os.Stderr, "warning: namespace %s is not in the mesh: `ambit enroll %s`\n", namespace, namespace)
		}
	}
	if f.dryRun != dryClient {
		if err := s.label(ctx, k, label{labelUseWaypoint, f.name}, f.dryRun == dryServer); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "namespace %s uses waypoint %s%s\n", namespace, f.name, f.dryRun.suffix())
	return nil
}

// await waits until the waypoint is programmed and has an instance.
func (f *waypointFlags) await(cmd *cobra.Command, s source, namespace string) error {
	for end := time.Now().Add(f.timeout); ; {
		w, err := s.world(cmd.Context())
		if err != nil {
			return err
		}
		last := "there is no Gateway"
		for _, x := range diagnose.Waypoints(w, namespace) {
			if x.Name != f.name {
				continue
			}
			if x.Ready > 0 && x.Programmed == "True" {
				fmt.Fprintf(cmd.OutOrStdout(), "waypoint %s/%s is ready\n", namespace, f.name)
				return nil
			}
			last = fmt.Sprintf("%d of %d instances ready, programmed %s", x.Ready, x.Instances, x.Programmed)
		}
		if time.Now().After(end) {
			return fmt.Errorf("waypoint %s/%s is not ready after %s: %s: %w", namespace, f.name, f.timeout, last, errTimeout)
		}
		if !pause(cmd.Context()) {
			return cmd.Context().Err()
		}
	}
}

// waypoints lists waypoints of the namespace, of some names or with some labels if these are given.
func (f *meshFlags) waypoints(ctx context.Context, s source, namespace string, names []string) ([]diagnose.WaypointState, error) {
	w, err := s.world(ctx)
	if err != nil {
		return nil, err
	}
	all := diagnose.Waypoints(w, namespace)
	for _, n := range names {
		if !slices.ContainsFunc(all, func(x diagnose.WaypointState) bool { return x.Name == n }) {
			return nil, fmt.Errorf("no waypoint %q in namespace %q", n, namespace)
		}
	}
	return slices.DeleteFunc(all, func(x diagnose.WaypointState) bool {
		if f.chosen.Selector != nil {
			g := kube.Get[*gatewayv1.Gateway](w.Objects, x.Namespace, x.Name)
			return g == nil || !f.chosen.Matches(labels.Set(g.Labels))
		}
		return len(names) > 0 && !slices.Contains(names, x.Name)
	}), nil
}

func waypointList() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "list", Short: "List waypoints", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.showWaypoints(cmd, nil, false) },
	}
	f.registerWaypoints(c)
	return c
}

func waypointStatus() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "status [NAME]", Short: "Say whether waypoints are ready; exit status 1 when one is not", Args: f.objectOrLabels(),
		RunE: func(cmd *cobra.Command, args []string) error { return f.showWaypoints(cmd, args, true) },
	}
	f.registerWaypoints(c)
	return c
}

func (f *meshFlags) registerWaypoints(c *cobra.Command) {
	f.register(c)
	f.registerOutput(c)
	f.registerWatch(c)
	f.registerSelector(c, "waypoints")
}

// showWaypoints prints waypoints; if they are judged, one that is not ready is a problem.
func (f *meshFlags) showWaypoints(cmd *cobra.Command, names []string, judge bool) error {
	s, namespace, err := f.open()
	if err != nil {
		return err
	}
	return f.show(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (*listing, error) {
		return f.waypointListing(ctx, s, namespace, names, judge)
	})
}

func (f *meshFlags) waypointListing(ctx context.Context, s source, namespace string, names []string, judge bool) (*listing, error) {
	list, err := f.waypoints(ctx, s, namespace, names)
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "WaypointList", items: list, names: diagnose.WaypointNames(list), table: diagnose.WaypointTable(list)}
	if judge && slices.ContainsFunc(list, func(x diagnose.WaypointState) bool { return x.Programmed != "True" || x.Ready == 0 }) {
		l.problem = errProblem
	}
	return l, nil
}

func waypointDelete() *cobra.Command {
	f := &meshFlags{}
	var all, yes bool
	var dry dryRun
	c := &cobra.Command{
		Use: "delete NAME... | --all | -l SELECTOR", Short: "Remove waypoints of a namespace", Args: arguments(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			ways := 0
			for _, given := range []bool{all, len(args) > 0, f.chosen.Selector != nil} {
				if given {
					ways++
				}
			}
			if ways != 1 {
				return usageError{errors.New("accepted: NAME..., --all, or -l SELECTOR")}
			}
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			list, err := f.waypoints(cmd.Context(), s, namespace, args)
			if err != nil {
				return err
			}
			return deleteWaypoints(cmd, s, list, yes, dry)
		},
	}
	f.register(c)
	f.registerSelector(c, "waypoints")
	registerYes(c, &yes)
	dry.register(c, "change nothing, and say what would be deleted: server has the API server check it")
	c.Flags().BoolVar(&all, "all", false, "all waypoints of the namespace")
	return c
}

func deleteWaypoints(cmd *cobra.Command, s source, list []diagnose.WaypointState, yes bool, dry dryRun) error {
	if len(list) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "nothing found")
	}
	var names []string
	for _, x := range list {
		names = append(names, x.Namespace+"/"+x.Name)
		if x.Users > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: %d objects ask for %s/%s: their connections are refused until the label %s is taken off or another waypoint is there\n", x.Users, x.Namespace, x.Name, labelUseWaypoint)
		}
	}
	if dry == dryNone && len(list) > 0 {
		if err := confirm(cmd, yes, fmt.Sprintf("Delete %s?", strings.Join(names, ", "))); err != nil {
			return err
		}
	}
	for _, x := range list {
		if dry != dryClient {
			if err := s.remove(cmd.Context(), kube.Key{Kind: kube.KindGateway, Name: kube.Name{Namespace: x.Namespace, Name: x.Name}}, dry == dryServer); err != nil {
				return err
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "waypoint %s/%s deleted%s\n", x.Namespace, x.Name, dry.suffix())
	}
	return nil
}
