package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
)

func analyzeCommand() *cobra.Command {
	f := &meshFlags{}
	var files []string
	c := &cobra.Command{
		Use: "analyze [-f FILE|DIR...]", Short: "Find mistakes in policies, routes, waypoints and enrolment", Args: arguments(cobra.NoArgs),
		Long: `Find mistakes in the objects of a cluster, of a lab, or of manifests that are not applied yet. Each finding has a code (docs/findings.md),
the object, the cause and the fix. Exit status 1 when there is an error among them.`,
		Example: "  ambit analyze -A\n  ambit analyze -f deploy/ -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) > 0 {
				w, err := manifestWorld(files)
				if err != nil {
					return err
				}
				return f.printFindings(cmd, f.about(w, diagnose.Analyze(w)))
			}
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			ask(cmd.Context(), s, w, diagnose.ControlPlane)
			return f.printFindings(cmd, f.about(w, of(diagnose.Analyze(w), namespace)))
		},
	}
	f.register(c)
	f.registerOutput(c)
	f.registerSelector(c, "findings about objects")
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "manifest file, directory, or - for standard input; repeatable")
	return c
}

// about keeps findings about objects with the labels of -l.
func (f *meshFlags) about(w *diagnose.World, list []diagnose.Finding) []diagnose.Finding {
	if f.chosen.Selector == nil {
		return list
	}
	return diagnose.Chosen(w, list, f.chosen.Selector)
}

// manifestWorld reads manifests as the control plane does; what is wrong with a file is a finding.
func manifestWorld(paths []string) (*diagnose.World, error) {
	files, err := manifest.Read(paths...)
	if err != nil {
		return nil, usageError{err}
	}
	w := &diagnose.World{Manifests: true, Now: time.Now(), Version: version}
	var objects []kube.Object
	for _, file := range files {
		list, problems := kube.Decode(file.Name, file.Data)
		objects, w.Problems = append(objects, list...), append(w.Problems, problems...)
	}
	w.Objects = kube.NewObjects(objects...)
	return w, nil
}

func checkCommand() *cobra.Command {
	f := &meshFlags{}
	var pre bool
	var wait time.Duration
	c := &cobra.Command{
		Use: "check", Short: "Find what is wrong with the mesh itself", Args: arguments(cobra.NoArgs),
		Long: `Find what is wrong with the mesh itself: its programs, certificates, clocks, nodes, and pods that are not captured. --pre finds what keeps
a cluster from having one. Exit status 1 when there is an error among the findings, 4 when --wait ran out.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := f.open()
			if err != nil {
				return err
			}
			list, err := check(cmd.Context(), s, pre)
			for end := time.Now().Add(wait); err == nil && wait > 0 && problemIn(list) != nil; {
				if time.Now().After(end) {
					return errors.Join(f.printFindings(cmd, list), fmt.Errorf("still wrong after %s: %w", wait, context.DeadlineExceeded))
				}
				if !pause(cmd.Context()) {
					return cmd.Context().Err()
				}
				list, err = check(cmd.Context(), s, pre)
			}
			if err != nil {
				return err
			}
			return f.printFindings(cmd, list)
		},
	}
	f.register(c)
	f.registerOutput(c)
	c.Flags().BoolVar(&pre, "pre", false, "before the installation: is the cluster fit for a mesh?")
	c.Flags().DurationVar(&wait, "wait", 0, "check again until there is no error, for so long at most")
	return c
}

func check(ctx context.Context, s source, pre bool) ([]diagnose.Finding, error) {
	w, err := s.world(ctx)
	if err != nil {
		return nil, err
	}
	if pre {
		return diagnose.Preflight(w), nil
	}
	ask(ctx, s, w)
	return diagnose.Check(w), nil
}
