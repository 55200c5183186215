package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// OverlayKeys are the keys of a ConfigMap whose values are laid over the objects, as strategic merge patches in YAML.
var OverlayKeys = []string{"deployment", "service", "serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget"}

// asked says whether an overlay has a key: objects that are not always there are made then.
func (r *renderer) asked(key string) bool {
	for _, m := range r.overlays {
		if strings.TrimSpace(m.Data[key]) != "" {
			return true
		}
	}
	return false
}

// add appends an object with what the overlays say of it. What says whose it is stays as it was.
func (r *renderer) add(kind, key string, o kube.Object) {
	body, err := json.Marshal(o)
	for _, m := range r.overlays {
		text := strings.TrimSpace(m.Data[key])
		if text == "" || err != nil {
			continue
		}
		if body, err = overlay(body, text, o); err != nil {
			where := "ConfigMap " + m.Namespace + "/" + m.Name
			r.refuse(parametersField, fmt.Sprintf("%s: data.%s: %v", where, key, err), "a part of a "+kind)
			return
		}
	}
	u := &unstructured.Unstructured{}
	if err == nil {
		err = u.UnmarshalJSON(body)
	}
	if err != nil {
		r.refuse("", err.Error(), "")
		return
	}
	r.seal(u)
	r.out = append(r.out, u)
}

// overlay lays a patch over an object in JSON. The result must be an object of the same type as example.
func overlay(body []byte, text string, example kube.Object) ([]byte, error) {
	patch, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	if !strings.HasPrefix(string(patch), "{") {
		return nil, errors.New("not an object")
	}
	merged, err := strategicpatch.StrategicMergePatch(body, patch, example)
	if err != nil {
		return nil, err
	}
	typed := reflect.New(reflect.TypeOf(example).Elem()).Interface()
	unknown, err := kjson.UnmarshalStrict(merged, typed)
	if err == nil && len(unknown) > 0 {
		err = unknown[0]
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(typed)
}

// seal makes an object fit to be applied as this Gateway's.
func (r *renderer) seal(u *unstructured.Unstructured) {
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, r.identity())
	u.SetLabels(labels)
	u.SetName(r.g.Name)
	u.SetNamespace(r.g.Namespace)
	u.SetOwnerReferences(r.owners())
	unstructured.RemoveNestedField(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	if u.GetKind() == kindDeployment { // the pods that the Service and the Deployment look for
		unstructured.RemoveNestedField(u.Object, "spec", "template", "metadata", "creationTimestamp")
		pod, _, _ := unstructured.NestedStringMap(u.Object, "spec", "template", "metadata", "labels")
		if pod == nil {
			pod = map[string]string{}
		}
		maps.Copy(pod, r.identity())
		_ = unstructured.SetNestedStringMap(u.Object, pod, "spec", "template", "metadata", "labels")
		_ = unstructured.SetNestedField(u.Object, map[string]any{"matchLabels": map[string]any{kube.LabelGateway: r.g.Name}}, "spec", "selector")
	}
}
