package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/api/capb"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Pod is what the authority must know of a pod.
type Pod struct {
	UID, Node string
	// Terminal: the pod has ended for good (phase Succeeded or Failed).
	Terminal bool
}

// Pods tells which pods there are. Safe for any goroutine; nothing blocks.
type Pods interface {
	// Lookup is the pod of a name.
	Lookup(namespace, name string) (Pod, bool)
	// RunsOn tells whether a pod of the service account that is not terminal is assigned to node.
	RunsOn(node, namespace, serviceAccount string) bool
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Config is what a Server needs. It must not be modified after NewServer.
type Config struct {
	// Authority signs. Required.
	Authority *Authority
	// Authenticator checks tokens. Required.
	Authenticator Authenticator
	// Pods. Required.
	Pods Pods
	// TrustDomain is the mesh's, and TrustDomainAliases are others that may be asked for. Required and none.
	TrustDomain        string
	TrustDomainAliases []string
	// TrustedNodeAccounts are the service accounts ("namespace/name") that may ask for identities of their node's pods;
	// nil = istio-system/ztunnel.
	TrustedNodeAccounts []string
	// ClusterID must be in the header clusterid of a request for a pod's identity (2.3); "" = not checked.
	ClusterID string
	// TrustNodeClaim: a trusted node account whose pod is not among Pods at all is believed the node in its token. For
	// the lab, whose node proxies are no pods.
	TrustNodeClaim bool
	// PodWait is how long a request for an identity without a pod on the node waits for the pod to appear, since the
	// node often knows of it before we do; 0 = 2 s, negative = not at all.
	PodWait time.Duration
	// Logger gets one audit record per request; nil = none.
	Logger *slog.Logger
}

// Server implements Istio's certificate service. Safe for any goroutine.
type Server struct {
	capb.UnimplementedIstioCertificateServiceServer
	cfg Config

	mu      sync.Mutex
	issued  uint64            // guarded by mu
	refused map[string]uint64 // by reason; guarded by mu
}

// Reasons for which requests are refused, as Counts tells them.
const (
	// RefusedToken: no token, or not a good one.
	RefusedToken = "token"
	// RefusedIdentity: the caller may not have the identity it asks for.
	RefusedIdentity = "identity"
	// RefusedRequest: the request is malformed.
	RefusedRequest = "request"
	// RefusedUnavailable: it could not be found out, or not be signed.
	RefusedUnavailable = "unavailable"
)

// Counts says how many certificates were issued, and how many requests were refused for each of the reasons.
func (s *Server) Counts() (issued uint64, refused map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued, maps.Clone(s.refused)
}

// NewServer makes a server.
func NewServer(cfg Config) *Server {
	if cfg.TrustedNodeAccounts == nil {
		cfg.TrustedNodeAccounts = []string{"istio-system/ztunnel"}
	}
	if cfg.PodWait == 0 {
		cfg.PodWait = 2 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, refused: map[string]uint64{RefusedToken: 0, RefusedIdentity: 0, RefusedRequest: 0, RefusedUnavailable: 0}}
}

// impersonated is the metadata field that names another identity than the caller's (2.3).
const impersonated = "ImpersonatedIdentity"

// CreateCertificate signs a request: for the caller's own identity, or for that of a pod on the caller's node. It
// answers Unauthenticated for a bad token, PermissionDenied for an identity that the caller may not have, and
// InvalidArgument for a bad request.
func (s *Server) CreateCertificate(ctx context.Context, req *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	asked := req.GetMetadata().GetFields()[impersonated].GetStringValue()
	caller, err := Authenticate(ctx, s.cfg.Authenticator)
	if err != nil {
		code, reason := codes.Unavailable, RefusedUnavailable
		if errors.Is(err, ErrToken) {
			code, reason = codes.Unauthenticated, RefusedToken
		}
		s.refuse(ctx, Caller{}, asked, reason, err)
		return nil, status.Error(code, "the token could not be authenticated") // opaque: the caller is a stranger
	}
	id, err := s.authorize(ctx, caller, asked)
	if err != nil {
		s.refuse(ctx, caller, asked, RefusedIdentity, err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	chain, err := s.cfg.Authority.Sign([]byte(req.GetCsr()), id, time.Duration(clampSeconds(req.GetValidityDuration()))*time.Second)
	if err != nil {
		code, reason := codes.Internal, RefusedUnavailable
		if errors.Is(err, ErrCSR) || errors.Is(err, ErrTTL) {
			code, reason = codes.InvalidArgument, RefusedRequest
		}
		s.refuse(ctx, caller, id.String(), reason, err)
		return nil, status.Error(code, err.Error())
	}
	s.mu.Lock()
	s.issued++
	s.mu.Unlock()
	s.cfg.Logger.Info("certificate issued", append(s.record(ctx, caller, id.String()), slog.Int("chain", len(chain)))...)
	return &capb.IstioCertificateResponse{CertChain: chain}, nil
}

// clampSeconds keeps a duration in seconds from overflowing a time.Duration.
func clampSeconds(n int64) int64 {
	const century = 100 * 365 * 24 * 3600
	return max(0, min(n, century))
}

// authorize decides which identity the caller gets (2.2, 2.3).
func (s *Server) authorize(ctx context.Context, caller Caller, asked string) (spiffe.ID, error) {
	s.waitForPod(ctx, caller)
	node, err := s.node(caller)
	if err != nil {
		return spiffe.ID{}, err
	}
	if asked == "" {
		return spiffe.New(s.cfg.TrustDomain, caller.Namespace, caller.ServiceAccount)
	}
	if !slices.Contains(s.cfg.TrustedNodeAccounts, caller.Account()) {
		return spiffe.ID{}, fmt.Errorf("%s may not ask for the identities of pods", caller.Account())
	}
	id, err := spiffe.Parse(asked)
	if err != nil {
		return spiffe.ID{}, err
	}
	if id.TrustDomain() != s.cfg.TrustDomain && !slices.Contains(s.cfg.TrustDomainAliases, id.TrustDomain()) {
		return spiffe.ID{}, fmt.Errorf("want an identity of trust domain %s, got %s", s.cfg.TrustDomain, id)
	}
	if md, _ := metadata.FromIncomingContext(ctx); s.cfg.ClusterID != "" && !slices.Equal(md.Get("clusterid"), []string{s.cfg.ClusterID}) {
		return spiffe.ID{}, fmt.Errorf("want cluster %q, got %q", s.cfg.ClusterID, md.Get("clusterid"))
	}
	if node == "" {
		return spiffe.ID{}, fmt.Errorf("the node of %s is not known", caller)
	}
	if !s.waitFor(ctx, node, id) {
		return spiffe.ID{}, fmt.Errorf("no running pod of %s/%s on node %s", id.Namespace(), id.ServiceAccount(), node)
	}
	return id, nil
}

// node is the caller's node, "" when it has none. It refuses a caller whose pod is gone, has ended, or is another one
// of the same name.
func (s *Server) node(caller Caller) (string, error) {
	if caller.Pod == "" {
		return "", nil
	}
	pod, ok := s.cfg.Pods.Lookup(caller.Namespace, caller.Pod)
	switch {
	case !ok && s.cfg.TrustNodeClaim && slices.Contains(s.cfg.TrustedNodeAccounts, caller.Account()):
		return caller.Node, nil
	case !ok && caller.Live:
		return caller.Node, nil // our own view of the pods is behind
	case !ok:
		return "", fmt.Errorf("pod %s/%s does not exist", caller.Namespace, caller.Pod)
	case pod.UID != caller.UID:
		return "", fmt.Errorf("pod %s/%s is not the one that the token was given to: want uid %q, got %q", caller.Namespace, caller.Pod, pod.UID, caller.UID)
	case pod.Terminal:
		return "", fmt.Errorf("pod %s/%s has ended", caller.Namespace, caller.Pod)
	}
	return pod.Node, nil
}

// waitForPod waits until the caller's pod is known: a pod that asks for its own certificate is often faster than the
// news of it.
func (s *Server) waitForPod(ctx context.Context, caller Caller) {
	if caller.Pod == "" || caller.Live || s.cfg.PodWait < 0 || s.cfg.TrustNodeClaim && slices.Contains(s.cfg.TrustedNodeAccounts, caller.Account()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PodWait)
	defer cancel()
	for {
		changed := s.cfg.Pods.Changed() // before the look, so that no change is missed
		if _, ok := s.cfg.Pods.Lookup(caller.Namespace, caller.Pod); ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// waitFor waits until a pod with id runs on node.
func (s *Server) waitFor(ctx context.Context, node string, id spiffe.ID) bool {
	if s.cfg.PodWait < 0 {
		return s.cfg.Pods.RunsOn(node, id.Namespace(), id.ServiceAccount())
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PodWait)
	defer cancel()
	for {
		changed := s.cfg.Pods.Changed() // before the look, so that no change is missed
		if s.cfg.Pods.RunsOn(node, id.Namespace(), id.ServiceAccount()) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// refuse counts a request that is refused, and writes its record.
func (s *Server) refuse(ctx context.Context, caller Caller, asked, reason string, err error) {
	s.mu.Lock()
	s.refused[reason]++
	s.mu.Unlock()
	s.cfg.Logger.Warn("certificate refused", append(s.record(ctx, caller, asked), slog.String("reason", reason), slog.Any("err", err))...)
}

// record is what is written of each request: who asked, from where, for which identity.
func (s *Server) record(ctx context.Context, caller Caller, asked string) []any {
	from, node := "", caller.Node
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	if pod, ok := s.cfg.Pods.Lookup(caller.Namespace, caller.Pod); ok && node == "" && pod.UID == caller.UID {
		node = pod.Node
	}
	return []any{slog.String("peer", from), slog.String("caller", caller.String()), slog.String("node", node), slog.String("id", asked)}
}
