package demo

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

const (
	clientID = "spiffe://cluster.local/ns/shop/sa/client"
	serverID = "spiffe://cluster.local/ns/shop/sa/server"
	web      = "http://server.shop/"
)

// connectionClaims are about connections.
func (d *demo) connectionClaims() []claim {
	return []claim{
		{"Before opt-in nothing is touched", "10 requests of shop/client to " + web + " while the namespace has no label, watched on node-1's link", d.plaintextBefore},
		{"After opt-in everything between nodes is TLS 1.3", "the label istio.io/dataplane-mode: ambient on the namespace, no pod restarted; then 1,000 requests", d.encryptedAfter},
		{"Each side has its own identity", "the certificates that the two ztunnels hold for the client and for the server, and who the server's ztunnel saw", d.identities},
		{"The server sees the client's address", "the peer that the server's socket reports", d.clientAddress},
		{"STRICT refuses who has no certificate", "PeerAuthentication STRICT; requests of outside/outsider (not in the mesh) and of shop/client", d.strict},
		{"A policy cuts a connection that is open", "an AuthorizationPolicy that denies the client port 9000, while it has a connection to it", d.policyCuts},
		{"The control plane may be away", "the control plane stopped for 2 s under 100 new connections a second", d.controlplaneAway},
		{"The proxy may crash", "kill -9 of both nodes' ztunnel proxies under 200 new connections a second", d.proxyKilled},
	}
}

func (d *demo) restartClaim() claim {
	return claim{"A planned restart loses nothing", "both nodes' ztunnel proxies replaced under 200 new connections a second", d.proxyReplaced}
}

func (d *demo) rotationClaim() claim {
	return claim{"Certificates rotate under load", fmt.Sprintf("certificates that live %s, 100 new connections a second until both sides have new ones, beside the claims about requests", certLife), d.rotation}
}

func (d *demo) plaintextBefore(ctx context.Context) (string, error) {
	stop, err := d.tap(ctx, "node-1")
	if err != nil {
		return "", err
	}
	sum, err := d.load(ctx, "shop", "client", web, "--count=10", "--fresh")
	r := stop()
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("%d of 10 answered; %s", sum.OK, wireWords(r))
	if sum.Failed > 0 || r.Markers() < 10 {
		return seen, errors.New("expected 10 answers, in the clear")
	}
	return seen, nil
}

// tunnelled sends one request and is nil if the wire showed TLS and nothing else.
func (d *demo) tunnelled(ctx context.Context) error {
	stop, err := d.tap(ctx, "node-1")
	if err != nil {
		return err
	}
	sum, err := d.load(ctx, "shop", "client", web, "--fresh")
	r := stop()
	if err != nil {
		return err
	}
	if sum.Failed > 0 {
		return fmt.Errorf("the request failed: %s", failures(sum))
	}
	return encrypted(r)
}

func (d *demo) encryptedAfter(ctx context.Context) (string, error) {
	begin := time.Now()
	whole, err := d.tap(ctx, "node-1") // from before the first tunnel, to see its handshake
	if err != nil {
		return "", err
	}
	if err := d.apply(ctx, "enroll.yaml"); err != nil {
		whole()
		return "", err
	}
	err = poll(ctx, 20*time.Second, func() error { return d.tunnelled(ctx) })
	took := time.Since(begin)
	if err != nil {
		return wireWords(whole()), err
	}
	stop, err := d.tap(ctx, "node-1")
	if err != nil {
		whole()
		return "", err
	}
	sum, err := d.load(ctx, "shop", "client", web, "--count=1000", "--fresh", "--parallel=8")
	r, all := stop(), whole()
	if err != nil {
		return "", err
	}
	tls13 := all.Count(func(f *wire.Flow) bool { return f.Whole && f.TLS13() })
	seen := fmt.Sprintf("encrypted %.1f s after the label; %d of 1,000 answered; %s; since the label %d tunnels, seen from their handshake",
		took.Seconds(), sum.OK, wireWords(r), tls13)
	if err := encrypted(r); err != nil {
		return seen, err
	}
	if sum.Failed > 0 || tls13 == 0 {
		return seen, fmt.Errorf("expected 1,000 answers over TLS 1.3; failures: %s", failures(sum))
	}
	return seen, nil
}

// certificate is what config_dump tells of one.
type certificate struct {
	identity, serial string
	uris             []string
}

