package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

var configShort = map[string]string{
	"workloads": "workloads that a ztunnel knows", "services": "Services that a ztunnel knows", "policies": "policies that a ztunnel enforces",
	"certs": "certificates that a proxy holds", "connections": "connections that are open", "listeners": "listeners of a waypoint and their filters",
	"routes": "routes of a waypoint", "clusters": "clusters of a waypoint", "endpoints": "endpoints of a waypoint's clusters", "bootstrap": "what a proxy was started with",
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "What the proxies of an object know and do"}
	for _, kind := range diagnose.Kinds() {
		c.AddCommand(configKind(kind, configShort[kind]))
	}
	return c
}

func configKind(kind, short string) *cobra.Command {
	f := &meshFlags{output: format{unnamed: !diagnose.Named(kind)}}
	c := &cobra.Command{
		Use: kind + " [OBJECT]", Short: "Show " + short, Args: f.objectOrLabels(),
		Long: `Show ` + short + `.

OBJECT is yours: [pod/]NAME, deploy/NAME, svc/NAME or ns/NAME. Its proxies are found, the ztunnel of its node and its waypoint, and
what has to do with it is shown. ztunnel/NODE and waypoint/NAME show all that these have. Without OBJECT all proxies of the kind
are asked; of what all ztunnels know alike, the first. -l stands for the pods with such labels and their Services, and for the Services
with such labels.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			return f.show(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (*listing, error) { return f.config(ctx, s, namespace, kind, args) })
		},
	}
	f.register(c)
	f.registerOutput(c)
	f.registerWatch(c)
	f.registerSelector(c, "pods and Services")
	return c
}

func (f *meshFlags) config(ctx context.Context, s source, namespace, kind string, args []string) (*listing, error) {
	w, err := s.world(ctx)
	if err != nil {
		return nil, err
	}
	list, subject, err := f.target(w, namespace, args)
	if err != nil {
		return nil, err
	}
	roles := diagnose.Roles(kind)
	list = slices.DeleteFunc(list, func(p *diagnose.Proxy) bool { return !slices.Contains(roles, p.Role) })
	alike := kind == "workloads" || kind == "services" || kind == "policies"
	if len(args) == 0 && alike && f.chosen.Selector == nil && len(list) > 1 {
		list = list[:1]
	}
	if len(list) == 0 && f.chosen.Selector == nil {
		return nil, fmt.Errorf("no %s serves it, and only that has %s", strings.Join(roles, " or "), kind)
	}
	only := ""
	if len(args) == 0 && f.chosen.Selector == nil {
		only = f.kubeFlags.namespace // only if it was named
	}
	asked := diagnose.World{}
	for _, p := range list {
		asked.Proxies = append(asked.Proxies, *p)
	}
	ask(ctx, s, &asked)
	list = nil
	notes := ""
	for i := range asked.Proxies {
		p := &asked.Proxies[i]
		if p.Error != "" {
			notes += fmt.Sprintf("%s cannot be asked: %s\n", p, p.Error)
		}
		list = append(list, p)
	}
	t, items, err := diagnose.Config(kind, subject, only, list)
	if err != nil {
		return nil, err
	}
	l := &listing{kind: "ConfigList", items: items, table: t, notes: notes}
	for _, x := range items {
		l.names = append(l.names, x.Name())
	}
	return l, nil
}
