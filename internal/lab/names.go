package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// DefaultName is the name of a lab when none is given.
const DefaultName = "lab"

const (
	stateRoot = "/run/ambit-lab"
	systemNS  = "istio-system"
)

var nameSyntax = regexp.MustCompile(`^[a-z0-9]{1,12}$`)

// ValidName tells whether a lab can have the name. There is no '-' in it, so that no lab's prefix begins with another's.
func ValidName(name string) error {
	if !nameSyntax.MatchString(name) {
		return fmt.Errorf("lab name %q: accepted: 1 to 12 lower-case letters and digits", name)
	}
	return nil
}

// Labs lists the names of the labs that have state on this machine, running or crashed.
func Labs() ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && ValidName(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	sort.Strings(out)
	return out, nil
}

// paths derives every name of a lab from the lab's own.
type paths struct{ lab string }

func (p paths) dir() string                { return filepath.Join(stateRoot, p.lab) }
func (p paths) socket() string             { return filepath.Join(p.dir(), "lab.sock") }
func (p paths) manifests() string          { return filepath.Join(p.dir(), "manifests") }
func (p paths) bpf() string                { return filepath.Join(p.dir(), "bpf") }
func (p paths) pin(node string) string     { return filepath.Join(p.bpf(), node) }
func (p paths) run(node string) string     { return filepath.Join(p.dir(), "nodes", node) }
func (p paths) control() string            { return filepath.Join(p.dir(), "controlplane") }
func (p paths) rootCA() string             { return filepath.Join(p.control(), "root-cert.pem") }
func (p paths) tokenKey() string           { return filepath.Join(p.control(), "token.key") }
func (p paths) supervisorLog() string      { return filepath.Join(stateRoot, p.lab+".log") }
func (p paths) podDir(ns, n string) string { return filepath.Join(p.dir(), "pods", ns+"."+n) }
func (p paths) cgroup() string             { return "ambit-lab-" + p.lab }
func (p paths) prefix() string             { return "ambit-" + p.lab + "-" }
func (p paths) fabricNS() string           { return p.prefix() + "fabric" }
func (p paths) controlNS() string          { return p.prefix() + "control" }
func (p paths) nodeNS(node string) string  { return p.prefix() + node }

// podNS has a '.' between namespace and pod, which a namespace cannot contain: a-b.c and a.b-c differ.
func (p paths) podNS(ns, pod string) string { return p.prefix() + "pod-" + ns + "." + pod }

// create makes the state directory; that it did not exist is what keeps two labs of one name apart.
func (p paths) create() error {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	err := os.Mkdir(p.dir(), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return p.errExists()
	}
	if err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	for _, d := range []string{p.manifests(), p.bpf(), p.control(), filepath.Join(p.dir(), "pods")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("create state: %w", err)
		}
	}
	return nil
}

// namespaces lists the lab's network namespaces that exist.
func (p paths) namespaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), p.prefix()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func (p paths) errExists() error {
	return fmt.Errorf("lab %q exists already; remove it with: ambit lab down --name %s", p.lab, p.lab)
}
