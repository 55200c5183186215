package apiserver

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"
)

func TestAppliesAsTheControlPlaneAndDeletesWhatItRead(t *testing.T) {
	s := newFake(t)
	var applied ktesting.PatchActionImpl
	s.PrependReactor("patch", "services", func(a ktesting.Action) (bool, runtime.Object, error) {
		applied = a.(ktesting.PatchActionImpl)
		return true, &unstructured.Unstructured{}, nil
	})
	c := s.client()
	service := object(t, `{apiVersion: v1, kind: Service, metadata: {name: wp, namespace: demo, uid: u-1}, spec: {type: ClusterIP}}`)
	if err := c.Apply(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	o := applied.PatchOptions
	if applied.GetPatchType() != "application/apply-patch+yaml" || o.FieldManager != Manager || o.Force == nil || !*o.Force || applied.GetNamespace() != "demo" {
		t.Errorf("applied: %+v", applied)
	}
	if have, err := c.Find(t.Context(), "Service", "demo", "wp"); have != nil || err != nil {
		t.Errorf("found %v, %v", have, err)
	}
	s.create(t, made["Service"], `{apiVersion: v1, kind: Service, metadata: {name: wp, namespace: demo, uid: u-1}}`)
	have, err := c.Find(t.Context(), "Service", "demo", "wp")
	if err != nil || have == nil {
		t.Fatalf("found %v, %v", have, err)
	}
	if err := c.Delete(t.Context(), have); err != nil {
		t.Fatal(err)
	}
	actions := s.Actions()
	d := actions[len(actions)-1].(ktesting.DeleteActionImpl)
	if p := d.DeleteOptions.Preconditions; p == nil || p.UID == nil || *p.UID != "u-1" {
		t.Errorf("deleted %+v", d.DeleteOptions)
	}
	if err := c.Delete(t.Context(), have); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	if _, err := c.Find(t.Context(), "Secret", "demo", "wp"); err == nil {
		t.Error("read a Secret")
	}
}
