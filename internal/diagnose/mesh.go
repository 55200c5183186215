package diagnose

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	security "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/admin"
)

// Limits of what is called well.
const (
	maxSkew     = time.Minute
	rootWarning = 60 * 24 * time.Hour
	minKernel   = "5.17"
	minKube     = "1.30"
)

func fmtAddress(net, n int) string { return fmt.Sprintf("198.%d.%d.%d", net, n/250, n%250+1) }

// platform is what the cluster has to have.
func (a *analysis) platform() {
	for _, u := range a.Unread {
		a.add("AMB0109", "cluster", "%s", u)
	}
	for _, k := range a.Missing {
		a.add("AMB0101", "CustomResourceDefinition "+string(k), "%s is not defined in the cluster", k)
	}
	if a.KubeVersion != "" && older(a.KubeVersion, minKube) && !strings.HasPrefix(a.KubeVersion, "v0.0.0") {
		a.add("AMB0111", "Kubernetes", "the API server is %s; needed: %s or later", a.KubeVersion, minKube)
	}
	for _, n := range sorted[*corev1.Node](a.objects) {
		if v := n.Status.NodeInfo.KernelVersion; v != "" && older(v, minKernel) {
			a.add("AMB0112", "Node "+n.Name, "its kernel is %s; needed: %s or later", v, minKernel)
		}
	}
	for _, s := range sorted[*corev1.Service](a.objects) {
		if s.Name == "istiod" && s.Labels["app"] == "istiod" {
			a.add("AMB0113", kube.KeyOf(s).String(), "istiod of Istio is installed in namespace %s", s.Namespace)
		}
	}
}

// twins finds a second mesh of ours.
func (a *analysis) twins() {
	spaces := map[string]bool{}
	for i := range a.Proxies {
		if p := &a.Proxies[i]; p.Role == ControlPlane {
			spaces[p.Namespace] = true
		}
	}
	for _, d := range sorted[*appsv1.Deployment](a.objects) {
		if d.Name == "ambit-controlplane" {
			spaces[d.Namespace] = true
		}
	}
	if len(spaces) > 1 {
		a.add("AMB0115", "mesh", "control planes are in namespaces %s", strings.Join(slices.Sorted(maps.Keys(spaces)), ", "))
	}
}

// packets compares the nodes' MTUs. Tunnels are TCP, which fits itself to the path: their overhead breaks nothing, but a
// path that drops long packets without a word does.
func (a *analysis) packets() {
	nodes := map[int][]string{}
	for i := range a.Proxies {
		if p := &a.Proxies[i]; p.Role == Ztunnel && p.Dump != nil && p.Dump.Config.MTU > 0 {
			nodes[p.Dump.Config.MTU] = append(nodes[p.Dump.Config.MTU], p.Node)
		}
	}
	if len(nodes) < 2 {
		return
	}
	var parts []string
	for _, mtu := range slices.Sorted(maps.Keys(nodes)) {
		slices.Sort(nodes[mtu])
		parts = append(parts, fmt.Sprintf("%d on %s", mtu, some(nodes[mtu])))
	}
	a.add("AMB0116", "mesh", "%s", strings.Join(parts, ", "))
}

// plaintext says that pods of the mesh take it, as they do unless somebody forbids it.
func (a *analysis) plaintext() {
	strict := map[string]bool{}
	for _, p := range sorted[*securityv1.PeerAuthentication](a.objects) {
		if len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
			strict[p.Namespace] = p.Spec.GetMtls().GetMode() == security.PeerAuthentication_MutualTLS_STRICT
		}
	}
	open := map[string]bool{}
	for _, p := range a.sortedPods() {
		own, said := strict[p.Namespace]
		if !said {
			own = strict[a.system()]
		}
		if inMesh(p) && !a.outside(p) && !own {
			open[p.Namespace] = true
		}
	}
	if len(open) > 0 {
		a.add("AMB0512", "mesh", "no PeerAuthentication says STRICT for namespaces %s", some(slices.Sorted(maps.Keys(open))))
	}
}

