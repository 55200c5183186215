package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/diagnose"
)

func explainCommand() *cobra.Command {
	f := &meshFlags{output: format{unnamed: true}}
	c := &cobra.Command{
		Use: "explain CLIENT SERVER[:PORT] | CODE", Short: "What happens to a connection, step by step; or what a finding's code means", Args: arguments(cobra.RangeArgs(1, 2)),
		Long: `Say step by step what happens to a connection: which proxy takes it, where it goes, which policy decides. Nothing is sent: the decisions
are those of the proxies' own code, on what the control plane sends for the objects that are there now.

CLIENT is [pod/]NAME or deploy/NAME, SERVER svc/NAME, [pod/]NAME or deploy/NAME; either may be in another namespace: NAMESPACE/svc/NAME.
With a code, as AMB0306, say what it means. Exit status 1 when the connection is refused.`,
		Example: "  ambit explain -n shop deploy/web svc/cart:80\n  ambit explain AMB0306",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return f.explainCode(cmd, args[0])
			}
			s, namespace, err := f.open()
			if err != nil {
				return err
			}
			w, err := s.world(cmd.Context())
			if err != nil {
				return err
			}
			client, _, err := subject(w, namespace, args[0])
			if err != nil {
				return err
			}
			server, port, err := subject(w, namespace, args[1])
			if err != nil {
				return err
			}
			e, err := diagnose.Explain(w, client, server, port)
			if err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), &listing{kind: "Explanation", items: e, text: e.Text()}); err != nil {
				return err
			}
			if !e.Reached {
				return errProblem
			}
			return nil
		},
	}
	f.register(c)
	f.registerOutput(c)
	return c
}

// explainCode prints what a code means.
func (f *meshFlags) explainCode(cmd *cobra.Command, code string) error {
	for _, c := range diagnose.Codes() {
		if strings.EqualFold(c.Code, code) {
			text := fmt.Sprintf("%s (%s): %s\nfix: %s\n", c.Code, c.Severity, c.Title, c.Fix)
			return f.print(cmd.OutOrStdout(), &listing{kind: "Code", items: c, text: text})
		}
	}
	return usageError{fmt.Errorf("%q is no code; accepted: a code of docs/findings.md, or CLIENT SERVER", code)}
}

// subject reads [NAMESPACE/]KIND/NAME[:PORT].
func subject(w *diagnose.World, namespace, arg string) (*diagnose.Subject, uint16, error) {
	rest, port := arg, uint64(0)
	if head, tail, ok := strings.Cut(arg, ":"); ok {
		var err error
		if port, err = strconv.ParseUint(tail, 10, 16); err != nil {
			return nil, 0, usageError{fmt.Errorf("port %q of %q; accepted: 1..65535", tail, arg)}
		}
		rest = head
	}
	if parts := strings.SplitN(rest, "/", 3); len(parts) == 3 {
		namespace, rest = parts[0], parts[1]+"/"+parts[2]
	}
	kind, name, err := object(rest)
	if err != nil {
		return nil, 0, err
	}
	s, err := diagnose.Find(w, kind, namespace, name)
	return s, uint16(port), err
}
