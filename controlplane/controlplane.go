// Package controlplane is the mesh's control plane: it translates Kubernetes objects into what proxies are told, serves
// that by delta ADS, and signs the proxies' certificates, all on one TLS port.
//
// Objects come from a kube.Source. Each new set goes through translate, which says what changed, to discovery, which
// tells the proxies; the pods of the set are also what ca decides by who may have which identity.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ambit-mesh/ambit/api/capb"
	"github.com/ambit-mesh/ambit/controlplane/ca"
	"github.com/ambit-mesh/ambit/controlplane/discovery"
	"github.com/ambit-mesh/ambit/controlplane/envoy"
	"github.com/ambit-mesh/ambit/controlplane/gateway"
	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/translate"
	"github.com/ambit-mesh/ambit/internal/atomicfile"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Config is what Run needs. It must not be modified while Run runs.
type Config struct {
	// Source delivers the objects. Required.
	Source kube.Source
	// Authenticator checks the tokens of proxies. Required.
	Authenticator ca.Authenticator
	// TrustNodeClaim believes a node proxy the node in its token when it is no pod (see ca.Config).
	TrustNodeClaim bool
	// Listen is the IP address and port for xDS and certificates, for example 0.0.0.0:15012. Required.
	Listen netip.AddrPort
	// AdminListen is where /ready, /debug and /metrics are served, in plain HTTP; the zero value = nowhere.
	AdminListen netip.AddrPort
	// ReviewListen is where the API server asks about objects before it stores them, TLS with a certificate of the mesh; the
	// zero value = nowhere. Webhook is the ValidatingWebhookConfiguration that gets the root certificates for that; "" = none.
	ReviewListen netip.AddrPort
	Webhook      string
	// RootCAOut is a file that gets the root certificates (PEM) at the start and at each change; "" = none.
	RootCAOut string
	// CADir holds the authority's files (see ca.AuthorityConfig); "" = in memory, a new root at each start. Vault keeps
	// them in its place, for several replicas.
	CADir string
	Vault ca.Vault
	// Cluster is what is written to; nil = nothing is.
	Cluster Cluster
	// Waypoint says how waypoints are made of Gateways, in Cluster; without an image none are. TrustDomain, ClusterID and
	// RootNamespace follow those of the control plane.
	Waypoint gateway.Settings
	// MaxCertTTL bounds the certificates' lifetime; 0 = 90 days.
	MaxCertTTL time.Duration
	// TrustDomain and ClusterID of the mesh; "" = cluster.local and Kubernetes.
	TrustDomain, ClusterID string
	// TrustDomainAliases may be asked for as well.
	TrustDomainAliases []string
	// RootNamespace is where mesh-wide policies live; "" = istio-system.
	RootNamespace string
	// TrustedNodeAccounts are the accounts ("namespace/name") of node proxies; nil = ztunnel of RootNamespace.
	TrustedNodeAccounts []string
	// Quiet is how long no object must change before a set is translated, and MaxWait how long a change waits at most;
	// 0 = 10 ms and 100 ms.
	Quiet, MaxWait time.Duration
	// Version of the program, which it tells who asks.
	Version string
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.TrustDomain, "cluster.local")
	set(&c.ClusterID, "Kubernetes")
	set(&c.RootNamespace, "istio-system")
	c.Waypoint.TrustDomain, c.Waypoint.ClusterID, c.Waypoint.RootNamespace = c.TrustDomain, c.ClusterID, c.RootNamespace
	c.Waypoint = c.Waypoint.WithDefaults()
	if c.TrustedNodeAccounts == nil {
		c.TrustedNodeAccounts = []string{c.RootNamespace + "/ztunnel"}
	}
	if c.Quiet <= 0 {
		c.Quiet = 10 * time.Millisecond
	}
	if c.MaxWait <= 0 {
		c.MaxWait = 100 * time.Millisecond
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// server is a running control plane.
type server struct {
	cfg          Config
	log          *slog.Logger
	authority    *ca.Authority
	certificates *ca.Server
	discovery    *discovery.Server
	pods         *pods
	feed         *feed
	waypoints    *waypoints
	statuses     *statuses
	writer       *writer
	started      time.Time
	problems     atomic.Pointer[[]string]
}

// Run serves until ctx ends, then closes all connections and returns nil. It blocks. An error says what could not be
// started or what failed.
func Run(ctx context.Context, cfg Config) error {
	s, err := newServer(ctx, cfg.withDefaults())
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("listen for proxies: %w", err)
	}
	return s.run(ctx, listener)
}

