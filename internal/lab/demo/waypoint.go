package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/lab/echo"
)

// reviews is the service with a waypoint.
const reviews = "http://reviews.shop"

// waypointClaims are about requests.
func (d *demo) waypointClaims() []claim {
	return []claim{
		{"A waypoint is a Gateway", "a Gateway of class istio-waypoint and a label on the service; one request", d.waypointServes},
		{"A canary gets its share", "an HTTPRoute with weights 90 and 10; 2,000 requests", d.canary},
		{"A header chooses the version", "an HTTPRoute that sends x-canary: yes to version 2; 200 requests with it, 200 without", d.headerRoute},
		{"Weights change under load", "weights changed 20 times under 200 requests a second", d.clean(d.weightsLive, "HTTPRoute", "reviews")},
		{"A retry hides a failing endpoint", "version 2 answers 503; a VirtualService with 3 retries on 5xx; 200 requests", d.clean(d.retryHides, "VirtualService", "reviews")},
		{"An endpoint that fails is left out, and comes back", "version 2 answers 503; a DestinationRule with outlier detection; then it recovers", d.clean(d.outlier, "DestinationRule", "reviews")},
		{"A timeout bounds a request", "a route with timeout 300ms; a request that takes 5 s", d.clean(d.timeout, "VirtualService", "reviews")},
		{"Faults on demand", "a VirtualService that delays all requests by 500ms and aborts half of them with 418; 100 requests", d.clean(d.fault, "VirtualService", "reviews")},
		{"A mirror gets a copy", "a VirtualService that sends all to version 1 and a copy to version 2; 50 requests", d.clean(d.mirrored, "VirtualService", "reviews")},
		{"Only good tokens pass", "RequestAuthentication and a policy that wants a token: good, none, expired, forged", d.clean(d.tokens, "RequestAuthentication", "tokens", "AuthorizationPolicy", "tokens")},
		{"A policy on requests sees the original client", "an AuthorizationPolicy that denies shop/client DELETE; GET and DELETE of shop/client", d.clean(d.requestPolicy, "AuthorizationPolicy", "no-delete")},
		{"One trace has every hop", "meshConfig with an OpenTelemetry provider, a Telemetry that records and logs all requests; one request of a trace that the client began, 20 without", d.clean(d.oneTrace, "Telemetry", "tracing")},
		{"Metrics have Istio's names and labels", "the waypoint's /stats/prometheus", d.goldenMetrics},
	}
}

func (d *demo) waypointServes(ctx context.Context) (string, error) {
	if err := d.apply(ctx, "waypoint"); err != nil {
		return "", err
	}
	var first string
	err := poll(ctx, 20*time.Second, func() error {
		sum, err := d.ask(ctx, "/")
		if err != nil {
			return err
		}
		first = sum.First
		if sum.OK != 1 || !strings.Contains(first, "header.X-Request-Id=") {
			return fmt.Errorf("no waypoint has seen the request: %s", failures(sum))
		}
		return nil
	})
	pod, _, _ := strings.Cut(first, "\n")
	return "answered by " + pod + ", with an x-request-id that only a waypoint gives", err
}

// ask makes requests of shop/client to the service.
func (d *demo) ask(ctx context.Context, path string, args ...string) (*echo.Summary, error) {
	return d.load(ctx, "shop", "client", append([]string{reviews + path, "--timeout=10s"}, args...)...)
}

// set applies a manifest, and waits until try is content with it.
func (d *demo) set(ctx context.Context, yaml string, try func() error) error {
	if err := d.c.applyYAML(ctx, yaml); err != nil {
		return err
	}
	return poll(ctx, 20*time.Second, try)
}

// clean is show that removes objects of the namespace afterwards, however it ended: pairs of kind and name.
func (d *demo) clean(show func(context.Context) (string, error), objects ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		seen, err := show(ctx)
		for i := 0; i < len(objects); i += 2 {
			if e := d.c.remove(context.WithoutCancel(ctx), objects[i], "shop", objects[i+1]); err == nil {
				err = e
			}
		}
		return seen, err
	}
}

// versions counts the answers of each version.
func versions(sum *echo.Summary) (v1, v2 int) {
	for pod, n := range sum.Pods {
		if strings.HasPrefix(pod, "reviews-v2") {
			v2 += n
		} else {
			v1 += n
		}
	}
	return v1, v2
}

func split(w1, w2 int) string {
	return fmt.Sprintf(`{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: reviews, namespace: shop}, spec: {
 parentRefs: [{group: "", kind: Service, name: reviews, port: 80}],
 rules: [{matches: [{headers: [{name: x-canary, value: "yes"}]}], backendRefs: [{name: reviews-v2, port: 80}]},
  {backendRefs: [{name: reviews-v1, port: 80, weight: %d}, {name: reviews-v2, port: 80, weight: %d}]}]}}`, w1, w2)
}

