package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// rpc is the server's end of a stream.
type rpc interface {
	Context() context.Context
	Send(*discoverypb.DeltaDiscoveryResponse) error
	Recv() (*discoverypb.DeltaDiscoveryRequest, error)
}

// stream is one client's stream. run's goroutine is the only one that sends.
type stream struct {
	srv    *Server
	rpc    rpc
	id     uint64
	caller Caller
	peer   string
	since  time.Time
	woken  chan struct{} // cap 1

	mu     sync.Mutex
	client *Client                  // after the first request; guarded by mu
	order  []string                 // type URLs in the order of pushes; guarded by mu
	subs   map[string]*subscription // by type URL; guarded by mu
	nonce  uint64                   // guarded by mu
	stages                          // guarded by mu
}

func newStream(s *Server, r rpc, caller Caller) *stream {
	return &stream{
		srv: s, rpc: r, id: s.lastStream.Add(1), caller: caller, peer: peerOf(r.Context()), since: time.Now(),
		woken: make(chan struct{}, 1), subs: map[string]*subscription{},
		stages: stages{parting: map[string]bool{}, leaving: map[string]time.Time{}},
	}
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

func (st *stream) poke() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

// run serves the stream. The reader's goroutine ends with the RPC's context, which gRPC cancels when run returns.
func (st *stream) run() error {
	requests := make(chan *discoverypb.DeltaDiscoveryRequest)
	ended := make(chan error, 1)
	go st.read(requests, ended)
	lingered := time.NewTimer(math.MaxInt64)
	defer lingered.Stop()
	for {
		select {
		case <-lingered.C:
		case req := <-requests:
			if err := st.request(req); err != nil {
				return err
			}
		case <-st.woken:
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-st.rpc.Context().Done():
			return status.FromContextError(st.rpc.Context().Err()).Err()
		}
		if err := st.push(); err != nil {
			return err
		}
		lingered.Reset(st.next())
	}
}

func (st *stream) read(requests chan<- *discoverypb.DeltaDiscoveryRequest, ended chan<- error) {
	for {
		req, err := st.rpc.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case requests <- req:
		case <-st.rpc.Context().Done():
			ended <- st.rpc.Context().Err()
			return
		}
	}
}

// request takes in one message: a subscription, an ACK, a NACK, or a subscription along with one of these.
func (st *stream) request(req *discoverypb.DeltaDiscoveryRequest) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.client == nil {
		st.greet(req)
	}
	url := req.GetTypeUrl()
	if url == "" {
		return status.Error(codes.InvalidArgument, "a request has no type URL")
	}
	sub, known := st.subs[url]
	if !known {
		set, err := st.srv.cfg.Authorize(*st.client, url)
		if err != nil {
			st.srv.log.Warn("xds request refused", slog.String("peer", st.peer), slog.String("client", st.client.NodeID), slog.String("type", url), slog.Any("err", err))
			return status.Error(codes.PermissionDenied, err.Error())
		}
		sub = &subscription{set: set, node: st.client.Metadata["NODE_NAME"], keys: map[string]bool{}, sent: map[string]bool{}, gone: map[string]bool{}}
		st.subs[url] = sub
		st.order = append(st.order, url)
		slices.SortStableFunc(st.order, func(a, b string) int { return st.srv.rank(a) - st.srv.rank(b) })
	}
	sub.ask(req, !known)
	if n := len(sub.keys) + len(sub.pending); n > 2*st.srv.cfg.maxNames() {
		return status.Errorf(codes.ResourceExhausted, "more than %d names", st.srv.cfg.maxNames())
	}
	if nonce := req.GetResponseNonce(); nonce != "" && nonce == sub.outstanding {
		st.answered(sub, req)
	}
	return nil
}

// greet notes who the client is. Needs mu.
func (st *stream) greet(req *discoverypb.DeltaDiscoveryRequest) {
	st.client = &Client{Caller: st.caller, NodeID: req.GetNode().GetId(), Metadata: map[string]string{}}
	for k, v := range req.GetNode().GetMetadata().GetFields() {
		if text := v.GetStringValue(); text != "" {
			st.client.Metadata[k] = text
		}
		if k == "LABELS" {
			st.client.Labels = map[string]string{}
			for name, label := range v.GetStructValue().GetFields() {
				st.client.Labels[name] = label.GetStringValue()
			}
		}
	}
	st.srv.log.Info("xds client connected", slog.String("peer", st.peer), slog.String("client", st.client.NodeID), slog.String("caller", callerKey(st.caller)))
}

