// Package spiffe holds SPIFFE IDs of Kubernetes service accounts as small comparable values.
//
// Istio's identities have one form only, spiffe://<trust domain>/ns/<namespace>/sa/<service account> (H3), and an ID
// in hand is always a well-formed one: it can be made by New, Parse and FromCert alone. IDs are compared with ==, may
// be map keys, and are immutable, so every function here may be called from any goroutine and none blocks.
package spiffe

import (
	"errors"
	"fmt"
	"strings"
)

// Scheme is the prefix of every SPIFFE ID.
const Scheme = "spiffe://"

// Limits of the SPIFFE ID standard, section 2.3 and 2.1, in bytes.
const (
	maxID          = 2048
	maxTrustDomain = 255
)

// ErrInvalid is wrapped by every error of Parse and New: the text is not the ID of a service account.
var ErrInvalid = errors.New("invalid SPIFFE ID")

// ID is the SPIFFE ID of one service account. The zero value is no identity; IsZero tells.
type ID struct {
	// uri is the whole ID. The offsets follow from it, so comparing IDs compares what they name.
	uri string
	// td is the end of the trust domain, ns the end of the namespace, both as offsets into uri.
	td, ns uint16
}

// New makes the ID of service account sa of namespace ns in trust domain td. The error wraps ErrInvalid.
func New(td, ns, sa string) (ID, error) {
	if strings.ContainsRune(td, '/') || strings.ContainsRune(ns, '/') || strings.ContainsRune(sa, '/') {
		return ID{}, invalid(td+" "+ns+" "+sa, "a part contains '/'")
	}
	return Parse(Scheme + td + "/ns/" + ns + "/sa/" + sa)
}

// Parse reads spiffe://<td>/ns/<ns>/sa/<sa>. It is strict: exactly five parts, the literals ns and sa, and only the
// characters a-z, 0-9, '.', '-' and '_' in the three names, none of which may be "." or "..". Kubernetes names have
// no others, and a second spelling of an identity (upper case, percent-encoding, an empty segment) would be a way
// around a policy that names the first. The error wraps ErrInvalid and says what is wrong.
func Parse(uri string) (ID, error) {
	if len(uri) > maxID {
		return ID{}, invalid(uri[:64]+"...", fmt.Sprintf("longer than %d bytes", maxID))
	}
	rest, ok := strings.CutPrefix(uri, Scheme)
	if !ok {
		return ID{}, invalid(uri, "want the prefix "+Scheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, invalid(uri, "want spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
	}
	if err := CheckTrustDomain(parts[0]); err != nil {
		return ID{}, invalid(uri, err.Error())
	}
	if why := badName(parts[2]); why != "" {
		return ID{}, invalid(uri, "namespace "+why)
	}
	if why := badName(parts[4]); why != "" {
		return ID{}, invalid(uri, "service account "+why)
	}
	td := len(Scheme) + len(parts[0])
	return ID{uri: uri, td: uint16(td), ns: uint16(td + len("/ns/") + len(parts[2]))}, nil
}

// CheckTrustDomain says why td is not a trust domain name, or nil.
func CheckTrustDomain(td string) error {
	if len(td) > maxTrustDomain {
		return fmt.Errorf("trust domain is longer than %d bytes", maxTrustDomain)
	}
	if why := badName(td); why != "" {
		return errors.New("trust domain " + why)
	}
	return nil
}

// badName says why s cannot be a name in an ID, or "".
func badName(s string) string {
	switch s {
	case "":
		return "is empty"
	case ".", "..":
		return fmt.Sprintf("is %q", s)
	}
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_' {
			continue
		}
		return fmt.Sprintf("contains %q", c)
	}
	return ""
}

func invalid(uri, why string) error {
	return fmt.Errorf("%w %q: %s", ErrInvalid, uri, why)
}

// String is the ID as a URI, and "" for the zero ID.
func (id ID) String() string { return id.uri }

// Principal is the ID without its scheme, the form that authorization policies use: td/ns/<ns>/sa/<sa>.
func (id ID) Principal() string {
	if id.uri == "" {
		return ""
	}
	return id.uri[len(Scheme):]
}

// TrustDomain is the trust domain, for example cluster.local.
func (id ID) TrustDomain() string {
	if id.uri == "" {
		return ""
	}
	return id.uri[len(Scheme):id.td]
}

// Namespace is the service account's namespace.
func (id ID) Namespace() string {
	if id.uri == "" {
		return ""
	}
	return id.uri[int(id.td)+len("/ns/") : id.ns]
}

// ServiceAccount is the service account's name.
func (id ID) ServiceAccount() string {
	if id.uri == "" {
		return ""
	}
	return id.uri[int(id.ns)+len("/sa/"):]
}

// IsZero tells whether id names nobody.
func (id ID) IsZero() bool { return id.uri == "" }

// MarshalText is String as bytes, so that dumps and logs show the URI.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.uri), nil }

// UnmarshalText is Parse; empty text gives the zero ID.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
