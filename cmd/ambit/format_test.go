package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/diagnose"
)

// memory is a mesh in memory: objects, and programs that say what they are given to say.
type memory struct {
	source
	manifests string
	proxies   []diagnose.Proxy
	t         *testing.T
}

func (m *memory) world(context.Context) (*diagnose.World, error) {
	w := &diagnose.World{
		Objects: kubetest.Decode(m.t, m.manifests), Version: "v1",
		Now: time.Date(2026, 3, 11, 12, 0, 0, 0, time.UTC), ServerTime: time.Date(2026, 3, 11, 12, 0, 0, 0, time.UTC),
	}
	w.Proxies = append(w.Proxies, m.proxies...)
	return w, nil
}

func (m *memory) admin(context.Context, *diagnose.Proxy, string, string) ([]byte, error) {
	return nil, fmt.Errorf("nobody is asked in this test")
}

const waypointDump = `{"version": {"version": "v1"}, "config": {"gateway": "waypoint", "version": "v1"},
 "listeners": [{"name": "main", "chains": [{"name": "cart.shop.svc.cluster.local:80", "protocol": "http", "routes": ["prefix / -> cart"], "clusters": ["audit"], "filters": ["*filter.RBAC", "*filter.Router"]}]}],
 "clusters": [{"name": "cart.shop.svc.cluster.local:80", "endpointsKnown": true, "endpoints": [
  {"address": "10.1.0.5:8080", "health": "Healthy", "weight": 1, "priority": 0, "activeRequests": 2, "requests": 10, "failed": 1, "workload": "cart-6f9-x2"},
  {"address": "10.1.0.6:8080", "health": "Healthy", "ejected": true, "weight": 3, "priority": 1, "activeRequests": 1, "requests": 5, "failed": 5}]}]}`

// rustMesh is a mesh whose node proxy is Istio's own.
func rustMesh(t *testing.T) *memory {
	t.Helper()
	body, err := os.ReadFile("../../internal/diagnose/testdata/rust-ztunnel.json")
	if err != nil {
		t.Fatal(err)
	}
	node, err := diagnose.ReadDump(body)
	if err != nil {
		t.Fatal(err)
	}
	waypoint, err := diagnose.ReadDump([]byte(waypointDump))
	if err != nil {
		t.Fatal(err)
	}
	control := &diagnose.Control{Version: "v1", Clients: []discovery.ClientStatus{
		{Client: "ztunnel~10.0.0.1~ztunnel-a.istio-system~d", Connected: time.Date(2026, 3, 11, 11, 0, 0, 0, time.UTC)},
	}}
	return &memory{t: t, manifests: shop, proxies: []diagnose.Proxy{
		{Role: diagnose.ControlPlane, Namespace: "istio-system", Name: "istiod-1", Control: control},
		{Role: diagnose.Ztunnel, Namespace: "istio-system", Name: "ztunnel-a", Node: "node-1", Dump: node},
		{Role: diagnose.Waypoint, Namespace: "shop", Name: "waypoint-1", Node: "node-2", Gateway: "waypoint", Dump: waypoint},
	}}
}

// commands are what lists something of a mesh, by their words.
func (m *memory) commands(f *meshFlags) map[string]func(context.Context) (*listing, error) {
	out := map[string]func(context.Context) (*listing, error){
		"proxies": func(ctx context.Context) (*listing, error) { return f.proxies(ctx, m, "", nil) },
		"status": func(ctx context.Context) (*listing, error) {
			w, err := m.world(ctx)
			return statusList(w), err
		},
		"waypoint list": func(ctx context.Context) (*listing, error) { return f.waypointListing(ctx, m, "", nil, false) },
		"analyze": func(ctx context.Context) (*listing, error) {
			w, err := m.world(ctx)
			return findingList(diagnose.Analyze(w)), err
		},
	}
	for _, kind := range diagnose.Kinds() {
		out["config "+kind] = func(ctx context.Context) (*listing, error) { return f.config(ctx, m, "", kind, nil) }
	}
	return out
}

