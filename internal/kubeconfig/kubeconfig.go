// Package kubeconfig says how an API server is reached.
package kubeconfig

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Load returns how the API server is reached that a kubeconfig file names, or with path "" that of the cluster in which the
// process runs, as its pod's service account. It talks to nobody. The result is the caller's.
func Load(path string) (*rest.Config, error) {
	if path == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server by the pod's service account (outside a cluster name a kubeconfig): %w", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %q: %w", path, err)
	}
	return cfg, nil
}
