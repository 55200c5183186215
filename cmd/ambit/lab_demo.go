package main

import (
	"log/slog"
	"os"

	"github.com/ambit-mesh/ambit/internal/lab/demo"
	"github.com/spf13/cobra"
)

func demoCommand() *cobra.Command {
	u := &upFlags{}
	var manifests, name string
	var claims int
	c := &cobra.Command{
		Use: "demo", Short: "Show what the mesh does, claim by claim, in a lab of its own", Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			o, err := u.options(name, log)
			if err != nil {
				return err
			}
			return demo.Run(cmd.Context(), demo.Config{Lab: o, Manifests: manifests, Out: os.Stdout, Claims: claims})
		},
	}
	u.register(c)
	c.Flags().StringVar(&manifests, "manifests", "deploy/examples/demo", "directory with the demo's manifests")
	c.Flags().StringVar(&name, "name", "demo", "name of the lab; one of this name that is there is removed first")
	c.Flags().IntVar(&claims, "claims", 0, "end after so many claims (default: all)")
	return c
}
