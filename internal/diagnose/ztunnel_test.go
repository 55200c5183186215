package diagnose

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// rustDump is what a Rust ztunnel said on a node of a lab, under our control plane and with a file of its own that has what
// a lab does not; shortened. What it is told to send as header x-api-key is no secret of anybody.
func rustDump(t testing.TB) (body []byte, p *Proxy) {
	t.Helper()
	body, err := os.ReadFile("testdata/rust-ztunnel.json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := ReadDump(body)
	if err != nil {
		t.Fatal(err)
	}
	return body, &Proxy{Role: Ztunnel, Namespace: "istio-system", Name: "ztunnel-b", Node: "node-2", Dump: d}
}

// row finds the row that has these cells, and gives its cells by the names of columns.
func row(t *testing.T, table Table, cells ...string) map[string]string {
	t.Helper()
	for _, r := range table.Rows {
		if !slices.ContainsFunc(cells, func(c string) bool { return !slices.Contains(r, c) }) {
			out := map[string]string{}
			for i, name := range table.Head {
				out[name] = r[i]
			}
			return out
		}
	}
	t.Fatalf("no row has %q", cells)
	return nil
}

func config(t *testing.T, kind string, p *Proxy) (Table, []Item) {
	t.Helper()
	table, items, err := Config(kind, nil, "", []*Proxy{p})
	if err != nil {
		t.Fatal(err)
	}
	return table, items
}

func TestTheTablesSayWhatARustZtunnelSays(t *testing.T) {
	_, p := rustDump(t)
	for _, x := range []struct {
		kind, name, column, want string
	}{
		{"workloads", "db-0", "GATEWAY", "net-2/203.0.113.9"},
		{"workloads", "db-0", "TUNNEL", "native"},
		{"workloads", "db-0", "TRUST-DOMAIN", "old.example"},
		{"workloads", "db-0", "CLUSTER", "other"},
		{"workloads", "db-0", "CANONICAL", "db/v2"},
		{"workloads", "db-0", "CAPACITY", "7"},
		{"workloads", "db-0", "UID", "other//Pod/far/db-0"},
		{"workloads", "tunnel", "TUNNEL", "NONE:9090"},
		{"workloads", "tunnel", "WAYPOINT", "net-2/10.66.0.9 port 15009"},
		{"workloads", "next-510ed760c2-z49nr", "TUNNEL", "PROXY:15088"},
		{"workloads", "dns", "ADDRESS", "www.example.com"},
		{"workloads", "host", "NETWORK-MODE", "HostNetwork"},
		{"workloads", "client", "NETWORK-MODE", "Standard"},
		{"workloads", "client", "STATE", "Up"},
		{"workloads", "outsider", "STATE", ""},
		{"services", "api.bank.example", "VIP", "240.1.0.7,10.77.0.0/16"},
		{"services", "api.bank.example", "NAME", "bank"},
		{"services", "db.far.svc.cluster.local", "VIP", "net-2/10.97.0.5,net-2/fd00:97::5,net-2/10.98.0.0/16"},
		{"services", "db.far.svc.cluster.local", "BALANCING", "Strict,Subzone,Node,Cluster,AllowAll"},
		{"services", "db.far.svc.cluster.local", "FAMILIES", "IPv4"},
		{"services", "db.far.svc.cluster.local", "CANONICAL", "false"},
		{"services", "reviews.shop.svc.cluster.local", "WAYPOINT", "shop/waypoint.shop.svc.cluster.local weight 90,shop/next.shop.svc.cluster.local weight 10"},
		{"services", "server.shop.svc.cluster.local", "PORTS", "80:8080,9000:9000"},
		{"policies", "dry", "DRY-RUN", "true"},
		{"policies", "for-all", "MATCHES", `[[[{"destinationPorts":[9999]}]]]`},
		{"certs", "spiffe://cluster.local/ns/web/sa/client", "ROOT-SERIALS", "85794061197735643348361431717074982324"},
	} {
		table, _ := config(t, x.kind, p)
		if got := row(t, table, x.name)[x.column]; got != x.want {
			t.Errorf("%s: %s of %s is %q, want %q", x.kind, x.column, x.name, got, x.want)
		}
	}
}

// shown are the texts in a value of the dump that its row has to have; path is where the value is.
func shown(v any, path string) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if slices.Contains(unshown, path+"."+k) {
				continue
			}
			out = append(out, shown(x, path+"."+k)...)
		}
	case []any:
		for _, x := range v {
			out = append(out, shown(x, path)...)
		}
	case nil:
	case string:
		if v != "" {
			out = append(out, strings.TrimPrefix(v, "/")) // the address of a network without a name
		}
	default:
		out = append(out, fmt.Sprint(v))
	}
	return out
}

