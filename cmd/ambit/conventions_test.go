package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/diagnose"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
)

func TestTheExitStatusSaysWhatHappened(t *testing.T) {
	s := newAPIServer(t, shop)
	away := newAPIServer(t, shop)
	away.Close()
	for name, c := range map[string]struct {
		server *apiServer
		args   string
		status int
		says   string
	}{
		"0: well":                          {s, "waypoint list -n shop", 0, "PROGRAMMED"},
		"0: nothing has the labels":        {s, "proxies -A -l app=none", 0, ""},
		"0: the help":                      {s, "--help", 0, "Exit status: 0 all is well, 1 a problem was found, 2 wrong usage, 3"},
		"1: errors are found":              {s, "analyze -n shop", 1, "AMB0402"},
		"1: the mesh is not well":          {s, "check", 1, "AMB0103"},
		"1: a waypoint is not ready":       {s, "waypoint status -n shop", 1, "second"},
		"1: there is no such object":       {s, "proxies -n shop svc/none", 1, `no service "none" in namespace "shop"; there are: cart, nobody`},
		"2: a flag":                        {s, "status --none", 2, "unknown flag: --none"},
		"2: a command":                     {s, "stauts", 2, `unknown command "stauts" of "ambit"; accepted: analyze`},
		"2: a command under another":       {s, "config pods", 2, `unknown command "pods" of "ambit config"; accepted: bootstrap`},
		"2: an output":                     {s, "proxies -o xml", 2, `"xml" for "-o, --output" flag: accepted: table, wide, json, yaml, name, jsonpath=TEMPLATE`},
		"2: names of what has none":        {s, "config connections -o name", 2, "accepted: table, wide, json, yaml, jsonpath=TEMPLATE"},
		"2: a template":                    {s, "proxies -o jsonpath={.items", 2, "unclosed action"},
		"2: an empty template":             {s, "proxies -o jsonpath=", 2, "the template is empty; accepted: as in jsonpath={.items[*].name}"},
		"2: an output of manifests":        {s, "analyze -f none.yaml -o xml", 2, "accepted: table"},
		"2: a selector":                    {s, "proxies -l a=b=c", 2, `"a=b=c" for "-l, --selector" flag: `},
		"2: an object and a selector":      {s, "config workloads svc/cart -l app=cart", 2, "OBJECT and --selector; accepted: one of them"},
		"2: an object of no kind":          {s, "proxies -n shop none/x", 2, "accepted: [pod/]NAME"},
		"2: that, and the cluster is away": {away, "config workloads none/x", 2, "accepted: [pod/]NAME"},
		"2: what cannot be enrolled":       {away, "enroll svc/x", 2, "accepted: NAMESPACE, ns/NAME, pod/NAME"},
		"2: a dry run":                     {s, "waypoint delete --all --dry-run=some", 2, "accepted: none, client, server"},
		"2: nothing to delete is named":    {s, "waypoint delete", 2, "accepted: NAME..., --all, or -l SELECTOR"},
		"2: a removal is not confirmed":    {s, "uninstall", 2, "not confirmed; -y confirms"},
		"2: a name that no lab has":        {s, "status --lab=None", 2, "accepted: 1 to 12 lower-case letters and digits"},
		"3: the cluster is away":           {away, "status", 3, "the cluster cannot be reached"},
		"3: there is no such context":      {s, "status --context=none", 3, "the cluster cannot be reached"},
		"3: there is no such lab":          {s, "status --lab=none1", 3, "none1"},
		"4: the mesh does not get well":    {s, "check --wait=1ns", 4, "still wrong after 1ns"},
		"4: a waypoint is not ready":       {s, "waypoint apply -n shop --name second --timeout=1ns", 4, "not ready after 1ns"},
	} {
		t.Run(name, func(t *testing.T) {
			out, status := c.server.run(t, strings.Fields(c.args)...)
			if status != c.status || !strings.Contains(out, c.says) {
				t.Errorf("ambit %s: exit status %d, want %d; %q is to be in\n%s", c.args, status, c.status, c.says, out)
			}
		})
	}
}

func TestTheControlPlaneIsAnObjectToo(t *testing.T) {
	s := newAPIServer(t, shop)
	for args, want := range map[string]string{
		"proxies controlplane -o name":                      "controlplane/ambit-controlplane-1",
		"proxies controlplane/ambit-controlplane-1 -o name": "controlplane/ambit-controlplane-1",
		"proxies controlplane/another":                      "ambit: no program of the mesh serves controlplane/another",
	} {
		if out, _ := s.run(t, strings.Fields(args)...); strings.TrimSpace(out) != want {
			t.Errorf("ambit %s: got %q, want %q", args, out, want)
		}
	}
}

