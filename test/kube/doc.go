// Package kube tests the mesh on a real Kubernetes. `make kube-up` starts one on this machine (see README.md here);
// without KUBECONFIG in the environment every test is skipped.
package kube
