package svid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/capb"
	"github.com/ambit-mesh/ambit/internal/rootca"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// CAClientConfig says how to reach the certificate service of Istio's wire protocol.
type CAClientConfig struct {
	// Address is https://host:port or host:port. Required.
	Address string
	// RootCA is the PEM file with the roots of the server; it is read at each handshake (C10). Required.
	RootCA string
	// ServerNames are accepted in the server's certificate in addition to the host of Address (ALT_CA_HOSTNAME).
	ServerNames []string
	// Token returns the bearer token and is called for each call (C10). Required.
	Token func() (string, error)
	// ClusterID goes into the header clusterid, which istiod needs for impersonation.
	ClusterID string
	// Headers are further metadata of each call (CA_HEADER_*).
	Headers map[string]string
	// Own: ask for the certificate of the token's own identity; the ID given to Sign is checked by the Manager but not
	// sent. False: impersonate, as a node proxy does (C2).
	Own bool
	// Dial replaces the TCP connection, for tests; nil = TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// GRPCClient is the CAClient that speaks to istiod or to our control plane. Close it when done. Safe for any goroutine.
type GRPCClient struct {
	cfg  CAClientConfig
	conn *grpc.ClientConn
}

// NewCAClient makes a client; it connects at the first Sign. Errors are about the configuration.
func NewCAClient(cfg CAClientConfig) (*GRPCClient, error) {
	if cfg.Token == nil {
		return nil, errors.New("no token for the certificate authority")
	}
	host, hostPort, err := rootca.HostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("use certificate authority: %w", err)
	}
	tlsConfig, err := rootca.ClientConfig(cfg.RootCA, append([]string{host}, cfg.ServerNames...)...)
	if err != nil {
		return nil, fmt.Errorf("use certificate authority: %w", err)
	}
	dial := cfg.Dial
	if dial == nil {
		dial = rootca.Dial
	}
	conn, err := grpc.NewClient("passthrough:///"+hostPort,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(dial))
	if err != nil {
		return nil, fmt.Errorf("use certificate authority: %w", err)
	}
	return &GRPCClient{cfg: cfg, conn: conn}, nil
}

// Close ends all calls. It may be called twice.
func (c *GRPCClient) Close() error {
	_ = c.conn.Close() // only ever says that it was closed before
	return nil
}

// Sign implements CAClient (C2).
func (c *GRPCClient) Sign(ctx context.Context, csr []byte, id spiffe.ID, ttl time.Duration) ([]string, error) {
	token, err := c.cfg.Token()
	if err != nil {
		return nil, err
	}
	md := metadata.Pairs("authorization", "Bearer "+token)
	if c.cfg.ClusterID != "" {
		md.Set("clusterid", c.cfg.ClusterID)
	}
	for k, v := range c.cfg.Headers {
		md.Set(k, v)
	}
	req := &capb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(ttl / time.Second)}
	if !c.cfg.Own {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
		}}
	}
	resp, err := capb.NewIstioCertificateServiceClient(c.conn).CreateCertificate(
		metadata.NewOutgoingContext(ctx, md), req)
	if err != nil {
		return nil, err
	}
	return resp.GetCertChain(), nil
}
