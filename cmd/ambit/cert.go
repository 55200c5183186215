package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

func certCommand() *cobra.Command {
	c := &cobra.Command{Use: "cert", Short: "Certificates of proxies, and the root"}
	list := configKind("certs", configShort["certs"])
	list.Use = "list [OBJECT]"
	c.AddCommand(list, certRotate())
	return c
}

func certRotate() *cobra.Command {
	f, yes := &meshFlags{}, false
	c := &cobra.Command{
		Use: "rotate", Short: "Begin the replacement of the root certificate", Args: arguments(cobra.NoArgs),
		Long: `Begin the replacement of the root certificate. The new root is handed out first, then certificates are signed by it, and the old one is
taken away when none is left that needs it; ` + "`ambit cert list`" + ` shows which root a proxy's certificate ends in. No connection breaks. A root
that was given to the mesh (Secret cacerts) is replaced there.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, _, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			if err := confirm(cmd, yes, "Every program of the mesh gets a new root, and a certificate that it signed. Go on?"); err != nil {
				return err
			}
			var errs []error
			for i := range w.Proxies {
				p := &w.Proxies[i]
				if p.Role != diagnose.ControlPlane || !p.Ready {
					continue
				}
				body, err := s.admin(cmd.Context(), p, http.MethodPost, "/debug/ca/rotate")
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", p, strings.TrimSpace(string(body)))
					return nil
				}
				errs = append(errs, fmt.Errorf("%s: %w", p, err))
			}
			if errs == nil {
				return errors.New("no control plane is ready")
			}
			return errors.Join(errs...)
		},
	}
	f.register(c)
	registerYes(c, &yes)
	return c
}
