package envoy

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretpb "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/internal/svid"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// secrets is the SDS server. Safe for any goroutine.
type secrets struct {
	secretpb.UnimplementedSecretDiscoveryServiceServer

	mu          sync.Mutex
	key, chain  []byte // PEM
	roots       []byte // PEM
	version     int
	changed     chan struct{} // closed at the next change
	first       chan struct{} // closed at the first
	haveSecrets bool
}

func newSecrets() *secrets {
	return &secrets{changed: make(chan struct{}), first: make(chan struct{})}
}

// set makes a certificate the current one.
func (s *secrets) set(c *svid.SVID) error {
	der, err := x509.MarshalPKCS8PrivateKey(c.Cert.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	var chain []byte
	for _, b := range c.Cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b})...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.chain, s.roots = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), chain, c.RootPEM
	s.version++
	close(s.changed)
	s.changed = make(chan struct{})
	if !s.haveSecrets {
		s.haveSecrets = true
		close(s.first)
	}
	return nil
}

// await blocks until there is a certificate; false when ctx ended before.
func (s *secrets) await(ctx context.Context) bool {
	select {
	case <-s.first:
		return true
	case <-ctx.Done():
		return false
	}
}

// StreamSecrets serves one of Envoy's subscriptions.
func (s *secrets) StreamSecrets(stream secretpb.SecretDiscoveryService_StreamSecretsServer) error {
	requests := make(chan *discoverypb.DiscoveryRequest)
	ended := make(chan error, 1)
	go func() { // ends with the stream
		for {
			req, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var names []string
	var sent string
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		select {
		case req := <-requests:
			if names = req.GetResourceNames(); req.GetVersionInfo() != "" && req.GetErrorDetail() == nil && req.GetVersionInfo() == sent {
				continue // an ACK
			}
			if req.GetErrorDetail() != nil {
				continue // the same secret again would not help; the next one may
			}
		case <-changed:
		case err := <-ended:
			return err
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
		resp, err := s.response(names)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if resp == nil {
			continue
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		sent = resp.VersionInfo
	}
}

// response is nil while a secret that was asked for is not there.
func (s *secrets) response(names []string) (*discoverypb.DiscoveryResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.haveSecrets || len(names) == 0 {
		return nil, nil
	}
	resp := &discoverypb.DiscoveryResponse{VersionInfo: strconv.Itoa(s.version), Nonce: strconv.Itoa(s.version), TypeUrl: xds.SecretType}
	for _, name := range names {
		secret, err := s.secretLocked(name)
		if err != nil {
			return nil, err
		}
		a, err := anypb.New(secret)
		if err != nil {
			return nil, fmt.Errorf("encode secret %q: %w", name, err)
		}
		resp.Resources = append(resp.Resources, a)
	}
	return resp, nil
}

// secretLocked makes a secret of a name as istiod's resources use them (controlplane.md 3.6).
func (s *secrets) secretLocked(name string) (*tlsv3.Secret, error) {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	trust := func(roots []byte) *tlsv3.Secret {
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(roots)}}}
	}
	own := func(key, chain []byte) *tlsv3.Secret {
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)}}}
	}
	if path, ok := strings.CutPrefix(name, "file-root:"); ok {
		if path == "system" {
			path = "/etc/ssl/certs/ca-certificates.crt"
		}
		roots, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read secret %q: %w", name, err)
		}
		return trust(roots), nil
	}
	if paths, ok := strings.CutPrefix(name, "file-cert:"); ok {
		cert, key, _ := strings.Cut(paths, "~")
		chain, err := os.ReadFile(cert)
		if err != nil {
			return nil, fmt.Errorf("read secret %q: %w", name, err)
		}
		private, err := os.ReadFile(key)
		if err != nil {
			return nil, fmt.Errorf("read secret %q: %w", name, err)
		}
		return own(private, chain), nil
	}
	switch name {
	case "default":
		return own(s.key, s.chain), nil
	case "ROOTCA":
		return trust(s.roots), nil
	}
	return nil, fmt.Errorf("unknown secret %q; known: default, ROOTCA, file-root:PATH, file-cert:CERT~KEY", name)
}
