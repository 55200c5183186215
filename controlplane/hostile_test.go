package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// stream opens a stream with a token of the test's choice.
func stream(t *testing.T, address, rootFile, token string) xds.Stream {
	t.Helper()
	tr, err := xds.NewTransport(xds.TransportConfig{Address: address, RootCA: rootFile, Token: func() (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	st, err := tr.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestHostileClients is the part of row B27 that needs a real connection.
func TestHostileClients(t *testing.T) {
	src := source{make(chan kube.Snapshot, 1)}
	_, address, rootFile := start(t, src)
	src.snaps <- kube.Snapshot{Objects: kube.NewObjects(pod("default", "sleep", "n1", "10.0.0.1"))}

	t.Run("without a valid token nothing is served", func(t *testing.T) {
		st := stream(t, address, rootFile, "forged")
		_ = st.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType}) // Recv has the reason
		if resp, err := st.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v, %v; want Unauthenticated", resp, err)
		}
	})
	t.Run("a request above 16 MiB ends its stream alone", func(t *testing.T) {
		st := stream(t, address, rootFile, ztunnelToken(t, "n1"))
		_ = st.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, ResourceNamesSubscribe: []string{strings.Repeat("x", maxReceive+1)}})
		if resp, err := st.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v, %v; want ResourceExhausted", resp, err)
		}
		st = stream(t, address, rootFile, ztunnelToken(t, "n1"))
		_ = st.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, Node: xdsNode("n1")})
		if resp, err := st.Recv(); err != nil || len(resp.GetResources()) != 1 {
			t.Errorf("the next client got %v, %v", resp, err)
		}
	})
	t.Run("plaintext is not spoken", func(t *testing.T) {
		c, err := net.Dial("tcp", strings.TrimPrefix(address, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 64)
		n, _ := c.Read(answer)
		if bytes.Contains(answer[:n], []byte{0, 0, 0, 4}) || n > 7 { // at most a TLS alert
			t.Errorf("got %q in answer to plaintext", answer[:n])
		}
	})
	t.Run("TLS below 1.2 is refused", func(t *testing.T) {
		cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		if c, err := tls.Dial("tcp", strings.TrimPrefix(address, "https://"), cfg); err == nil {
			c.Close()
			t.Error("TLS 1.1 was accepted")
		}
	})
}

// BenchmarkChangeToClient measures from the source's delivery of a changed set until a client has it, with 1,000 pods.
func BenchmarkChangeToClient(b *testing.B) {
	src := source{make(chan kube.Snapshot, 1)}
	_, address, rootFile := start(b, src)
	var list []kube.Object
	for i := range 1000 {
		list = append(list, pod("default", fmt.Sprint("p", i), "n1", fmt.Sprintf("10.0.%d.%d", i/250, i%250)))
	}
	objects := kube.NewObjects(list...)
	src.snaps <- kube.Snapshot{Objects: objects}
	tr, err := xds.NewTransport(xds.TransportConfig{Address: address, RootCA: rootFile, Token: func() (string, error) { return ztunnelToken(b, "n1"), nil }})
	if err != nil {
		b.Fatal(err)
	}
	st, err := tr.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	_ = st.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, Node: xdsNode("n1")})
	next := func() {
		resp, err := st.Recv()
		if err != nil {
			b.Fatal(err)
		}
		_ = st.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: xds.AddressType, ResponseNonce: resp.GetNonce()})
	}
	next()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		objects = objects.With([]kube.Object{pod("default", "p7", "n1", fmt.Sprintf("10.1.%d.%d", i/250%250, i%250))}, nil)
		start := time.Now()
		src.snaps <- kube.Snapshot{Objects: objects}
		next()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
