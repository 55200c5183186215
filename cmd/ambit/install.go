package main

import (
	"fmt"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/install"
	"github.com/spf13/cobra"
)

// installFlags are those of install and upgrade.
type installFlags struct {
	kubeFlags
	files, settings []string
	dryRun          dryRun
	wait            bool
	timeout         time.Duration
}

func installCommand() *cobra.Command {
	f := &installFlags{}
	c := &cobra.Command{
		Use: "install", Short: "Install the mesh in a cluster, and wait until it works", Args: arguments(cobra.NoArgs),
		Long: `Install the mesh in a cluster, and wait until it works. The chart is in the program; --set and -f give it values as Helm does, and
--dry-run prints the objects, for kubectl or for a repository. Installing again makes the mesh what the flags say.`,
		Example: "  ambit install\n  ambit install --set controlPlane.replicas=2\n  ambit install --dry-run | kubectl apply --server-side -f -",
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd, false) },
	}
	f.register(c)
	return c
}

func upgradeCommand() *cobra.Command {
	f := &installFlags{}
	c := &cobra.Command{
		Use: "upgrade", Short: "Bring an installed mesh to the version of this program", Args: arguments(cobra.NoArgs),
		Long: `Bring an installed mesh to the version of this program, with the values that it was installed with and, over them, those of --set
and -f. Connections go on for the drain time of each proxy.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, true) },
	}
	f.register(c)
	return c
}

func (f *installFlags) register(c *cobra.Command) {
	registerMesh(&f.kubeFlags, c)
	c.Flags().StringArrayVarP(&f.files, "values", "f", nil, "file with values of the chart; repeatable")
	c.Flags().StringArrayVar(&f.settings, "set", nil, "value of the chart, as KEY=VALUE; repeatable")
	f.dryRun.register(c, "change nothing: client prints the objects, server has the API server check them")
	c.Flags().BoolVar(&f.wait, "wait", true, "wait until the mesh works")
	c.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
}

// registerMesh declares the flags of a command whose namespace is the mesh's, wherever the context points.
func registerMesh(k *kubeFlags, c *cobra.Command) {
	k.register(c)
	c.PersistentFlags().Lookup("namespace").Usage = "namespace of the mesh (default: " + install.DefaultNamespace + ")"
}

func (f *installFlags) run(cmd *cobra.Command, upgrade bool) error {
	values, err := install.ReadValues(f.files, f.settings)
	if err != nil {
		return usageError{err}
	}
	namespace := f.namespace
	if namespace == "" {
		namespace = install.DefaultNamespace
	}
	if f.dryRun == dryClient {
		objects, err := install.Render(install.Rendering{Namespace: namespace, Version: version, Values: values})
		if err != nil {
			return err
		}
		text, err := install.Manifest(namespace, objects)
		if err == nil {
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		}
		return err
	}
	cluster, err := f.open()
	if err != nil {
		return err
	}
	cfg := install.Config{
		Cluster: cluster, Namespace: namespace, Version: version, Values: values, Upgrade: upgrade,
		DryRun: f.dryRun == dryServer, Progress: os.Stderr,
	}
	if f.wait {
		cfg.Wait = f.timeout
	}
	return install.Install(cmd.Context(), cfg)
}

// open finds the cluster and asks it for its version.
func (k *kubeFlags) open() (*install.Cluster, error) {
	cfg, _, err := k.config()
	if err != nil {
		return nil, err
	}
	c, err := install.Open(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return c, nil
}

func uninstallCommand() *cobra.Command {
	k, r := &kubeFlags{}, install.Removal{Progress: os.Stderr}
	yes, dry := false, dryNone
	c := &cobra.Command{
		Use: "uninstall", Short: "Take the mesh out of a cluster, with all that it left on the nodes", Args: arguments(cobra.NoArgs),
		Long: `Take the mesh out of a cluster, with all that it left on the nodes. Each node leaves the mesh first: its pods speak plaintext from
then on, and connections that are open go on for the drain time. Gateways, routes and policies stay, without effect.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := k.open()
			if err != nil {
				return err
			}
			r.Cluster, r.Namespace, r.DryRun = cluster, k.namespace, dry != dryNone
			if !yes && !r.DryRun && !confirmed(cmd, "Every pod leaves the mesh: what was encrypted will be plaintext. Go on?") {
				return errNotConfirmed
			}
			return install.Uninstall(cmd.Context(), r)
		},
	}
	registerMesh(k, c)
	registerYes(c, &yes)
	dry.register(c, "change nothing, and say what would be deleted; client or server, the API server checks it")
	c.Flags().BoolVar(&r.KeepCA, "keep-ca", false, "keep the mesh's root certificate and key (Secret istio-ca-secret)")
	c.Flags().BoolVar(&r.Force, "force", false, "go on without nodes that do not answer")
	c.Flags().DurationVar(&r.Drain, "drain-timeout", 30*time.Second, "how long open connections may go on")
	c.Flags().DurationVar(&r.Wait, "timeout", 2*time.Minute, "how long each step may take")
	return c
}
