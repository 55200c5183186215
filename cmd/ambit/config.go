package main

import (
	"fmt"
	"io"
	"os"
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
	f := &meshFlags{}
	c := &cobra.Command{
		Use: kind + " [OBJECT]", Short: "Show " + short, Args: arguments(cobra.MaximumNArgs(1)),
		Long: `Show ` + short + `.

OBJECT is yours: [pod/]NAME, deploy/NAME, svc/NAME or ns/NAME. Its proxies are found, the ztunnel of its node and its waypoint, and
what has to do with it is shown. ztunnel/NODE and waypoint/NAME show all that these have. Without OBJECT all proxies of the kind
are asked; of what all ztunnels know alike, the first.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.config(cmd, kind, args) },
	}
	f.register(c)
	return c
}

func (f *meshFlags) config(cmd *cobra.Command, kind string, args []string) error {
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
	roles := diagnose.Roles(kind)
	list = slices.DeleteFunc(list, func(p *diagnose.Proxy) bool { return !slices.Contains(roles, p.Role) })
	alike := kind == "workloads" || kind == "services" || kind == "policies"
	if len(args) == 0 && alike && len(list) > 1 {
		list = list[:1]
	}
	if len(list) == 0 {
		return fmt.Errorf("no %s serves it, and only that has %s", strings.Join(roles, " or "), kind)
	}
	var subject *diagnose.Subject
	only := ""
	if len(args) == 0 {
		only = f.kubeFlags.namespace // only if it was named
	} else if k, name, err := object(args[0]); err == nil && k != kindZtunnel && k != kindWaypoint {
		if subject, err = diagnose.Find(w, k, namespace, name); err != nil {
			return err
		}
	}
	asked := diagnose.World{}
	for _, p := range list {
		asked.Proxies = append(asked.Proxies, *p)
	}
	ask(cmd.Context(), s, &asked)
	list = nil
	for i := range asked.Proxies {
		p := &asked.Proxies[i]
		if p.Error != "" {
			fmt.Fprintf(os.Stderr, "%s cannot be asked: %s\n", p, p.Error)
		}
		list = append(list, p)
	}
	t, items, err := diagnose.Config(kind, subject, only, list)
	if err != nil {
		return err
	}
	return f.print("ConfigList", items, func(w io.Writer) error { return writeTable(w, t) })
}
