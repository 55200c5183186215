package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/test/bed"
)

// throughWaypoint is a service of the mesh that a waypoint stands before: client, node proxy, HBONE, waypoint, HBONE, node
// proxy, server. The node proxies are ours in every system, and only the waypoint is counted.
const throughWaypoint path = "waypoint"

// waypointSystem is a lab whose waypoint is ours or an Envoy. Both have the same resources from our control plane: mTLS both
// ways, a policy on the client's identity, routes, and an access log when a workload asks for one.
type waypointSystem struct {
	label   string // of the results, and with lab before it the lab's name
	bin     string
	envoy   string // the program; "": ours
	workers int
}

func (s waypointSystem) name() string { return s.label }

const waypointManifest = `
apiVersion: v1
kind: Namespace
metadata:
  name: bench
  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: bench, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bench}
spec:
  serviceAccountName: client
  nodeSelector: {kubernetes.io/hostname: node-1}
  containers: [{name: c, image: ambit/echo}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: bench, labels: {app: web}}
spec:
  serviceAccountName: web
  nodeSelector: {kubernetes.io/hostname: node-2}
  containers: [{name: c, command: [%q, server], readinessProbe: {tcpSocket: {port: %d}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bench}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: %[2]d}
  - {name: http2, port: %[3]d}
  - {name: grpc, port: %[4]d}
  - {name: grpc-stream, port: %[5]d}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client, namespace: bench}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/bench/sa/client]}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: bench}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: %[2]d}]
  rules:
  - matches: [{path: {type: Exact, value: /healthz}}]
    backendRefs: [{name: web, port: %[2]d}]
  - matches: [{path: {type: PathPrefix, value: /admin}}]
    backendRefs: [{name: web, port: %[2]d}]
  - matches: [{headers: [{name: x-canary, value: "true"}]}]
    backendRefs: [{name: web, port: %[2]d}]
  - matches: [{path: {type: PathPrefix, value: /api}}]
    backendRefs: [{name: web, port: %[2]d}]
  - backendRefs: [{name: web, port: %[2]d}]
`

const waypointLog = `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: log, namespace: bench}
spec:
  accessLogging: [{providers: [{name: envoy}], disabled: %t}]
`

func (s waypointSystem) start(ctx context.Context, _ options) (*instance, error) {
	in := &instance{procs: map[role][]int{}, about: map[string]string{"workers": fmt.Sprint(s.workers)}}
	if err := s.build(ctx, in); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (s waypointSystem) build(ctx context.Context, in *instance) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := func(name string) string { return filepath.Join(s.bin, name) }
	p := lab.Programs{
		Ztunnel: bin("ztunnel"), Controlplane: bin("controlplane"), Waypoint: bin("waypoint"), Echo: []string{bin("ambit"), "echo"},
		WaypointArgs: []string{fmt.Sprintf("--workers=%d", s.workers)},
	}
	program := "waypoint"
	if s.envoy != "" {
		p.Envoy, p.EnvoyAgent = s.envoy, []string{bin("ambit"), "lab", "envoy"}
		p.WaypointArgs = []string{fmt.Sprintf("--concurrency=%d", s.workers)}
		program = filepath.Base(s.envoy)
		in.about["version"] = versionOf(s.envoy, "--version")
	}
	name := "b" + strings.ReplaceAll(s.label, "-", "")
	if err := lab.Down(name, time.Minute); err != nil {
		return err
	}
	l, err := lab.Up(context.WithoutCancel(ctx), lab.Options{Name: name, Programs: p})
	if err != nil {
		return err
	}
	in.atStop(l.Close)
	c := l.Client()
	if err := c.ApplyYAML(ctx, fmt.Sprintf(waypointManifest, self, http1Port, http2Port, grpcPort, streamPort)); err != nil {
		return err
	}
	if err := c.WaitReady(ctx, nil); err != nil {
		return err
	}
	if err := s.find(ctx, in, c, name, program); err != nil {
		return err
	}
	logs := false
	in.prepare = func(ctx context.Context, w workload) error {
		if logs == w.Log {
			return nil
		}
		logs = w.Log
		err := c.ApplyYAML(ctx, fmt.Sprintf(waypointLog, !logs))
		time.Sleep(time.Second) // the waypoint hears of it
		return err
	}
	return in.await(ctx)
}

// find finds what the client dials and which processes to look at.
func (s waypointSystem) find(ctx context.Context, in *instance, c *lab.Client, name, program string) error {
	a, err := c.Access(ctx, "bench", "client", "")
	if err != nil {
		return err
	}
	if in.client, err = bed.OpenNS(a.NetNS); err != nil {
		return err
	}
	in.atStop(in.client.Close)
	vip, err := serviceIP(ctx, c, "bench", "web")
	if err != nil {
		return err
	}
	in.targets = map[path]target{throughWaypoint: {addr: vip}}
	prefix := "ambit-" + name + "-pod-bench."
	if in.procs[proxyA], err = processesIn(prefix+"wp-", program); err != nil {
		return err
	}
	in.servers, err = processesIn(prefix+"web", "")
	return err
}

// await waits until the waypoint carries requests.
func (in *instance) await(ctx context.Context) error {
	for p, t := range in.targets {
		at := netip.AddrPortFrom(t.addr, uint16(http1Port+t.offset)).String()
		var last error
		for {
			conn, err := in.client.Dial(ctx, "tcp", at)
			if err == nil {
				err = probe1(conn, replySize)
				conn.Close()
			}
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("no answer on path %s: %w", p, errors.Join(ctx.Err(), last))
			}
			last = err
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// serviceIP is the first address of a service.
func serviceIP(ctx context.Context, c *lab.Client, namespace, name string) (netip.Addr, error) {
	list, err := c.Objects(ctx, "Service", namespace, name)
	if err != nil || len(list) != 1 {
		return netip.Addr{}, errors.Join(fmt.Errorf("%d services %s/%s", len(list), namespace, name), err)
	}
	return firstClusterIP(list[0])
}

// processesIn are the processes whose network namespace has a name with the prefix; program, if not "", is their name.
func processesIn(prefix, program string) ([]int, error) {
	names, err := filepath.Glob("/run/netns/" + prefix + "*")
	if err != nil || len(names) != 1 {
		return nil, errors.Join(fmt.Errorf("%d namespaces begin with %s", len(names), prefix), err)
	}
	ns, err := netns.Open(names[0])
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return processesOf(ns.ID(), program)
}

// versionOf is the first line of what a program says of itself.
func versionOf(program string, args ...string) string {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			return strings.TrimPrefix(line, program)
		}
	}
	return "unknown"
}

// haveProgram finds a program, or says why a system is left out.
func haveProgram(name string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}
