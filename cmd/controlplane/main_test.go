package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keyFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestErrorsNameTheFlag(t *testing.T) {
	dir := t.TempDir()
	good := []string{"--manifests=" + dir, "--lab-token-key=" + keyFile(t, strings.Repeat("k", 32))}
	short := keyFile(t, "short\n")
	tests := []struct {
		args []string
		want string
	}{
		{nil, "one of --in-cluster, --kubeconfig=FILE and --manifests=DIR is required"},
		{[]string{"--manifests=" + dir, "--in-cluster"}, "--in-cluster and --manifests exclude each other"},
		{[]string{"--kubeconfig=/none"}, `--kubeconfig=/none: read kubeconfig "/none": stat /none: no such file`},
		{[]string{"--kubeconfig=" + short}, "--kubeconfig=" + short + ": read kubeconfig"},
		{[]string{"--in-cluster"}, "--in-cluster: find the API server by the pod's service account"},
		{[]string{"--in-cluster", "--lab-token-key=" + short}, "--lab-token-key is for --manifests"},
		{[]string{"--manifests=/none"}, "--manifests=/none: stat /none"},
		{[]string{"--manifests=" + short}, "not a directory"},
		{[]string{"--manifests=" + dir}, "--lab-token-key is required"},
		{[]string{"--manifests=" + dir, "--lab-token-key=" + short}, "want at least 16 bytes, got 5"},
		{append([]string{"--listen=localhost:1"}, good...), "--listen=localhost:1: want an IP address and port"},
		{append([]string{"--admin-address=x"}, good...), "--admin-address=x"},
		{append([]string{"--log-level=loud"}, good...), "--log-level=loud: want debug"},
		{append([]string{"--max-cert-ttl=-1s"}, good...), "--max-cert-ttl=-1s"},
		{append([]string{"--trusted-node-accounts=a"}, good...), `--trusted-node-accounts=a: want namespace/serviceaccount, got "a"`},
		{append([]string{"--waypoint-pull-policy=Often"}, good...), "--waypoint-pull-policy=Often: want Always, IfNotPresent or Never"},
		{append([]string{"--waypoint-replicas=0"}, good...), "--waypoint-replicas=0: want 1 to 1000"},
		{append([]string{"--waypoint-drain-timeout=1ms"}, good...), "--waypoint-drain-timeout=1ms: want at least 1s"},
		{append([]string{`--waypoint-resources={"limit": {}}`}, good...), `unknown field "limit"`},
		{append([]string{`--waypoint-resources={"limits": {"cpu": "many"}}`}, good...), "--waypoint-resources="},
		{append(good, "stray"), `unexpected argument "stray"`},
		{[]string{"--nonsense"}, "flag provided but not defined"},
	}
	for _, tt := range tests {
		var stderr bytes.Buffer
		if code := run(t.Context(), tt.args, &stderr); code != 2 || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q: exit code %d and %q, want 2 and %q", tt.args, code, stderr.String(), tt.want)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root.pem")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr bytes.Buffer
	code := run(ctx, []string{"--manifests=" + t.TempDir(), "--lab-token-key=" + keyFile(t, strings.Repeat("k", 32)),
		"--listen=127.0.0.1:0", "--admin-address=127.0.0.1:0", "--root-ca-out=" + root, "--ca-dir=" + filepath.Join(t.TempDir(), "ca")}, &stderr)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if data, err := os.ReadFile(root); err != nil || !bytes.Contains(data, []byte("BEGIN CERTIFICATE")) {
		t.Errorf("root certificates: %q, %v", data, err)
	}
}
