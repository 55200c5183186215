package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"golang.org/x/sync/singleflight"

	"github.com/ambit-mesh/ambit/controlplane/ca"
)

// Audience is the one that proxies' tokens are made for.
const Audience = "istio-ca"

const (
	// freshFor is how long a review vouches for the pod that a token is bound to; from then on, and up to rememberFor,
	// it only vouches for the token, and the pod must be among those that the control plane sees.
	freshFor    = 10 * time.Second
	rememberFor = 5 * time.Minute
	// maxRemembered bounds the reviews that are remembered.
	maxRemembered = 20000
	// maxReviews bounds the reviews under way: strangers must not be able to keep the API server busy.
	maxReviews = 32
)

// Keys of what a TokenReview says of a bound token.
const (
	extraPod  = "authentication.kubernetes.io/pod-name"
	extraUID  = "authentication.kubernetes.io/pod-uid"
	extraNode = "authentication.kubernetes.io/node-name"

	userPrefix    = "system:serviceaccount:"
	groupAccounts = "system:serviceaccounts"
)

// Tokens is the ca.Authenticator that asks the API server (2.1): a token is good if it is a service account's and made
// for Audience. The pod it is bound to, its UID and its node come from the answer and not from the token.
//
// A good answer is remembered for rememberFor, never beyond the token's own end, by the hash of the token; a bad one is
// not. Tokens that are not for us by their own word are refused without asking. Safe for any goroutine.
type Tokens struct {
	client  *Client
	now     func() time.Time // a test seam
	flights singleflight.Group
	slots   chan struct{}

	mu    sync.Mutex
	known map[[sha256.Size]byte]review // guarded by mu
}

type review struct {
	caller ca.Caller
	at     time.Time
	until  time.Time
}

// NewTokens makes an authenticator.
func NewTokens(c *Client) *Tokens {
	return &Tokens{client: c, now: time.Now, slots: make(chan struct{}, maxReviews), known: map[[sha256.Size]byte]review{}}
}

// Authenticate implements ca.Authenticator. It blocks until the API server answers, callTimeout at most.
func (t *Tokens) Authenticate(ctx context.Context, token string) (ca.Caller, error) {
	expires, err := t.preview(token)
	if err != nil {
		return ca.Caller{}, err
	}
	sum := sha256.Sum256([]byte(token))
	if caller, ok := t.remembered(sum); ok {
		return caller, nil
	}
	// One question for all who ask the same; it goes on when the first of them goes away.
	result := t.flights.DoChan(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		select {
		case t.slots <- struct{}{}:
			defer func() { <-t.slots }()
		case <-ctx.Done():
			return ca.Caller{}, errors.New("too many tokens are being reviewed")
		}
		asked := t.now()
		caller, err := t.review(ctx, token)
		if err == nil {
			t.remember(sum, review{caller: caller, at: asked, until: earlier(expires, asked.Add(rememberFor))})
		}
		return caller, err
	})
	select {
	case <-ctx.Done():
		return ca.Caller{}, fmt.Errorf("review token: %w", ctx.Err())
	case r := <-result:
		caller, _ := r.Val.(ca.Caller)
		return caller, r.Err
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// preview refuses what is no token for us by its own, still unverified word, and says when it ends.
func (t *Tokens) preview(token string) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, fmt.Errorf("%w: not a JSON web token", ca.ErrToken)
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: claims are not base64url", ca.ErrToken)
	}
	var claims struct {
		Aud audiences `json:"aud"`
		Exp int64     `json:"exp"`
	}
	if err := json.Unmarshal(body, &claims); err != nil {
		return time.Time{}, fmt.Errorf("%w: parse claims: %w", ca.ErrToken, err)
	}
	expires := time.Unix(claims.Exp, 0)
	switch {
	case !slices.Contains(claims.Aud, Audience):
		return time.Time{}, fmt.Errorf("%w: want audience %s, got %q", ca.ErrToken, Audience, []string(claims.Aud))
	case !t.now().Before(expires):
		return time.Time{}, fmt.Errorf("%w: expired at %s", ca.ErrToken, expires.UTC().Format(time.RFC3339))
	}
	return expires, nil
}

// audiences is a string or a list of them (RFC 7519 section 4.1.3).
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func (t *Tokens) remembered(sum [sha256.Size]byte) (ca.Caller, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.known[sum]
	now := t.now()
	if !ok || !now.Before(r.until) {
		return ca.Caller{}, false
	}
	if now.Sub(r.at) >= freshFor {
		r.caller.Live = false
	}
	return r.caller, true
}

func (t *Tokens) remember(sum [sha256.Size]byte, r review) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxRemembered {
		now := t.now()
		for k, old := range t.known {
			if !now.Before(old.until) || len(t.known) >= maxRemembered {
				delete(t.known, k)
			}
		}
	}
	t.known[sum] = r
}

// review asks the API server. Errors wrap ca.ErrToken when it refused the token.
func (t *Tokens) review(ctx context.Context, token string) (ca.Caller, error) {
	answer, err := t.client.dynamic.Resource(tokenReviews).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
		"spec": map[string]any{"token": token, "audiences": []any{Audience}},
	}}, metav1.CreateOptions{})
	if err != nil {
		if apierrors.IsForbidden(err) {
			return ca.Caller{}, fmt.Errorf("review token: the control plane may not create TokenReviews: %w", err)
		}
		return ca.Caller{}, fmt.Errorf("review token: %w", err)
	}
	var r authenticationv1.TokenReview
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(answer.Object, &r); err != nil {
		return ca.Caller{}, fmt.Errorf("review token: %w", err)
	}
	return callerOf(r.Status)
}

// callerOf reads the answer of a review.
func callerOf(s authenticationv1.TokenReviewStatus) (ca.Caller, error) {
	namespace, name, ok := strings.Cut(strings.TrimPrefix(s.User.Username, userPrefix), ":")
	switch {
	case !s.Authenticated:
		return ca.Caller{}, fmt.Errorf("%w by the API server: %s", ca.ErrToken, s.Error)
	case !slices.Contains(s.Audiences, Audience):
		// An API server that ignores audiences returns none: then it has not checked ours.
		return ca.Caller{}, fmt.Errorf("%w: the API server vouches for audiences %q, want %s", ca.ErrToken, s.Audiences, Audience)
	case !strings.HasPrefix(s.User.Username, userPrefix) || !ok || namespace == "" || name == "" || !slices.Contains(s.User.Groups, groupAccounts):
		return ca.Caller{}, fmt.Errorf("%w: %q is no service account", ca.ErrToken, s.User.Username)
	}
	extra := func(key string) string {
		if v := s.User.Extra[key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	c := ca.Caller{Namespace: namespace, ServiceAccount: name, Pod: extra(extraPod), UID: extra(extraUID), Node: extra(extraNode)}
	// The API server has just looked whether the pod with this UID exists.
	c.Live = c.Pod != "" && c.UID != ""
	return c, nil
}