// only is content once all answers are from one version.
func (d *demo) only(ctx context.Context, version int, args ...string) func() error {
	return func() error {
		sum, err := d.ask(ctx, "/", append([]string{"--count=20"}, args...)...)
		if err != nil {
			return err
		}
		v1, v2 := versions(sum)
		if got := []int{v1, v2}[version-1]; got != 20 {
			return fmt.Errorf("%d of 20 answers are from version %d; %s", got, version, failures(sum))
		}
		return nil
	}
}

func (d *demo) canary(ctx context.Context) (string, error) {
	if err := d.set(ctx, split(90, 10), d.only(ctx, 2, "--header=x-canary: yes")); err != nil {
		return "", err
	}
	sum, err := d.ask(ctx, "/", "--count=2000", "--parallel=8")
	if err != nil {
		return "", err
	}
	v1, v2 := versions(sum)
	seen := fmt.Sprintf("%d of version 1, %d of version 2 (%.1f%%), %d failed", v1, v2, float64(v2)/20, sum.Failed)
	if sum.Failed > 0 || v1+v2 != 2000 || v2 < 150 || v2 > 250 { // 3.7 standard deviations
		return seen, fmt.Errorf("expected 2,000 answers, 10%% of version 2; %s", failures(sum))
	}
	return seen, nil
}

func (d *demo) headerRoute(ctx context.Context) (string, error) {
	if err := d.set(ctx, split(1, 0), d.only(ctx, 1)); err != nil {
		return "", err
	}
	with, err := d.ask(ctx, "/", "--count=200", "--header=x-canary: yes")
	if err != nil {
		return "", err
	}
	without, err := d.ask(ctx, "/", "--count=200")
	if err != nil {
		return "", err
	}
	_, a := versions(with)
	b, _ := versions(without)
	seen := fmt.Sprintf("with the header %d of 200 from version 2, without it %d of 200 from version 1", a, b)
	if a != 200 || b != 200 {
		return seen, errors.New("expected all of them")
	}
	return seen, nil
}

func (d *demo) weightsLive(ctx context.Context) (string, error) {
	b, err := d.loadBehind(ctx, reviews+"/", "--rate=200", "--parallel=16")
	if err != nil {
		return "", err
	}
	for i := 0; i < 20 && err == nil; i++ {
		err = errors.Join(d.c.applyYAML(ctx, split(5*i, 100-5*i)), wait(ctx, 200*time.Millisecond))
	}
	sum, lerr := b.end()
	if err = errors.Join(err, lerr); err != nil {
		return "", err
	}
	v1, v2 := versions(sum)
	seen := fmt.Sprintf("%d answered (version 1 %d, version 2 %d), %d failed", sum.OK, v1, v2, sum.Failed)
	if sum.Failed > 0 || v1 == 0 || v2 == 0 {
		return seen, fmt.Errorf("expected answers of both versions and no failure; %s", failures(sum))
	}
	return seen, nil
}

// virtualService is one for reviews with these http rules.
func virtualService(rules string) string {
	return `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews, namespace: shop}, spec: {hosts: [reviews], http: [` + rules + `]}}`
}

// failing has version 2 fail until the result is called: while there is a file in the pod's directory
// (deploy/examples/demo/waypoint).
func (d *demo) failing(ctx context.Context) (heal func(), err error) {
	pods, err := d.podsOf(ctx, "reviews-v2")
	if err != nil || len(pods) == 0 {
		return nil, errors.Join(err, errors.New("no pod of version 2"))
	}
	file, err := d.c.failFile(ctx, pods[0])
	if err != nil {
		return nil, err
	}
	return func() { os.Remove(file) }, os.WriteFile(file, nil, 0o600)
}

func (d *demo) retryHides(ctx context.Context) (string, error) {
	heal, err := d.failing(ctx)
	if err != nil {
		return "", err
	}
	defer heal()
	before, err := d.ask(ctx, "/", "--count=200")
	if err != nil {
		return "", err
	}
	err = d.set(ctx, virtualService(`{retries: {attempts: 3, retryOn: 5xx}, route: [{destination: {host: reviews}}]}`), func() error {
		sum, err := d.ask(ctx, "/", "--count=20")
		if err == nil && sum.Failed > 0 {
			err = errors.New(failures(sum))
		}
		return err
	})
	if err != nil {
		return "", err
	}
	after, err := d.ask(ctx, "/", "--count=200")
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("%d of 200 failed before, %d of 200 with the policy", before.Failed, after.Failed)
	if before.Failed == 0 || after.Failed > 0 {
		return seen, errors.New("expected failures before, and none after")
	}
	return seen, nil
}

