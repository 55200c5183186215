// Package xdstest is the other end of an xds.Client in tests: a delta ADS server that the test scripts.
package xdstest

import (
	"context"
	"errors"
	"io"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/internal/xds"
)

// Server is an xds.Transport in the process, without a network and therefore fit for testing/synctest. The test
// accepts each stream and speaks on it.
type Server struct {
	streams chan *Stream
	refuse  chan error
}

// NewServer makes a server that waits for Accept.
func NewServer() *Server {
	return &Server{streams: make(chan *Stream), refuse: make(chan error)}
}

// Open implements xds.Transport. It blocks until the test calls Accept or Refuse.
func (s *Server) Open(ctx context.Context) (xds.Stream, error) {
	st := &Stream{
		ctx:       ctx,
		requests:  make(chan *discoverypb.DeltaDiscoveryRequest, 100),
		responses: make(chan *discoverypb.DeltaDiscoveryResponse),
		broken:    make(chan error, 1),
	}
	select {
	case s.streams <- st:
		return st, nil
	case err := <-s.refuse:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept waits for the client's next stream.
func (s *Server) Accept(t testing.TB) *Stream {
	t.Helper()
	select {
	case st := <-s.streams:
		return st
	case <-t.Context().Done():
		t.Fatal("no stream was opened")
		return nil
	}
}

// Refuse waits for the client's next attempt and fails it with err.
func (s *Server) Refuse(t testing.TB, err error) {
	t.Helper()
	select {
	case s.refuse <- err:
	case <-t.Context().Done():
		t.Fatal("no stream was attempted")
	}
}

// Stream is one accepted stream. Send and Recv are the client's ends, the rest is the test's.
type Stream struct {
	ctx       context.Context
	requests  chan *discoverypb.DeltaDiscoveryRequest
	responses chan *discoverypb.DeltaDiscoveryResponse
	broken    chan error
}

// Send implements xds.Stream.
func (s *Stream) Send(req *discoverypb.DeltaDiscoveryRequest) error {
	select {
	case s.requests <- req:
		return nil
	case <-s.ctx.Done():
		return io.EOF
	}
}

// Recv implements xds.Stream.
func (s *Stream) Recv() (*discoverypb.DeltaDiscoveryResponse, error) {
	select {
	case resp := <-s.responses:
		return resp, nil
	case err := <-s.broken:
		return nil, err
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// Request waits for the client's next message.
func (s *Stream) Request(t testing.TB) *discoverypb.DeltaDiscoveryRequest {
	t.Helper()
	select {
	case req := <-s.requests:
		return req
	case <-t.Context().Done():
		t.Fatal("no request came")
		return nil
	}
}

// Respond sends a response.
func (s *Stream) Respond(t testing.TB, resp *discoverypb.DeltaDiscoveryResponse) {
	t.Helper()
	select {
	case s.responses <- resp:
	case <-s.ctx.Done():
		t.Fatal("the client ended the stream")
	case <-t.Context().Done():
		t.Fatal("the client does not read")
	}
}

// WantACK waits for the next message and fails the test unless it is the ACK of nonce.
func (s *Stream) WantACK(t testing.TB, nonce string) {
	t.Helper()
	if req := s.Request(t); req.GetResponseNonce() != nonce || req.GetErrorDetail() != nil {
		t.Fatalf("got request %v, want an ACK of %q", req, nonce)
	}
}

// WantNACK waits for the next message and fails the test unless it is a NACK of nonce; it returns the NACK's text.
func (s *Stream) WantNACK(t testing.TB, nonce string) string {
	t.Helper()
	req := s.Request(t)
	if req.GetResponseNonce() != nonce || req.GetErrorDetail() == nil {
		t.Fatalf("got request %v, want a NACK of %q", req, nonce)
	}
	return req.GetErrorDetail().GetMessage()
}

// Break ends the stream with err; nil ends it as a server does that has nothing more to say.
func (s *Stream) Break(err error) {
	if err == nil {
		err = io.EOF
	}
	s.broken <- err
}

// ErrRefused is an error for Refuse.
var ErrRefused = errors.New("connection refused")

// Resource makes a resource with a body of raw bytes.
func Resource(typeURL, name, version, body string, aliases ...string) *discoverypb.Resource {
	return &discoverypb.Resource{
		Name: name, Version: version, Aliases: aliases,
		Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(body)},
	}
}
