package manifest

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// EchoImage is the only image that needs no command: the lab pulls none.
const EchoImage = "ambit/echo"

func checkPod(c *checker, n *yaml.Node) {
	goType[corev1.Pod](c, n)
	if len(c.errs) == 0 {
		c.podSpec("spec", n, child(n, "spec"))
	}
}

func checkDeployment(c *checker, n *yaml.Node) {
	goType[appsv1.Deployment](c, n)
	if len(c.errs) > 0 {
		return
	}
	spec := child(n, "spec")
	if spec == nil {
		c.add(n, "spec", "missing", "selector and template")
		return
	}
	if r := child(spec, "replicas"); r != nil && strings.HasPrefix(r.Value, "-") {
		c.add(r, "spec.replicas", r.Value+" pods cannot be", "0 or more")
	}
	template := child(spec, "template")
	if template == nil {
		c.add(spec, "spec.template", "missing", "metadata and spec of the pods")
		return
	}
	c.podSpec("spec.template.spec", template, child(template, "spec"))
	c.selector(spec, template)
}

// selector: a Deployment whose selector does not fit its own pods would make pods without end.
func (c *checker) selector(spec, template *yaml.Node) {
	sel := child(spec, "selector")
	if sel == nil || child(sel, "matchLabels") == nil {
		c.add(spec, "spec.selector.matchLabels", "missing", "labels that the template has")
		return
	}
	labels := map[string]string{}
	if meta := child(template, "metadata"); meta != nil {
		if l := child(meta, "labels"); l != nil {
			for i := 0; i+1 < len(l.Content); i += 2 {
				labels[l.Content[i].Value] = l.Content[i+1].Value
			}
		}
	}
	m := child(sel, "matchLabels")
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		if labels[k.Value] != v.Value {
			c.add(k, "spec.selector.matchLabels."+k.Value, fmt.Sprintf("the template's pods do not have %s=%s", k.Value, v.Value),
				"labels of spec.template.metadata.labels")
		}
	}
}

func (c *checker) podSpec(path string, parent, spec *yaml.Node) {
	if spec == nil {
		c.add(parent, path, "missing", "containers")
		return
	}
	list := child(spec, "containers")
	if list == nil || len(list.Content) == 0 {
		c.add(spec, path+".containers", "missing", "one container or more")
		return
	}
	seen := map[string]bool{}
	for _, field := range []string{"initContainers", "containers"} {
		l := child(spec, field)
		for i := 0; l != nil && i < len(l.Content); i++ {
			c.container(fmt.Sprintf("%s.%s[%d]", path, field, i), l.Content[i], seen)
		}
	}
}

func (c *checker) container(path string, n *yaml.Node, seen map[string]bool) {
	name := child(n, "name")
	switch {
	case name == nil || name.Value == "":
		c.add(n, path+".name", "missing", nameRule)
	case !dnsLabel.MatchString(name.Value):
		c.add(name, path+".name", fmt.Sprintf("%q is not a name", name.Value), nameRule)
	case seen[name.Value]:
		c.add(name, path+".name", fmt.Sprintf("there are two containers %q", name.Value), "a name of its own")
	default:
		seen[name.Value] = true
	}
	if command := child(n, "command"); command == nil || len(command.Content) == 0 {
		image := child(n, "image")
		if image == nil || image.Value != EchoImage {
			at, cause := n, "missing, and there is no image"
			if image != nil {
				at, cause = image, fmt.Sprintf("missing: the lab does not pull image %q", image.Value)
			}
			c.add(at, path+".command", cause, "a command of this machine's file system, or image "+EchoImage)
		}
	}
	if ports := child(n, "ports"); ports != nil {
		for i, p := range ports.Content {
			c.port(fmt.Sprintf("%s.ports[%d].containerPort", path, i), p, child(p, "containerPort"))
		}
	}
	if env := child(n, "env"); env != nil {
		for i, e := range env.Content {
			c.env(fmt.Sprintf("%s.env[%d]", path, i), e)
		}
	}
	if probe := child(n, "readinessProbe"); probe != nil {
		c.probe(path+".readinessProbe", probe)
	}
}

// fieldPaths are what the downward API of the lab knows.
var fieldPaths = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels['KEY']", "metadata.annotations['KEY']", "spec.nodeName",
	"spec.serviceAccountName", "status.hostIP", "status.podIP", "status.podIPs",
}

func (c *checker) env(path string, n *yaml.Node) {
	if name := child(n, "name"); name == nil || name.Value == "" {
		c.add(n, path+".name", "missing", "the variable's name")
	}
	from := child(n, "valueFrom")
	if from == nil {
		return
	}
	ref := child(from, "fieldRef")
	if ref == nil {
		c.add(from, path+".valueFrom", "the lab knows only fieldRef", "fieldRef with a fieldPath")
		return
	}
	p := child(ref, "fieldPath")
	if p == nil {
		c.add(ref, path+".valueFrom.fieldRef.fieldPath", "missing", strings.Join(fieldPaths, ", "))
		return
	}
	for _, known := range fieldPaths {
		head, _, keyed := strings.Cut(known, "KEY")
		if p.Value == known && !keyed || keyed && strings.HasPrefix(p.Value, head) && strings.HasSuffix(p.Value, "']") {
			return
		}
	}
	c.add(p, path+".valueFrom.fieldRef.fieldPath", fmt.Sprintf("unknown path %q", p.Value), strings.Join(fieldPaths, ", "))
}

func (c *checker) probe(path string, n *yaml.Node) {
	handlers := 0
	for _, h := range []string{"httpGet", "tcpSocket", "exec"} {
		if child(n, h) != nil {
			handlers++
		}
	}
	if grpc := child(n, "grpc"); grpc != nil {
		c.add(grpc, path+".grpc", "the lab has no gRPC probe", "httpGet, tcpSocket, exec")
	} else if handlers != 1 {
		c.add(n, path, fmt.Sprintf("%d ways to probe", handlers), "one of httpGet, tcpSocket, exec")
	}
}

func (c *checker) port(path string, parent, n *yaml.Node) {
	if n == nil {
		c.add(parent, path, "missing", "1 to 65535")
		return
	}
	if v, err := strconv.Atoi(n.Value); err != nil || v < 1 || v > 65535 {
		c.add(n, path, n.Value+" is no port", "1 to 65535")
	}
}

func checkService(c *checker, n *yaml.Node) {
	goType[corev1.Service](c, n)
	if len(c.errs) > 0 {
		return
	}
	spec := child(n, "spec")
	if spec == nil {
		c.add(n, "spec", "missing", "ports and a selector")
		return
	}
	typ, ip, ports := child(spec, "type"), child(spec, "clusterIP"), child(spec, "ports")
	if ports == nil || len(ports.Content) == 0 {
		if !(typ != nil && typ.Value == "ExternalName") && !(ip != nil && ip.Value == "None") {
			c.add(spec, "spec.ports", "missing", "one port or more")
		}
		return
	}
	names := map[string]bool{}
	for i, p := range ports.Content {
		path := fmt.Sprintf("spec.ports[%d]", i)
		c.port(path+".port", p, child(p, "port"))
		name := child(p, "name")
		if name == nil || name.Value == "" {
			if len(ports.Content) > 1 {
				c.add(p, path+".name", "missing", "a name for each port where there are several")
			}
			continue
		}
		if names[name.Value] {
			c.add(name, path+".name", fmt.Sprintf("there are two ports %q", name.Value), "a name of its own")
		}
		names[name.Value] = true
	}
}
