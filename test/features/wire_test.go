package features

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	wirePort = "{name: http, port: 80, targetPort: 9003}"
	atHelper = "pod=helper"
)

// wire is what clients send byte by byte, and kinds of gRPC.
func wire() []group {
	const field = "Service.ports.name http"
	h := func(name string, asks ...ask) feature {
		return feature{name: name, field: field, ports: wirePort, pods: "app: helper", asks: asks}
	}
	g := func(name string, call rpcCall, wants ...string) feature {
		return feature{name: name, field: "Service.ports.name grpc", ports: "{name: grpc, port: 80, targetPort: 9007}", pods: "app: helper", asks: []ask{client(call).want(wants...)}}
	}
	h2c := h("trailers over HTTP/2", get("/").method("POST").body("x").h2().want(ok, "answer.x-after=the end"))
	h2c.ports = "{name: http2, port: 80, targetPort: 9003}"
	return []group{
		{title: "HTTP on the wire", features: []feature{
			h("requests without waiting for answers", sent("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /4 HTTP/1.1\r\nHost: a\r\n\r\n", 4).want("order=/1 /2 /3 /4", "body=hi")),
			h("a body in chunks", sent("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n there!\r\n0\r\n\r\n", 1).want(ok, "body=hello there!")),
			h("an answer in chunks", sent("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1).want(ok, "chunked")),
			ours("it drops trailers of HTTP/1.1", h("trailers of the answer", get("/").want(ok, "answer.x-after=the end"))),
			ours("it drops trailers of HTTP/1.1", h("trailers of the request", sent("POST / HTTP/1.1\r\nHost: a\r\nTrailer: x-last\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-last: yes\r\n\r\n", 1).want(ok, "body=hi", "trailer.X-Last=yes"))),
			h2c,
			h("100-continue", expecting().want("continued", ok, "body=payload")),
			h("an upgrade to WebSocket", upgrading("websocket").want("status=101", "answer.upgrade=websocket", "echo=ping")),
			h("an upgrade that is not WebSocket is refused", upgrading("other").want("!status=101")),
			h("a request with two lengths is refused", sent("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", 1).want("status=400", "!pod=*")),
			h("a request with length and chunks is refused", sent("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 1).want("status=400", "!pod=*")),
			h("a request without host is refused", sent("GET / HTTP/1.1\r\n\r\n", 1).want("status=400", "!pod=*")),
			h("what is no HTTP is refused", sent("nonsense\r\n\r\n", 1).want("!status=200", "!pod=*")),
			ours("426, which istiod's PILOT_HTTP10 would change", h("HTTP/1.0", sent("GET / HTTP/1.0\r\nHost: a\r\n\r\n", 1).want(ok, "proto=HTTP/1.1", "answer.connection=close"))),
		}},
		{title: "connections that end", features: []feature{
			{name: "one side of TCP", field: "Service.ports.name tcp", ports: "{name: tcp, port: 81, targetPort: 8080}", asks: []ask{halfClosed().at(81).want("all=hello")}},
			{name: "TCP, by the server", field: "Service.ports.name tcp", ports: "{name: tcp, port: 81, targetPort: 9008}", pods: "app: helper", asks: []ask{ended().at(81).want("all=bye")}},
			{name: "TCP, by a reset", field: "Service.ports.name tcp", ports: "{name: tcp, port: 81, targetPort: 9009}", pods: "app: helper", asks: []ask{ended().at(81).want("error=reset")}},
			{name: "TCP that is idle", field: "DestinationRule.trafficPolicy.connectionPool.tcp.idleTimeout", ports: "{name: tcp, port: 81, targetPort: 9000}", yaml: destination("connectionPool: {tcp: {idleTimeout: 0.2s}}"), slow: true, asks: []ask{ended().at(81).want("all=pod=*").took(200*time.Millisecond, 4*time.Second)}},
			{name: "more TCP than is allowed", field: "DestinationRule.trafficPolicy.connectionPool.tcp.maxConnections", ports: "{name: tcp, port: 81, targetPort: 9000}", yaml: destination("connectionPool: {tcp: {maxConnections: 1}}"), asks: []ask{greeted(6).at(81).want("!greeted=6", "!greeted=0")}},
			{name: "as much TCP as is allowed", field: "DestinationRule.trafficPolicy.connectionPool.tcp.maxConnections", ports: "{name: tcp, port: 81, targetPort: 9000}", yaml: destination("connectionPool: {tcp: {maxConnections: 100}}"), asks: []ask{greeted(6).at(81).want("greeted=6")}},
		}},
		{title: "gRPC", features: []feature{
			g("a call with one message each", unary, "payload=5", "code=OK"),
			g("messages of the client", fromClient, "sum=6", "code=OK"),
			g("messages of the server", fromServer, "sizes=1 2 3", "code=OK"),
			g("messages of both", bothWays, "sizes=3 1 2", "code=OK"),
			g("the application's status", refusedCall, "code=ResourceExhausted", "message=too much"),
			g("metadata, and trailers", withMetadata, "begin=first", "end=last", "code=OK"),
			g("a deadline", withDeadline, "code=DeadlineExceeded"),
			g("a method that the application does not have", unknownCall, "code=Unimplemented"),
		}},
		{title: "gRPC status of an answer by HTTP", features: statuses()},
	}
}

// ours is a case that Envoy does not do.
func ours(why string, f feature) feature { f.envoy = why; return f }

// statuses are what becomes of an HTTP status that the waypoint itself answers a gRPC call with.
func statuses() []feature {
	var out []feature
	for _, c := range []struct {
		http string
		code int
		name string
	}{
		{"400", 13, "internal"}, {"401", 16, "unauthenticated"}, {"403", 7, "permission denied"}, {"404", 12, "unimplemented"},
		{"429", 14, "unavailable"}, {"502", 14, "unavailable"}, {"503", 14, "unavailable"}, {"504", 14, "unavailable"}, {"418", 2, "unknown"},
	} {
		out = append(out, feature{name: c.http + " is " + c.name, field: "VirtualService.http.directResponse.status", ports: grpcPort, yaml: virtual("directResponse: {status: " + c.http + "}"),
			asks: []ask{rpc("/a.B/C").want(ok, fmt.Sprintf("answer.grpc-status=%d", c.code))}})
	}
	return out
}

// connected makes a connection for the call.
func connected(call func(ctx context.Context, conn net.Conn) (string, error)) ask {
	return ask{call: func(ctx context.Context, d dialer, address string) (string, error) {
		conn, err := d(ctx, "tcp", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			if err := conn.SetDeadline(deadline); err != nil {
				return "", err
			}
		}
		return call(ctx, conn)
	}}
}

// answers reads answers and tells them, and in which order their paths came.
func answers(r *bufio.Reader, n int) (string, error) {
	var s strings.Builder
	var order []string
	for range n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return s.String(), err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return s.String(), err
		}
		fmt.Fprintf(&s, "status=%d\n%s\n", resp.StatusCode, strings.Join(resp.TransferEncoding, ","))
		for name := range resp.Header {
			fmt.Fprintf(&s, "answer.%s=%s\n", strings.ToLower(name), resp.Header.Get(name))
		}
		s.Write(body)
		s.WriteByte('\n')
		for line := range strings.Lines(string(body)) {
			if path, ok := strings.CutPrefix(line, "path="); ok {
				order = append(order, strings.TrimSpace(path))
			}
		}
	}
	fmt.Fprintf(&s, "order=%s\n", strings.Join(order, " "))
	return s.String(), nil
}

// sent sends bytes as they are and reads answers.
func sent(text string, n int) ask {
	return connected(func(_ context.Context, conn net.Conn) (string, error) {
		if _, err := io.WriteString(conn, text); err != nil {
			return "", err
		}
		return answers(bufio.NewReader(conn), n)
	})
}

// expecting waits for 100 Continue before it sends its body.
func expecting() ask {
	return connected(func(_ context.Context, conn net.Conn) (string, error) {
		if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n"); err != nil {
			return "", err
		}
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
			return "first=" + line, err
		}
		for line != "\r\n" && err == nil {
			line, err = r.ReadString('\n')
		}
		if err != nil {
			return "", err
		}
		if _, err := io.WriteString(conn, "payload"); err != nil {
			return "", err
		}
		text, err := answers(r, 1)
		return "continued\n" + text, err
	})
}

