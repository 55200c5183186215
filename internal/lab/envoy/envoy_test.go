package envoy

import (
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/internal/svid/svidtest"
)

func config() Config {
	return Config{
		XDSAddress: "https://172.30.0.2:15012", RootCA: "/root.pem", AdminAddress: "127.0.0.1:15000", TrustDomain: "cluster.local",
		Pod: Pod{Name: "wp-1", Namespace: "shop", ServiceAccount: "wp", IP: "10.0.0.9", Node: "node-1", Gateway: "wp", ClusterID: "Kubernetes"},
	}
}

func TestBootstrapIsOneThatEnvoyKnows(t *testing.T) {
	text, err := Bootstrap(config(), "secret", "/sds.sock")
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if b.Node.Id != "waypoint~10.0.0.9~wp-1.shop~shop.svc.cluster.local" || b.Node.Metadata.Fields["ISTIO_VERSION"] != nil {
		t.Errorf("got node %v, want the pod's and no claim to be Istio's build", b.Node)
	}
	if got := b.DynamicResources.AdsConfig.GrpcServices[0].InitialMetadata[0].Value; got != "Bearer secret" {
		t.Errorf("got authorization %q", got)
	}
}

func TestBootstrapNamesABadAddress(t *testing.T) {
	cfg := config()
	cfg.AdminAddress = "nowhere"
	if _, err := Bootstrap(cfg, "", ""); err == nil {
		t.Error("want an error")
	}
}

func TestSecretsAreTheCertificateAndTheRoots(t *testing.T) {
	ca := svidtest.NewCA(t, "cluster.local")
	s := newSecrets()
	if resp, err := s.response([]string{"default"}); resp != nil || err != nil {
		t.Errorf("got %v, %v before there is a certificate, want nothing", resp, err)
	}
	c := ca.Issue(ca.ID("shop", "wp"))
	if err := s.set(c); err != nil {
		t.Fatal(err)
	}
	resp, err := s.response([]string{"default", "ROOTCA"})
	if err != nil || len(resp.Resources) != 2 {
		t.Fatalf("got %v, %v", resp, err)
	}
	var own, root tlsv3.Secret
	if err := resp.Resources[0].UnmarshalTo(&own); err != nil || len(own.GetTlsCertificate().GetPrivateKey().GetInlineBytes()) == 0 {
		t.Errorf("got %v, %v, want a key", &own, err)
	}
	if err := resp.Resources[1].UnmarshalTo(&root); err != nil || string(root.GetValidationContext().GetTrustedCa().GetInlineBytes()) != string(c.RootPEM) {
		t.Errorf("got %v, %v, want the roots", &root, err)
	}
	if _, err := s.response([]string{"nope"}); err == nil {
		t.Error("want an error that names an unknown secret")
	}
}