func newServer(ctx context.Context, cfg Config) (*server, error) {
	s := &server{cfg: cfg, log: cfg.Logger, pods: newPods(), started: time.Now()}
	s.writer = newWriter(cfg.Cluster, cfg.Webhook, s.log)
	if err := s.openAuthority(ctx); err != nil {
		return nil, err
	}
	s.statuses = &statuses{log: s.log}
	s.authority.Watch(s.writer.takeRoot)
	s.waypoints = newWaypoints(envoy.Config{
		TrustDomain: cfg.TrustDomain, TrustDomainAliases: cfg.TrustDomainAliases, ClusterID: cfg.ClusterID, RootNamespace: cfg.RootNamespace,
	})
	policy := discovery.Policy{
		NodeAccounts: cfg.TrustedNodeAccounts,
		NodeTypes:    []string{xds.AddressType, xds.AuthorizationType},
		WaypointTypes: []string{
			xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.ExtensionType, xds.SecretType,
		},
		WaypointShared: []string{xds.WorkloadType},
		Waypoint:       s.waypoints.scope,
	}
	s.certificates = ca.NewServer(ca.Config{
		Authority: s.authority, Authenticator: cfg.Authenticator, Pods: s.pods,
		TrustDomain: cfg.TrustDomain, TrustDomainAliases: cfg.TrustDomainAliases,
		TrustedNodeAccounts: cfg.TrustedNodeAccounts, ClusterID: cfg.ClusterID,
		TrustNodeClaim: cfg.TrustNodeClaim, Logger: s.log,
	})
	s.discovery = discovery.NewServer(discovery.Config{
		Authenticate: func(ctx context.Context) (discovery.Caller, error) {
			c, err := ca.Authenticate(ctx, cfg.Authenticator)
			return discovery.Caller(c), err
		},
		Authorize: policy.Authorize,
		// As istiod. Istio's ztunnel judges an open connection again when a policy comes, by what it knew of the workload
		// when the connection began: one that began before the workload named the policy would live on.
		Order:  []string{xds.AddressType, xds.AuthorizationType},
		Logger: s.log,
	})
	s.waypoints.srv = s.discovery
	s.feed = newFeed(s, translate.Config{
		ClusterID: cfg.ClusterID, TrustDomain: cfg.TrustDomain, TrustDomainAliases: cfg.TrustDomainAliases, RootNamespace: cfg.RootNamespace,
	})
	return s, nil
}

// openAuthority opens the authority. One that is kept in a cluster is tried until it can be read or ctx ends: a control
// plane often starts together with what it talks to.
func (s *server) openAuthority(ctx context.Context) error {
	retry := time.NewTicker(retryWrite)
	defer retry.Stop()
	for {
		var err error
		s.authority, err = ca.OpenAuthority(ctx, ca.AuthorityConfig{
			Dir: s.cfg.CADir, Vault: s.cfg.Vault, TrustDomain: s.cfg.TrustDomain, MaxTTL: s.cfg.MaxCertTTL, Logger: s.log,
		})
		if err == nil || s.cfg.Vault == nil {
			return err
		}
		s.log.Error("certificate authority not opened, trying again", slog.Any("err", err))
		select {
		case <-ctx.Done():
			return err
		case <-retry.C:
		}
	}
}

