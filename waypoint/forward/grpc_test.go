package forward

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// The judge is gRPC's own interoperability suite, client and server.
func TestGRPCsInteroperabilityCasesPassThroughTheWaypoint(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	r.cluster("rpc", h2, ln.Addr().String())
	r.routes(`[{"match": {"prefix": "/"}, "route": {"cluster": "rpc", "timeout": "0s"}}]`)
	conn, err := grpc.NewClient("passthrough:///rpc:9080", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.dial(ctx, vip) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := testgrpc.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, do := range map[string]func(){
		"empty_unary":                 func() { interop.DoEmptyUnaryCall(ctx, c) },
		"large_unary":                 func() { interop.DoLargeUnaryCall(ctx, c) },
		"client_streaming":            func() { interop.DoClientStreaming(ctx, c) },
		"server_streaming":            func() { interop.DoServerStreaming(ctx, c) },
		"ping_pong":                   func() { interop.DoPingPong(ctx, c) },
		"empty_stream":                func() { interop.DoEmptyStream(ctx, c) },
		"timeout_on_sleeping_server":  func() { interop.DoTimeoutOnSleepingServer(ctx, c) },
		"cancel_after_begin":          func() { interop.DoCancelAfterBegin(ctx, c) },
		"cancel_after_first_response": func() { interop.DoCancelAfterFirstResponse(ctx, c) },
		"status_code_and_message":     func() { interop.DoStatusCodeAndMessage(ctx, c) },
		"special_status_message":      func() { interop.DoSpecialStatusMessage(ctx, c) },
		"custom_metadata":             func() { interop.DoCustomMetadata(ctx, c) },
		"unimplemented_method":        func() { interop.DoUnimplementedMethod(ctx, conn) },
		"unimplemented_service":       func() { interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn)) },
	} {
		t.Run(name, func(*testing.T) { do() }) // a failure ends the process, with a word about it
	}
}
