package capture

import (
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// The methods of this file make Manager a zds.Source. They take only m.mu: the goroutine of an operation may be waiting
// for the very proxy that they are called for.

// Pods implements zds.Source.
func (m *Manager) Pods() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for uid, p := range m.pods {
		if p.enrolled && (p.missing || p.files.HasListeners()) {
			out = append(out, uid)
		}
	}
	slices.Sort(out)
	return out
}

// Workload implements zds.Source.
func (m *Manager) Workload(uid string) (*zds.Workload, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[uid]
	if p == nil || !p.enrolled {
		return nil, false
	}
	w := &zds.Workload{
		UID: uid, Name: p.spec.Name, Namespace: p.spec.Namespace, ServiceAccount: p.spec.ServiceAccount,
		Addrs: p.spec.Addresses,
	}
	if p.files.HasListeners() {
		f, err := p.files.Dup()
		if err != nil {
			m.log.Error("descriptors of pod not duplicated", "uid", uid, "err", err)
		}
		w.Files = f
	}
	return w, true
}

// Missing implements zds.Source.
func (m *Manager) Missing() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for uid, p := range m.pods {
		if p.missing {
			out = append(out, uid)
		}
	}
	slices.Sort(out)
	return out
}

// Returned implements zds.Source. The round that it asks for makes the redirection whole again.
func (m *Manager) Returned(uid string, f zds.Files) error {
	id, err := f.NetNS.ID()
	if err != nil {
		f.Close()
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pods[uid]
	if p == nil || !p.missing || p.netns != id {
		f.Close()
		return fmt.Errorf("pod %q does not miss these listeners", uid)
	}
	if p.files.NetNS != nil { // somebody may be using ours
		f.NetNS.Close()
		f.NetNS = p.files.NetNS
	}
	p.files, p.missing = f, false
	m.retryNow()
	return nil
}

// Answered implements zds.Source. A pod that the new proxy refuses is pending until it takes it.
func (m *Manager) Answered(uid string, err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pods[uid]; p != nil && p.state == stateCaptured {
		p.state, p.err = statePending, fmt.Errorf("hand pod to proxy: %w", err)
		m.log.Warn("proxy refused pod", "uid", uid, "err", err)
	}
}

// retryNow asks for a round.
func (m *Manager) retryNow() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}