func TestObjectsAreChosenByTheirLabels(t *testing.T) {
	s := newAPIServer(t, shop)
	for args, want := range map[string]string{
		"proxies -n shop -l app=web -o name":                               "ztunnel/ztunnel-a",
		"proxies -n shop -l app -o name":                                   "ztunnel/ztunnel-a ztunnel/ztunnel-b",
		"proxies -n shop -l app!=web,tier!=front -o name":                  "ztunnel/ztunnel-b",
		"proxies -n istio-system -l app=web -o name":                       "",
		"proxies -A -l tier=front -o name":                                 "ztunnel/ztunnel-a",
		"proxies -A -l !none -o name":                                      "ztunnel/ztunnel-a ztunnel/ztunnel-b",
		"proxies -n istio-system -l app=ztunnel -o name":                   "ztunnel/ztunnel-a ztunnel/ztunnel-b",
		"waypoint list -A -l track=b -o name":                              "waypoint/second",
		"waypoint list -n shop -l track -o jsonpath={.items[*].name}":      "second waypoint",
		"analyze -A -l app=nobody -o name":                                 "service/nobody",
		"analyze -n shop -l tier=front -o name":                            "pod/web-1",
		"waypoint delete -n shop -l track=b --dry-run":                     "waypoint shop/second deleted (dry run)",
		"enroll -l team=red,istio.io/dataplane-mode!=ambient --dry-run":    "Namespace bank labelled istio.io/dataplane-mode=ambient (dry run)",
		"enroll -l team=none":                                              "ambit: no namespace has the labels team=none",
		"unenroll --dry-run -l team in (red,blue),istio.io/dataplane-mode": "Namespace shop labelled istio.io/dataplane-mode= (dry run)",
	} {
		words := strings.Fields(args)
		if i := strings.Index(args, "team in"); i >= 0 {
			words = append(strings.Fields(args[:i]), args[i:])
		}
		out, _ := s.run(t, words...)
		out = strings.TrimSuffix(out, "ambit: not all is well\n")
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("ambit %s: got %q, want %q", args, got, want)
		}
	}
	if list := s.changed(); len(list) > 0 {
		t.Errorf("changed: %q", list)
	}
}

func TestWhatAProxyKnowsOfChosenPodsIsShown(t *testing.T) {
	m := rustMesh(t)
	m.manifests += `---
{apiVersion: v1, kind: Pod, metadata: {name: server-33f6c637a7-wjdn4, namespace: shop, labels: {app: server, version: v1}}, spec: {nodeName: node-1, serviceAccountName: server}, status: {phase: Running}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: shop}, spec: {clusterIP: 10.96.0.10, selector: {app: server}, ports: [{port: 80}]}}
`
	m.proxies = append(m.proxies, diagnose.Proxy{Role: diagnose.Ztunnel, Namespace: "istio-system", Name: "ztunnel-b", Node: "node-2"})
	for line, want := range map[string]string{
		"workloads version=v1":        "pod/server-33f6c637a7-wjdn4",
		"workloads version=v2":        "",
		"services version in (v1,v3)": "service/server",
		"certs app=server":            "certificate/spiffe://cluster.local/ns/shop/sa/server",
		"policies app=server":         "policy/for-all policy/all-fields policy/for-namespace",
		"certs app=ztunnel":           "certificate/spiffe://cluster.local/ns/shop/sa/server certificate/spiffe://cluster.local/ns/web/sa/client certificate/spiffe://cluster.local/ns/web/sa/ghost",
		"policies tier=front":         "policy/for-all policy/for-namespace",
	} {
		kind, selector, _ := strings.Cut(line, " ")
		f := &meshFlags{}
		if err := f.chosen.Set(selector); err != nil {
			t.Fatal(err)
		}
		l, err := f.config(t.Context(), m, "", kind, nil)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got := strings.Join(l.names, " "); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	for args, want := range map[string][]string{
		"waypoint delete -n shop second -y":                     {"DELETE /apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/second?"},
		"waypoint delete -n shop --all --dry-run":               nil,
		"waypoint delete -n shop second --dry-run=server":       {"DELETE /apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/second?"},
		"waypoint apply -n shop --dry-run=client":               nil,
		"waypoint apply -n shop --name second --dry-run=server": {"PATCH /apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/second?dryRun=All"},
		"enroll bank --dry-run=server":                          {"PATCH /api/v1/namespaces/bank?dryRun=All"},
		"enroll bank --wait=0":                                  {"PATCH /api/v1/namespaces/bank?"},
		"unenroll shop lone --dry-run":                          nil,
		"unenroll shop lone --wait=0":                           {"PATCH /api/v1/namespaces/shop?", "PATCH /api/v1/namespaces/lone?"},
	} {
		s := newAPIServer(t, shop)
		out, status := s.run(t, strings.Fields(args)...)
		got := s.changed()
		if status != 0 || len(got) != len(want) {
			t.Errorf("ambit %s: exit status %d, %q, want %q\n%s", args, status, got, want, out)
			continue
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("ambit %s: got %q, want %q", args, got[i], want[i])
			}
			if dry := strings.Contains(args, "dry-run"); dry != strings.Contains(got[i], "dryRun") && !strings.Contains(got[i], `"dryRun":["All"]`) {
				t.Errorf("ambit %s: %q", args, got[i])
			}
		}
		if strings.Contains(args, "dry-run") && !strings.Contains(out, "dry run)") {
			t.Errorf("ambit %s says %s", args, out)
		}
	}
}

