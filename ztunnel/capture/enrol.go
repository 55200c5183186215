package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// A pod that comes back into the mesh while the proxy still closes its old listeners waits for that, and so does a pod
// whose listeners the proxy is about to return.
const (
	inUseWait  = 3 * time.Second
	inUsePause = 100 * time.Millisecond
)

// enrol captures a pod, or makes sure that it is; wait bounds the wait for listeners that a proxy holds. p.op is held. Every step may be repeated, and if the process ends
// between two of them, recover repeats them all: the record is written first.
func (m *Manager) enrol(ctx context.Context, p *pod, wait time.Duration) error {
	ns, id, err := m.openNetns(&p.spec)
	if held := m.filesOf(p).NetNS; err != nil && wait == 0 && held != nil {
		// A retry: the path may have been that of a process that ended, or of a mount that this container lacks.
		id, err = held.ID()
	}
	if err != nil {
		return err
	}
	if p.netns != (zds.FileID{}) && p.netns != id {
		// A new sandbox of the same pod: the old namespace is dead or dying.
		if err := m.discard(ctx, p); err != nil {
			ns.Close()
			return err
		}
	}
	m.mu.Lock()
	p.enrolled, p.netns = true, id
	if ns != nil { // found at its path
		p.dir = dirID(p.spec.Netns)
	}
	if p.files.NetNS == nil {
		p.files.NetNS, ns = ns, nil
	}
	m.mu.Unlock()
	ns.Close()
	if err := m.save(p, false); err != nil {
		return err
	}
	dns := m.cfg.Policy.Decide(&p.spec).DNS
	if err := m.listen(ctx, p, dns, wait); err != nil {
		return err
	}
	files := m.filesOf(p)
	if !dns {
		files = files.WithoutDNS()
	}
	if err := m.attach(p, files); err != nil {
		return fmt.Errorf("redirect pod: %w", err)
	}
	if !dns {
		m.closeDNS(p)
	}
	if err := m.zds.Add(ctx, p.spec.UID); err != nil && !errors.Is(err, zds.ErrNoProxy) {
		return fmt.Errorf("hand pod to proxy: %w", err)
	}
	return nil
}

// attach redirects a pod as its annotations ask for. Once the mesh is about to leave, connections from outside reach the
// application, but for those in HBONE. p.op is held.
func (m *Manager) attach(p *pod, files zds.Files) error {
	spec := p.spec
	if m.open.Load() {
		spec.Annotations = maps.Clone(spec.Annotations)
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		spec.Annotations[annotationBypass] = "true"
	}
	return m.cfg.Kernel.Attach(&spec, files)
}

// openNetns opens the pod's namespace and makes sure that it is the pod's: a path can be stale and a process can be in
// another pod's namespace for a moment.
func (m *Manager) openNetns(spec *podsock.Pod) (_ *zds.File, id zds.FileID, err error) {
	if spec.Netns == "" || len(spec.Addresses) == 0 {
		return nil, id, refuse("pod without network namespace or addresses")
	}
	ns, err := m.cfg.Kernel.Open(spec.Netns)
	if err != nil {
		return nil, id, refusal{err}
	}
	if err = m.checkAddrs(ns, spec); err == nil {
		if id, err = ns.ID(); err == nil {
			return ns, id, nil
		}
	}
	ns.Close()
	return nil, id, err
}

func (m *Manager) checkAddrs(ns *zds.File, spec *podsock.Pod) error {
	have, err := m.cfg.Kernel.Addrs(ns)
	if err != nil {
		return fmt.Errorf("read addresses of %q: %w", spec.Netns, err)
	}
	for _, a := range spec.Addresses {
		if slices.Contains(have, a.Unmap()) {
			return nil
		}
	}
	return refuse("namespace %q has none of the pod's addresses %v, only %v", spec.Netns, spec.Addresses, have)
}

// listen makes sure that the pod's listeners are there, and with dns the sockets for its DNS queries. If the ports are in use
// it tries for as long as wait says.
func (m *Manager) listen(ctx context.Context, p *pod, dns bool, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		err := m.listenOnce(p, dns)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrInUse) || !time.Now().Before(deadline) || !sleep(ctx, inUsePause) {
			return fmt.Errorf("listen in pod: %w", err)
		}
	}
}

func (m *Manager) listenOnce(p *pod, dns bool) error {
	f := m.filesOf(p)
	if !f.HasListeners() {
		l, err := m.cfg.Kernel.Listen(f.NetNS)
		if err != nil {
			return err
		}
		m.setListeners(p, l)
	}
	if !dns || m.filesOf(p).HasDNS() {
		return nil
	}
	d, err := m.cfg.Kernel.ListenDNS(f.NetNS)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.files.DNS, p.files.DNSStream = d.DNS, d.DNSStream
	return nil
}

// closeDNS closes the sockets for DNS of a pod whose queries are not captured any more. p.op is held.
func (m *Manager) closeDNS(p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.files.DNS.Close()
	p.files.DNSStream.Close()
	p.files = p.files.WithoutDNS()
}

// setListeners keeps new listeners, unless a proxy returned the old ones meanwhile.
func (m *Manager) setListeners(p *pod, l zds.Files) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.files.HasListeners() {
		l.Close()
		return
	}
	l.NetNS = p.files.NetNS
	p.files, p.missing = l, false
}

