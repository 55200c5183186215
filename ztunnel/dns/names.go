package dns

import (
	"iter"
	"strings"
)

// candidate is a name that a query may mean.
type candidate struct {
	// host is what it may mean.
	host string
	// alias is the name without the search domain that made it; empty if there was none.
	alias string
}

// candidates are the names that a client of namespace ns may mean by a name, in the order in which they count (D4): the
// name, what Kubernetes makes of it, then the same without a search domain that a client's resolver put behind it. Names
// are in lower case, without the dot at the end.
func candidates(name, ns, domain string) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		expand := func(name, alias string) bool {
			if !yield(candidate{name, alias}) {
				return false
			}
			for _, host := range kubernetes(name, ns, domain) {
				if !yield(candidate{host, alias}) {
					return false
				}
			}
			return true
		}
		if !expand(name, "") {
			return
		}
		for _, search := range searches(ns, domain) {
			if short, ok := strings.CutSuffix(name, "."+search); ok && short != "" && !expand(short, short) {
				return
			}
		}
	}
}

// searches are the search domains of a pod, as the kubelet writes them.
func searches(ns, domain string) []string {
	return []string{ns + ".svc." + domain, "svc." + domain, domain}
}

// kubernetes returns the hostnames of services that a short name may mean in namespace ns.
func kubernetes(name, ns, domain string) []string {
	const svc = ".svc"
	switch labels := strings.Count(name, ".") + 1; {
	case labels == 1:
		return []string{name + "." + ns + svc + "." + domain}
	case labels == 2:
		return []string{name + svc + "." + domain, name + "." + ns + svc + "." + domain}
	case labels == 3 && strings.HasSuffix(name, svc):
		return []string{name + "." + domain, name + svc + "." + domain}
	case labels == 3:
		return []string{name + svc + "." + domain}
	case labels == 4 && strings.HasSuffix(name, svc):
		return []string{name + "." + domain}
	}
	return nil
}

// wildcards are the patterns that match a hostname, the longest first: for a.b.c they are *.b.c and *.c.
func wildcards(host string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, rest, ok := strings.Cut(host, ".")
			if !ok || !yield("*."+rest) {
				return
			}
			host = rest
		}
	}
}