// unshown is what only -o json and -o yaml show, the endpoints and certificates themselves, and what a row has another word
// for: the usual port of HBONE, and native tunnels.
var unshown = []string{
	"services.endpoints", "services.waypoint.hboneMtlsPort", "services.weightedWaypoints.destination.hboneMtlsPort",
	"workloads.waypoint.hboneMtlsPort", "workloads.networkGateway.hboneMtlsPort", "workloads.nativeTunnel",
	"certificates.certChain.pem", "certificates.rootCerts.pem", "certificates.rootCerts.validFrom",
}

func TestWorkloadsServicesPoliciesAndCertificatesOfARustZtunnelAreShownWhole(t *testing.T) {
	body, p := rustDump(t)
	var dump map[string]json.RawMessage
	if err := json.Unmarshal(body, &dump); err != nil {
		t.Fatal(err)
	}
	for kind, name := range map[string]string{"workloads": "workloads", "services": "services", "policies": "policies", "certs": "certificates"} {
		var said []any
		if err := json.Unmarshal(dump[name], &said); err != nil {
			t.Fatal(err)
		}
		table, items := config(t, kind, p)
		var values []any
		for _, i := range items {
			values = append(values, i.Value)
		}
		text, err := json.Marshal(values)
		var got []any
		if err == nil {
			err = json.Unmarshal(text, &got)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(said) {
			t.Errorf("%s: %d items, want %d", kind, len(got), len(said))
		}
		for _, want := range said {
			at := slices.IndexFunc(got, func(x any) bool { return reflect.DeepEqual(x, want) })
			if at < 0 {
				t.Errorf("%s: no item is %v", kind, want)
				continue
			}
			line := strings.Join(table.Rows[at], "\n")
			for _, text := range shown(want, name) {
				if !strings.Contains(line, text) {
					t.Errorf("%s: %q is not in the row %q", kind, text, table.Rows[at])
				}
			}
		}
	}
}

func TestTheConnectionsOfARustZtunnelAreListed(t *testing.T) {
	_, p := rustDump(t)
	table, _ := config(t, "connections", p)
	var got []string
	for _, r := range table.Narrow().Rows {
		got = append(got, strings.Join(r[:6], " "))
	}
	want := []string{
		"shop/server-33f6c637a7-wjdn4 inbound 10.244.1.14:37212  10.244.2.12:8080 TCP",
		"shop/server-33f6c637a7-wjdn4 inbound 10.244.1.15:56988  10.244.2.12:9000 HBONE",
		"shop/server-33f6c637a7-wjdn4 inbound 10.244.2.14:43942 server.shop.svc.cluster.local 10.244.2.12:8080 HBONE",
		"shop/server-33f6c637a7-wjdn4 inbound [fd00:10:244:2::e]:53546 server.shop.svc.cluster.local [fd00:10:244:2::c]:8080 HBONE",
		"web/client outbound 10.244.2.14:32912 10.96.0.10:80 10.244.2.12:15008 HBONE",
		"web/client outbound 10.244.2.14:54928 10.244.1.14:8080 10.244.1.14:8080 TCP",
		"web/client outbound 10.244.2.14:56206 10.96.0.12:80 10.244.1.12:15008 HBONE",
		"web/client outbound 10.244.2.14:58754 10.244.1.11:9000 10.244.1.11:15008 HBONE",
		"web/client outbound [fd00:10:244:2::e]:39254 [fd00:10:96::a]:80 [fd00:10:244:2::c]:15008 HBONE",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheBootstrapHasNoTokens(t *testing.T) {
	_, p := rustDump(t)
	table, items := config(t, "bootstrap", p)
	text, err := json.Marshal(items)
	if err != nil || strings.Contains(string(text), "hunter2") {
		t.Errorf("the header's value is shown: %s, %v", text, err)
	}
	for key, want := range map[string]string{
		"xdsHeaders": `[["x-api-key","[redacted]"]]`, "caHeaders": `[["x-team","blue"]]`, "secretTtl": `{"nanos":0,"secs":86400}`, "packetMark": "1337",
	} {
		if got := row(t, table, key)["VALUE"]; got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

func TestAZtunnelOfIstiosHasVersionsOfItsOwn(t *testing.T) {
	_, rust := rustDump(t)
	w := (&fixture{}).world(t, kube.NewObjects())
	w.Proxies = append(w.Proxies, *rust)
	for _, f := range Check(w) {
		if f.Code == "AMB0108" {
			t.Errorf("%v: what our upgrade cannot change is no finding", f)
		}
	}
	w.Proxies[1].Dump.Version.Version = "v2"
	if !slices.ContainsFunc(Check(w), func(f Finding) bool { return f.Code == "AMB0108" }) {
		t.Error("our own versions that differ are not found")
	}
}