// older compares versions by their first two numbers.
func older(v, than string) bool {
	number := func(s string) int {
		major, rest, _ := strings.Cut(strings.TrimPrefix(s, "v"), ".")
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(rest)
		}
		x, _ := strconv.Atoi(major)
		y, _ := strconv.Atoi(rest[:end])
		return x*1000 + y
	}
	return number(v) < number(than)
}

// mesh is whether the programs of the mesh are there, agree, and have what they need.
func (a *analysis) mesh() {
	a.platform()
	a.twins()
	a.packets()
	a.plaintext()
	control, streams, versions := 0, map[string]bool{}, map[string][]string{}
	asked := false
	for i := range a.Proxies {
		p := &a.Proxies[i]
		if p.Role == ControlPlane && p.Ready {
			control++
		}
		if p.Error != "" {
			a.add("AMB0109", p.String(), "%s", p.Error)
		}
		if !p.Ready && p.Role != Ztunnel {
			a.add("AMB0114", p.String(), "it is not ready")
		}
		if v := p.version(); v != "" && !p.foreign() {
			versions[v] = append(versions[v], p.String())
		}
		if p.Control == nil {
			continue
		}
		asked = true
		for _, c := range p.Control.Clients {
			streams[clientPod(c.Client)] = true
			for _, t := range c.Types {
				kind := t.TypeURL[strings.LastIndex(t.TypeURL, "/")+1:]
				switch {
				case t.State == "NACKED":
					a.add("AMB0106", clientPod(c.Client), "it refused %s: %s", kind, t.NACK)
				case t.State == "STALE" && !a.Now.IsZero() && a.Now.Sub(t.SentAt) > 10*time.Second:
					a.add("AMB0107", clientPod(c.Client), "%s was sent %s ago and is not acknowledged", kind, a.Now.Sub(t.SentAt).Round(time.Second))
				}
			}
		}
	}
	if control == 0 {
		a.add("AMB0102", "Deployment "+a.system()+"/ambit-controlplane", "no replica is ready")
	}
	for i := range a.Proxies {
		p := &a.Proxies[i]
		if asked && p.Role != ControlPlane && p.Ready && !streams[p.Namespace+"/"+p.Name] {
			a.add("AMB0105", p.String(), "no control plane has a stream of it")
		}
	}
	if len(versions) > 1 {
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(versions)) {
			slices.Sort(versions[v])
			parts = append(parts, fmt.Sprintf("%s: %s", v, strings.Join(versions[v], ", ")))
		}
		a.add("AMB0108", "mesh", "%s", strings.Join(parts, "; "))
	}
}

func (p *Proxy) version() string {
	switch {
	case p.Dump != nil:
		return cmp.Or(p.Dump.Version.Version, p.Dump.Config.Version)
	case p.Control != nil:
		return p.Control.Version
	}
	return ""
}

// foreign tells whether it is a program of Istio's, which has versions of its own.
func (p *Proxy) foreign() bool {
	return p.Dump != nil && (p.Dump.Envoy || p.Dump.Version.RustVersion != "" && p.Dump.Version.GoVersion == "")
}

// clientPod is the "namespace/name" in a client's id, which is type~address~name.namespace~domain.
func clientPod(id string) string {
	parts := strings.Split(id, "~")
	if len(parts) < 3 {
		return id
	}
	i := strings.LastIndex(parts[2], ".")
	if i < 0 {
		return parts[2]
	}
	return parts[2][i+1:] + "/" + parts[2][:i]
}

// nodes is whether each node has a ztunnel and a CNI plugin.
func (a *analysis) nodes() {
	proxies := map[string]*Proxy{}
	for i := range a.Proxies {
		if p := &a.Proxies[i]; p.Role == Ztunnel && (proxies[p.Node] == nil || p.Ready) {
			proxies[p.Node] = p
		}
	}
	for _, n := range sorted[*corev1.Node](a.objects) {
		if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
			continue
		}
		p := proxies[n.Name]
		switch {
		case p == nil:
			a.add("AMB0103", "Node "+n.Name, "no ztunnel runs there")
		case !p.Ready:
			a.add("AMB0103", "Node "+n.Name, "%s is not ready", p)
		case !p.Plugin && !a.Lab && !a.istioPlugin(n.Name):
			a.add("AMB0104", "Node "+n.Name, "neither %s nor istio-cni installs a CNI plugin there", p)
		}
	}
}

