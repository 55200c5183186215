package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
		RunE: func(*cobra.Command, []string) error {
			g, err := f.gateway(f.namespace)
			if err != nil {
				return err
			}
			m, err := plain(g)
			if err != nil {
				return err
			}
			b, err := yaml.Marshal(m)
			fmt.Print(string(b))
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
	if err := s.apply(ctx, g); err != nil {
		return err
	}
	fmt.Printf("waypoint %s/%s applied\n", namespace, f.name)
	if f.wait {
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
	if err := s.label(ctx, k, labelUseWaypoint, f.name); err != nil {
		return err
	}
	fmt.Printf("namespace %s uses waypoint %s\n", namespace, f.name)
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
				fmt.Printf("waypoint %s/%s is ready\n", namespace, f.name)
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

// waypoints opens the mesh and lists waypoints of the namespace, of one name if it is given.
func (f *meshFlags) waypoints(cmd *cobra.Command, names []string) (source, []diagnose.WaypointState, error) {
	s, namespace, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	w, err := s.world(cmd.Context())
	if err != nil {
		return nil, nil, err
	}
	all := diagnose.Waypoints(w, namespace)
	if len(names) == 0 {
		return s, all, nil
	}
	list := slices.DeleteFunc(slices.Clone(all), func(x diagnose.WaypointState) bool { return !slices.Contains(names, x.Name) })
	for _, n := range names {
		if !slices.ContainsFunc(list, func(x diagnose.WaypointState) bool { return x.Name == n }) {
			return nil, nil, fmt.Errorf("no waypoint %q in namespace %q", n, namespace)
		}
	}
	return s, list, nil
}

func waypointTable(list []diagnose.WaypointState) diagnose.Table {
	t := diagnose.Table{Head: []string{"NAMESPACE", "NAME", "FOR", "READY", "PROGRAMMED", "USERS"}}
	for _, x := range list {
		t.Rows = append(t.Rows, []string{x.Namespace, x.Name, x.For, fmt.Sprintf("%d/%d", x.Ready, x.Instances), x.Programmed, fmt.Sprint(x.Users)})
	}
	return t
}

func waypointList() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "list", Short: "List waypoints", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, list, err := f.waypoints(cmd, nil)
			if err != nil {
				return err
			}
			return f.print("WaypointList", list, func(w io.Writer) error { return writeTable(w, waypointTable(list)) })
		},
	}
	f.register(c)
	return c
}

func waypointStatus() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "status [NAME]", Short: "Say whether waypoints are ready; exit status 1 when one is not", Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, list, err := f.waypoints(cmd, args)
			if err != nil {
				return err
			}
			if err := f.print("WaypointList", list, func(w io.Writer) error { return writeTable(w, waypointTable(list)) }); err != nil {
				return err
			}
			for _, x := range list {
				if x.Programmed != "True" || x.Ready == 0 {
					return errProblem
				}
			}
			return nil
		},
	}
	f.register(c)
	return c
}

func waypointDelete() *cobra.Command {
	f := &meshFlags{}
	var all bool
	c := &cobra.Command{
		Use: "delete NAME... | --all", Short: "Remove waypoints of a namespace", Args: arguments(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError{errors.New("accepted: NAME..., or --all")}
			}
			s, list, err := f.waypoints(cmd, args)
			if err != nil {
				return err
			}
			for _, x := range list {
				if x.Users > 0 {
					fmt.Fprintf(os.Stderr, "warning: %d objects ask for %s/%s: their connections are refused until the label %s is taken off or another waypoint is there\n", x.Users, x.Namespace, x.Name, labelUseWaypoint)
				}
				if err := s.remove(cmd.Context(), kube.Key{Kind: kube.KindGateway, Name: kube.Name{Namespace: x.Namespace, Name: x.Name}}); err != nil {
					return err
				}
				fmt.Println(strings.Join([]string{"waypoint", x.Namespace + "/" + x.Name, "deleted"}, " "))
			}
			return nil
		},
	}
	f.register(c)
	c.Flags().BoolVar(&all, "all", false, "all waypoints of the namespace")
	return c
}
