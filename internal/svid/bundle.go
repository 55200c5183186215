package svid

import (
	"crypto/x509"
	"slices"
	"strings"
	"time"
)

// bundles are the roots accepted per trust domain: the union of those that came with each SVID which has not expired.
// So old and new roots are accepted together while a rotation goes on, and a root that the CA no longer hands out
// goes when the last SVID that came with it has run out.
type bundles map[string]map[string]acceptedRoot

// acceptedRoot is one root and when it stops being accepted.
type acceptedRoot struct {
	cert  *x509.Certificate
	until time.Time
}

// merge adds the roots of s, drops those that have had their time, and returns the union and whether it changed.
func (b bundles) merge(s *SVID, now time.Time) ([]*x509.Certificate, bool) {
	td := s.ID.TrustDomain()
	set := b[td]
	if set == nil {
		set = map[string]acceptedRoot{}
		b[td] = set
	}
	changed := false
	for _, root := range s.roots {
		old, ok := set[string(root.Raw)]
		changed = changed || !ok
		if !ok || s.NotAfter.After(old.until) {
			set[string(root.Raw)] = acceptedRoot{cert: root, until: s.NotAfter}
		}
	}
	for raw, r := range set {
		if now.After(r.until) {
			delete(set, raw)
			changed = true
		}
	}
	return b.roots(td), changed
}

// roots are the accepted roots of td in a fixed order.
func (b bundles) roots(td string) []*x509.Certificate {
	var out []*x509.Certificate
	for _, r := range b[td] {
		out = append(out, r.cert)
	}
	slices.SortFunc(out, func(a, b *x509.Certificate) int { return strings.Compare(string(a.Raw), string(b.Raw)) })
	return out
}
