package main

import (
	"context"
	"slices"

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
			return f.show(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (*listing, error) {
				w, err := s.world(ctx)
				if err != nil {
					return nil, err
				}
				ask(ctx, s, w)
				return statusList(w), nil
			})
		},
	}
	f.register(c)
	f.registerOutput(c)
	f.registerWatch(c)
	return c
}

func statusList(w *diagnose.World) *listing {
	st := diagnose.StatusOf(w)
	programs, states := diagnose.Proxies(w)
	findings := findingList(st.Findings)
	same := st
	same.Findings = nil
	l := &listing{kind: "Status", items: st, names: st.Names(), text: st.Text(), same: []any{same, findings.same, unclocked(states)}, problem: findings.problem}
	l.wide = l.text + "programs\n" + tableText(programs)
	if len(st.Findings) > 0 {
		l.text, l.wide = l.text+findings.text, l.wide+findings.wide
	}
	return l
}

func proxiesCommand() *cobra.Command {
	f := &meshFlags{}
	c := &cobra.Command{
		Use: "proxies [OBJECT]", Short: "Each program of the mesh: whether it has what it was sent, and what it refused", Args: f.objectOrLabels(),
		Long: `Each program of the mesh, or those that serve OBJECT: [pod/]NAME, deploy/NAME, svc/NAME, ns/NAME, ztunnel/NODE, waypoint/NAME; or
those that serve the pods and Services with the labels of -l, or those whose own pods alone have such labels.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			return f.show(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (*listing, error) { return f.proxies(ctx, s, namespace, args) })
		},
	}
	f.register(c)
	f.registerOutput(c)
	f.registerSelector(c, "programs that serve objects")
	f.registerWatch(c)
	return c
}

func (f *meshFlags) proxies(ctx context.Context, s source, namespace string, args []string) (*listing, error) {
	w, err := s.world(ctx)
	if err != nil {
		return nil, err
	}
	list, _, err := f.target(w, namespace, args)
	if err != nil {
		return nil, err
	}
	ask(ctx, s, w)
	t, states := diagnose.ProxiesOf(w, list)
	return &listing{kind: "ProxyList", items: states, names: diagnose.Names(states), table: t, same: unclocked(states)}, nil
}

// unclocked are states without the time that passes by itself.
func unclocked(list []diagnose.ProxyState) []diagnose.ProxyState {
	list = slices.Clone(list)
	for i := range list {
		list[i].Connected = ""
	}
	return list
}