func upgrading(protocol string) ask {
	return connected(func(_ context.Context, conn net.Conn) (string, error) {
		fmt.Fprintf(conn, "GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", protocol)
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return "", err
		}
		text := fmt.Sprintf("status=%d\nanswer.upgrade=%s\n", resp.StatusCode, resp.Header.Get("Upgrade"))
		if resp.StatusCode != 101 {
			return text, nil
		}
		if _, err := io.WriteString(conn, "ping\n"); err != nil {
			return text, err
		}
		line, err := r.ReadString('\n')
		return text + "echo=" + line, err
	})
}

// halfClosed sends, closes its side, and reads what comes back until the end.
func halfClosed() ask {
	return connected(func(_ context.Context, conn net.Conn) (string, error) {
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return "", err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
		all, err := io.ReadAll(conn)
		return "all=" + string(all) + "\n", err
	})
}

// ended reads until the end.
func ended() ask {
	return connected(func(_ context.Context, conn net.Conn) (string, error) {
		all, err := io.ReadAll(conn)
		return "all=" + string(all) + "\n", err
	})
}

// greeted opens connections, keeps them, and counts those on which the server spoke.
func greeted(n int) ask {
	return ask{call: func(ctx context.Context, d dialer, address string) (string, error) {
		count := 0
		for range n {
			conn, err := d(ctx, "tcp", address)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return "", err
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				count++
			}
		}
		return fmt.Sprintf("greeted=%d", count), nil
	}}
}

