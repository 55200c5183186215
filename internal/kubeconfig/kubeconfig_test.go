package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnAPIServerIsTheOneThatTheFileNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	const text = `{apiVersion: v1, kind: Config, current-context: b, contexts: [{name: a, context: {cluster: a}}, {name: b, context: {cluster: b, user: u}}],
 clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}, {name: b, cluster: {server: "https://127.0.0.1:2"}}], users: [{name: u, user: {token: t}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(path)
	if err != nil || cfg.Host != "https://127.0.0.1:2" || cfg.BearerToken != "t" {
		t.Errorf("got %v, %v", cfg, err)
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	missing := filepath.Join(t.TempDir(), "none")
	for path, want := range map[string]string{missing: missing, "": "outside a cluster name a kubeconfig"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", path, err)
		}
	}
}
