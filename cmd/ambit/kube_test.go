package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

const twoClusters = `
apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: "https://a:6443"}}, {name: b, cluster: {server: "https://b:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: a, context: {cluster: a, user: u}}, {name: b, context: {cluster: b, user: u, namespace: shop}}]
`

func TestAnotherUserIsActedAs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(twoClusters), 0o600); err != nil {
		t.Fatal(err)
	}
	k, c := &kubeFlags{}, &cobra.Command{}
	k.register(c)
	if err := c.ParseFlags([]string{"--kubeconfig", file, "--as=joe", "--as-group=a", "--as-group=b"}); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := k.config()
	if err != nil || cfg.Impersonate.UserName != "joe" || len(cfg.Impersonate.Groups) != 2 {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestTheClusterIsFoundAsKubectlFindsIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(twoClusters), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", file)
	for name, tc := range map[string]struct {
		args            []string
		host, namespace string
		err             error
	}{
		"the current context": {nil, "https://a:6443", "default", nil},
		"a named one":         {[]string{"--context=b"}, "https://b:6443", "shop", nil},
		"a named namespace":   {[]string{"--context=b", "-n", "other"}, "https://b:6443", "other", nil},
		"another cluster":     {[]string{"--cluster=b"}, "https://b:6443", "default", nil},
		"another server":      {[]string{"-s", "https://c:6443"}, "https://c:6443", "default", nil},
		"no such context":     {[]string{"--context=c"}, "", "", errUnreachable},
		"no such file":        {[]string{"--kubeconfig=" + file + "x"}, "", "", errUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			k, c := &kubeFlags{}, &cobra.Command{}
			k.register(c)
			if err := c.ParseFlags(tc.args); err != nil {
				t.Fatal(err)
			}
			cfg, namespace, err := k.config()
			if !errors.Is(err, tc.err) || err == nil && (cfg.Host != tc.host || namespace != tc.namespace) {
				t.Errorf("%v, namespace %q, %v", cfg, namespace, err)
			}
		})
	}
}
