package nodepods

import (
	"context"
	"path/filepath"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

var everything = labels.Everything()

// report writes on the pod what came of it, and returns err.
func (s *Source) report(ctx context.Context, p *corev1.Pod, res podsock.Result, err error) error {
	want := ""
	switch {
	case err != nil && res.Result != podsock.Skipped:
		want = pending
	case err == nil && res.Result == podsock.Captured:
		want = enabled
	}
	if res.Problem != "" {
		s.tell(ctx, p, noticeIgnored, res.Problem)
	}
	have := p.Annotations[annotation]
	switch {
	case want == pending:
		s.tell(ctx, p, noticeFailed, "not captured by the mesh: "+err.Error())
	case want == enabled && have == pending:
		s.tell(ctx, p, noticeCaptured, "the pod is in the mesh now")
	}
	if have != want {
		if e := s.annotate(ctx, p, annotation, want); e != nil && err == nil {
			err = e
		}
	}
	return err
}

// mayRemember asks for the Memory to be looked at.
func (s *Source) mayRemember() {
	select {
	case s.remember <- struct{}{}:
	default:
	}
}

// keepMemory keeps the file for the CNI plugin true until ctx is done.
func (s *Source) keepMemory(ctx context.Context) {
	var written podsock.Memory
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.remember:
			t.Reset(settle)
			continue
		case <-t.C:
		}
		if m := s.memory(); s.cfg.Memory != "" && !reflect.DeepEqual(m, written) {
			if err := m.Write(s.cfg.Memory); err != nil {
				s.log.Warn("what the CNI plugin is to know while capture is away was not written", "file", filepath.Base(s.cfg.Memory), "err", err)
				t.Reset(maxBackoff)
				continue
			}
			written = m
		}
	}
}

// memory is what is known of the namespaces now.
func (s *Source) memory() podsock.Memory {
	m := podsock.Memory{Namespaces: map[string]string{}}
	spaces, _ := s.nsList.List(everything)
	for _, ns := range spaces {
		m.Namespaces[ns.Name] = podsock.ModeOutside
		if (&podsock.Pod{NamespaceLabels: ns.Labels}).WantsMesh() {
			m.Namespaces[ns.Name] = podsock.ModeAmbient
		}
	}
	pods, _ := s.podList.List(everything)
	for _, p := range pods {
		if m.Namespaces[p.Namespace] == podsock.ModeOutside && (&podsock.Pod{Labels: p.Labels}).WantsMesh() {
			m.Namespaces[p.Namespace] = podsock.ModeMixed
		}
	}
	return m
}

// notice is an event on a pod.
type notice struct {
	about        string // of several about the same only a change is written
	kind, reason string
}

var (
	noticeLate     = notice{"start", corev1.EventTypeNormal, "StartedBeforeCapture"}
	noticeFailed   = notice{"capture", corev1.EventTypeWarning, "CaptureFailed"}
	noticeCaptured = notice{"capture", corev1.EventTypeNormal, "Captured"}
	noticeIgnored  = notice{"settings", corev1.EventTypeWarning, "MeshSettingIgnored"}
)

// tell writes an event on a pod, unless the last one about this said the same. It reports whether it is the first about it.
func (s *Source) tell(ctx context.Context, p *corev1.Pod, n notice, text string) (first bool) {
	s.mu.Lock()
	if s.told[p.UID] == nil {
		s.told[p.UID] = map[string]string{}
	}
	last, again := s.told[p.UID][n.about]
	s.told[p.UID][n.about] = n.reason + text
	s.mu.Unlock()
	if again && last == n.reason+text {
		return false
	}
	now := metav1.Now()
	err := s.cfg.API.Event(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: p.Name + ".", Namespace: p.Namespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
		},
		Reason: n.reason, Message: text, Type: n.kind, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "ambit-capture", Host: s.cfg.Node}, ReportingController: "ambit-capture", ReportingInstance: s.cfg.Node,
	})
	if err != nil {
		s.log.Warn("event not written", "pod", p.Namespace+"/"+p.Name, "reason", n.reason, "err", err)
	}
	return !again
}
