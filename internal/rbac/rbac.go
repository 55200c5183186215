// Package rbac decides whether a connection may reach a workload: L4 authorization as a node proxy enforces it.
//
// Policies arrive as istio.security.Authorization. [Decode] checks and compiles one, [Store] keeps them behind one atomic
// pointer, [View.Set] gathers those that apply to a workload, and [Set.Check] decides. A policy with anything in it that is
// malformed is rejected whole, so that it can neither widen an ALLOW nor narrow a DENY.
package rbac

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Attributes is what a decision is made from (I10, I13).
type Attributes struct {
	Source   spiffe.ID      // proven by TLS, or vouched for on the own node; zero for plaintext
	SourceIP netip.Addr     // peer of the connection, not IPv4-mapped
	Dest     netip.AddrPort // real destination in the pod: not the tunnel's port
}

// Reason says why a Decision is what it is.
type Reason uint8

// The reasons.
const (
	NoPolicy       Reason = iota // allowed: no ALLOW policy applies
	AllowedBy                    // allowed by Policy
	DeniedBy                     // denied by Policy
	NotInAllowList               // denied: ALLOW policies apply and none matches
	UnknownPolicy                // denied: the workload lists a policy, Missing, that was never delivered
)

// Decision is the outcome of one check.
type Decision struct {
	Allowed bool
	Reason  Reason
	Policy  *Policy // the one that matched, for AllowedBy and DeniedBy
	Missing string  // the key of the policy that is not there, for UnknownPolicy

	// What dry-run policies would have done; they never change Allowed (I11, I19).
	DryRunDeny    *Policy // the first that would deny
	DryRunAllow   *Policy // the first that would allow
	DryRunNoMatch bool    // no enforced ALLOW exists, and no dry-run ALLOW matches: enforcing them would deny
}

// Error returns the refusal in words for access logs, or "" when allowed.
func (d *Decision) Error() string {
	switch d.Reason {
	case DeniedBy:
		return "policy rejection: explicitly denied by " + d.Policy.Key
	case NotInAllowList:
		return "policy rejection: allow policies exist, but none allowed"
	case UnknownPolicy:
		return "policy rejection: policy " + d.Missing + " applies, but the control plane has not delivered it"
	}
	return ""
}

// Scope says to whom a policy applies (I15).
type Scope uint8

// The scopes, numbered as in the protocol.
const (
	Global           Scope = iota // every workload
	Namespace                     // every workload of the policy's namespace
	WorkloadSelector              // workloads that list the policy
)

// String returns the name that config_dump shows.
func (s Scope) String() string {
	switch s {
	case Namespace:
		return "Namespace"
	case WorkloadSelector:
		return "WorkloadSelector"
	}
	return "Global"
}

// Action is what a match means.
type Action uint8

// The actions, numbered as in the protocol.
const (
	Allow Action = iota
	Deny
)

// String returns the name that config_dump shows.
func (a Action) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Policy is one compiled policy. Immutable.
type Policy struct {
	Key       string // "namespace/name"
	Name      string
	Namespace string
	Scope     Scope
	Action    Action
	DryRun    bool
	rules     []rule
}

// Matches tells whether any rule of the policy matches (I12).
func (p *Policy) Matches(a *Attributes) bool {
	for i := range p.rules {
		if p.rules[i].matches(a) {
			return true
		}
	}
	return false
}
