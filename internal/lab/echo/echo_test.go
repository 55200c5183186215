package echo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// serve starts a server on two loopback ports: one for everything, one that greets.
func serve(t *testing.T) (all, greet string) {
	t.Helper()
	addrs := make([]string, 2)
	for i := range addrs {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = ln.Addr().String()
		ln.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { // ends with cancel
		done <- Serve(ctx, ServerConfig{Addresses: addrs[:1], Greet: addrs[1:], Pod: "p", Namespace: "n"})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for up := 0; up < len(addrs); {
		if conn, err := net.Dial("tcp", addrs[up]); err == nil {
			conn.Close()
			up++
			continue
		}
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
	}
	return addrs[0], addrs[1]
}

func TestOnePortSpeaksEverything(t *testing.T) {
	addr, _ := serve(t)
	for name, c := range map[string]struct {
		cfg  ClientConfig
		want []string
	}{
		"HTTP/1.1": {ClientConfig{URL: "http://" + addr + "/a?b=c", Header: http.Header{"X-Y": {"z"}}, Body: "hi", Method: "POST"},
			[]string{"pod=p\n", "namespace=n\n", "method=POST\n", "path=/a?b=c\n", "proto=HTTP/1.1\n", "peer=127.0.0.1:", "local=" + addr, "header.X-Y=z\n", "body=2\nhi"}},
		"HTTP/2": {ClientConfig{URL: "http://" + addr + "/", HTTP2: true}, []string{"proto=HTTP/2.0\n"}},
		"gRPC":   {ClientConfig{URL: "grpc://" + addr, Body: "hello"}, []string{"method=POST\n", "path=/ambit.echo.v1.Echo/Echo\n", "hello"}},
		"TCP":    {ClientConfig{URL: "tcp://" + addr}, []string{"pod=p namespace=n peer=127.0.0.1:"}},
		"line":   {ClientConfig{URL: "tcp://" + addr, Body: "GETTING on"}, []string{"GETTING on\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Count = 2
			sum, err := Run(t.Context(), c.cfg)
			if err != nil || sum.OK != 2 || sum.Failed != 0 {
				t.Fatalf("got %+v, %v", sum, err)
			}
			for _, w := range c.want {
				if !strings.Contains(sum.First, w) {
					t.Errorf("got %q, want %q in it", sum.First, w)
				}
			}
		})
	}
}

func TestTheServerIsHealthyByGRPC(t *testing.T) {
	addr, _ := serve(t)
	c := newHTTPClient(ClientConfig{}, true)
	resp, err := c.Post("http://"+addr+"/grpc.health.v1.Health/Check", "application/grpc", bytes.NewReader(make([]byte, 5)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(body, []byte{0, 0, 0, 0, 2, 8, 1}) || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("got %x, %v, %v", body, resp.Trailer, err)
	}
}

func TestTheGreetingComesFirst(t *testing.T) {
	_, addr := serve(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "pod=p namespace=n peer="+conn.LocalAddr().String()) {
		t.Errorf("got %q, %v", line, err)
	}
	if _, err := conn.Write([]byte("x\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "x\n" {
		t.Errorf("got %q, %v, want the echo", line, err)
	}
}

func TestFailuresAreCountedByCause(t *testing.T) {
	addr, _ := serve(t)
	sum, err := Run(t.Context(), ClientConfig{URL: "http://" + addr + "/status/503", Count: 3})
	if err != nil || sum.OK != 0 || sum.Errors["status 503"] != 3 {
		t.Errorf("got %+v, %v", sum, err)
	}
	sum, err = Run(t.Context(), ClientConfig{URL: "http://127.0.0.1:1/", Count: 2, Fresh: true})
	if err != nil || sum.Errors["dial: connect: connection refused"] != 2 {
		t.Errorf("got %+v, %v", sum, err)
	}
	if _, err := Run(t.Context(), ClientConfig{URL: "ftp://x"}); err == nil || !strings.Contains(err.Error(), "accepted: http, grpc, tcp") {
		t.Errorf("got %v", err)
	}
}

func TestDurationEndsARun(t *testing.T) {
	addr, _ := serve(t)
	sum, err := Run(t.Context(), ClientConfig{URL: "http://" + addr, Duration: 100 * time.Millisecond, Rate: 200, Parallel: 4})
	if err != nil || sum.OK == 0 || sum.Failed > 0 {
		t.Errorf("got %+v, %v", sum, err)
	}
}

func TestACollectorWritesALineForEachSpan(t *testing.T) {
	export, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", "waypoint.shop")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
			TraceId: []byte{0: 0x4b, 15: 1}, SpanId: []byte{7: 2}, ParentSpanId: []byte{7: 3}, Name: "a b", Kind: tracepb.Span_SPAN_KIND_SERVER,
			Attributes: []*commonpb.KeyValue{text("http.url", "http://x/\n")},
		}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `msg=span trace=4b000000000000000000000000000001 span=0000000000000002 parent=0000000000000003 kind=SPAN_KIND_SERVER service=waypoint.shop name="a b" http.url="http://x/\n"`
	logs, err := proto.Marshal(&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{ScopeLogs: []*logspb.ScopeLogs{{LogRecords: []*logspb.LogRecord{
		{TraceId: []byte{15: 1}, Body: text("", "GET /a").Value, Attributes: []*commonpb.KeyValue{text("k", "v")}},
	}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(export))), export...)
	for _, c := range []struct {
		path, body, want, grpc string
		status                 int
	}{
		{otlpRPC, string(frame), want, "0", 200},
		{otlpRPC, string(export), "", "3", 200},
		{otlpHTTP, string(export), want, "", 200},
		{otlpHTTP, "{", "", "", 400},
		{logsHTTP, string(logs), `msg=entry trace=00000000000000000000000000000001 body="GET /a" k=v`, "", 200},
		{zipkinV2, `[{"traceId":"4b","id":"2","parentId":"3","kind":"SERVER","name":"n","localEndpoint":{"serviceName":"w"},"tags":{"a":"b"}}]`, "msg=span trace=4b span=2 parent=3 kind=SERVER service=w name=n a=b", "", 200},
		{zipkinV2, `{}`, "", "", 400},
	} {
		var log strings.Builder
		s := &server{cfg: ServerConfig{Collector: true, Log: slog.New(slog.NewTextHandler(&log, nil))}}
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, httptest.NewRequest("POST", c.path, strings.NewReader(c.body)))
		if rec.Code != c.status || rec.Result().Trailer.Get("Grpc-Status") != c.grpc || !strings.Contains(log.String(), c.want) || (strings.Contains(log.String(), "msg=span") || strings.Contains(log.String(), "msg=entry")) != (c.want != "") {
			t.Errorf("%s: status %d, %v, %s", c.path, rec.Code, rec.Result().Trailer, log.String())
		}
	}
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

func TestADrainingServerGoesOnAndAsksItsClientsToLeave(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ServerConfig{Addresses: []string{addr}, Drain: 2 * time.Second}) }()
	var held *http.Response
	for held == nil {
		held, _ = http.Get("http://" + addr + "/")
	}
	held.Body.Close()
	cancel()
	for closes := false; !closes; {
		resp, err := http.Get("http://" + addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		closes = resp.Close
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
