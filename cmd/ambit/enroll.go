package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

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

	yes    bool
	dryRun dryRun
}

func enrollCommand() *cobra.Command {
	f := &enrolFlags{}
	c := &cobra.Command{
		Use: "enroll NAMESPACE... | pod/NAME... | -l SELECTOR", Short: "Take a namespace, or one pod, into the mesh", Args: f.targets(),
		Long: `Label a namespace, or one pod, so that it is in the mesh, and wait until its running pods are captured; they are not restarted, and their open
connections go on. -l stands for the namespaces with such labels. --check changes nothing and says what would be wrong then.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.registerEnrol(c)
	return c
}

func unenrollCommand() *cobra.Command {
	f := &enrolFlags{off: true}
	c := &cobra.Command{
		Use: "unenroll NAMESPACE... | pod/NAME... | -l SELECTOR", Short: "Take a namespace, or one pod, out of the mesh", Args: f.targets(),
		Long: `Take the label off a namespace, or label one pod so that it is out of the mesh, and wait until its pods are let go. -l stands for the namespaces
with such labels. --check changes nothing and says what would be wrong then, for instance which policies nobody would enforce.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.registerEnrol(c)
	return c
}

func (f *enrolFlags) registerEnrol(c *cobra.Command) {
	f.meshFlags.register(c)
	f.registerOutput(c)
	c.Flags().BoolVar(&f.check, "check", false, "change nothing, and say what would be wrong")
	c.Flags().DurationVar(&f.wait, "wait", time.Minute, "how long to wait for the pods; 0 is not at all")
	f.registerSelector(c, "namespaces")
	f.dryRun.register(c, "change nothing, and say what would be labelled: server has the API server check it")
	if f.off {
		registerYes(c, &f.yes)
	}
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

// targets is the check of the arguments.
func (f *enrolFlags) targets() cobra.PositionalArgs {
	return arguments(func(_ *cobra.Command, args []string) error {
		if (len(args) > 0) == (f.chosen.Selector != nil) {
			return errors.New("accepted: NAMESPACE..., pod/NAME..., or -l SELECTOR")
		}
		for _, arg := range args {
			if _, _, err := f.target(arg, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// enrolment is a namespace, or a pod of it, that enters or leaves the mesh.
type enrolment struct{ namespace, pod string }

func (f *enrolFlags) run(cmd *cobra.Command, args []string) error {
	s, namespace, err := f.open()
	if err != nil {
		return err
	}
	w, err := s.world(cmd.Context())
	if err != nil {
		return err
	}
	list, err := f.enrolments(w, namespace, args)
	if err != nil {
		return err
	}
	var found []diagnose.Finding
	for _, e := range list {
		found = append(found, diagnose.Enrol(w, e.namespace, e.pod, f.off)...)
	}
	if f.check {
		return f.printFindings(cmd, found)
	}
	for _, x := range found {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s\n    fix: %s\n", x, x.Fix)
	}
	if err := f.confirmLeaving(cmd, list); err != nil {
		return err
	}
	for _, e := range list {
		if err := f.change(cmd, s, w, e); err != nil {
			return err
		}
	}
	return nil
}

// enrolments finds what the arguments or -l mean. All exists.
func (f *enrolFlags) enrolments(w *diagnose.World, namespace string, args []string) (out []enrolment, err error) {
	if f.chosen.Selector != nil {
		for ns := range kube.List[*corev1.Namespace](w.Objects) {
			if f.chosen.Matches(labels.Set(ns.Labels)) {
				out = append(out, enrolment{namespace: ns.Name})
			}
		}
		if out == nil {
			return nil, fmt.Errorf("no namespace has the labels %s", f.chosen.String())
		}
		slices.SortFunc(out, func(a, b enrolment) int { return strings.Compare(a.namespace, b.namespace) })
		return out, nil
	}
	for _, arg := range args {
		ns, pod, err := f.target(arg, namespace)
		if err != nil {
			return nil, err
		}
		if kube.Get[*corev1.Namespace](w.Objects, "", ns) == nil && !w.Lab {
			return nil, fmt.Errorf("namespace %q does not exist", ns)
		}
		if pod != "" {
			if _, err := diagnose.Find(w, kube.KindPod, ns, pod); err != nil {
				return nil, err
			}
		}
		out = append(out, enrolment{ns, pod})
	}
	return out, nil
}

// confirmLeaving asks before a namespace leaves the mesh.
func (f *enrolFlags) confirmLeaving(cmd *cobra.Command, list []enrolment) error {
	var names []string
	for _, e := range list {
		if e.pod == "" {
			names = append(names, e.namespace)
		}
	}
	if !f.off || f.dryRun != dryNone || names == nil {
		return nil
	}
	return confirm(cmd, f.yes, fmt.Sprintf("All pods of %s leave the mesh: what was encrypted will be plaintext. Go on?", strings.Join(names, ", ")))
}

// change labels a namespace or a pod, and waits for what that does.
func (f *enrolFlags) change(cmd *cobra.Command, s source, w *diagnose.World, e enrolment) error {
	k, value := kube.Key{Kind: kube.KindNamespace, Name: kube.Name{Name: e.namespace}}, podsock.LabelIn
	if f.off {
		value = ""
	}
	if e.pod != "" {
		k = kube.Key{Kind: kube.KindPod, Name: kube.Name{Namespace: e.namespace, Name: e.pod}}
		if ns := kube.Get[*corev1.Namespace](w.Objects, "", e.namespace); f.off && ns != nil && ns.Labels[podsock.LabelMode] == podsock.LabelIn {
			value = podsock.LabelOut
		}
	}
	if f.dryRun != dryClient {
		if err := s.label(cmd.Context(), k, label{podsock.LabelMode, value}, f.dryRun == dryServer); err != nil {
			return err
		}
	}
	if f.dryRun != dryNone {
		fmt.Fprintf(cmd.OutOrStdout(), "%s labelled %s=%s%s\n", k, podsock.LabelMode, value, f.dryRun.suffix())
		return nil
	}
	return f.await(cmd, s, e.namespace, e.pod)
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d pods are %s the mesh\n", namespace, done, map[bool]string{false: "in", true: "out of"}[f.off])
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