// rpcCall makes calls of gRPC's own test service and tells what came, without the status.
type rpcCall func(ctx context.Context, c testgrpc.TestServiceClient) (string, error)

func client(call rpcCall) ask {
	return ask{call: func(ctx context.Context, d dialer, address string) (string, error) {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d(ctx, "tcp", address) }))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		text, err := call(ctx, testgrpc.NewTestServiceClient(conn))
		return fmt.Sprintf("%s\ncode=%s\nmessage=%s\n", text, status.Code(err), status.Convert(err).Message()), nil
	}}
}

func unary(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	r, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseSize: 5})
	return fmt.Sprintf("payload=%d", len(r.GetPayload().GetBody())), err
}

func fromClient(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	s, err := c.StreamingInputCall(ctx)
	if err != nil {
		return "", err
	}
	for n := 1; n <= 3; n++ {
		if err := s.Send(&testgrpc.StreamingInputCallRequest{Payload: &testgrpc.Payload{Body: make([]byte, n)}}); err != nil {
			return "", err
		}
	}
	r, err := s.CloseAndRecv()
	return fmt.Sprintf("sum=%d", r.GetAggregatedPayloadSize()), err
}

func fromServer(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	s, err := c.StreamingOutputCall(ctx, &testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: 1}, {Size: 2}, {Size: 3}}})
	if err != nil {
		return "", err
	}
	text := "sizes="
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return strings.TrimSpace(text), nil
		}
		if err != nil {
			return text, err
		}
		text += fmt.Sprint(len(r.GetPayload().GetBody()), " ")
	}
}

func bothWays(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		return "", err
	}
	text := "sizes="
	for _, n := range []int32{3, 1, 2} {
		if err := s.Send(&testgrpc.StreamingOutputCallRequest{ResponseParameters: []*testgrpc.ResponseParameters{{Size: n}}}); err != nil {
			return text, err
		}
		r, err := s.Recv()
		if err != nil {
			return text, err
		}
		text += fmt.Sprint(len(r.GetPayload().GetBody()), " ")
	}
	if err := s.CloseSend(); err != nil {
		return text, err
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		return text, err
	}
	return strings.TrimSpace(text), nil
}

func refusedCall(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	_, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseStatus: &testgrpc.EchoStatus{Code: int32(codes.ResourceExhausted), Message: "too much"}})
	return "", err
}

func withMetadata(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	var head, trail metadata.MD
	ctx = metadata.AppendToOutgoingContext(ctx, "x-grpc-test-echo-initial", "first", "x-grpc-test-echo-trailing-bin", "last")
	_, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseSize: 1}, grpc.Header(&head), grpc.Trailer(&trail))
	return fmt.Sprintf("begin=%s\nend=%s", strings.Join(head["x-grpc-test-echo-initial"], ","), strings.Join(trail["x-grpc-test-echo-trailing-bin"], ",")), err
}

func withDeadline(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		return "", err
	}
	_, err = s.Recv()
	// The server has the deadline as well and resets the stream: on a busy machine the client may hear of that before its
	// own timer.
	deadline, _ := ctx.Deadline()
	if st := status.Convert(err); st.Code() == codes.Unavailable && strings.Contains(st.Message(), "remote reset") && time.Until(deadline) < 5*time.Millisecond {
		err = status.Error(codes.DeadlineExceeded, st.Message())
	}
	return "", err
}

func unknownCall(ctx context.Context, c testgrpc.TestServiceClient) (string, error) {
	_, err := c.UnimplementedCall(ctx, &testgrpc.Empty{})
	return "", err
}