// openTerminal is a terminal of which the test is the keyboard.
func openTerminal(t *testing.T) (keyboard, screen *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this machine has no terminals: %v", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	fd := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this machine has no terminals: %v", err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	return keyboard, screen
}

func TestWhatTakesAwayAsksAtATerminal(t *testing.T) {
	for args, question := range map[string]string{
		"waypoint delete -n shop second": "Delete shop/second? [y/N]",
		"unenroll shop --wait=0":         "All pods of shop leave the mesh: what was encrypted will be plaintext. Go on? [y/N]",
		"cert rotate":                    "Every program of the mesh gets a new root, and a certificate that it signed. Go on? [y/N]",
		"uninstall":                      "Every pod leaves the mesh: what was encrypted will be plaintext. Go on? [y/N]",
	} {
		s := newAPIServer(t, shop)
		s.configure(t)
		keyboard, screen := openTerminal(t)
		if _, err := keyboard.WriteString("n\n"); err != nil {
			t.Fatal(err)
		}
		out, status := runAmbit(t.Context(), screen, strings.Fields(args)...)
		if status != 2 || !strings.Contains(out, question) || !strings.Contains(out, "not confirmed; -y confirms") || len(s.changed()) > 0 {
			t.Errorf("ambit %s: exit status %d, changed %q\n%s", args, status, s.changed(), out)
		}
		if !strings.HasPrefix(args, "waypoint") {
			continue
		}
		if _, err := keyboard.WriteString("y\n"); err != nil {
			t.Fatal(err)
		}
		if out, status := runAmbit(t.Context(), screen, strings.Fields(args)...); status != 0 || len(s.changed()) != 1 {
			t.Errorf("ambit %s, confirmed: exit status %d, changed %q\n%s", args, status, s.changed(), out)
		}
		if out, status := runAmbit(t.Context(), screen, append(strings.Fields(args), "-y")...); status != 0 || strings.Contains(out, "[y/N]") {
			t.Errorf("ambit %s -y: exit status %d\n%s", args, status, out)
		}
	}
}

func TestNobodyIsAskedWithoutATerminal(t *testing.T) {
	s := newAPIServer(t, shop)
	s.configure(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if out, status := runAmbit(t.Context(), null, "waypoint", "delete", "-n", "shop", "second"); status != 0 || len(s.changed()) != 1 || strings.Contains(out, "[y/N]") {
		t.Errorf("exit status %d, changed %q\n%s", status, s.changed(), out)
	}
}

func TestObjectsOfALabAreChosenAndShownAsKubectlDoes(t *testing.T) {
	objs := []json.RawMessage{
		json.RawMessage(`{"kind": "Service", "metadata": {"name": "a", "labels": {"app": "web"}}}`),
		json.RawMessage(`{"kind": "Service", "metadata": {"name": "b"}}`),
	}
	for _, c := range []struct{ selector, form, want string }{
		{"app=web", "name", "service/a\n"},
		{"!app", "jsonpath={.items[*].metadata.name}", "b"},
		{"", ".items", ""},
		{"", "jsonpath=.items[1].metadata.name", "b"},
		{"app=db", "json", "{\n  \"apiVersion\": \"v1\",\n  \"items\": [],\n  \"kind\": \"List\"\n}\n"},
	} {
		var l selector
		o := getOutput{all: true}
		if err := l.Set(c.selector); err != nil {
			t.Fatal(err)
		}
		if err := o.Set(c.form); err != nil {
			if c.want != "" {
				t.Error(err)
			}
			continue
		}
		var out bytes.Buffer
		list, err := withLabels(objs, l)
		if err == nil {
			err = printObjects(&out, manifest.Lookup("Service"), list, o)
		}
		if err != nil || out.String() != c.want {
			t.Errorf("-l %q -o %s: got %q, %v, want %q", c.selector, c.form, out.String(), err, c.want)
		}
	}
}

func TestAColumnIsOneLineAndAsWideAsItsRunes(t *testing.T) {
	var out bytes.Buffer
	table := diagnose.Table{Head: []string{"A", "B", "C"}, Rows: [][]string{{"é\nü", "", "x"}, {"1", "22", "y"}}}
	if err := writeTable(&out, table); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("A     B    C\né ü   -    x\n1     22   y\n", out.String()); d != "" {
		t.Error(d)
	}
}
