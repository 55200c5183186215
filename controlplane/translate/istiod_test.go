package translate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/securitypb"
	"github.com/ambit-mesh/ambit/api/workloadpb"
	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// dumpsDir finds the recordings of istiod: the folder that DUMPS names, else shared/waypoint-dumps in a folder above.
func dumpsDir(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("DUMPS"); d != "" {
		return d
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if d := filepath.Join(dir, "shared", "waypoint-dumps"); isDir(d) {
			return d
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Skip("no recordings of istiod: neither DUMPS is set nor is there a shared/waypoint-dumps in a folder above")
		}
		dir = up
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// recorded reads the resources of a serialized DeltaDiscoveryResponse: field 2 is Resource, whose field 2 is the Any and
// field 3 the name.
func recorded(t *testing.T, path string, make func() proto.Message) map[string]proto.Message {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]proto.Message{}
	fields(t, data, func(n protowire.Number, v []byte) {
		if n != 2 {
			return
		}
		var name string
		m := make()
		fields(t, v, func(n protowire.Number, v []byte) {
			switch n {
			case 2:
				var a anypb.Any
				if err := errors.Join(proto.Unmarshal(v, &a), proto.Unmarshal(a.Value, m)); err != nil {
					t.Fatal(err)
				}
			case 3:
				name = string(v)
			}
		})
		out[name] = m
	})
	return out
}

// fields calls f for each length-delimited field.
func fields(t *testing.T, b []byte, f func(protowire.Number, []byte)) {
	t.Helper()
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		b = b[size:]
		if typ == protowire.BytesType {
			v, size := protowire.ConsumeBytes(b)
			if size < 0 {
				t.Fatal(protowire.ParseError(size))
			}
			f(n, v)
			b = b[size:]
			continue
		}
		if size = protowire.ConsumeFieldValue(n, typ, b); size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		b = b[size:]
	}
}

// recordedObjects reads base.yaml and the scenario; an object of the scenario replaces the base's.
func recordedObjects(t *testing.T, dir, scenario string) *kube.Objects {
	t.Helper()
	var all []kube.Object
	for _, f := range []string{"base.yaml", scenario + ".yaml"} {
		data, err := os.ReadFile(filepath.Join(dir, "inputs", f))
		if err != nil {
			t.Fatal(err)
		}
		objects, problems := kube.Decode(f, data)
		for _, p := range problems {
			t.Error(p.Error())
		}
		all = append(all, objects...)
	}
	return kube.NewObjects(all...)
}

// The known differences between us and the recorded istiod, each with its reason, are applied to the recording. Any
// other difference fails the test.

// adaptService explains the differences in a Service.
func adaptService(istiod *workloadpb.Service) (reasons []string) {
	if istiod.IpFamilies == workloadpb.IPFamilies_AUTOMATIC && len(istiod.Addresses) > 0 && strings.HasSuffix(istiod.Hostname, ".svc.cluster.local") {
		reasons = append(reasons, "ip_families: the recording came from a fake API server without defaulting; a real one fills spec.ipFamilies from the cluster IPs, as we do")
		istiod.IpFamilies = workloadpb.IPFamilies_IPV4_ONLY
	}
	if istiod.Name == "waypoint" {
		reasons = append(reasons, "target_port: the waypoint's Service has no targetPort; a real API server makes it the port, as we do")
		for _, p := range istiod.Ports {
			p.TargetPort = p.ServicePort
		}
	}
	return reasons
}

// adaptWorkload explains the differences in a Workload.
func adaptWorkload(istiod *workloadpb.Workload) (reasons []string) {
	if l, ok := istiod.Services["demo/waypoint.demo.svc.cluster.local"]; ok {
		reasons = append(reasons, "services: target port of the waypoint's Service, as above")
		for _, p := range l.Ports {
			p.TargetPort = p.ServicePort
		}
	}
	return reasons
}

// adaptAuthorization explains the differences in a policy.
func adaptAuthorization(istiod *securitypb.Authorization) (reasons []string) {
	for _, r := range istiod.Rules {
		n := len(r.Clauses)
		seen := map[string]bool{}
		r.Clauses = slices.DeleteFunc(r.Clauses, func(c *securitypb.Clause) bool {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
			if err != nil || seen[string(b)] {
				return err == nil
			}
			seen[string(b)] = true
			return false
		})
		if len(r.Clauses) != n {
			reasons = append(reasons, "clauses: istiod says the same clause twice when a STRICT PeerAuthentication with ports is below a STRICT parent")
		}
	}
	return reasons
}

// added are resources that istiod does not send, with the reason.
var added = map[string]string{
	"demo/converted_l7_deny_ztunnel-l7-mixed": "the fail-closed twin of a DENY rule with L7 attributes (package comment)",
}

func TestSameAsIstiod(t *testing.T) {
	dir := dumpsDir(t)
	files, err := filepath.Glob(filepath.Join(dir, "pb", "*.ztunnel.ADDR.pb"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s: %v", dir, err)
	}
	for _, f := range files {
		scenario := strings.TrimSuffix(filepath.Base(f), ".ztunnel.ADDR.pb")
		t.Run(scenario, func(t *testing.T) {
			r := Build(Config{}, recordedObjects(t, dir, scenario))
			for _, p := range r.Problems {
				t.Log("problem:", p.Error())
			}
			want := recorded(t, f, func() proto.Message { return &workloadpb.Address{} })
			for name, m := range want {
				var reasons []string
				if s := m.(*workloadpb.Address).GetService(); s != nil {
					reasons = adaptService(s)
				} else {
					reasons = adaptWorkload(m.(*workloadpb.Address).GetWorkload())
				}
				logReasons(t, name, reasons)
			}
			compare(t, r.Addresses, want)
			policies := recorded(t, filepath.Join(dir, "pb", scenario+".ztunnel.WADS.pb"), func() proto.Message { return &securitypb.Authorization{} })
			for name, m := range policies {
				logReasons(t, name, adaptAuthorization(m.(*securitypb.Authorization)))
			}
			compare(t, r.Authorizations, policies)
		})
	}
}

func logReasons(t *testing.T, name string, reasons []string) {
	t.Helper()
	for _, r := range reasons {
		t.Logf("%s differs: %s", name, r)
	}
}

func compare(t *testing.T, got map[string]*Resource, want map[string]proto.Message) {
	t.Helper()
	for name, m := range want {
		r := got[name]
		if r == nil {
			t.Errorf("resource %q of istiod is missing", name)
			continue
		}
		if d := cmp.Diff(m, r.Message, protocmp.Transform()); d != "" {
			t.Errorf("resource %q (-istiod +ours):\n%s", name, d)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			if why, known := added[name]; known {
				t.Logf("%s is sent by us alone: %s", name, why)
				continue
			}
			t.Errorf("resource %q is not istiod's", name)
		}
	}
}