// istioPlugin says whether istio-cni runs on a node.
func (a *analysis) istioPlugin(node string) bool {
	return slices.ContainsFunc(a.sortedPods(), func(p *corev1.Pod) bool {
		return p.Labels["k8s-app"] == "istio-cni-node" && p.Spec.NodeName == node && podReady(p)
	})
}

// clocks compares this machine's with the API server's, and the nodes' by what they last wrote.
func (a *analysis) clocks() {
	if a.ServerTime.IsZero() {
		return
	}
	if d := a.Now.Sub(a.ServerTime); d.Abs() > maxSkew {
		a.add("AMB0110", "this machine", "its clock is %s %s that of the API server", d.Abs().Round(time.Second), aheadOrBehind(d))
	}
	for _, n := range sorted[*corev1.Node](a.objects) {
		for _, c := range n.Status.Conditions {
			if d := c.LastHeartbeatTime.Sub(a.ServerTime); c.Type == corev1.NodeReady && d > maxSkew {
				a.add("AMB0110", "Node "+n.Name, "its clock is %s ahead of that of the API server", d.Round(time.Second))
			}
		}
	}
}

func aheadOrBehind(d time.Duration) string {
	if d > 0 {
		return "ahead of"
	}
	return "behind"
}

// certificates looks at roots, at identities and at trust domains.
func (a *analysis) certificates() {
	domains := map[string][]string{}
	for i := range a.Proxies {
		p := &a.Proxies[i]
		if p.Control != nil {
			for _, c := range parseRoots([]byte(p.Control.Roots)) {
				a.root(p.String(), c.NotAfter)
			}
		}
		if p.Dump == nil {
			continue
		}
		if d := p.Dump.Config.TrustDomain; d != "" {
			domains[d] = append(domains[d], p.String())
		}
		for _, c := range p.Dump.Certificates {
			a.certificate(p, c.Value)
		}
	}
	if len(domains) > 1 {
		for _, d := range slices.Sorted(maps.Keys(domains)) {
			slices.Sort(domains[d])
			a.add("AMB0205", strings.Join(domains[d], ", "), "its trust domain is %s", d)
		}
	}
}

func (a *analysis) root(object string, end time.Time) {
	switch left := end.Sub(a.Now); {
	case left <= 0:
		a.add("AMB0201", object, "a root certificate ended %s", end.UTC().Format(time.RFC3339))
	case left < rootWarning:
		a.add("AMB0202", object, "a root certificate ends %s, in %d days", end.UTC().Format(time.RFC3339), int(left/(24*time.Hour)))
	}
}

func (a *analysis) certificate(p *Proxy, c admin.Certificate) {
	if len(c.CertChain) == 0 {
		if strings.HasPrefix(c.State, "Unavailable") {
			a.add("AMB0203", c.Identity, "%s: %s", p, c.State)
		}
		return
	}
	from, err1 := time.Parse(time.RFC3339, c.CertChain[0].ValidFrom)
	end, err2 := time.Parse(time.RFC3339, c.CertChain[0].ExpirationTime)
	if err1 != nil || err2 != nil {
		return
	}
	switch left := end.Sub(a.Now); {
	case left <= 0:
		a.add("AMB0203", c.Identity, "%s: its certificate ended %s", p, c.CertChain[0].ExpirationTime)
	case left < end.Sub(from)/4: // it is renewed at half its life
		a.add("AMB0204", c.Identity, "%s: its certificate ends %s, in %s", p, c.CertChain[0].ExpirationTime, left.Round(time.Second))
	}
	for _, r := range c.RootCerts {
		if end, err := time.Parse(time.RFC3339, r.ExpirationTime); err == nil {
			a.root(p.String(), end)
		}
	}
}

func parseRoots(text []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			out = append(out, c)
		}
	}
}
