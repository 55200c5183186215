package nodepods

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// AnnotationLeave on the pod of the node's agent asks it to take the node out of the mesh for good, step by step. It
	// is on the pod and nowhere else, so that a pod that takes its place, in an upgrade or after a crash of the node, knows
	// nothing of it and captures again.
	AnnotationLeave = "ambit-mesh.github.io/leave"
	// LeavePrepare is the first step: pods of the node are reached by those that have left the mesh already.
	LeavePrepare = "prepare"
	// LeaveNow is the second step, once all nodes are prepared: the node's pods are let go and the CNI plugin is taken out of the
	// network configuration; when the agent's pod ends nothing of the mesh remains on the node.
	LeaveNow = "now"
	// LeaveCut is the last step: connections that go through the proxy still are cut.
	LeaveCut = "cut"
	// AnnotationLeft on that pod is the answer: LeftPrepared, or how many pods of the node are in the mesh still, or have
	// connections of that time.
	AnnotationLeft = "ambit-mesh.github.io/left"
	// LeftPrepared is the answer to LeavePrepare.
	LeftPrepared = "prepared"
)

// Leaving is a channel that has a value when what Leave returns has changed.
func (s *Source) Leaving() <-chan struct{} { return s.leaving }

// Leave is what the agent is asked to do: "", LeavePrepare, LeaveNow or LeaveCut. The last two are never taken back.
func (s *Source) Leave() string {
	if wish := s.wish.Load(); wish != nil {
		return *wish
	}
	return ""
}

// own looks for the wish that the mesh leaves the node, on the pod that the process runs in.
func (s *Source) own(p *corev1.Pod) {
	if s.cfg.Self == "" || string(p.UID) != s.cfg.Self {
		return
	}
	steps := []string{"", LeavePrepare, LeaveNow, LeaveCut}
	wish := p.Annotations[AnnotationLeave]
	to, from := slices.Index(steps, wish), slices.Index(steps, s.Leave())
	if to == from || to < 0 || from > 1 && to < from {
		return
	}
	s.wish.Store(&wish)
	select {
	case s.leaving <- struct{}{}:
	default:
	}
}

// Withdraw makes the control plane tell the other nodes that the pods of this one speak plaintext, and does nothing to the
// pods yet: they take both. Release goes on.
func (s *Source) Withdraw() {
	s.withdrawn.Store(true)
	s.again()
}

// Release tells capture of all pods anew, which lets them out when it was told to leave.
func (s *Source) Release() {
	s.withdrawn.Store(false)
	s.again()
}

func (s *Source) again() {
	list, _ := s.podList.List(everything)
	for _, p := range list {
		s.queue.Add(keyOf(p))
	}
}

// TellLeft writes the answer on the pod that the process runs in; "" takes it back.
func (s *Source) TellLeft(ctx context.Context, answer string) error {
	list, _ := s.podList.List(everything)
	for _, p := range list {
		if p.UID == types.UID(s.cfg.Self) {
			return s.annotate(ctx, p, AnnotationLeft, answer)
		}
	}
	return nil
}
