package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

const neverReady = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-1}, containers: [{name: c, image: ambit/echo}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: two, namespace: shop}, spec: {nodeSelector: {kubernetes.io/hostname: node-2}, containers: [{name: c, image: ambit/echo, readinessProbe: {tcpSocket: {port: 8080}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: never, namespace: shop}, spec: {containers: [{name: c, image: ambit/echo, readinessProbe: {tcpSocket: {port: 1}}}]}}
`

// Acceptance point 2: after `ambit lab down`, also after kill -9 of `ambit lab up` and of its supervisor, with pods captured
// and a connection open, the machine is as it was before.
func TestRootDownLeavesTheMachineAsItWas(t *testing.T) {
	requireRoot(t)
	t.Run("of a lab that runs", func(t *testing.T) { downLeavesNothing(t, "notkilled", false) })
	t.Run("after up and supervisor were killed together", func(t *testing.T) { downLeavesNothing(t, "bothkilled", true) })
}

func downLeavesNothing(t *testing.T, name string, crash bool) {
	ztunnel, controlplane := buildMesh(t)
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(neverReady), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(name, time.Minute); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	before := traces(t, name)
	t.Cleanup(func() { _ = lab.Down(name, time.Minute) })
	up := ambit(t, "lab", "up", "--name", name, "--ztunnel", ztunnel, "--controlplane", controlplane, "-f", file)
	var progress bytes.Buffer
	up.Stderr = &progress
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- up.Wait() }() // ends with the kill below, or by itself
	until(t, "the pods to be captured", func() bool {
		out, _, _ := run(t, "", "lab", "--name", name, "get", "pods", "-n", "shop", "-o", "wide")
		return strings.Count(out, "captured") == 3 && strings.Count(out, "1/1") == 2
	})
	conn, err := connectIn(t, name, "one", "two")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	made := kinds(traces(t, name), before)
	for _, kind := range []string{"bpf program", "bpf map", "bpf link", "namespace", "mount", "pin", "file", "process"} {
		if made[kind] == 0 {
			t.Errorf("the comparison is blind: the lab made no %s", kind)
		}
	}
	t.Logf("the lab made %v", made)
	select {
	case err := <-ended:
		t.Fatalf("up ended before it was killed: %v: %s", err, progress.String())
	default:
	}
	if crash {
		if err := up.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killSupervisor(t, name)
		<-ended
	}
	if _, errOut, status := run(t, "", "lab", "down", "--name", name); status != 0 {
		t.Fatalf("down: status %d: %s", status, errOut)
	}
	if !crash {
		<-ended // with an error: its lab is gone
	}
	conn.Close() // the test's own, inside of a namespace of the lab
	var left []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) { // the kernel frees BPF objects a little later
		if left = before.left(t, name); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			slices.Sort(left)
			t.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

// kinds counts what a has and b has not, by kind.
func kinds(a, b trace) map[string]int {
	n := map[string]int{}
	for x := range a {
		if b[x] {
			continue
		}
		w := strings.Fields(x)
		kind := w[0]
		if kind == "bpf" {
			kind += " " + w[1]
		}
		n[kind]++
	}
	return n
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// connectIn opens a connection from one pod of shop to another and has it carry a line.
func connectIn(t *testing.T, name, from, to string) (net.Conn, error) {
	t.Helper()
	c, err := lab.Dial(name)
	if err != nil {
		return nil, err
	}
	raw, err := c.Objects(t.Context(), "pod", "shop", to)
	if err != nil {
		return nil, err
	}
	var pod struct {
		Status struct{ PodIP string }
	}
	if err := json.Unmarshal(raw[0], &pod); err != nil {
		return nil, err
	}
	a, err := c.Access(t.Context(), "shop", from, "")
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = a.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(pod.Status.PodIP, "8080"), 10*time.Second)
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "line\n"); err != nil {
		return nil, err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return conn, err
}
