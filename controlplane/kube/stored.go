package kube

import (
	"encoding/json"
	"errors"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Kinds lists the accepted kinds.
func Kinds() []Kind {
	out := make([]Kind, len(kinds))
	for i := range kinds {
		out[i] = kinds[i].kind
	}
	return out
}

// Versions is the API group of an accepted kind and the versions of it that are accepted, the preferred first. They have
// one schema. For any other kind it returns nothing.
func (k Kind) Versions() (group string, versions []string) {
	for i := range kinds {
		if kinds[i].kind == k {
			return kinds[i].group, slices.Clone(kinds[i].versions)
		}
	}
	return "", nil
}

// BuiltIn says whether a kind is one of Kubernetes itself, which every API server has. Other kinds have definitions.
func (k Kind) BuiltIn() bool {
	i := slices.IndexFunc(kinds, func(info kindInfo) bool { return info.kind == k })
	return i >= 0 && kinds[i].builtIn()
}

// DecodeStored decodes one object that an API server holds, from JSON. It is Decode with one difference: of the kinds
// that belong to Kubernetes itself it takes fields that it does not know, since the server may be newer than this
// program. An unknown field of a policy or a route is an error as it is in a manifest: what the object means is not
// known then.
//
// The object is nil when there are problems. They have no file and no line.
func DecodeStored(body []byte) (Object, []Problem) {
	var head metav1.PartialObjectMetadata
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, []Problem{{Cause: err.Error(), Accepted: "a Kubernetes object in JSON"}}
	}
	info, _ := findKind(head.APIVersion, head.Kind)
	if info == nil {
		return nil, explainStored(body)
	}
	obj := info.create()
	err := info.decode(body, obj)
	if unknown := (strictErrors)(nil); errors.As(err, &unknown) && info.builtIn() {
		err = nil
	}
	if err != nil {
		// The manifests' way explains it; and it takes spellings that the fast one does not.
		entries, problems := decodeText(body)
		if len(problems) == 0 && len(entries) == 1 {
			return entries[0].object, nil
		}
		return nil, unplaced(problems)
	}
	if problems := Admit(obj); len(problems) > 0 {
		return nil, problems
	}
	return obj, nil
}

// builtIn says whether a kind belongs to Kubernetes itself.
func (k *kindInfo) builtIn() bool { return !k.istio && k.group != groupGateway }

// decodeText decodes one object in the way of manifests. JSON is YAML.
func decodeText(body []byte) ([]entry, []Problem) {
	roots, err := document{text: body, line: 1}.parse()
	if err != nil || len(roots) != 1 {
		return nil, []Problem{{Cause: "not one object", Accepted: "a Kubernetes object in JSON"}}
	}
	return decodeNode(roots[0], false)
}

func explainStored(body []byte) []Problem {
	_, problems := decodeText(body)
	return unplaced(problems)
}

// unplaced takes the lines away: the text is the API server's, which nobody sees.
func unplaced(problems []Problem) []Problem {
	for i := range problems {
		problems[i].Line = 0
	}
	return problems
}
