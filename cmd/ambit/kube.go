package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// errUnreachable marks that the cluster cannot be asked.
var errUnreachable = errors.New("the cluster cannot be reached")

// kubeFlags are kubectl's flags by which a command finds its cluster.
type kubeFlags struct {
	kubeconfig, context, cluster, user, namespace string

	as, server string
	asGroups   []string
	timeout    time.Duration
}

// register declares the flags for c and the commands under it.
func (k *kubeFlags) register(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "path of the kubeconfig file (default: $KUBECONFIG, else ~/.kube/config, else the pod's own account)")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig file (default: its current one)")
	f.StringVar(&k.cluster, "cluster", "", "cluster of the kubeconfig file (default: the context's)")
	f.StringVar(&k.user, "user", "", "user of the kubeconfig file (default: the context's)")
	f.StringVar(&k.as, "as", "", "user to act as: USER, or system:serviceaccount:NAMESPACE:NAME")
	f.StringArrayVar(&k.asGroups, "as-group", nil, "group to act as; repeatable")
	f.StringVarP(&k.server, "server", "s", "", "address of the API server (default: the cluster's)")
	f.StringVarP(&k.namespace, "namespace", "n", "", "namespace (default: that of the context)")
	f.DurationVar(&k.timeout, "request-timeout", 30*time.Second, "how long a single request to the API server may take; 0 is without end")
}

// config returns how to talk to the cluster, and the namespace that was asked for or that of the context.
func (k *kubeFlags) config() (*rest.Config, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: k.context}
	overrides.Context.Namespace, overrides.Context.Cluster, overrides.Context.AuthInfo = k.namespace, k.cluster, k.user
	overrides.AuthInfo.Impersonate, overrides.AuthInfo.ImpersonateGroups = k.as, k.asGroups
	overrides.ClusterInfo.Server = k.server
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("%w: read kubeconfig: %w", errUnreachable, err)
	}
	cfg, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("%w: read kubeconfig: %w", errUnreachable, err)
	}
	cfg.Timeout, cfg.UserAgent = k.timeout, "ambit/"+version
	cfg.QPS, cfg.Burst = 50, 100
	return cfg, namespace, nil
}