// answered notes an ACK or a NACK (X5). Needs mu.
func (st *stream) answered(sub *subscription, req *discoverypb.DeltaDiscoveryRequest) {
	sub.outstanding = ""
	if req.GetErrorDetail() == nil {
		if sub.acked = req.GetResponseNonce(); sub.carries { // else what was rejected is rejected still
			sub.nack = ""
		}
		return
	}
	sub.nack = req.GetErrorDetail().GetMessage()
	st.srv.nacks.Add(1)
	st.srv.log.Warn("xds client rejected resources", slog.String("client", st.client.NodeID),
		slog.String("type", sub.set.TypeURL), slog.String("nonce", req.GetResponseNonce()), slog.String("err", sub.nack))
}

// rank is a type's place in a push.
func (s *Server) rank(url string) int {
	if i := slices.Index(s.cfg.Order, url); i >= 0 {
		return i
	}
	return len(s.cfg.Order)
}

// push sends what is due: at most one response per type.
func (st *stream) push() error {
	due, err := st.due()
	if err != nil {
		return err
	}
	for _, resp := range due {
		if err := st.rpc.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

// errTooFarBehind ends a stream whose next changes are forgotten.
var errTooFarBehind = status.Error(codes.Unavailable, "the stream is too far behind, start over")

// due makes the responses of a push from one state of all sets, in the order of Config.Order. A type there that has more
// to say and waits for an ACK holds back those behind it. Clusters and what leads to them come in stages.
func (st *stream) due() (out []*discoverypb.DeltaDiscoveryResponse, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.srv.mu.RLock()
	defer st.srv.mu.RUnlock()
	if out, err = st.clusterStage(); err != nil {
		return nil, err
	}
	hold := false
	for _, url := range st.order {
		if inStages(url) {
			continue
		}
		if url == xds.EndpointType {
			resp, err := st.endpointResponse(len(out) == 0)
			if err != nil {
				return nil, err
			}
			if resp != nil {
				out = append(out, resp)
			}
			continue
		}
		sub, ordered := st.subs[url], st.srv.rank(url) < len(st.srv.cfg.Order)
		set := st.published(sub)
		if set == nil || !sub.behind(set) {
			continue
		}
		if sub.outstanding != "" {
			hold = hold || ordered
			continue
		}
		if hold && ordered {
			continue
		}
		d, ok := sub.next(set)
		if !ok {
			return nil, errTooFarBehind
		}
		if !d.empty() {
			out = append(out, st.response(url, sub, d))
		}
	}
	leads, err := st.leadStage()
	return append(out, leads...), err
}

// published is the set of a subscription, nil until it was published once. Needs the server's mu.
func (st *stream) published(sub *subscription) *set {
	if set := st.srv.sets[sub.set]; set != nil && set.published {
		return set
	}
	return nil
}

// response is the next response of a type. Needs mu and the server's.
func (st *stream) response(url string, sub *subscription, d delta) *discoverypb.DeltaDiscoveryResponse {
	st.refreshEndpoints(url, d)
	st.nonce++
	sub.outstanding = strconv.FormatUint(st.id, 36) + "-" + strconv.FormatUint(st.nonce, 10)
	sub.sentAt, sub.answers, sub.waiting = time.Now(), d.always, false
	sub.carries = d.always || len(d.up) > 0
	sub.resources += uint64(len(d.up) + len(d.removed))
	st.srv.responses.Add(1)
	st.srv.sent.Add(uint64(len(d.up) + len(d.removed)))
	st.srv.log.Debug("xds response", slog.String("client", st.client.NodeID), slog.String("type", url),
		slog.String("nonce", sub.outstanding), slog.Int("resources", len(d.up)), slog.Int("removed", len(d.removed)))
	return &discoverypb.DeltaDiscoveryResponse{
		SystemVersionInfo: fmt.Sprint(st.srv.revision),
		TypeUrl:           url,
		Resources:         d.up,
		RemovedResources:  d.removed,
		Nonce:             sub.outstanding,
	}
}

// refreshEndpoints has the endpoints of re-sent clusters sent again: an Envoy waits for them before it uses the new
// cluster, and does not ask. Needs mu.
func (st *stream) refreshEndpoints(url string, d delta) {
	sub := st.subs[xds.EndpointType]
	if url != xds.ClusterType || sub == nil {
		return
	}
	for _, r := range d.up {
		if sub.keys[r.Name] && !slices.Contains(sub.pending, r.Name) {
			sub.pending = append(sub.pending, r.Name)
		}
	}
}

func (st *stream) clientName() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.client == nil {
		return ""
	}
	return st.client.NodeID
}
