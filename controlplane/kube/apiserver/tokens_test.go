package apiserver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/controlplane/ca"
)

// jwt is a token with claims; its signature is the fake API server's business.
func jwt(claims string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + e.EncodeToString([]byte(claims)) + ".sig"
}

// inAnHour is a token for us that ends in an hour.
func inAnHour() string {
	return jwt(fmt.Sprintf(`{"aud":["istio-ca"],"exp":%d}`, time.Now().Add(time.Hour).Unix()))
}

// reviews makes the fake answer TokenReviews with a status, and counts them.
func reviews(s *fakeServer, status map[string]any, err error) *int {
	n := new(int)
	var mu sync.Mutex
	s.PrependReactor("create", "tokenreviews", func(ktesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		*n++
		return true, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": runtime.DeepCopyJSON(status),
		}}, err
	})
	return n
}

// vouched is the answer for the ztunnel of node n1.
func vouched() map[string]any {
	return map[string]any{
		"authenticated": true, "audiences": []any{"istio-ca"},
		"user": map[string]any{
			"username": "system:serviceaccount:istio-system:ztunnel", "groups": []any{"system:serviceaccounts", "system:authenticated"},
			"extra": map[string]any{
				extraPod: []any{"ztunnel-1"}, extraUID: []any{"u-1"}, extraNode: []any{"n1"},
			},
		},
	}
}

func TestTheAPIServerSaysWhoseATokenIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t)
		n := reviews(s, vouched(), nil)
		tokens := NewTokens(s.client())
		token := inAnHour()
		want := ca.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Pod: "ztunnel-1", UID: "u-1", Node: "n1", Live: true}
		for _, c := range []struct {
			after   time.Duration
			live    bool
			reviews int
			why     string
		}{
			{0, true, 1, "the first time"},
			{9 * time.Second, true, 1, "shortly after"},
			{2 * time.Second, false, 1, "when the pod may be gone"},
			{5 * time.Minute, true, 2, "after the answer was forgotten"},
			{55*time.Minute - 20*time.Second, true, 3, "shortly before the token ends"},
		} {
			time.Sleep(c.after)
			got, err := tokens.Authenticate(t.Context(), token)
			want.Live = c.live
			if err != nil || got != want || *n != c.reviews {
				t.Errorf("%s: got %+v, %v and %d reviews, want %+v and %d", c.why, got, err, *n, want, c.reviews)
			}
		}
		time.Sleep(20 * time.Second)
		if _, err := tokens.Authenticate(t.Context(), token); !errors.Is(err, ca.ErrToken) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its end: got %v", err)
		}
	})
}

func TestTokensAreRefused(t *testing.T) {
	change := func(f func(status, user map[string]any)) map[string]any {
		s := vouched()
		f(s, s["user"].(map[string]any))
		return s
	}
	for _, c := range []struct {
		name, token string
		status      map[string]any
		want        string
		asked       int
	}{
		{name: "no web token", token: "abc", want: "not a JSON web token"},
		{name: "claims that are no JSON", token: "a.!.c", want: "not base64url"},
		{name: "another audience", token: jwt(`{"aud":"vault","exp":99999999999}`), want: `want audience istio-ca, got ["vault"]`},
		{name: "no audience", token: jwt(`{"exp":99999999999}`), want: "want audience istio-ca"},
		{name: "no end", token: jwt(`{"aud":"istio-ca"}`), want: "expired"},
		{
			name: "a token that the API server refuses", token: inAnHour(), asked: 1, want: "token refused by the API server: pod is gone",
			status: map[string]any{"authenticated": false, "error": "pod is gone"},
		}, {
			name: "an API server that does not know audiences", token: inAnHour(), asked: 1, want: "vouches for audiences []",
			status: change(func(s, _ map[string]any) { delete(s, "audiences") }),
		}, {
			name: "a person", token: inAnHour(), asked: 1, want: `"admin" is no service account`,
			status: change(func(_, u map[string]any) { u["username"] = "admin" }),
		}, {
			name: "a name that looks like an account without its group", token: inAnHour(), asked: 1, want: "is no service account",
			status: change(func(_, u map[string]any) { u["groups"] = []any{"system:authenticated"} }),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFake(t)
			n := reviews(s, c.status, nil)
			tokens := NewTokens(s.client())
			for range 2 { // a refusal is not remembered
				if _, err := tokens.Authenticate(t.Context(), c.token); !errors.Is(err, ca.ErrToken) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			}
			if *n != 2*c.asked {
				t.Errorf("got %d reviews, want %d", *n, 2*c.asked)
			}
		})
	}
}

func TestAnAPIServerThatFailsRefusesNoToken(t *testing.T) {
	s := newFake(t)
	reviews(s, nil, errors.New("too busy"))
	if _, err := NewTokens(s.client()).Authenticate(t.Context(), inAnHour()); err == nil || errors.Is(err, ca.ErrToken) {
		t.Errorf("got %v, want an error that does not blame the token", err)
	}
}

func TestACallerNeedNotWaitForTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFake(t)
		s.PrependReactor("create", "tokenreviews", func(ktesting.Action) (bool, runtime.Object, error) {
			time.Sleep(time.Minute)
			return true, nil, errors.New("late")
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := NewTokens(s.client()).Authenticate(ctx, inAnHour()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
	})
}

func FuzzTokenPreview(f *testing.F) {
	f.Add("a.b.c")
	f.Add(jwt(`{"aud":["istio-ca"],"exp":1}`))
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := NewTokens(&Client{}).preview(token); err != nil && !errors.Is(err, ca.ErrToken) {
			t.Error(err)
		}
	})
}