// TestEveryFormOfEveryCommand compares testdata/forms.txt; the flag -update writes it. The node proxy is a Rust ztunnel.
func TestEveryFormOfEveryCommand(t *testing.T) {
	m := rustMesh(t)
	var got strings.Builder
	names := []string{"status", "proxies", "waypoint list", "analyze"}
	for _, kind := range diagnose.Kinds() {
		names = append(names, "config "+kind)
	}
	for _, name := range names {
		shown := map[string]string{}
		for _, form := range []string{formTable, formWide, formName} {
			f := &meshFlags{output: format{unnamed: strings.HasPrefix(name, "config ") && !diagnose.Named(strings.TrimPrefix(name, "config "))}}
			if err := f.output.Set(form); err != nil {
				if form != formName || !f.output.unnamed {
					t.Errorf("%s -o %s: %v", name, form, err)
				}
				continue
			}
			var out bytes.Buffer
			l, err := m.commands(f)[name](t.Context())
			if err == nil {
				err = f.print(&out, l)
			}
			if err != nil || out.Len() == 0 {
				t.Errorf("%s -o %s: %q, %v", name, form, out.String(), err)
			}
			shown[form] = out.String()
			fmt.Fprintf(&got, "# ambit %s -o %s\n%s\n", name, form, out.String())
		}
		if shown[formWide] == shown[formTable] {
			t.Errorf("%s: -o wide is the table", name)
		}
	}
	const file = "testdata/forms.txt"
	if u := flag.Lookup("update"); u != nil && u.Value.String() == "true" {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("%s (-want +got), rewritten by go test ./cmd/ambit -update:\n%s", file, d)
	}
}

func TestAPathIsTakenAsKubectlTakesIt(t *testing.T) {
	m := rustMesh(t)
	for template, want := range map[string]string{
		"{.items[*].name}": "istiod-1 ztunnel-a waypoint-1",
		".items[0].name":   "istiod-1",
		"items[1].node":    "node-1",
		"$.kind":           "ProxyList",
		"{range .items[*]}{.role}={.ready}{'\\n'}{end}": "controlplane=false\nztunnel=false\nwaypoint=false\n",
		"{.items[?(@.role==\"waypoint\")].namespace}":   "shop",
		"{.items[0].none}": "",
	} {
		f := &meshFlags{}
		if err := f.output.Set("jsonpath=" + template); err != nil {
			t.Errorf("%s: %v", template, err)
			continue
		}
		l, err := f.proxies(t.Context(), m, "", nil)
		var out bytes.Buffer
		if err == nil {
			err = f.print(&out, l)
		}
		if err != nil || out.String() != want {
			t.Errorf("%s: got %q, %v, want %q", template, out.String(), err, want)
		}
	}
	f := &meshFlags{}
	if err := f.output.Set("jsonpath={.items[0].value.serviceAccount}:{.items[0].value.capacity}"); err != nil {
		t.Fatal(err)
	}
	l, err := f.config(t.Context(), m, "", "workloads", nil)
	var out bytes.Buffer
	if err == nil {
		err = f.print(&out, l)
	}
	if err != nil || out.String() != "db:7" {
		t.Errorf("a number: %q, %v", out.String(), err)
	}
}

func TestTheNamesOfAListingAreObjects(t *testing.T) {
	m := rustMesh(t)
	f := &meshFlags{}
	w, _ := m.world(t.Context())
	for _, name := range []string{"status", "proxies", "waypoint list", "config workloads", "config services"} {
		l, err := m.commands(f)[name](t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range l.names {
			var usage usageError
			if _, err := programs(w, "", []string{n}); errors.As(err, &usage) {
				t.Errorf("%s: %s: %v", name, n, err)
			}
		}
	}
}

func TestOnlyTheProgramsOfAnObjectAreListed(t *testing.T) {
	m := rustMesh(t)
	l, err := (&meshFlags{}).proxies(t.Context(), m, "shop", []string{"pod/web-1"})
	if err != nil || !slices.Equal(l.names, []string{"ztunnel/ztunnel-a"}) || l.table.Rows[0][5] != "SYNCED" {
		t.Errorf("got %v, %q, %v, want ztunnel/ztunnel-a alone, and what the control plane knows of it", l.names, l.table.Rows, err)
	}
}
