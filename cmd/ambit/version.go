package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

func versionCommand() *cobra.Command {
	f := &meshFlags{output: format{unnamed: true}}
	var client bool
	c := &cobra.Command{
		Use: "version", Short: "Versions of this program and of the mesh", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := []map[string]string{{"name": "ambit", "version": version, "go": runtime.Version()}}
			t := diagnose.Table{Head: []string{"NAME", "VERSION"}, Rows: [][]string{{"ambit", version}}}
			if !client {
				s, _, err := f.open()
				if err != nil {
					return fmt.Errorf("%w (--client: this program alone)", err)
				}
				w, err := s.world(cmd.Context())
				if err != nil {
					return fmt.Errorf("%w (--client: this program alone)", err)
				}
				ask(cmd.Context(), s, w)
				_, proxies := diagnose.Proxies(w)
				for _, p := range proxies {
					list = append(list, map[string]string{"name": p.Role + " " + p.Name, "version": p.Version})
					t.Rows = append(t.Rows, []string{p.Role + " " + p.Name, p.Version})
				}
			}
			return f.print(cmd.OutOrStdout(), &listing{kind: "VersionList", items: list, table: t})
		},
	}
	f.register(c)
	f.registerOutput(c)
	c.Flags().BoolVar(&client, "client", false, "this program alone")
	return c
}
