package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/test/bed"
)

// The plain paths: one proxy between client and server, in cleartext and with one worker, which forwards requests with the
// headers that proxies add. plainHTTP1 is over HTTP/1.1 on both sides, plainHTTP2 over HTTP/2.
const (
	plainHTTP1 path = "plain-h1"
	plainHTTP2 path = "plain-h2"
)

// plainProxy is a proxy from a distribution, or Envoy, or our waypoint's data path without tunnels.
type plainProxy struct {
	label   string
	program string // "": ours
	paths   []path
	// command writes the configuration to a directory and says how the program is started, in front of a server.
	command func(program, dir string, server netip.Addr) (*exec.Cmd, error)
}

func (p plainProxy) name() string { return p.label }

func (p plainProxy) start(ctx context.Context, opts options) (*instance, error) {
	in := &instance{procs: map[role][]int{}, about: map[string]string{}}
	if err := p.build(ctx, in, opts); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (p plainProxy) build(ctx context.Context, in *instance, opts options) error {
	b, err := bed.New("ambit-bench-"+p.label, bed.NodeSpec{Name: "a", Pods: []string{"client", "proxy", "server"}})
	if err != nil {
		return err
	}
	in.atStop(b.Close)
	in.bed, in.client = b, b.Pod("client").NS
	pid, err := in.startSelf(ctx, b.Pod("server").NS, "server")
	if err != nil {
		return err
	}
	in.servers = []int{pid}
	server, proxy := b.Pod("server").Addr, b.Pod("proxy")
	if p.command == nil {
		if pid, err = in.startSelf(ctx, proxy.NS, "plain", "-to", server.String()); err != nil {
			return err
		}
		in.procs[proxyA] = []int{pid}
	} else {
		in.about["version"] = versionOf(p.program, map[bool]string{true: "-v", false: "--version"}[p.label == "nginx" || p.label == "haproxy"])
		cmd, err := p.command(p.program, opts.dir, server)
		if err != nil {
			return err
		}
		log, err := os.Create(filepath.Join(opts.dir, "log"))
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		started, err := proxy.NS.Start(cmd)
		if err != nil {
			return err
		}
		in.atStop(func() error { started.Stop(2 * time.Second); return nil })
	}
	in.targets = map[path]target{}
	for _, to := range p.paths {
		in.targets[to] = target{addr: proxy.Addr}
	}
	if p.paths[0] == plainHTTP1 {
		err = in.await(ctx)
	} else {
		err = in.awaitPort(ctx, netip.AddrPortFrom(proxy.Addr, http2Port))
	}
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(opts.dir, "log")) // best effort: err is what matters
		return fmt.Errorf("%w\n%s", err, log)
	}
	if p.command != nil {
		in.procs[proxyA], err = processesOf(proxy.NS.ID(), "")
	}
	return err
}

// awaitPort waits until something listens.
func (in *instance) awaitPort(ctx context.Context, at netip.AddrPort) error {
	for {
		conn, err := in.client.Dial(ctx, "tcp", at.String())
		if err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// config writes a file of configuration.
func configFile(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

func nginxCommand(program, dir string, server netip.Addr) (*exec.Cmd, error) {
	path, err := configFile(dir, "nginx.conf", fmt.Sprintf(`
daemon off; worker_processes 1; pid %[1]s/pid; error_log stderr; user root;
events { worker_connections 4096; }
http {
 access_log off; keepalive_requests 1000000000; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
 upstream web { server %[2]s:%[3]d; keepalive 256; keepalive_requests 1000000000; }
 server {
  listen %[3]d;
  location / {
   proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
   proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-Id $request_id; proxy_set_header X-Forwarded-Proto $scheme;
  }
 }
}`, dir, server, http1Port))
	return exec.Command(program, "-c", path, "-p", dir), err
}

func haproxyCommand(program, dir string, server netip.Addr) (*exec.Cmd, error) {
	path, err := configFile(dir, "haproxy.cfg", fmt.Sprintf(`
global
 nbthread 1
 maxconn 4096
defaults
 mode http
 timeout client 1m
 timeout server 1m
 timeout connect 5s
 option forwardfor
 http-reuse always
 unique-id-format %%[uuid()]
 unique-id-header x-request-id
frontend one
 bind :%[2]d
 default_backend one
backend one
 server s %[1]s:%[2]d
frontend two
 bind :%[3]d proto h2
 default_backend two
backend two
 server s %[1]s:%[3]d proto h2
frontend grpc
 bind :%[4]d proto h2
 default_backend grpc
backend grpc
 server s %[1]s:%[4]d proto h2
`, server, http1Port, http2Port, grpcPort))
	return exec.Command(program, "-f", path), err
}

func nghttpxCommand(program, _ string, server netip.Addr) (*exec.Cmd, error) {
	return exec.Command(program, "--conf=/dev/null", "--single-process", "--workers=1", "--accesslog-file=/dev/null", "--errorlog-file=/dev/stderr",
		fmt.Sprintf("--frontend=*,%d;no-tls", http2Port), fmt.Sprintf("--backend=%s,%d;;proto=h2;no-tls", server, http2Port)), nil
}

// envoyPlain is the least that an Envoy needs to forward.
func envoyPlain(program, dir string, server netip.Addr) (*exec.Cmd, error) {
	type m = map[string]any
	socket := func(host string, port int) m {
		return m{"address": m{"socket_address": m{"address": host, "port_value": port}}}
	}
	const types = "type.googleapis.com/envoy.extensions."
	var listeners, clusters []m
	for _, port := range []int{http1Port, http2Port, grpcPort} {
		name := fmt.Sprint(port)
		l := socket("0.0.0.0", port)
		l["name"] = name
		l["filter_chains"] = []m{{"filters": []m{{"name": "http", "typed_config": m{
			"@type":       types + "filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "x", "use_remote_address": true, "generate_request_id": true,
			"route_config": m{"virtual_hosts": []m{{"name": "v", "domains": []string{"*"}, "routes": []m{{"match": m{"prefix": "/"}, "route": m{"cluster": name, "timeout": "0s"}}}}}},
			"http_filters": []m{{"name": "router", "typed_config": m{"@type": types + "filters.http.router.v3.Router"}}},
		}}}}}
		listeners = append(listeners, l)
		c := m{"name": name, "type": "STATIC", "load_assignment": m{"cluster_name": name, "endpoints": []m{{"lb_endpoints": []m{{"endpoint": socket(server.String(), port)}}}}}}
		if port != http1Port {
			c["typed_extension_protocol_options"] = m{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": m{
				"@type": types + "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": m{"http2_protocol_options": m{}}}}
		}
		clusters = append(clusters, c)
	}
	text, err := json.Marshal(m{"static_resources": m{"listeners": listeners, "clusters": clusters}})
	if err != nil {
		return nil, err
	}
	path, err := configFile(dir, "envoy.json", string(text))
	return exec.Command(program, "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"), err
}
