package controlplane

import (
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/controlplane/status"
)

func TestOnlyStatusesThatChangeAreToBeWritten(t *testing.T) {
	objects := kube.NewObjects(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "shop"}})
	key := kube.Key{Kind: kube.KindService, Name: kube.Name{Namespace: "demo", Name: "shop"}}
	with := func(reason string) []status.Status {
		return []status.Status{{Object: key, Conditions: []metav1.Condition{{Type: "istio.io/WaypointBound", Status: metav1.ConditionTrue, Reason: reason}}}}
	}
	s := &statuses{log: slog.New(slog.DiscardHandler)}
	for i, c := range []struct {
		objects *kube.Objects
		list    []status.Status
		changed int
	}{
		{objects, with("A"), 1}, {objects, with("A"), 0}, {objects, with("B"), 1}, {objects, nil, 1}, {objects, nil, 0},
		{objects, with("A"), 1}, {kube.NewObjects(), nil, 0}, // the object went, and its status with it
	} {
		if got := s.update(c.objects, c.list, time.Unix(int64(i), 0)); len(got) != c.changed {
			t.Errorf("step %d: %d to write, want %d", i, len(got), c.changed)
		}
	}
}