func (d *demo) outlier(ctx context.Context) (string, error) {
	heal, err := d.failing(ctx)
	if err != nil {
		return "", err
	}
	defer heal()
	// without the setting the pod nearest to the waypoint would have all requests, as in Istio
	const rule = `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: reviews, namespace: shop}, spec: {host: reviews,
 trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}, outlierDetection: {consecutive5xxErrors: 2, interval: 0.5s, baseEjectionTime: 2s, maxEjectionPercent: 100}}}}`
	err = d.set(ctx, rule, d.only(ctx, 1))
	if err != nil {
		return "", err
	}
	out, err := d.ask(ctx, "/", "--count=100")
	if err != nil {
		return "", err
	}
	heal()
	begin := time.Now()
	err = poll(ctx, 30*time.Second, func() error {
		sum, err := d.ask(ctx, "/", "--count=20")
		if err != nil {
			return err
		}
		if _, v2 := versions(sum); v2 == 0 {
			return errors.New("version 2 does not get requests")
		}
		return nil
	})
	seen := fmt.Sprintf("while it was out %d of 100 failed; it had requests again %.1f s after it recovered", out.Failed, time.Since(begin).Seconds())
	if err == nil && out.Failed > 2 {
		err = errors.New("expected at most one probe of it in that time")
	}
	return seen, err
}

func (d *demo) timeout(ctx context.Context) (string, error) {
	var took time.Duration
	err := d.set(ctx, virtualService(`{timeout: 0.3s, route: [{destination: {host: reviews}}]}`), func() error {
		begin := time.Now()
		sum, err := d.load(ctx, "shop", "client", reviews+"/delay/5s", "--timeout=2s") // without the route it takes 5 s
		if err == nil && sum.Errors["status 504"] != 1 {
			err = fmt.Errorf("after %.1f s: %s", time.Since(begin).Seconds(), failures(sum))
		}
		took = time.Since(begin)
		return err
	})
	return fmt.Sprintf("status 504 after %.2f s", took.Seconds()), err
}

func (d *demo) fault(ctx context.Context) (string, error) {
	rules := `{fault: {delay: {fixedDelay: 0.5s, percentage: {value: 100}}, abort: {httpStatus: 418, percentage: {value: 50}}}, route: [{destination: {host: reviews}}]}`
	err := d.set(ctx, virtualService(rules), func() error {
		sum, err := d.ask(ctx, "/", "--count=20", "--parallel=20")
		if err == nil && sum.Errors["status 418"] == 0 {
			err = errors.New("no fault yet")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	begin := time.Now()
	sum, err := d.ask(ctx, "/", "--count=100", "--parallel=100")
	if err != nil {
		return "", err
	}
	n := sum.Errors["status 418"]
	seen := fmt.Sprintf("%d of 100 had status 418, %d were answered, in %.1f s", n, sum.OK, time.Since(begin).Seconds())
	if n < 25 || n > 75 || n+sum.OK != 100 || time.Since(begin) < 500*time.Millisecond {
		return seen, errors.New("expected about half, after at least 0.5 s")
	}
	return seen, nil
}

func (d *demo) mirrored(ctx context.Context) (string, error) {
	rules := `{route: [{destination: {host: reviews-v1}}], mirror: {host: reviews-v2}}`
	if err := d.set(ctx, virtualService(rules), d.only(ctx, 1)); err != nil {
		return "", err
	}
	const mark = "/mirrored"
	sum, err := d.ask(ctx, mark, "--count=50")
	if err != nil {
		return "", err
	}
	n := 0
	err = poll(ctx, 10*time.Second, func() error {
		if n, err = d.logged(ctx, "reviews-v2", mark); err == nil && n < 50 {
			err = fmt.Errorf("version 2 has seen %d of 50 copies", n)
		}
		return err
	})
	v1, v2 := versions(sum)
	seen := fmt.Sprintf("%d answers, all of version 1: %v; version 2 has logged %d copies", sum.OK, v2 == 0, n)
	if err == nil && (v1 != 50 || n != 50) {
		err = errors.New("expected 50 answers and 50 copies")
	}
	return seen, err
}

// logged counts the lines of a deployment's pods that hold text.
func (d *demo) logged(ctx context.Context, deployment, text string) (int, error) {
	log, err := d.logOf(ctx, deployment)
	return strings.Count(log, text), err
}

// podsOf are the names of a deployment's pods.
func (d *demo) podsOf(ctx context.Context, deployment string) (out []string, err error) {
	raw, err := d.c.objects(ctx, "pod", "shop", "")
	if err != nil {
		return nil, err
	}
	for _, r := range raw {
		var pod struct{ Metadata struct{ Name string } }
		if err := json.Unmarshal(r, &pod); err != nil {
			return nil, err
		}
		if strings.HasPrefix(pod.Metadata.Name, deployment+"-") {
			out = append(out, pod.Metadata.Name)
		}
	}
	return out, nil
}

// sign makes a token that lives for a time.
func sign(key *ecdsa.PrivateKey, life time.Duration) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "demo"}}, nil)
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{"iss": "https://demo.example", "sub": "alice", "exp": time.Now().Add(life).Unix()})
	if err != nil {
		return "", err
	}
	sig, err := s.Sign(claims)
	if err != nil {
		return "", err
	}
	return sig.CompactSerialize()
}