// run serves on listener, which it closes.
func (s *server) run(ctx context.Context, listener net.Listener) error {
	defer listener.Close()
	var admin net.Listener
	if s.cfg.AdminListen.IsValid() {
		var err error
		if admin, err = net.Listen("tcp", s.cfg.AdminListen.String()); err != nil {
			return fmt.Errorf("listen for administration: %w", err)
		}
		defer admin.Close()
	}
	var reviews net.Listener
	if s.cfg.ReviewListen.IsValid() {
		var err error
		if reviews, err = net.Listen("tcp", s.cfg.ReviewListen.String()); err != nil {
			return fmt.Errorf("listen for reviews: %w", err)
		}
		defer reviews.Close()
	}
	if s.cfg.RootCAOut != "" {
		if err := atomicfile.Write(s.cfg.RootCAOut, s.authority.RootPEM(), 0o644); err != nil {
			return fmt.Errorf("write root certificates: %w", err)
		}
		s.authority.Watch(func(rootPEM []byte) {
			if err := atomicfile.Write(s.cfg.RootCAOut, rootPEM, 0o644); err != nil {
				s.log.Error("root certificates not written", slog.String("file", s.cfg.RootCAOut), slog.Any("err", err))
			}
		})
	}
	rpc, err := s.grpcServer(listener.Addr())
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.authority.Run(ctx) })
	group.Go(func() error { return s.feed.run(ctx) })
	group.Go(func() error { return s.cfg.Source.Run(ctx, s.feed.deliver) })
	group.Go(func() error { return s.writer.run(ctx) })
	group.Go(func() error {
		if err := rpc.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve proxies: %w", err)
		}
		return nil
	})
	if reviews != nil {
		group.Go(func() error { return s.serveReviews(ctx, reviews) })
	}
	if admin != nil {
		web := &http.Server{Handler: s.admin(), ReadHeaderTimeout: 10 * time.Second}
		group.Go(func() error {
			if err := web.Serve(admin); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve administration: %w", err)
			}
			return nil
		})
		group.Go(func() error { <-ctx.Done(); return web.Close() })
	}
	// Streams never end by themselves, so nothing would be gained by a graceful stop: proxies keep their state (X12).
	group.Go(func() error { <-ctx.Done(); rpc.Stop(); return nil })
	s.log.Info("control plane started", slog.String("version", s.cfg.Version), slog.String("listen", listener.Addr().String()), slog.String("trustDomain", s.cfg.TrustDomain))
	return group.Wait()
}

// Limits of the port. A proxy with 100,000 names in its first request sends some 10 MB.
const (
	maxReceive           = 16 << 20
	maxStreamsPerConn    = 100
	maxConnectionAge     = 30 * time.Minute
	keepaliveTime        = 30 * time.Second
	keepaliveTimeout     = 10 * time.Second
	keepaliveMinInterval = 10 * time.Second
)

func (s *server) grpcServer(addr net.Addr) (*grpc.Server, error) {
	ips, err := serverIPs(addr)
	if err != nil {
		return nil, err
	}
	rpc := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(ca.ServerTLS(s.authority, s.serverNames(), ips))),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxConcurrentStreams(maxStreamsPerConn),
		// gRPC spreads the age by 10 %, so that proxies do not come back together.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: 10 * time.Second, Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinInterval, PermitWithoutStream: true}),
	)
	discoverypb.RegisterAggregatedDiscoveryServiceServer(rpc, s.discovery)
	capb.RegisterIstioCertificateServiceServer(rpc, s.certificates)
	return rpc, nil
}

// serverNames are the DNS names of the control plane's certificate: those of istiod, which proxies verify (2.4), and
// our own.
func (s *server) serverNames() []string {
	ns := s.cfg.RootNamespace
	names := []string{"localhost", "istiod.istio-system.svc"}
	for _, host := range []string{"istiod", "controlplane", "ambit-controlplane"} {
		for _, name := range []string{host + "." + ns, host + "." + ns + ".svc", host + "." + ns + ".svc.cluster.local"} {
			if name != "istiod.istio-system.svc" {
				names = append(names, name)
			}
		}
	}
	return names
}

// serverIPs are the addresses under which the port is reached: the one it listens on, or all of the host, and loopback.
func serverIPs(addr net.Addr) ([]netip.Addr, error) {
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return loopback, nil // no IP: an in-process listener of a test
	}
	if ip := at.Addr().Unmap(); !ip.IsUnspecified() {
		return append(loopback, ip), nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	ips := loopback
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			ips = append(ips, p.Addr().Unmap())
		}
	}
	return ips, nil
}

// ParseAccounts reads a comma-separated list of namespace/serviceaccount.
func ParseAccounts(list string) ([]string, error) {
	var out []string
	for a := range strings.SplitSeq(list, ",") {
		if a = strings.TrimSpace(a); a == "" {
			continue
		}
		if ns, name, ok := strings.Cut(a, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("want namespace/serviceaccount, got %q", a)
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, errors.New("no account")
	}
	return out, nil
}