// leave lets a pod out of the mesh, if it is in it: first redirection ends, then, a moment later, the proxy takes what waits and
// closes the listeners; connections go on and the routes that they need stay until they are over. p.op is held.
func (m *Manager) leave(ctx context.Context, p *pod) error {
	if !p.enrolled {
		m.mu.Lock()
		defer m.mu.Unlock()
		if p.state == statePending {
			p.state, p.err = StateSkipped, nil
		}
		return nil
	}
	// Written first: if the process ends here, the next one goes on.
	if err := m.save(p, true); err != nil {
		return err
	}
	m.mu.Lock()
	if p.state == stateCaptured {
		m.stopped.Add(1)
	}
	p.enrolled, p.missing, p.state, p.err = false, false, stateDraining, nil
	m.mu.Unlock()
	err := m.release(ctx, p)
	m.mu.Lock()
	p.err = err
	m.mu.Unlock()
	if err == nil {
		m.log.Info("pod left the mesh", "pod", p.spec.Namespace+"/"+p.spec.Name, "uid", p.spec.UID, "reason", p.decision.Reason)
	}
	return err
}

// release ends redirection, waits for handshakes that are under way, has the proxy give the listeners up, then closes ours.
// p.op is held. It may be repeated.
func (m *Manager) release(ctx context.Context, p *pod) error {
	if err := m.cfg.Kernel.Detach(p.spec.UID); err != nil {
		return fmt.Errorf("end redirection of pod: %w", err)
	}
	if !m.filesOf(p).HasListeners() {
		return nil
	}
	if !sleep(ctx, m.cfg.Linger) {
		return ctx.Err()
	}
	if err := m.zds.Del(ctx, p.spec.UID, true); err != nil {
		m.log.Warn("proxy not told that a pod left", "uid", p.spec.UID, "err", err)
	}
	m.mu.Lock()
	l := p.files
	p.files = zds.Files{NetNS: l.NetNS}
	m.mu.Unlock()
	l.NetNS = nil
	return l.Close()
}

// swept ends a drain whose connections are over. p.op is held.
func (m *Manager) swept(ctx context.Context, p *pod) error {
	if err := m.release(ctx, p); err != nil { // if it did not succeed before
		return err
	}
	done, err := m.cfg.Kernel.Swept(ctx, p.spec.UID)
	if err != nil || !done {
		return err
	}
	return m.forget(p)
}

// discard undoes everything of a pod whose namespace is gone. p.op is held; the pod stays listed. If it fails the pod
// counts as draining, so that a later round goes on.
func (m *Manager) discard(ctx context.Context, p *pod) error {
	if p.netns == (zds.FileID{}) {
		return nil // nothing was done to it
	}
	m.mu.Lock()
	if p.state == stateCaptured {
		m.stopped.Add(1)
	}
	p.enrolled, p.missing, p.state = false, false, stateDraining
	m.mu.Unlock()
	if err := m.zds.Del(ctx, p.spec.UID, false); err != nil {
		m.log.Warn("proxy not told that a pod is gone", "uid", p.spec.UID, "err", err)
	}
	if err := m.cfg.Kernel.Remove(p.spec.UID); err != nil {
		return fmt.Errorf("remove redirection of pod: %w", err)
	}
	m.log.Info("pod gone", "pod", p.spec.Namespace+"/"+p.spec.Name, "uid", p.spec.UID)
	return m.forget(p)
}

// forget closes and deletes what is kept of a pod that nothing remains of. p.op is held.
func (m *Manager) forget(p *pod) error {
	if err := m.store.remove(p.spec.UID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f := p.files
	p.files, p.netns, p.dir, p.state, p.err = zds.Files{}, zds.FileID{}, zds.FileID{}, StateSkipped, nil
	return f.Close()
}

// save writes the pod's record. p.op is held.
func (m *Manager) save(p *pod, draining bool) error {
	return m.store.save(&record{
		Pod: p.spec, NetnsDev: p.netns.Dev, NetnsIno: p.netns.Ino, DirDev: p.dir.Dev, DirIno: p.dir.Ino, Draining: draining,
	})
}

// gone reports whether the namespace id at path, in the directory dir, is surely no more. To take a pod for gone lets it
// out of the mesh, so every doubt is a no: a path in /proc goes with its process and not with the pod; in a container
// that lacks a mount the directory is another one, or the path is a file and no namespace.
func gone(path string, id, dir zds.FileID) bool {
	if strings.Contains(path, "/proc/") {
		return false
	}
	now, err := statID(path)
	if err == nil {
		return id != (zds.FileID{}) && now.Dev == id.Dev && now.Ino != id.Ino
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false
	}
	return dir == (zds.FileID{}) || dirID(path) == dir
}

// dirID returns the identity of the directory of path; zero if it cannot be told.
func dirID(path string) zds.FileID {
	id, err := statID(filepath.Dir(path))
	if err != nil {
		return zds.FileID{}
	}
	return id
}

func statID(path string) (zds.FileID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return zds.FileID{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return zds.FileID{}, errors.ErrUnsupported
	}
	return zds.FileID{Dev: st.Dev, Ino: st.Ino}, nil
}
