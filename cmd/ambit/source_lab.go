package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/diagnose"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
)

// labSource asks a lab.
type labSource struct {
	name   string
	client *lab.Client
}

// errNoDryRun says that a lab's server makes every change that it checks.
var errNoDryRun = usageError{errors.New("--dry-run=server of a lab; accepted: none, client")}

func openLab(name string) (*labSource, error) {
	if err := lab.ValidName(name); err != nil {
		return nil, usageError{err}
	}
	c, err := lab.Dial(name)
	if err != nil {
		return nil, err
	}
	return &labSource{name, c}, nil
}

func (s *labSource) world(ctx context.Context) (*diagnose.World, error) {
	w := &diagnose.World{Lab: true, Now: time.Now(), Version: version}
	var objects []kube.Object
	for _, kind := range kube.Kinds() {
		if manifest.Lookup(string(kind)) == nil {
			continue
		}
		list, err := s.client.Objects(ctx, string(kind), "", "")
		if err != nil {
			return nil, err
		}
		for _, raw := range list {
			o, problems := kube.DecodeStored(raw)
			w.Problems = append(w.Problems, problems...)
			if o != nil {
				objects = append(objects, o)
			}
		}
	}
	w.Objects = kube.NewObjects(objects...)
	w.Proxies = append(w.Proxies, diagnose.Proxy{Role: diagnose.ControlPlane, Name: "controlplane", Ready: true})
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			w.Proxies = append(w.Proxies, diagnose.Proxy{Role: diagnose.Ztunnel, Namespace: "istio-system", Name: "ztunnel-" + o.Name, Node: o.Name, Ready: true})
		case *corev1.Pod:
			if p, ok := programOf(o); ok {
				w.Proxies = append(w.Proxies, p)
			}
		}
	}
	return w, nil
}

// target is the lab's name for a program.
func (s *labSource) target(p *diagnose.Proxy) string {
	switch p.Role {
	case diagnose.Ztunnel:
		return "ztunnel/" + p.Node
	case diagnose.ControlPlane:
		return "controlplane"
	}
	return p.Name
}

func (s *labSource) admin(ctx context.Context, p *diagnose.Proxy, method, path string) ([]byte, error) {
	a, err := s.client.Access(ctx, p.Namespace, s.target(p), "")
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = a.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	return exchange(ctx, t, method, fmt.Sprintf("http://127.0.0.1:%d%s", portOf(p), path))
}

func (s *labSource) logs(ctx context.Context, w io.Writer, p *diagnose.Proxy, o logOptions) error {
	if p.Role == diagnose.Ztunnel && o.part == "" {
		o.part = "proxy"
	}
	path, err := s.client.LogFile(ctx, p.Namespace, s.target(p), o.part)
	if err != nil {
		return err
	}
	if o.tail < 0 || o.follow {
		return copyLog(ctx, w, path, o.follow)
	}
	var all bytes.Buffer
	if err := copyLog(ctx, &all, path, false); err != nil {
		return err
	}
	lines := bytes.SplitAfter(all.Bytes(), []byte("\n"))
	lines = slices.DeleteFunc(lines, func(l []byte) bool { return len(l) == 0 })
	_, err = w.Write(bytes.Join(lines[max(0, len(lines)-int(o.tail)):], nil))
	return err
}

func (s *labSource) label(ctx context.Context, k kube.Key, l label, dry bool) error {
	if dry {
		return errNoDryRun
	}
	list, err := s.client.Objects(ctx, string(k.Kind), k.Namespace, k.Name.Name)
	if err != nil {
		return err
	}
	var o map[string]any
	if err := json.Unmarshal(list[0], &o); err != nil {
		return fmt.Errorf("decode object: %w", err)
	}
	old, _ := o["metadata"].(map[string]any)
	labels, _ := old["labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	if labels[l.name] = l.value; l.value == "" {
		delete(labels, l.name)
	}
	meta := map[string]any{"name": k.Name.Name, "labels": labels}
	if k.Namespace != "" {
		meta["namespace"] = k.Namespace
	}
	if a := old["annotations"]; a != nil {
		meta["annotations"] = a
	}
	o["metadata"] = meta
	delete(o, "status")
	return s.put(ctx, o)
}

func (s *labSource) put(ctx context.Context, o any) error {
	body, err := yaml.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode object: %w", err)
	}
	return s.client.ApplyYAML(ctx, string(body))
}

func (s *labSource) apply(ctx context.Context, o kube.Object, dry bool) error {
	if dry {
		return errNoDryRun
	}
	body, err := plain(o)
	if err != nil {
		return err
	}
	return s.put(ctx, body)
}

func (s *labSource) remove(ctx context.Context, k kube.Key, dry bool) error {
	if dry {
		return errNoDryRun
	}
	return s.client.DeleteObject(ctx, string(k.Kind), k.Namespace, k.Name.Name)
}

// plain is an object as a user would write it: without a status and what a server fills in.
func plain(o kube.Object) (map[string]any, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	delete(m, "status")
	if meta, ok := m["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	return m, nil
}
