package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// enrolFlags are those of enroll and unenroll.
type enrolFlags struct {
	meshFlags
	check bool
	wait  time.Duration
	off   bool
}

func enrollCommand() *cobra.Command {
	f := &enrolFlags{}
	c := &cobra.Command{
		Use: "enroll NAMESPACE | pod/NAME", Short: "Take a namespace, or one pod, into the mesh", Args: arguments(cobra.ExactArgs(1)),
		Long: `Label a namespace, or one pod, so that it is in the mesh, and wait until its running pods are captured; they are not restarted, and their open
connections go on. --check changes nothing and says what would be wrong then.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	f.registerEnrol(c)
	return c
}

func unenrollCommand() *cobra.Command {
	f := &enrolFlags{off: true}
	c := &cobra.Command{
		Use: "unenroll NAMESPACE | pod/NAME", Short: "Take a namespace, or one pod, out of the mesh", Args: arguments(cobra.ExactArgs(1)),
		Long: `Take the label off a namespace, or label one pod so that it is out of the mesh, and wait until its pods are let go. --check changes nothing and
says what would be wrong then, for instance which policies nobody would enforce.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	f.registerEnrol(c)
	return c
}

func (f *enrolFlags) registerEnrol(c *cobra.Command) {
	f.meshFlags.register(c)
	c.Flags().BoolVar(&f.check, "check", false, "change nothing, and say what would be wrong")
	c.Flags().DurationVar(&f.wait, "wait", time.Minute, "how long to wait for the pods; 0 is not at all")
}

// target reads NAMESPACE, ns/NAME or pod/NAME.
func (f *enrolFlags) target(arg, namespace string) (ns, pod string, err error) {
	if !strings.Contains(arg, "/") {
		return arg, "", nil
	}
	switch kind, name, err := object(arg); {
	case err != nil:
		return "", "", err
	case kind == kube.KindNamespace:
		return name, "", nil
	case kind == kube.KindPod:
		return namespace, name, nil
	}
	return "", "", usageError{fmt.Errorf("%q; accepted: NAMESPACE, ns/NAME, pod/NAME", arg)}
}

func (f *enrolFlags) run(cmd *cobra.Command, arg string) error {
	s, namespace, err := f.open()
	if err != nil {
		return err
	}
	namespace, pod, err := f.target(arg, namespace)
	if err != nil {
		return err
	}
	w, err := s.world(cmd.Context())
	if err != nil {
		return err
	}
	ns := kube.Get[*corev1.Namespace](w.Objects, "", namespace)
	if ns == nil && !w.Lab {
		return fmt.Errorf("namespace %q does not exist", namespace)
	}
	if pod != "" {
		if _, err := diagnose.Find(w, kube.KindPod, namespace, pod); err != nil {
			return err
		}
	}
	list := diagnose.Enrol(w, namespace, pod, f.off)
	if f.check {
		return f.printFindings(list)
	}
	for _, x := range list {
		fmt.Fprintf(os.Stderr, "%s\n    fix: %s\n", x, x.Fix)
	}
	k, value := kube.Key{Kind: kube.KindNamespace, Name: kube.Name{Name: namespace}}, podsock.LabelIn
	if f.off {
		value = ""
	}
	if pod != "" {
		k = kube.Key{Kind: kube.KindPod, Name: kube.Name{Namespace: namespace, Name: pod}}
		if f.off && ns != nil && ns.Labels[podsock.LabelMode] == podsock.LabelIn {
			value = podsock.LabelOut
		}
	}
	if err := s.label(cmd.Context(), k, podsock.LabelMode, value); err != nil {
		return err
	}
	return f.await(cmd, s, namespace, pod)
}

// await waits until running pods are in the mesh, or out of it.
func (f *enrolFlags) await(cmd *cobra.Command, s source, namespace, pod string) error {
	for end := time.Now().Add(f.wait); ; {
		w, err := s.world(cmd.Context())
		if err != nil {
			return err
		}
		done, waiting := 0, []string{}
		for p := range kube.List[*corev1.Pod](w.Objects) {
			if p.Namespace != namespace || pod != "" && p.Name != pod || p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning {
				continue
			}
			out := p.Labels[podsock.LabelMode] == podsock.LabelOut || p.Annotations["sidecar.istio.io/status"] != ""
			if captured := p.Annotations["ambient.istio.io/redirection"] == "enabled"; captured != f.off || out {
				done++
			} else {
				waiting = append(waiting, p.Name)
			}
		}
		if len(waiting) == 0 || f.wait == 0 {
			fmt.Printf("%s: %d pods are %s the mesh\n", namespace, done, map[bool]string{false: "in", true: "out of"}[f.off])
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s these pods are not: %s (`ambit check` says why): %w", f.wait, strings.Join(waiting, ", "), errTimeout)
		}
		if !pause(cmd.Context()) {
			return cmd.Context().Err()
		}
	}
}
