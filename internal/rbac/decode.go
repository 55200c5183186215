package rbac

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/securitypb"
)

// Decode decodes, checks and compiles the body of one istio.security.Authorization; name is the resource's name and is used
// in errors only. Malformed addresses, ports, string matches and unknown enum values reject the policy, where the reference
// implementation drops them in silence and thereby changes what it means (I14). It fits xds.Type.Decode.
func Decode(name string, body []byte) (*Policy, error) {
	var pb securitypb.Authorization
	if err := proto.Unmarshal(body, &pb); err != nil {
		return nil, fmt.Errorf("decode policy %q: %w", name, err)
	}
	p, err := FromProto(&pb)
	if err != nil {
		return nil, fmt.Errorf("policy %q: %w", name, err)
	}
	return p, nil
}

// FromProto is Decode of an already parsed message.
func FromProto(pb *securitypb.Authorization) (*Policy, error) {
	p := &Policy{
		Key: pb.GetNamespace() + "/" + pb.GetName(), Name: pb.GetName(), Namespace: pb.GetNamespace(), DryRun: pb.GetDryRun(),
	}
	switch s := pb.GetScope(); s {
	case securitypb.Scope_GLOBAL, securitypb.Scope_NAMESPACE, securitypb.Scope_WORKLOAD_SELECTOR:
		p.Scope = Scope(s)
	default:
		return nil, fmt.Errorf("unknown scope %v", s)
	}
	switch a := pb.GetAction(); a {
	case securitypb.Action_ALLOW, securitypb.Action_DENY:
		p.Action = Action(a)
	default:
		return nil, fmt.Errorf("unknown action %v", a)
	}
	for _, r := range pb.GetRules() {
		if err := known(r); err != nil {
			return nil, err
		}
		var out rule
		for _, c := range r.GetClauses() {
			var oc clause
			if err := known(c); err != nil {
				return nil, err
			}
			for _, m := range c.GetMatches() {
				om, err := decodeMatch(m)
				if err != nil {
					return nil, err
				}
				oc.matches = append(oc.matches, om)
			}
			out.clauses = append(out.clauses, oc)
		}
		p.rules = append(p.rules, out)
	}
	return p, nil
}

// known rejects fields that this version does not have: they may be conditions, and a condition left out changes the rule.
func known(m proto.Message) error {
	if n := len(m.ProtoReflect().GetUnknown()); n > 0 {
		return fmt.Errorf("%s has %d bytes of unknown fields", m.ProtoReflect().Descriptor().Name(), n)
	}
	return nil
}

func decodeMatch(pb *securitypb.Match) (match, error) {
	var m match
	if err := known(pb); err != nil {
		return m, err
	}
	for _, s := range []struct {
		to   *[]stringMatch
		from []*securitypb.StringMatch
	}{
		{&m.namespaces, pb.GetNamespaces()}, {&m.notNamespaces, pb.GetNotNamespaces()},
		{&m.principals, pb.GetPrincipals()}, {&m.notPrincipals, pb.GetNotPrincipals()},
	} {
		for _, f := range s.from {
			v, err := decodeString(f)
			if err != nil {
				return m, err
			}
			*s.to = append(*s.to, v)
		}
	}
	for _, s := range []struct {
		to   *[]netip.Prefix
		from []*securitypb.Address
	}{
		{&m.sourceIPs, pb.GetSourceIps()}, {&m.notSourceIPs, pb.GetNotSourceIps()},
		{&m.destIPs, pb.GetDestinationIps()}, {&m.notDestIPs, pb.GetNotDestinationIps()},
	} {
		for _, f := range s.from {
			v, err := decodePrefix(f)
			if err != nil {
				return m, err
			}
			*s.to = append(*s.to, v)
		}
	}
	for _, s := range []struct {
		to   *[]uint16
		from []uint32
	}{{&m.destPorts, pb.GetDestinationPorts()}, {&m.notDestPorts, pb.GetNotDestinationPorts()}} {
		for _, f := range s.from {
			if f > 65535 {
				return m, fmt.Errorf("port %d is out of range", f)
			}
			*s.to = append(*s.to, uint16(f))
		}
	}
	for _, s := range []struct {
		to   *[]account
		from []*securitypb.ServiceAccountMatch
	}{{&m.serviceAccounts, pb.GetServiceAccounts()}, {&m.notServiceAccounts, pb.GetNotServiceAccounts()}} {
		for _, f := range s.from {
			*s.to = append(*s.to, account{f.GetNamespace(), f.GetServiceAccount()})
		}
	}
	return m, nil
}

func decodeString(pb *securitypb.StringMatch) (stringMatch, error) {
	switch t := pb.GetMatchType().(type) {
	case *securitypb.StringMatch_Exact:
		return stringMatch{exact, t.Exact}, nil
	case *securitypb.StringMatch_Prefix:
		return stringMatch{prefix, t.Prefix}, nil
	case *securitypb.StringMatch_Suffix:
		return stringMatch{suffix, t.Suffix}, nil
	case *securitypb.StringMatch_Presence_:
		return stringMatch{kind: presence}, nil
	}
	return stringMatch{}, errors.New("string match without a type")
}

// decodePrefix reads a CIDR. An IPv4-mapped one becomes the IPv4 one that it means, because peers are seen unmapped.
func decodePrefix(pb *securitypb.Address) (netip.Prefix, error) {
	ip, ok := netip.AddrFromSlice(pb.GetAddress())
	if !ok {
		return netip.Prefix{}, fmt.Errorf("address of %d bytes: want 4 or 16", len(pb.GetAddress()))
	}
	bits := pb.GetLength()
	if bits > uint32(ip.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix length %d of address %v is out of range", bits, ip)
	}
	if ip.Is4In6() && bits >= 96 {
		ip, bits = ip.Unmap(), bits-96
	}
	return netip.PrefixFrom(ip, int(bits)).Masked(), nil
}
