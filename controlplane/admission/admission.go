// Package admission answers an API server that asks about the mesh's objects before it stores them: what the control
// plane would reject is refused with the text that would otherwise stand in a condition or an event of the object, and
// what would work in part only, or not as meant, is a warning, which kubectl prints.
//
// It knows nothing of meshes: a Judge says what is wrong. It keeps the API server's side: an update that changes nothing
// of what was said passes whatever is wrong, so that an object with a flaw can still be labelled, annotated by a
// controller and deleted; and of the Gateway API, which has many implementations, only what is for this one is refused.
package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
)

// Path is where a Handler is to be asked.
const Path = "/validate"

// Limits of a request. Objects are at most 1.5 MB, and an update has two.
const (
	maxBody   = 8 << 20
	maxAtOnce = 8
)

// Judge says what would be wrong if an object were stored: of the object itself everything, of others what would be
// rejected and is not yet. It may block until ctx ends; an error means that it cannot tell.
type Judge func(ctx context.Context, o kube.Object) ([]kube.Problem, error)

// Handler answers the reviews of an API server. Safe for any goroutine.
type Handler struct {
	judge Judge
	log   *slog.Logger
	turns chan struct{} // one in it for each review that runs
}

// NewHandler makes a handler.
func NewHandler(judge Judge, logger *slog.Logger) *Handler {
	return &Handler{judge: judge, log: logger, turns: make(chan struct{}, maxAtOnce)}
}

// ServeHTTP implements http.Handler. Whatever is no answer about the object is an error of HTTP, on which the API server
// does as the webhook's failurePolicy says.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != Path {
		http.NotFound(w, r)
		return
	}
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	default:
		http.Error(w, "too many reviews at once", http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
		http.Error(w, "want an AdmissionReview with a request", http.StatusBadRequest)
		return
	}
	answer, err := h.review(r.Context(), review.Request)
	if err != nil {
		h.log.Warn("object not reviewed", slog.String("object", nameOf(review.Request)), slog.Any("err", err))
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{ // the client went away
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Response: answer,
	})
}

func nameOf(r *admissionv1.AdmissionRequest) string {
	return kube.Key{Kind: kube.Kind(r.Kind.Kind), Name: kube.Name{Namespace: r.Namespace, Name: r.Name}}.String()
}

// review answers one request.
func (h *Handler) review(ctx context.Context, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update || r.SubResource != "" {
		return allowed(r.UID), nil
	}
	o, err := read(r.Object.Raw)
	if err != nil {
		return nil, err
	}
	if r.Operation == admissionv1.Update {
		old, err := read(r.OldObject.Raw)
		if err != nil {
			return nil, err
		}
		if o.deleted() || o.says(old) {
			return allowed(r.UID), nil
		}
	}
	body, err := o.complete(r)
	if err != nil {
		return nil, err
	}
	object, problems := kube.DecodeStored(body)
	if object == nil && r.Kind.Group == gatewayv1.GroupName && !concerns(body) {
		return allowed(r.UID), nil // another implementation may know what this is
	}
	if object != nil {
		if problems, err = h.judge(ctx, object); err != nil {
			return nil, err
		}
	}
	answer := answerTo(r, problems)
	if !answer.Allowed {
		h.log.Info("object refused", slog.String("object", nameOf(r)), slog.String("user", r.UserInfo.Username), slog.String("cause", answer.Result.Message))
	}
	return answer, nil
}

func allowed(uid types.UID) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{UID: uid, Allowed: true}
}

// answerTo refuses for what is rejected, and warns of the rest.
func answerTo(r *admissionv1.AdmissionRequest, problems []kube.Problem) *admissionv1.AdmissionResponse {
	answer := allowed(r.UID)
	var refused []string
	for _, p := range problems {
		if o := p.Object; string(o.Kind) == r.Kind.Kind && o.Namespace == r.Namespace && (o.Name.Name == r.Name || r.Name == "") {
			p.Object = kube.Key{} // kubectl says which
		}
		if text := p.Error(); p.Severity == kube.Rejected {
			refused = append(refused, text)
		} else if text = p.Severity.String() + ": " + text; !slices.Contains(answer.Warnings, text) {
			answer.Warnings = append(answer.Warnings, text)
		}
	}
	if len(refused) > 0 {
		answer.Allowed = false
		answer.Result = &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
			Message: strings.Join(slices.Compact(refused), "; "),
		}
	}
	return answer
}

// object is one as the API server sends it.
type object map[string]any

func read(raw []byte) (object, error) {
	var o object
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&o); err != nil || o == nil {
		return nil, errors.Join(errors.New("read object: not a JSON object"), err)
	}
	return o, nil
}

func (o object) metadata() map[string]any {
	m, _ := o["metadata"].(map[string]any)
	return m
}

func (o object) deleted() bool { return o.metadata()["deletionTimestamp"] != nil }

// lastApplied is kubectl's own copy of an object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// says says whether two versions of an object mean the same: they differ in their status, in who wrote them, not in what.
func (o object) says(old object) bool {
	meaning := func(o object) []any {
		annotations := map[string]any{}
		if list, ok := o.metadata()["annotations"].(map[string]any); ok {
			for k, v := range list {
				if k != lastApplied {
					annotations[k] = v
				}
			}
		}
		labels, _ := o.metadata()["labels"].(map[string]any)
		if len(labels) == 0 {
			labels = nil
		}
		out := []any{annotations, labels}
		for _, k := range slices.Sorted(keys(o)) {
			if k != "metadata" && k != "status" {
				out = append(out, k, o[k])
			}
		}
		return out
	}
	return reflect.DeepEqual(meaning(o), meaning(old))
}

func keys(o object) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range o {
			if !yield(k) {
				return
			}
		}
	}
}

// complete is the object with what the API server may still be going to fill in.
func (o object) complete(r *admissionv1.AdmissionRequest) ([]byte, error) {
	m := o.metadata()
	if m == nil {
		m = map[string]any{}
		o["metadata"] = m
	}
	set := func(field string, v any) {
		if s, _ := m[field].(string); s == "" {
			m[field] = v
		}
	}
	if r.Namespace != "" {
		set("namespace", r.Namespace)
	}
	prefix, _ := m["generateName"].(string)
	if r.Name != "" {
		set("name", r.Name)
	} else if prefix != "" {
		set("name", prefix+"new")
	}
	set("creationTimestamp", time.Now().UTC().Format(time.RFC3339)) // the youngest yields where two contradict each other
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("write object: %w", err)
	}
	return body, nil
}

// concerns says whether an object of the Gateway API that cannot be decoded is for this mesh: a waypoint, or a route for
// traffic inside the mesh.
func concerns(body []byte) bool {
	var o struct {
		Spec struct {
			GatewayClassName string
			ParentRefs       []struct{ Kind string }
		}
	}
	if json.Unmarshal(body, &o) != nil {
		return false
	}
	for _, p := range o.Spec.ParentRefs {
		if p.Kind == string(kube.KindService) || p.Kind == string(kube.KindServiceEntry) {
			return true
		}
	}
	return o.Spec.GatewayClassName == kube.WaypointClass
}
