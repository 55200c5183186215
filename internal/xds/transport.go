package xds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/ambit-mesh/ambit/internal/rootca"
)

// TransportConfig says how to reach the control plane.
type TransportConfig struct {
	// Address is https://host:port or host:port. Required.
	Address string
	// RootCA is the PEM file with the roots of the server; it is read at each handshake (X10). Required.
	RootCA string
	// ServerNames are accepted in the server's certificate in addition to the host of Address (ALT_XDS_HOSTNAME).
	ServerNames []string
	// Token returns the bearer token and is called for each stream (X9). Required.
	Token func() (string, error)
	// ClusterID goes into the header clusterid (X9).
	ClusterID string
	// Headers are further metadata of each stream (XDS_HEADER_*).
	Headers map[string]string
	// MaxReceive bounds one message in bytes; 0 = 200 MiB (X7).
	MaxReceive int
	// Dial replaces the TCP connection, for tests; nil = TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// GRPC is the Transport over TLS and gRPC. Each stream has a connection of its own, so that a reconnect also
// re-resolves the host name and re-reads the roots.
type GRPC struct {
	cfg      TransportConfig
	hostPort string
	names    []string
}

// NewTransport makes a transport; nothing is dialled before Open. Errors are about the configuration.
func NewTransport(cfg TransportConfig) (*GRPC, error) {
	if cfg.Token == nil {
		return nil, errors.New("no token for the control plane")
	}
	host, hostPort, err := rootca.HostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("use control plane: %w", err)
	}
	return &GRPC{cfg: cfg, hostPort: hostPort, names: append([]string{host}, cfg.ServerNames...)}, nil
}

// Open implements Transport.
func (t *GRPC) Open(ctx context.Context) (Stream, error) {
	token, err := t.cfg.Token()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := rootca.ClientConfig(t.cfg.RootCA, t.names...)
	if err != nil {
		return nil, err
	}
	dial := t.cfg.Dial
	if dial == nil {
		dial = rootca.Dial
	}
	conn, err := grpc.NewClient("passthrough:///"+t.hostPort,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(dial),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(orDefault(t.cfg.MaxReceive, 200<<20))))
	if err != nil {
		return nil, fmt.Errorf("use control plane: %w", err)
	}
	md := metadata.Pairs("authorization", "Bearer "+token)
	if t.cfg.ClusterID != "" {
		md.Set("clusterid", t.cfg.ClusterID)
	}
	for k, v := range t.cfg.Headers {
		md.Set(k, v)
	}
	st, err := discoverypb.NewAggregatedDiscoveryServiceClient(conn).
		DeltaAggregatedResources(metadata.NewOutgoingContext(ctx, md))
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &grpcStream{st, conn}, nil
}

// grpcStream closes its connection when the stream ends.
type grpcStream struct {
	discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	conn *grpc.ClientConn
}

// Recv implements Stream.
func (s *grpcStream) Recv() (*discoverypb.DeltaDiscoveryResponse, error) {
	resp, err := s.AggregatedDiscoveryService_DeltaAggregatedResourcesClient.Recv()
	if err != nil {
		_ = s.conn.Close()
	}
	return resp, err
}
