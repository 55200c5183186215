package kube

import (
	"slices"
	"strings"
)

// Principals are the texts that a policy's principal stands for. domains are the mesh's trust domain and its aliases, which
// are the same: a principal in one of them, whichever is written, is meant in all. "cluster.local" stands for the mesh's
// trust domain, as with Istio.
func Principals(domains []string, v string) []string {
	domain, rest, ok := strings.Cut(v, "/")
	if !ok || domain == "*" || !slices.ContainsFunc(domains, means(domain)) && domain != "cluster.local" {
		return []string{v}
	}
	var out []string
	for _, d := range domains {
		text := d + "/" + rest
		if strings.HasPrefix(domain, "*") && means(domain)(d) {
			text = v
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// TrustDomains are the trust domains that a policy's trust domain stands for.
func TrustDomains(domains []string, v string) []string {
	if slices.Contains(domains, v) {
		return domains
	}
	return []string{v}
}

// means says whether a trust domain is the one that is written, perhaps as a suffix.
func means(text string) func(string) bool {
	return func(d string) bool {
		if rest, ok := strings.CutPrefix(text, "*"); ok {
			return strings.HasSuffix(d, rest)
		}
		return d == text
	}
}
