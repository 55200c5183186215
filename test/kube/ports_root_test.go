package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// scanEnv makes this program a port scanner: of which address, and of which ports (all if none is named). It runs itself
// that way in the network of a pod.
const scanEnv = "AMBIT_KUBE_TEST_SCAN"

const (
	scanners = 300
	// stays is how long a connection must stay for its port to be open. One to an enrolled pod, or from one, is taken by the
	// node's proxy, and ends when there is nothing behind it. Servers of HTTP end it too, after some seconds.
	stays = time.Second
	// connects is how long it may take to be made.
	connects = 5 * time.Second
)

// scanIfAsked ends the program when it was started to scan.
func scanIfAsked() {
	address, ports, _ := strings.Cut(os.Getenv(scanEnv), " ")
	if address == "" {
		return
	}
	out, err := json.Marshal(scan(netip.MustParseAddr(address), ports))
	if err != nil {
		panic(err)
	}
	fmt.Println(string(out))
	os.Exit(0)
}

// scan returns the open TCP ports of an address, in order.
func scan(address netip.Addr, ports string) []int {
	work := make(chan int)
	var mu sync.Mutex
	open := []int{}
	var group sync.WaitGroup
	for range scanners {
		group.Go(func() {
			for port := range work {
				if isOpen(netip.AddrPortFrom(address, uint16(port))) {
					mu.Lock()
					open = append(open, port)
					mu.Unlock()
				}
			}
		})
	}
	if ports == "" {
		for port := 1; port <= 65535; port++ {
			work <- port
		}
	}
	for p := range strings.FieldsSeq(ports) {
		port, err := strconv.Atoi(p)
		if err != nil {
			panic(err)
		}
		work <- port
	}
	close(work)
	group.Wait()
	slices.Sort(open)
	return open
}

func isOpen(to netip.AddrPort) bool {
	c, err := net.DialTimeout("tcp", to.String(), connects)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(stays))
	_, err = c.Read(make([]byte, 1))
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// documentedPorts reads the table of docs/ports.md: the ports of a place.
func documentedPorts(t *testing.T) map[string][]int {
	t.Helper()
	text, err := os.ReadFile("../../docs/ports.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]int{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		if port, err := strconv.Atoi(strings.TrimSpace(cells[2])); err == nil {
			place := strings.TrimSpace(cells[1])
			out[place] = append(out[place], port)
		}
	}
	return out
}

func TestTheDocumentOfPortsIsRead(t *testing.T) {
	for place, port := range map[string]int{"control plane": 15012, "node": 15020, "waypoint": 15008, "enrolled pod": 15008} {
		if got := documentedPorts(t)[place]; !slices.Contains(got, port) {
			t.Errorf("%s: %v, want %d among them", place, got, port)
		}
	}
}

// TestRootNeighboursFindOnlyTheDocumentedPorts connects to every port of each place from a pod of the mesh and from another.
func TestRootNeighboursFindOnlyTheDocumentedPorts(t *testing.T) {
	requireCluster(t)
	requireBed(t)
	m := newMeshWorld(t)
	m.apply(waypoint)
	must(t, "", "-n", "km-shop", "wait", "--for=condition=Programmed", "gateway/waypoint", "--timeout=90s")
	must(t, "", "-n", "km-shop", "rollout", "status", "deployment/waypoint", "--timeout=60s")
	address := func(namespace, selector, field string) string {
		return must(t, "", "-n", namespace, "get", "pods", "-l", selector, "-o", "jsonpath={.items[0].status."+field+"}")
	}
	const application, kubelet, kubeProxy, dns = 8080, 10250, 10256, 53
	places := []struct {
		name, address string
		others        []int // ports that are not ours
	}{
		{"control plane", address(m.system, "app=ambit-controlplane", "podIP"), nil},
		{"waypoint", address("km-shop", "gateway.networking.k8s.io/gateway-name=waypoint", "podIP"), nil},
		{"enrolled pod", address("km-shop", "app=server", "podIP"), []int{application}},
		{"node", "172.30.0.11", []int{kubelet, kubeProxy}},
	}
	documented := documentedPorts(t)
	for _, from := range []struct {
		namespace, pod string
		own            []int // ports that do not get out of the pod: the resolver in its node's proxy answers
	}{{"km-outside", "outsider", nil}, {"km-shop", "client", []int{dns}}} {
		network := fmt.Sprintf("/proc/%d/ns/net", processOf(t, from.namespace, from.pod, "echo"))
		for _, p := range places {
			t.Run(p.name+" from "+from.pod, func(t *testing.T) {
				began := time.Now()
				got := scanFrom(t, network, p.address, nil)
				t.Logf("all ports in %.0f s, open: %v", time.Since(began).Seconds(), got)
				allowed := slices.Concat(documented[p.name], p.others, from.own)
				for _, port := range allowed {
					// The proxy of a pod in the mesh connects it to no tunnel's port.
					if !slices.Contains(got, port) && from.own == nil {
						t.Errorf("port %d is in docs/ports.md and not open", port)
					}
				}
				// Only a slow answer looks like an open port, and not again and again.
				unknown := slices.DeleteFunc(got, func(port int) bool { return slices.Contains(allowed, port) })
				for range 3 {
					if len(unknown) > 0 {
						unknown = scanFrom(t, network, p.address, unknown)
					}
				}
				if len(unknown) > 0 {
					t.Errorf("ports %v are open and not in docs/ports.md", unknown)
				}
			})
		}
	}
}

// scanFrom scans out of a network.
func scanFrom(t *testing.T, network, address string, ports []int) []int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "nsenter", "--net="+network, self)
	c.Env = append(os.Environ(), scanEnv+"="+address+" "+strings.Trim(fmt.Sprint(ports), "[]"))
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("scan %s: %v", address, err)
	}
	var open []int
	if err := json.Unmarshal(out, &open); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return open
}
