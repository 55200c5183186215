package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// shownBy are the kinds of ambit config that show the sections of a ztunnel's dump, and the fields that name what is in them.
var shownBy = []struct {
	kind, section string
	names         []string
}{
	{"workloads", "workloads", []string{"namespace", "name", "uid", "serviceAccount", "protocol", "status"}},
	{"services", "services", []string{"namespace", "hostname", "name", "visibility"}},
	{"policies", "policies", []string{"namespace", "name", "action", "scope"}},
	{"certs", "certificates", []string{"identity", "state"}},
}

// config is what ambit config prints of the Rust ztunnel.
func (w *meshWorld) config(kind, form string) ([]byte, error) {
	var errOut bytes.Buffer
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(w.bin, "ambit"), "config", kind, "ztunnel/"+rustNode, "--lab", labName, "-o", form)
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err == nil && errOut.Len() > 0 {
		err = errors.New("it is not silent")
	}
	if err != nil {
		return nil, fmt.Errorf("ambit config %s -o %s: %w: %s", kind, form, err, errOut.String())
	}
	return out, nil
}

// configShows holds what ambit config shows of the Rust ztunnel against what that says of itself, with policies for pods and
// for a namespace, and an open connection.
func (w *meshWorld) configShows(t *testing.T) {
	w.apply(`
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: shown, namespace: interop}
  spec:
    selector: {matchLabels: {app: rust-server}}
    action: DENY
    rules: [{from: [{source: {principals: [cluster.local/ns/interop/sa/nobody], notNamespaces: [interop]}}], to: [{operation: {ports: ["9"]}}]}]
- {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: empty, namespace: outside}, spec: {}}
- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: shown, namespace: interop}, spec: {selector: {matchLabels: {app: rust-server}}, mtls: {mode: STRICT}}}`)
	defer func() {
		must(t, w.c.DeleteObject(t.Context(), "AuthorizationPolicy", "interop", "shown"), w.c.DeleteObject(t.Context(), "AuthorizationPolicy", "outside", "empty"),
			w.c.DeleteObject(t.Context(), "PeerAuthentication", "interop", "shown"))
	}()
	vip, _ := w.addrs("service", "rust-server")
	open, err := dial(within(t, time.Minute), w.ns(t, "interop", "ours-client"), netip.AddrPortFrom(vip, echoPort+shift))
	must(t, err)
	defer open.Close()
	must(t, asks(open, "open\n"))
	for _, x := range shownBy {
		t.Run(x.kind, func(t *testing.T) {
			eventually(t, "ambit config "+x.kind+" to show what the ztunnel says", func() error { return w.shows(x.kind, x.section, x.names) })
		})
	}
	t.Run("connections", func(t *testing.T) {
		eventually(t, "ambit config to show the connection", func() error { return w.showsConnection(open.LocalAddr().String()) })
	})
}

// atLeast is what the world has of each section, so that a dump without it proves nothing.
var atLeast = map[string]int{"workloads": 7, "services": 2, "policies": 3, "certificates": 3}

func (w *meshWorld) shows(kind, section string, names []string) error {
	said, err := w.dump(rustNode)
	if err != nil {
		return err
	}
	var want []any
	if err := json.Unmarshal(said[section], &want); err != nil {
		return err
	}
	if len(want) < atLeast[section] {
		return fmt.Errorf("the ztunnel says %d %s, want %d", len(want), section, atLeast[section])
	}
	for _, form := range []string{"json", "yaml"} {
		out, err := w.config(kind, form)
		if err != nil {
			return err
		}
		if err := same(out, want); err != nil {
			return fmt.Errorf("-o %s: %w", form, err)
		}
	}
	out, err := w.config(kind, "wide")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(want)+1 {
		return fmt.Errorf("%d rows, want %d:\n%s", len(lines)-1, len(want), out)
	}
	for _, v := range want {
		var cells []string
		for _, n := range names {
			cells = append(cells, v.(map[string]any)[n].(string))
		}
		if !slices.ContainsFunc(lines[1:], func(line string) bool { return hasAll(line, cells) }) {
			return fmt.Errorf("no row has %q:\n%s", cells, out)
		}
	}
	return nil
}

// dump is what the ztunnel of a node says, by its sections.
func (w *meshWorld) dump(node string) (map[string]json.RawMessage, error) {
	out, err := w.c.Fetch(w.t.Context(), "ztunnel/"+node, "http://127.0.0.1:15000/config_dump")
	if err != nil {
		return nil, err
	}
	var said map[string]json.RawMessage
	err = json.Unmarshal([]byte(out), &said)
	return said, err
}

// same says whether the values of the items in a document, JSON or YAML, are these in any order.
func same(document []byte, want []any) error {
	var doc struct{ Items []struct{ Value any } }
	if err := yaml.Unmarshal(document, &doc); err != nil {
		return err
	}
	if len(doc.Items) != len(want) {
		return fmt.Errorf("%d items, want %d", len(doc.Items), len(want))
	}
	for _, v := range want {
		if !slices.ContainsFunc(doc.Items, func(i struct{ Value any }) bool { return reflect.DeepEqual(i.Value, v) }) {
			return fmt.Errorf("no item is %v", v)
		}
	}
	return nil
}

func hasAll(line string, cells []string) bool {
	return !slices.ContainsFunc(cells, func(c string) bool { return !strings.Contains(line, c) })
}

// showsConnection finds the inbound connection of a client by HBONE, for the service that it asked for.
func (w *meshWorld) showsConnection(client string) error {
	host, err := netip.ParseAddrPort(client)
	if err != nil {
		return err
	}
	out, err := w.config("connections", "table")
	if err != nil {
		return err
	}
	want := []string{"interop/rust-server", "inbound", host.Addr().String() + ":", "rust-server.interop.svc.cluster.local", fmt.Sprintf(":%d", echoPort), "HBONE", "ztunnel-" + rustNode}
	if !slices.ContainsFunc(strings.Split(string(out), "\n"), func(line string) bool { return hasAll(line, want) }) {
		return fmt.Errorf("no row has %q:\n%s", want, out)
	}
	return nil
}
