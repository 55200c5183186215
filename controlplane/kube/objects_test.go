package kube

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func object(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
}

func podKey(name string) Key { return Key{Kind: KindPod, Name: Name{"a", name}} }

func TestSetsAreFrozen(t *testing.T) {
	x, y := object("x"), object("y")
	first := NewObjects(x)
	second := first.With([]Object{y}, []Key{podKey("x")})
	if first.Len() != 1 || Get[*corev1.Pod](first, "a", "x") != x {
		t.Error("the first set changed")
	}
	if second.Len() != 1 || Get[*corev1.Pod](second, "a", "y") != y || Get[*corev1.Pod](second, "a", "x") != nil {
		t.Error("the second set is wrong")
	}
}

func TestDiffIsTheSameWithAndWithoutCommonHistory(t *testing.T) {
	x, y := object("x"), object("y")
	first := NewObjects(x, y)
	second := first.With([]Object{object("y"), object("z"), x}, []Key{podKey("none")})
	third := second.With(nil, []Key{podKey("x")})
	for _, c := range []struct {
		name     string
		old, now *Objects
		want     []Key
	}{
		{"neighbours", first, second, []Key{podKey("y"), podKey("z")}},
		{"further apart", first, third, []Key{podKey("x"), podKey("y"), podKey("z")}},
		{"backwards", second, first, []Key{podKey("y"), podKey("z")}},
		{"from nothing", nil, first, []Key{podKey("x"), podKey("y")}},
		{"to nothing", first, nil, []Key{podKey("x"), podKey("y")}},
		{"the same", first, first, nil},
		{"same content", first, NewObjects(x, y), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.now.Diff(c.old); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestEveryAcceptedKindHasItsType(t *testing.T) {
	for _, k := range kinds {
		if got := kindOf(k.create()); got != k.kind {
			t.Errorf("type of %s is known as %q", k.kind, got)
		}
		found, _ := findKind(k.apiVersions()[0], string(k.kind))
		if found == nil || found.kind != k.kind {
			t.Errorf("kind %s is not found", k.kind)
		}
	}
}
