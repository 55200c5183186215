package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambit-mesh/ambit/internal/admin"
	"github.com/ambit-mesh/ambit/ztunnel"
)

func proxyOf(t *testing.T, args []string, e env) ztunnel.ProxyConfig {
	t.Helper()
	cfg, err := proxyConfig(args, e, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestWithoutFlagsAndVariablesTheDefaultsAreIstios(t *testing.T) {
	got := proxyOf(t, nil, env{})
	want := ztunnel.DefaultProxyConfig()
	want.XDSAddress, want.CAAddress = "https://localhost:15012", "https://localhost:15012"
	want.Metadata = map[string]any{}
	if d := cmp.Diff(got, want, cmpopts.IgnoreFields(got, "Workers"), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("-got +want:\n%s", d)
	}
	if got.Workers < 2 {
		t.Errorf("%d workers", got.Workers)
	}
}

func TestTheFlagsOfTheLabWork(t *testing.T) {
	got := proxyOf(t, strings.Fields("--node=n1 --run-dir=/run/x --xds-address=https://10.0.0.1:15012 --ca-address=https://10.0.0.2:15012"+
		" --root-ca=/ca.pem --token=/token --cluster-id=c --network=net --trust-domain=td --admin-address=127.0.0.1:1"+
		" --metrics-address=:2 --ready-address=:3 --same-node=hbone --workers=3 --log-level=debug --cert-ttl=1h"), env{"XDS_ADDRESS": "x:1"})
	if got.Node != "n1" || got.RunDir != "/run/x" || got.ZDSPath != "" || got.XDSAddress != "https://10.0.0.1:15012" ||
		got.CAAddress != "https://10.0.0.2:15012" || got.XDSRootCA != "/ca.pem" || got.CARootCA != "/ca.pem" || got.Token != "/token" ||
		got.ClusterID != "c" || got.Network != "net" || got.TrustDomain != "td" || got.AdminAddress != "127.0.0.1:1" ||
		got.MetricsAddress != ":2" || got.ReadyAddress != ":3" || got.SameNode != ztunnel.SameNodeHBONE || got.Workers != 3 ||
		got.LogLevel != "debug" || got.CertTTL != time.Hour {
		t.Errorf("got %+v", got)
	}
}

func TestTheVariablesOfTheChartWork(t *testing.T) {
	got := proxyOf(t, []string{"ztunnel"}, env{
		"KUBERNETES_SERVICE_HOST": "10.0.0.1", "CA_ADDRESS": "ca:1", "NODE_NAME": "n", "CLUSTER_ID": "c", "ISTIO_META_CLUSTER_ID": "m",
		"TERMINATION_GRACE_PERIOD_SECONDS": "30", "ZTUNNEL_WORKER_THREADS": "4", "ISTIO_META_DNS_CAPTURE": "false",
		"ISTIO_META_DNS_PROXY_ADDR": "localhost:53", "ISTIO_METAJSON_LABELS": `{"a":"b"}`, "XDS_HEADER_a": "b", "RUST_LOG": "warn,access=info",
		"LOG_FORMAT": "json", "INPOD_UDS": "/uds", "ENABLE_ORIG_SRC": "true", "KEEPALIVE_ENABLED": "false", "XDS_ON_DEMAND": "true",
		"SECRET_TTL": "90m", "PROXY_CONFIG": "{discoveryAddress: 'istiod:9', statsPort: 16020, proxyAdminPort: 16000, proxyMetadata: {ISTIO_META_X: v}}",
		"INPOD_ENABLED": "true", "HTTP2_FRAME_SIZE": "16384", "POOL_MAX_STREAMS_PER_CONNECTION": "7",
	})
	if got.XDSAddress != "https://istiod:9" || got.CAAddress != "https://ca:1" || got.ClusterID != "m" || got.DrainTimeout != 25*time.Second ||
		got.Workers != 4 || got.DNS.Enabled || got.DNS.Address != netip.MustParseAddrPort("127.0.0.1:53") || got.XDSHeaders["a"] != "b" ||
		got.LogLevel != "warn,access=info" || !got.LogJSON || got.ZDSPath != "/uds" || got.OriginalSource != ztunnel.OriginalSourceMust ||
		got.KeepAlive != (ztunnel.KeepAlive{}) || got.CertTTL != 90*time.Minute || got.MetricsAddress != ":16020" ||
		got.AdminAddress != "localhost:16000" || got.HBONE.FrameSize != 16384 || got.HBONE.MaxStreams != 7 {
		t.Errorf("got %+v", got)
	}
	want := map[string]any{"X": "v", "CLUSTER_ID": "m", "DNS_CAPTURE": "false", "DNS_PROXY_ADDR": "localhost:53", "LABELS": map[string]any{"a": "b"}}
	if d := cmp.Diff(got.Metadata, want); d != "" {
		t.Errorf("metadata (-got +want):\n%s", d)
	}
}

func TestIstiodIsTheControlPlaneInKubernetesAndEmptyDisablesIt(t *testing.T) {
	got := proxyOf(t, nil, env{"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
	if want := "https://istiod.istio-system.svc:15012"; got.XDSAddress != want || got.CAAddress != want {
		t.Errorf("got %q and %q", got.XDSAddress, got.CAAddress)
	}
	if got := proxyOf(t, nil, env{"XDS_ADDRESS": ""}); got.XDSAddress != "" {
		t.Errorf("got %q", got.XDSAddress)
	}
}

func TestPROXY_CONFIGIsMergedOverTheMesh(t *testing.T) {
	got, err := readMeshConfig([]byte("defaultConfig:\n  discoveryAddress: a\n  statsPort: 1\n  proxyMetadata: {A: b, C: d}\n"),
		"statsPort: 2\nproxyMetadata: {A: z}\n")
	if err != nil {
		t.Fatal(err)
	}
	if got.DiscoveryAddress != "a" || got.StatsPort != 2 || got.ProxyMetadata["A"] != "z" || got.ProxyMetadata["C"] != "d" {
		t.Errorf("got %+v", got)
	}
}

func TestNonsenseIsAUsageError(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  env
	}{
		{[]string{"--nope"}, nil},
		{[]string{"--same-node=maybe"}, nil},
		{nil, env{"SECRET_TTL": "soon"}},
		{nil, env{"SECRET_TTL": "-1s"}},
		{nil, env{"PACKET_MARK": "x"}},
		{nil, env{"IPV6_ENABLED": "perhaps"}},
		{nil, env{"ISTIO_METAJSON_A": "{"}},
		{nil, env{"PROXY_CONFIG": "{"}},
		{nil, env{"ISTIO_META_DNS_PROXY_ADDR": "somewhere"}},
		{nil, env{"ZTUNNEL_WORKER_THREADS": "200%"}},
		{nil, env{"ZTUNNEL_WORKER_THREADS": "few"}},
		{nil, env{"COMPLIANCE_POLICY": "fips"}},
		{nil, env{"HTTP2_FRAME_SIZE": "1"}},
		{nil, env{"XDS_ON_DEMAND": "true"}}, // D1
		{nil, env{"TERMINATION_GRACE_PERIOD_SECONDS": "long"}},
	} {
		if _, err := proxyConfig(c.args, c.env, io.Discard); !errors.As(err, new(usageError)) {
			t.Errorf("%q %v: %v", c.args, c.env, err)
		}
	}
}

func TestWorkers(t *testing.T) {
	for _, c := range []struct {
		name string
		env  env
		want int
	}{
		{"a quarter of the CPUs", env{}, 4},
		{"at least the request", env{"ZTUNNEL_RESOURCE_CPU_REQUEST": "5500m"}, 6},
		{"the limit", env{"ZTUNNEL_RESOURCE_CPU_LIMIT": "3", "ZTUNNEL_RESOURCE_CPU_REQUEST": "200m"}, 3},
		{"the limit raised to the request", env{"ZTUNNEL_RESOURCE_CPU_LIMIT": "1", "ZTUNNEL_RESOURCE_CPU_REQUEST": "2"}, 2},
		{"CPUs by the downward API", env{"ZTUNNEL_CPU_LIMIT": "32"}, 8},
		{"at least two", env{"ZTUNNEL_CPU_LIMIT": "1"}, 2},
		{"a number", env{"ZTUNNEL_WORKER_THREADS": "7"}, 7},
		{"0 is all", env{"ZTUNNEL_WORKER_THREADS": "0"}, 16},
		{"a share", env{"ZTUNNEL_WORKER_THREADS": "50%"}, 8},
		{"a small share", env{"ZTUNNEL_WORKER_THREADS": "1%"}, 1},
	} {
		r := &reader{env: c.env}
		if got := r.workers(16); got != c.want || r.err != nil {
			t.Errorf("%s: got %d, %v, want %d", c.name, got, r.err, c.want)
		}
	}
}

func TestDrainIsABitLessThanKubernetesWaits(t *testing.T) {
	for _, c := range []struct {
		env  env
		want time.Duration
	}{
		{env{}, 5 * time.Second},
		{env{"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25 * time.Second},
		{env{"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9 * time.Second},
		{env{"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, time.Second},
		{env{"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "3s"}, 3 * time.Second},
	} {
		if got := proxyOf(t, nil, c.env).DrainTimeout; got != c.want {
			t.Errorf("%v: got %v, want %v", c.env, got, c.want)
		}
	}
}

func TestCaptureReadsItsFlags(t *testing.T) {
	cfg, log, err := captureConfig(strings.Fields("--node=n --run-dir=/r --pin-dir=/p --same-node=direct --exclude-namespaces=a,b"), env{"RUST_LOG": "debug"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node != "n" || cfg.RunDir != "/r" || cfg.PinDir != "/p" || cmp.Diff(cfg.Policy.ExcludeNamespaces, []string{"a", "b"}) != "" || log.level != "debug" {
		t.Errorf("got %+v, %+v", cfg, log)
	}
	cfg, _, err = captureConfig([]string{"--exclude-namespaces="}, env{}, io.Discard)
	if err != nil || cfg.Policy.ExcludeNamespaces == nil || len(cfg.Policy.ExcludeNamespaces) != 0 {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestANodeHasItsOwnWayWithProbes(t *testing.T) {
	for _, c := range []struct{ flag, node, want string }{
		{"", "n", ""},
		{"kubelet", "n", "kubelet"},
		{"kubelet,a=address,b=captured", "n", "kubelet"},
		{"kubelet,a=address,b=captured", "b", "captured"},
		{"a=address", "a", "address"},
	} {
		cfg, _, err := captureConfig([]string{"--node=" + c.node, "--probes=" + c.flag}, env{}, io.Discard)
		if err != nil || cfg.Probes != c.want {
			t.Errorf("%s at node %s: got %q, %v, want %q", c.flag, c.node, cfg.Probes, err, c.want)
		}
	}
	for _, bad := range []string{"kubelet,address", "a=", "=x", "kubelet,"} {
		if _, _, err := captureConfig([]string{"--probes=" + bad}, env{}, io.Discard); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestVerbs(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
	}{
		{[]string{"version"}, 0},
		{[]string{"help"}, 0},
		{[]string{"proxy", "-h"}, 0},
		{[]string{"fly"}, 2},
		{[]string{"capture", "--nope"}, 2},
	} {
		var out, errs bytes.Buffer
		if got := run(t.Context(), c.args, env{}, &out, &errs); got != c.status {
			t.Errorf("%q: status %d, want %d\n%s", c.args, got, c.status, errs.String())
		}
		if out.Len()+errs.Len() == 0 {
			t.Errorf("%q says nothing", c.args)
		}
	}
}

func TestParseLevel(t *testing.T) {
	for s, want := range map[string]slog.Level{
		"": slog.LevelInfo, "debug": slog.LevelDebug, "access=debug,WARN": slog.LevelWarn, "access=debug": slog.LevelInfo, "trace": slog.LevelDebug,
	} {
		if got := parseLevel(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

func TestWherePodsComeFromIsSaidWhole(t *testing.T) {
	for args, want := range map[string]string{
		"":                           "",
		"--pods=kubernetes --node=n": "",
		"--pods=kubernetes":          "needs the node's name: --node or NODE_NAME",
		"--pods=kubernetes --node=n --leave-propagation=-1s": "--leave-propagation=-1s: less than 0",
		"--pods=docker":                            "--pods=docker: not socket or kubernetes",
		"--cni-conf-dir=/etc/cni/net.d":            "--cni-conf-dir needs --pods=kubernetes",
		"--pods=kubernetes --node=n --host-proc=x": "",
	} {
		cfg, _, err := captureConfig(strings.Fields(args), env{"POD_NAMESPACE": "mesh"}, io.Discard)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, new(usageError))) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
		if k := cfg.Kubernetes; err == nil && (k != nil) != strings.Contains(args, "kubernetes") || k != nil && k.Agent[0] != "mesh/ztunnel-" {
			t.Errorf("%q: %+v", args, k)
		}
	}
}

func TestTheOtherNodesHaveTheTimeToLearnThatTheFlagSays(t *testing.T) {
	for args, want := range map[string]time.Duration{"": 5 * time.Second, " --leave-propagation=20s": 20 * time.Second, " --leave-propagation=0": 0} {
		cfg, _, err := captureConfig(strings.Fields("--pods=kubernetes --node=n"+args), env{}, io.Discard)
		if err != nil || cfg.Kubernetes.Propagation != want {
			t.Errorf("%q: %v, %v, want %v", args, cfg.Kubernetes, err, want)
		}
	}
}

func TestReadyAsksTheProcessOfItsOwnPod(t *testing.T) {
	socket := fmt.Sprintf("@ambit-test-ready-%d", os.Getpid())
	ask := func(e env) (int, string) {
		var stderr strings.Builder
		status := run(t.Context(), []string{"ready"}, e, io.Discard, &stderr)
		return status, stderr.String()
	}
	if status, text := ask(env{}); status != 2 || !strings.Contains(text, "READY_SOCKET is not set") {
		t.Errorf("without a socket: status %d, %q", status, text)
	}
	if status, text := ask(env{"READY_SOCKET": socket}); status != 1 || !strings.Contains(text, "ask for readiness") {
		t.Errorf("without a process: status %d, %q", status, text)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var r admin.Ready
	r.Pending("state manager")
	srv := &http.Server{Handler: r.Handler()}
	go srv.Serve(l)
	defer srv.Close()
	if status, text := ask(env{"READY_SOCKET": socket}); status != 1 || !strings.Contains(text, "state manager") {
		t.Errorf("a process that is not ready: status %d, %q", status, text)
	}
	r.Done("state manager")
	if status, text := ask(env{"READY_SOCKET": socket}); status != 0 || text != "" {
		t.Errorf("a process that is ready: status %d, %q", status, text)
	}
}
