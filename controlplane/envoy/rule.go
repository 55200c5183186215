package envoy

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/controlplane/kube"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// ruleSet is what the DestinationRules of one namespace say of a host. Nil is no rule.
type ruleSet struct {
	// first is the oldest: its traffic policy counts. It is nil if there is no rule, and affinity alone says how to balance.
	first   *networkingv1.DestinationRule
	subsets []*networking.Subset
	// owners are the rules that the subsets are from.
	owners []*networkingv1.DestinationRule
	// affinity says that the Service wants a client address to stay at one endpoint (sessionAffinity ClientIP).
	affinity bool
}

func (r *ruleSet) subset(name string) *networking.Subset {
	if r == nil {
		return nil
	}
	for _, s := range r.subsets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// ruleFor finds the rules for a service: those of the waypoint's namespace, else of the service's, else of the root
// namespace; in it those of the very host, else those of the longest pattern (3.8).
func (b *builder) ruleFor(s *service) *ruleSet {
	set, known := b.ruleSets[s]
	if !known {
		set = b.findRules(s)
		if workload.Extended(s.message.Extensions, workload.ExtensionClientAffinity) {
			if set == nil {
				set = &ruleSet{}
			}
			set.affinity = true
		}
		b.ruleSets[s] = set
	}
	return set
}

func (b *builder) findRules(s *service) *ruleSet {
	for _, ns := range []string{b.gateway.Namespace, s.namespace(), b.cfg.RootNamespace} {
		var best string
		for _, r := range b.rules {
			host := b.resolveHost(r.Spec.Host, r.Namespace)
			if r.Namespace == ns && r.Spec.GetWorkloadSelector() == nil && visible(r.Spec.ExportTo, ns, b.gateway.Namespace) &&
				hostMatches(host, s.host()) && (best == "" || best != s.host() && (host == s.host() || len(host) > len(best))) {
				best = host
			}
		}
		if best != "" {
			return b.gather(ns, best)
		}
	}
	return nil
}

func (b *builder) gather(namespace, host string) *ruleSet {
	set := &ruleSet{}
	for _, r := range b.rules {
		if r.Namespace != namespace || b.resolveHost(r.Spec.Host, r.Namespace) != host || r.Spec.GetWorkloadSelector() != nil {
			continue
		}
		if set.first == nil {
			set.first = r
		} else if r.Spec.TrafficPolicy != nil {
			b.problem(kube.Ignored, kube.KeyOf(r), "spec.trafficPolicy", "DestinationRule "+set.first.Name+" is older and has the policy of host "+host, "one traffic policy for each host")
		}
		for _, s := range r.Spec.Subsets {
			if s == nil {
				continue
			}
			if set.subset(s.Name) != nil {
				b.problem(kube.Ignored, kube.KeyOf(r), "spec.subsets", "subset "+s.Name+" of host "+host+" is there already", "each subset once")
				continue
			}
			set.subsets, set.owners = append(set.subsets, s), append(set.owners, r)
		}
	}
	return set
}

// policyFor merges what the Service wants, the rule's policy, that of a subset and that of a port: a subset replaces whole
// parts, a port all of its parts, also those it does not name.
func (r *ruleSet) policyFor(subset string, number uint32) *networking.TrafficPolicy {
	out := &networking.TrafficPolicy{}
	if r == nil {
		return out
	}
	var layers []*networking.TrafficPolicy
	if r.first != nil {
		layers = append(layers, r.first.Spec.TrafficPolicy)
	}
	if s := r.subset(subset); s != nil {
		layers = append(layers, s.TrafficPolicy)
	}
	for _, p := range layers {
		if p == nil {
			continue
		}
		overlay(out, p)
		i := slices.IndexFunc(p.PortLevelSettings, func(l *networking.TrafficPolicy_PortTrafficPolicy) bool {
			return l.GetPort().GetNumber() == number
		})
		if i >= 0 {
			l := p.PortLevelSettings[i]
			out.ConnectionPool, out.OutlierDetection, out.LoadBalancer, out.Tls = l.ConnectionPool, l.OutlierDetection, l.LoadBalancer, l.Tls
		}
	}
	if r.affinity && out.LoadBalancer.GetLbPolicy() == nil { // what a rule says of balancing comes before what the Service does
		lb := &networking.LoadBalancerSettings{}
		if out.LoadBalancer != nil {
			lb = clone(out.LoadBalancer)
		}
		lb.LbPolicy = &networking.LoadBalancerSettings_ConsistentHash{ConsistentHash: &networking.LoadBalancerSettings_ConsistentHashLB{
			HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp{UseSourceIp: true},
		}}
		out.LoadBalancer = lb
	}
	return out
}

// overlay replaces the parts that a policy names.
func overlay(out, p *networking.TrafficPolicy) {
	if p.ConnectionPool != nil {
		out.ConnectionPool = p.ConnectionPool
	}
	if p.OutlierDetection != nil {
		out.OutlierDetection = p.OutlierDetection
	}
	if p.LoadBalancer != nil {
		out.LoadBalancer = p.LoadBalancer
	}
	if p.Tls != nil {
		out.Tls = p.Tls
	}
	if p.ProxyProtocol != nil {
		out.ProxyProtocol = p.ProxyProtocol
	}
	if p.Tunnel != nil {
		out.Tunnel = p.Tunnel
	}
	if p.RetryBudget != nil {
		out.RetryBudget = p.RetryBudget
	}
}
