package dumps

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// echo is what a backend says of the request that it got.
type echo struct {
	Cluster, Proto, Method, Path, Host, Body string
	Header                                   map[string][]string
}

// clusterHeader names the cluster in an answer, also in one without a body.
const clusterHeader = "X-Backend-Cluster"

// startBackend runs the backend of a cluster: HTTP/1.1, and HTTP/2 without TLS. For what is not HTTP see startTCP.
func startBackend(t *testing.T, cluster string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answerEcho(cluster, w, r) }), Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	if strings.Contains(cluster, "ext-authz") {
		s.Handler = http.HandlerFunc(authorize)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		<-ended
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func answerEcho(cluster string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	h := maps.Clone(map[string][]string(r.Header))
	for k, v := range r.Trailer {
		h["trailer "+k] = v
	}
	out, err := json.Marshal(echo{Cluster: cluster, Proto: r.Proto, Method: r.Method, Path: r.RequestURI, Host: r.Host, Body: string(body), Header: h})
	if err != nil {
		return
	}
	w.Header().Set(clusterHeader, cluster)
	for _, n := range []string{"y-remove", "y-set", "x-which", "access-control-allow-origin", "x-kept"} {
		w.Header().Set(n, "from the backend")
	}
	if strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status, x-trailer")
		w.Write(frame(out))
		w.Header().Set("grpc-status", "0")
		w.Header().Set("x-trailer", "end")
		return
	}
	w.Header().Set("content-type", "application/json")
	w.Write(out)
}

// frame makes a gRPC message: not compressed, its length in four bytes, itself.
func frame(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// authorize is an external authorizer, by HTTP and by gRPC: a request with "x-ext-authz: allow" is let in. The answer to
// another says what the authorizer was told, so that this is compared too.
func authorize(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/envoy.service.auth.v3.Authorization/Check" {
		authorizeGRPC(w, body)
		return
	}
	if r.Header.Get("x-ext-authz") == "allow" {
		w.Header().Set("x-authz-user", "alice")
		w.Header().Set("x-not-allowed", "1")
		return
	}
	h := maps.Clone(map[string][]string(r.Header))
	mask(h)
	out, err := json.Marshal(echo{Method: r.Method, Path: r.RequestURI, Host: r.Host, Body: string(body), Header: h})
	if err != nil {
		return
	}
	w.Header().Set("x-denied", "1")
	w.WriteHeader(http.StatusForbidden)
	w.Write(out)
}

func authorizeGRPC(w http.ResponseWriter, body []byte) {
	var req authv3.CheckRequest
	if len(body) < 5 || proto.Unmarshal(body[5:], &req) != nil {
		http.Error(w, "no CheckRequest", http.StatusBadRequest)
		return
	}
	a := req.GetAttributes()
	h := a.GetRequest().GetHttp()
	resp := &authv3.CheckResponse{Status: &status.Status{}}
	if h.GetHeaders()["x-ext-authz"] == "allow" {
		resp.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-authz-user", Value: "alice"}}}, HeadersToRemove: []string{"x-secret"},
		}}
	} else {
		delete(h.GetHeaders(), "x-request-id")
		resp.Status.Code = 7
		resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized},
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-denied", Value: "1"}}},
			Body: fmt.Sprintf("denied: %s %s %s %s %s %d %v to %d", h.GetProtocol(), h.GetScheme(), h.GetMethod(), h.GetHost(), h.GetPath(), h.GetSize(), h.GetHeaders(),
				a.GetDestination().GetAddress().GetSocketAddress().GetPortValue()),
		}}
	}
	out, err := proto.Marshal(resp)
	if err != nil {
		return
	}
	w.Header().Set("content-type", "application/grpc")
	w.Header().Set("trailer", "grpc-status")
	w.Write(frame(out))
	w.Header().Set("grpc-status", "0")
}

// startTCP runs a backend that answers a line with its cluster's name and that line.
func startTCP(t *testing.T, cluster string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					fmt.Fprintf(c, "%s: %s", cluster, line)
				}
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-ended
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}
