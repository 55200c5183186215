package forward

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

// maxLookups is the number of hosts that are looked up at once; more wait their turn.
const maxLookups = 64

// resolve finds out the address of a host for a cluster whose endpoints requests name. It blocks.
func (p *Proxy) resolve(ctx context.Context, c *cluster.Cluster, host string, port uint16) (*cluster.Host, error) {
	select {
	case p.lookups <- struct{}{}:
		defer func() { <-p.lookups }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.Resolve(ctx, host, port)
}

// attemptNamed sends the request to the host that it names, once its address is known.
func (x *exchange) attemptNamed(c *cluster.Cluster) {
	host, port := splitAuthority(x.Req.Authority)
	if !validHost(host) {
		x.fail(400, "", "empty_or_invalid_host_header", 0)
		return
	}
	if port == 0 {
		port = c.DefaultPort()
	}
	if h := c.Named(host, port); h != nil {
		x.send(h)
		return
	}
	host = strings.Clone(host)
	p := x.w.p
	x.Go(func(ctx context.Context) func() {
		h, err := p.resolve(ctx, c, host, port)
		return func() { x.named(h, err) }
	})
}

// named has the outcome.
func (x *exchange) named(h *cluster.Host, err error) {
	switch {
	case x.stage != waiting || x.try != nil: // answered meanwhile, by a timeout
	case errors.Is(err, cluster.ErrForbidden):
		x.Transport = err.Error()
		x.fail(403, "the host's address is not allowed", "dns_address_not_allowed", filter.DNSFailure)
	case err != nil:
		x.Transport = err.Error()
		x.fail(503, "DNS resolution failure", "dns_resolution_failure", filter.DNSFailure)
	default:
		x.send(h)
	}
}

// errNoName ends connections that name no host where one is needed.
var errNoName = errors.New("the client has named no server")

// dialNamed connects to the server that a TLS client names, once its address is known.
func (s *stream) dialNamed(c *cluster.Cluster) {
	name, port := s.ServerName, s.tcp.NamePort
	if port == 0 {
		port = s.Dest.Port()
	}
	if !validHost(name) {
		s.Flags |= filter.NoRoute
		s.end(errNoName)
		return
	}
	if h := c.Named(name, port); h != nil {
		s.connect(h)
		return
	}
	w := s.in.w
	w.p.helpers.Go(func() {
		h, err := w.p.resolve(w.p.ctx, c, name, port)
		w.loop.Inject(func() {
			switch {
			case s.in.over:
			case err != nil:
				s.Flags |= filter.DNSFailure
				s.Transport = err.Error()
				s.end(err)
			default:
				s.connect(h)
			}
		})
	})
}

// validHost says whether a name can be one of a host: an address, or labels of letters, digits, hyphens and underscores.
// What resolvers might take for something else, such as numbers of other forms, is left to them and to the check of the
// address that comes out.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return !strings.Contains(s, "%")
	}
	if s == "" || len(s) > 253 || s[0] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		switch b := s[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_', b == '.':
		default:
			return false
		}
	}
	return true
}
