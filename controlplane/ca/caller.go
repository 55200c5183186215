package ca

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
)

// Caller is who a token belongs to.
type Caller struct {
	// Namespace and ServiceAccount are always there.
	Namespace, ServiceAccount string
	// Pod and UID name the pod that the token is bound to, "" = none.
	Pod, UID string
	// Node is the pod's node, when the token says so.
	Node string
	// Live: whoever checked the token has also checked that the pod exists.
	Live bool
}

// Account is "namespace/serviceaccount".
func (c Caller) Account() string { return c.Namespace + "/" + c.ServiceAccount }

// String is for logs.
func (c Caller) String() string {
	if c.Pod == "" {
		return c.Account()
	}
	return c.Account() + " (pod " + c.Pod + ")"
}

// ErrToken is wrapped by the errors of an Authenticator that looked at a token and refused it.
var ErrToken = errors.New("token refused")

// Authenticator finds out whose a bearer token is.
type Authenticator interface {
	// Authenticate returns the caller or an error that wraps ErrToken; other errors mean that the token could not be
	// checked. It may block until ctx ends.
	Authenticate(ctx context.Context, token string) (Caller, error)
}

// maxToken bounds a token in bytes.
const maxToken = 16 << 10

// Authenticate takes the bearer token out of the metadata of an incoming RPC and has it checked. Errors wrap ErrToken
// when the token is missing or refused.
func Authenticate(ctx context.Context, auth Authenticator) (Caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return Caller{}, fmt.Errorf("%w: want one authorization header, got %d", ErrToken, len(values))
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || token == "" || len(token) > maxToken {
		return Caller{}, fmt.Errorf("%w: want a bearer token of at most %d bytes", ErrToken, maxToken)
	}
	return auth.Authenticate(ctx, token)
}

// LabTokens is the Authenticator of meshes without Kubernetes. A token is
//
//	base64url(JSON claims) "." base64url(HMAC-SHA256(Key, first part))
//
// with the claims namespace, serviceAccount, pod, uid, node and exp (seconds since 1970), and the audience istio-ca
// implied; an aud claim must be that.
type LabTokens struct {
	// Key signs the tokens; whoever knows it is everybody. At least 16 bytes.
	Key []byte
}

type labClaims struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
	UID            string `json:"uid"`
	Node           string `json:"node"`
	Exp            int64  `json:"exp"`
	Aud            string `json:"aud,omitempty"`
}

// Authenticate implements Authenticator without blocking.
func (l LabTokens) Authenticate(_ context.Context, token string) (Caller, error) {
	first, second, ok := strings.Cut(token, ".")
	if !ok {
		return Caller{}, fmt.Errorf("%w: not a lab token", ErrToken)
	}
	sum, err := base64.RawURLEncoding.DecodeString(second)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: signature is not base64url", ErrToken)
	}
	mac := hmac.New(sha256.New, l.Key)
	mac.Write([]byte(first))
	if !hmac.Equal(sum, mac.Sum(nil)) {
		return Caller{}, fmt.Errorf("%w: wrong signature", ErrToken)
	}
	body, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return Caller{}, fmt.Errorf("%w: claims are not base64url", ErrToken)
	}
	var c labClaims
	if err := json.Unmarshal(body, &c); err != nil {
		return Caller{}, fmt.Errorf("%w: parse claims: %w", ErrToken, err)
	}
	switch exp := time.Unix(c.Exp, 0); {
	case c.Namespace == "" || c.ServiceAccount == "":
		return Caller{}, fmt.Errorf("%w: no service account", ErrToken)
	case c.Aud != "" && c.Aud != "istio-ca":
		return Caller{}, fmt.Errorf("%w: want audience istio-ca, got %q", ErrToken, c.Aud)
	case time.Now().After(exp):
		return Caller{}, fmt.Errorf("%w: expired at %s", ErrToken, exp.UTC().Format(time.RFC3339))
	}
	return Caller{Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, Pod: c.Pod, UID: c.UID, Node: c.Node}, nil
}