func (d *demo) tokens(ctx context.Context) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "demo", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		return "", err
	}
	yaml := fmt.Sprintf(`
{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: tokens, namespace: shop}, spec: {
 targetRefs: [{group: "", kind: Service, name: reviews}], jwtRules: [{issuer: "https://demo.example", jwks: %q}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: tokens, namespace: shop}, spec: {
 targetRefs: [{group: "", kind: Service, name: reviews}], action: ALLOW, rules: [{from: [{source: {requestPrincipals: ["https://demo.example/*"]}}]}]}}`, set)
	good, err1 := sign(key, time.Hour)
	expired, err2 := sign(key, -time.Hour)
	forged, err3 := sign(other, time.Hour)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	outcome := func(args ...string) (string, error) {
		sum, err := d.ask(ctx, "/", args...)
		if err != nil || sum.OK == 1 {
			return "200", err
		}
		for e := range sum.Errors {
			return strings.TrimPrefix(e, "status "), nil
		}
		return "", nil
	}
	err = d.set(ctx, yaml, func() error {
		if got, err := outcome(); err != nil || got != "403" {
			return errors.Join(err, fmt.Errorf("without a token: %s", got))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	var seen []string
	for _, c := range []struct{ name, token, want string }{{"good", good, "200"}, {"none", "", "403"}, {"expired", expired, "401"}, {"forged", forged, "401"}} {
		var args []string
		if c.token != "" {
			args = []string{"--header=authorization: Bearer " + c.token}
		}
		got, e := outcome(args...)
		seen = append(seen, c.name+" "+got)
		if e != nil || got != c.want {
			err = errors.Join(err, e, fmt.Errorf("%s: expected %s", c.name, c.want))
		}
	}
	return strings.Join(seen, ", "), err
}

func (d *demo) requestPolicy(ctx context.Context) (string, error) {
	const yaml = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: no-delete, namespace: shop}, spec: {
 targetRefs: [{group: "", kind: Service, name: reviews}], action: DENY,
 rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}], to: [{operation: {methods: ["DELETE"]}}]}]}}`
	err := d.set(ctx, yaml, func() error {
		del, err1 := d.ask(ctx, "/", "--method=DELETE")
		get, err2 := d.ask(ctx, "/") // the policy of the claim before is on its way out
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if del.Errors["status 403"] != 1 || get.OK != 1 {
			return errors.New("the policy does not apply yet, or not alone")
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	get, err := d.ask(ctx, "/", "--count=20")
	if err != nil {
		return "", err
	}
	del, err := d.ask(ctx, "/", "--count=20", "--method=DELETE")
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("GET: %d of 20 answered; DELETE: %d of 20 refused with 403", get.OK, del.Errors["status 403"])
	if get.OK != 20 || del.Errors["status 403"] != 20 {
		return seen, errors.New("expected all of both")
	}
	return seen, nil
}

func (d *demo) goldenMetrics(ctx context.Context) (string, error) {
	pods, err := d.podsOf(ctx, "waypoint")
	if err != nil || len(pods) == 0 {
		return "", errors.Join(err, errors.New("no pod of the waypoint"))
	}
	conn, err := d.hold(ctx, "shop", pods[0], "127.0.0.1:15020")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /stats/prometheus HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	text := string(answer)
	want := []string{
		`istio_requests_total{reporter="waypoint",source_workload="client"`, `destination_service="reviews.shop.svc.cluster.local"`,
		`source_principal="` + clientID + `"`, `response_code="200"`, `connection_security_policy="mutual_tls"`,
		"istio_request_duration_milliseconds_bucket{", "istio_request_bytes_sum{", "istio_response_bytes_count{",
	}
	var missing []string
	for _, w := range want {
		if !strings.Contains(text, w) {
			missing = append(missing, w)
		}
	}
	seen := fmt.Sprintf("%d lines of istio_ metrics, %d of %d things looked for", strings.Count(text, "\nistio_"), len(want)-len(missing), len(want))
	if len(missing) > 0 {
		return seen, fmt.Errorf("missing: %s", strings.Join(missing, " "))
	}
	return seen, nil
}
