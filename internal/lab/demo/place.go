package demo

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/manifest"
	"github.com/ambit-mesh/ambit/internal/lab/wire"
)

// place is where the demo is shown: a lab, or a cluster. Nodes are node-1 and node-2 in both; a pod without namespace is one.
type place interface {
	// apply applies manifests and waits until all pods are Ready.
	apply(ctx context.Context, files []manifest.File) error
	// applyYAML applies manifests and does not wait.
	applyYAML(ctx context.Context, yaml string) error
	remove(ctx context.Context, kind, namespace, name string) error
	objects(ctx context.Context, kind, namespace, name string) ([]json.RawMessage, error)
	// inside returns a function that calls another one in the network namespace of a pod or node.
	inside(ctx context.Context, namespace, pod string) (func(func() error) error, error)
	// echo is the command line of the built-in program as start has it in a pod.
	echo() []string
	start(ctx context.Context, namespace, pod string, cmd *exec.Cmd) error
	// log is what a pod wrote, or a program of the mesh: ztunnel/NODE.
	log(ctx context.Context, namespace, pod string) (string, error)
	// fetch gets a URL as the program's node sees it.
	fetch(ctx context.Context, program, url string) (string, error)
	program(ctx context.Context, action, program, part string) error
	// failFile is the path, as this process sees it, of the file that makes a pod of version 2 of reviews fail.
	failFile(ctx context.Context, pod string) (string, error)
	// watched says which segments on a node's link belong to the application.
	watched(s wire.Segment) bool
}

// labPlace is a lab.
type labPlace struct {
	c      *lab.Client
	binary []string
}

func (l *labPlace) apply(ctx context.Context, files []manifest.File) error {
	if _, err := l.c.Apply(ctx, files...); err != nil {
		return err
	}
	return l.c.WaitReady(ctx, nil)
}

func (l *labPlace) applyYAML(ctx context.Context, yaml string) error { return l.c.ApplyYAML(ctx, yaml) }

func (l *labPlace) remove(ctx context.Context, kind, namespace, name string) error {
	return l.c.DeleteObject(ctx, kind, namespace, name)
}

func (l *labPlace) objects(ctx context.Context, kind, namespace, name string) ([]json.RawMessage, error) {
	return l.c.Objects(ctx, kind, namespace, name)
}

func (l *labPlace) inside(ctx context.Context, namespace, pod string) (func(func() error) error, error) {
	a, err := l.c.Access(ctx, namespace, pod, "")
	if err != nil {
		return nil, err
	}
	return a.Do, nil
}

func (l *labPlace) echo() []string { return l.binary }

func (l *labPlace) start(ctx context.Context, namespace, pod string, cmd *exec.Cmd) error {
	a, err := l.c.Access(ctx, namespace, pod, "")
	if err != nil {
		return err
	}
	return a.Start(cmd)
}

func (l *labPlace) log(ctx context.Context, namespace, pod string) (string, error) {
	part := ""
	if namespace == "" {
		part = "proxy"
	}
	path, err := l.c.LogFile(ctx, namespace, pod, part)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

func (l *labPlace) fetch(ctx context.Context, program, url string) (string, error) {
	return l.c.Fetch(ctx, program, url)
}

func (l *labPlace) program(ctx context.Context, action, program, part string) error {
	return l.c.Program(ctx, action, program, part)
}

func (l *labPlace) failFile(ctx context.Context, pod string) (string, error) {
	log, err := l.c.LogFile(ctx, "shop", pod, "")
	return filepath.Join(filepath.Dir(log), "fails"), err // the pod's directory (deploy/examples/demo/waypoint)
}

// watched leaves out what the control plane says.
func (l *labPlace) watched(s wire.Segment) bool {
	return s.Src.Port() != 15012 && s.Dst.Port() != 15012
}
