package filter

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// RPC is a gRPC service in one of the clusters, called one message at a time. It is immutable.
type RPC struct {
	service *rpcService
	header  []message.Field
}

// CompileRPC compiles a service; timeout is for calls if the configuration does not say.
func CompileRPC(p *corev3.GrpcService, timeout time.Duration) (*RPC, error) {
	s, err := compileRPC(p, timeout)
	if err != nil {
		return nil, err
	}
	r := &RPC{service: s}
	for i, h := range p.GetInitialMetadata() {
		f := message.Field{Name: strings.ToLower(h.GetKey()), Value: h.GetValue()}
		if !message.LowerToken(f.Name) || !message.Value(f.Value) {
			return nil, field.Index(field.Errorf("key", "malformed header %q", f.Name), "initial_metadata", i)
		}
		r.header = append(r.header, f)
	}
	return r, nil
}

// Call is a call of method, "/package.Service/Method", with the message m.
func (r *RPC) Call(method string, m proto.Message) (*Call, error) {
	c, err := r.service.call(method, m)
	if err != nil {
		return nil, err
	}
	for _, f := range r.header {
		c.Req.Header.Add(f.Name, f.Value)
	}
	return c, nil
}

// Answer reads the answer to a call into m.
func (r *RPC) Answer(a *CallAnswer, m proto.Message) error { return r.service.answer(a, m) }
