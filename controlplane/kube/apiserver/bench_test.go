package apiserver

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// BenchmarkRead is what one pod costs: new, and when nothing changed that is read.
func BenchmarkRead(b *testing.B) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop","labels":{"app":"web"}},
		"spec":{"nodeName":"n1","serviceAccountName":"web","containers":[{"name":"c","ports":[{"containerPort":80}]}]},
		"status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}],"conditions":[{"type":"Ready","status":"True"}]}}`)); err != nil {
		b.Fatal(err)
	}
	for name, known := range map[string]bool{"new": false, "unchanged": true} {
		b.Run(name, func(b *testing.B) {
			m := newMirror()
			if known {
				m.put(m.read(kube.KindPod, u.DeepCopy()))
			}
			b.ReportAllocs()
			for b.Loop() {
				if it := m.read(kube.KindPod, u); it.object == nil {
					b.Fatal(it.problems)
				}
			}
		})
	}
}