// certificates asks a node's ztunnel.
func (d *demo) certificates(ctx context.Context, node string) (map[string]certificate, error) {
	text, err := d.c.fetch(ctx, "ztunnel/"+node, "http://127.0.0.1:15000/config_dump")
	if err != nil {
		return nil, err
	}
	var dump struct {
		Certificates []struct {
			Identity  string
			CertChain []struct{ PEM, SerialNumber string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		return nil, fmt.Errorf("read config_dump: %w", err)
	}
	out := map[string]certificate{}
	for _, c := range dump.Certificates {
		if len(c.CertChain) == 0 {
			continue
		}
		leaf := certificate{identity: c.Identity, serial: c.CertChain[0].SerialNumber}
		raw, err := base64.StdEncoding.DecodeString(c.CertChain[0].PEM)
		if block, _ := pem.Decode(raw); err == nil && block != nil {
			if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
				for _, u := range cert.URIs {
					leaf.uris = append(leaf.uris, u.String())
				}
			}
		}
		out[c.Identity] = leaf
	}
	return out, nil
}

func (d *demo) identities(ctx context.Context) (string, error) {
	var errs []error
	var seen []string
	for _, x := range []struct{ node, id string }{{"node-1", clientID}, {"node-2", serverID}} {
		certs, err := d.certificates(ctx, x.node)
		if err != nil {
			return "", err
		}
		c := certs[x.id]
		seen = append(seen, fmt.Sprintf("%s holds %v", x.node, c.uris))
		if len(c.uris) != 1 || c.uris[0] != x.id {
			errs = append(errs, fmt.Errorf("expected exactly one URI, %s, among %v", x.id, slices.Sorted(maps.Keys(certs))))
		}
	}
	log, err := d.c.log(ctx, "", "ztunnel/node-2")
	if err != nil {
		return "", fmt.Errorf("read log: %w", err)
	}
	n := 0
	for line := range strings.Lines(log) {
		if strings.Contains(line, clientID) && strings.Contains(line, serverID) {
			n++
		}
	}
	seen = append(seen, fmt.Sprintf("%d access log lines of node-2 name both", n))
	if n == 0 {
		errs = append(errs, errors.New("no access log line names both identities"))
	}
	return strings.Join(seen, "; "), errors.Join(errs...)
}

func (d *demo) clientAddress(ctx context.Context) (string, error) {
	sum, err := d.load(ctx, "shop", "client", web)
	if err != nil {
		return "", err
	}
	raw, err := d.c.objects(ctx, "pod", "shop", "client")
	if err != nil {
		return "", err
	}
	var pod struct {
		Status struct{ PodIPs []struct{ IP string } }
	}
	if err := json.Unmarshal(raw[0], &pod); err != nil {
		return "", fmt.Errorf("read pod: %w", err)
	}
	peer, _, _ := net.SplitHostPort(lineOf(sum.First, "peer="))
	seen := fmt.Sprintf("the server's peer is %s, the client's addresses are %v", peer, pod.Status.PodIPs)
	for _, ip := range pod.Status.PodIPs {
		if ip.IP == peer {
			return seen, nil
		}
	}
	return seen, errors.New("the server does not see the client's address")
}

func (d *demo) strict(ctx context.Context) (string, error) {
	before, err := d.load(ctx, "outside", "outsider", web, "--timeout=2s")
	if err != nil {
		return "", err
	}
	if err := d.apply(ctx, "strict.yaml"); err != nil {
		return "", err
	}
	begin := time.Now()
	err = poll(ctx, 10*time.Second, func() error {
		sum, err := d.load(ctx, "outside", "outsider", web, "--timeout=2s", "--fresh")
		if err == nil && sum.OK > 0 {
			err = errors.New("the outsider is still served")
		}
		return err
	})
	took := time.Since(begin)
	if err != nil {
		return "", err
	}
	outsider, err := d.load(ctx, "outside", "outsider", web, "--timeout=2s", "--fresh", "--count=10")
	if err != nil {
		return "", err
	}
	own, err := d.load(ctx, "shop", "client", web, "--fresh", "--count=10")
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("outsider before: %d of 1 answered; with STRICT, from %.2f s on: %d of 10 (%s); client: %d of 10",
		before.OK, took.Seconds(), outsider.OK, failures(outsider), own.OK)
	if before.OK != 1 || outsider.OK != 0 || own.OK != 10 {
		return seen, errors.New("expected 1, 0 and 10 answers")
	}
	return seen, nil
}

func (d *demo) policyCuts(ctx context.Context) (string, error) {
	vip, err := d.serviceVIP(ctx)
	if err != nil {
		return "", err
	}
	conn, err := d.hold(ctx, "shop", "client", net.JoinHostPort(vip, "9000"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil { // the greeting: the connection reached the server
		return "", fmt.Errorf("read greeting: %w", err)
	}
	cut := make(chan time.Time, 1)
	var once sync.WaitGroup
	once.Go(func() {
		_, _ = r.ReadString('\n') // nothing more comes: it returns when the connection is cut
		cut <- time.Now()
	})
	begin := time.Now()
	if err := d.apply(ctx, "deny.yaml"); err != nil {
		return "", err
	}
	took := (<-cut).Sub(begin)
	once.Wait()
	sum, err := d.load(ctx, "shop", "client", "tcp://server.shop:9000", "--fresh", "--count=5", "--timeout=2s")
	if err != nil {
		return "", err
	}
	if err := d.c.remove(ctx, "AuthorizationPolicy", "shop", "no-tcp"); err != nil {
		return "", err
	}
	again := poll(ctx, 10*time.Second, func() error {
		s, err := d.load(ctx, "shop", "client", "tcp://server.shop:9000", "--fresh", "--timeout=2s")
		if err == nil && s.OK == 0 {
			err = fmt.Errorf("still refused: %s", failures(s))
		}
		return err
	})
	seen := fmt.Sprintf("cut %.2f s after the policy; new connections: %d of 5 served (%s); after the policy was deleted: served again: %t",
		took.Seconds(), sum.OK, failures(sum), again == nil)
	if took > time.Second || sum.OK > 0 {
		return seen, errors.New("expected a cut within 1 s and no new connection")
	}
	return seen, again
}

func (d *demo) serviceVIP(ctx context.Context) (string, error) {
	raw, err := d.c.objects(ctx, "service", "shop", "server")
	if err != nil {
		return "", err
	}
	var svc struct{ Spec struct{ ClusterIP string } }
	if err := json.Unmarshal(raw[0], &svc); err != nil {
		return "", fmt.Errorf("read service: %w", err)
	}
	return svc.Spec.ClusterIP, nil
}

func (d *demo) controlplaneAway(ctx context.Context) (string, error) {
	seen, sum, err := d.under(ctx, 100, func() error {
		if err := d.c.program(ctx, "stop", "controlplane", ""); err != nil {
			return err
		}
		err := wait(ctx, 2*time.Second)
		return errors.Join(err, d.c.program(ctx, "start", "controlplane", ""))
	})
	if err == nil && sum.Failed > 0 {
		err = errors.New("expected no failure")
	}
	return seen, err
}

func (d *demo) eachNode(f func(target string) error) error {
	return errors.Join(f("ztunnel/node-1"), f("ztunnel/node-2"))
}

func (d *demo) proxyKilled(ctx context.Context) (string, error) {
	seen, sum, err := d.under(ctx, 200, func() error {
		return d.eachNode(func(t string) error {
			if err := d.c.program(ctx, "kill", t, "proxy"); err != nil {
				return err
			}
			return poll(ctx, 20*time.Second, func() error { // until the next one serves
				_, err := d.c.fetch(ctx, t, "http://127.0.0.1:15021/healthz/ready")
				return err
			})
		})
	})
	// A second of connections is far more than what can be under way at a crash.
	if err == nil && (refused(sum) > 0 || sum.Failed > 200) {
		err = errors.New("expected no refusal, and only what was under way to fail")
	}
	return seen, err
}

func (d *demo) proxyReplaced(ctx context.Context) (string, error) {
	seen, sum, err := d.under(ctx, 200, func() error {
		return d.eachNode(func(t string) error { return d.c.program(ctx, "restart", t, "proxy") })
	})
	if err == nil && sum.Failed > 0 {
		err = errors.New("expected no failure")
	}
	return seen, err
}

func (d *demo) rotation(ctx context.Context) (string, error) {
	serials := func() (string, string, error) {
		one, err1 := d.certificates(ctx, "node-1")
		two, err2 := d.certificates(ctx, "node-2")
		return one[clientID].serial, two[serverID].serial, errors.Join(err1, err2)
	}
	a1, b1, err := serials()
	if err != nil {
		return "", err
	}
	begin := time.Now()
	var took time.Duration
	seen, sum, err := d.under(ctx, 100, func() error {
		return pollEvery(ctx, 250*time.Millisecond, certLife*3/4, func() error {
			a2, b2, err := serials()
			if err == nil && (a2 == a1 || b2 == b1 || a2 == "" || b2 == "") {
				err = errors.New("the certificates are still the same")
			}
			took = time.Since(begin)
			return err
		})
	})
	if err == nil && sum.Failed > 0 {
		err = errors.New("expected no failure")
	}
	return fmt.Sprintf("both certificates replaced within %.0f s; %s", took.Seconds(), seen), err
}
