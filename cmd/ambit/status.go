package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

func statusCommand() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "status", Short: "The mesh on one screen: control plane, nodes, waypoints, and what is wrong", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			ask(cmd.Context(), s, w)
			st := diagnose.StatusOf(w)
			err = f.print("Status", st, func(w io.Writer) error {
				fmt.Fprint(w, st.Text())
				if len(st.Findings) > 0 {
					fmt.Fprint(w, diagnose.FindingsText(st.Findings))
				}
				return nil
			})
			if err != nil {
				return err
			}
			return problemIn(st.Findings)
		},
	}
	f.register(c)
	return c
}

func proxiesCommand() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "proxies [OBJECT]", Short: "Each program of the mesh: whether it has what it was sent, and what it refused", Args: arguments(cobra.MaximumNArgs(1)),
		Long: "Each program of the mesh, or those that serve OBJECT: [pod/]NAME, deploy/NAME, svc/NAME, ns/NAME, ztunnel/NODE, waypoint/NAME.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			list, err := programs(w, namespace, args)
			if err != nil {
				return err
			}
			ask(cmd.Context(), s, w)
			some := *w
			some.Proxies = nil
			for _, p := range list {
				some.Proxies = append(some.Proxies, *p)
			}
			for i := range w.Proxies { // they know of the others
				if p := &w.Proxies[i]; p.Control != nil && len(args) > 0 && args[0] != diagnose.ControlPlane {
					some.Proxies = append(some.Proxies, *p)
				}
			}
			t, states := diagnose.Proxies(&some)
			return f.print("ProxyList", states, func(w io.Writer) error { return writeTable(w, t) })
		},
	}
	f.register(c)
	return c
}
