package forward

import (
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/internal/loop"
	"github.com/ambit-mesh/ambit/internal/telemetry"
	"github.com/ambit-mesh/ambit/waypoint/cluster"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/listener"
	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// stream is a client's connection that is not HTTP, on its way to an endpoint.
type stream struct {
	filter.Exchange
	in      *inbound
	tcp     *listener.TCP
	cluster *cluster.Cluster
	host    *cluster.Host
	req     message.Request // empty
	begun   time.Duration
	tries   int
	relay   *relay

	sent, received int64

	series                 *telemetry.TCPSeries // once the endpoint is known
	toldSent, toldReceived int64                // to series
	reports                loop.Timer
}

// maxConnectTries is how many endpoints are tried for a connection, as Envoy's max_connect_attempts is by default.
const maxConnectTries = 1

// serveTCP carries the connection to an endpoint, if the chain's rules let it.
func (c *inbound) serveTCP(tcp *listener.TCP) {
	s := &stream{in: c, tcp: tcp, begun: c.w.loop.Now()}
	c.stream = s
	c.pipe.SetHandler(nil) // what comes now is for the relay
	s.Req = &s.req
	s.Client, s.Local, s.Dest, s.ServerName = c.client, c.w.p.principal, c.dest, c.serverName
	s.Now, s.Rand = time.Now(), c.w.rand
	s.Values = s
	for _, g := range tcp.Gates {
		if !g.Admit(&s.Exchange) {
			s.end(errRefused)
			return
		}
	}
	s.dial()
}

var errRefused = errors.New("refused by policy")

func (s *stream) dial() {
	c := s.in.snap.Clusters.Get(s.tcp.Cluster(s.Rand.Uint64()))
	if c == nil {
		s.Flags |= filter.NoCluster
		s.end(errors.New("no such cluster"))
		return
	}
	s.cluster = c
	if c.Discovery == cluster.Dynamic {
		s.dialNamed(c)
		return
	}
	pick := &cluster.Pick{Rand: s.Rand}
	if a := s.Client.Addr.Addr(); s.tcp.HashSource && a.IsValid() {
		pick.Hash, pick.HasHash = route.HashAddr(a), true
	}
	h, err := s.in.w.choose(c, pick, s.Dest)
	if err != nil {
		s.Flags |= filter.NoHealthyUpstream
		s.end(err)
		return
	}
	s.connect(h)
}

// connect dials an endpoint of the cluster that was chosen.
func (s *stream) connect(h *cluster.Host) {
	c := s.cluster
	s.host = h
	if !c.BeginConnection() {
		s.Flags |= filter.UpstreamOverflow
		s.end(errors.New("too many connections"))
		return
	}
	s.tries++
	s.in.w.reach(way{host: h, cluster: c, dest: s.Dest, client: s.Client.Addr, http: notHTTP}, func(p loop.Pipe, _ string, err error) {
		switch {
		case s.in.over:
			c.EndConnection()
			if p != nil {
				p.Reset()
			}
		case err != nil:
			c.EndConnection()
			h.Failed(cluster.ConnectFailure)
			if s.tries < max(s.tcp.MaxConnectAttempts, maxConnectTries) {
				s.dial()
				return
			}
			s.Flags |= filter.UpstreamFailure
			s.Transport = err.Error()
			s.end(err)
		default:
			h.Answered(0)
			s.join(c, p)
		}
	})
}

// join relays until both directions have ended.
func (s *stream) join(c *cluster.Cluster, p loop.Pipe) {
	in := s.in
	first := in.first
	in.first = nil
	s.relay = newRelay(in.pipe, p, first, s.tcp.IdleTimeout, func(up, down int64, err error) {
		c.EndConnection()
		s.received, s.sent = up, down
		s.over(err)
	})
	s.report()
	in.w.loop.Start(&s.reports, reportTime, s)
}

// end gives the connection up before it was joined.
func (s *stream) end(err error) {
	if !s.in.over {
		s.in.pipe.Reset()
	}
	s.over(err)
}

// over says that the connection is closed on both sides.
func (s *stream) over(err error) {
	if s.in.over {
		return
	}
	s.in.end()
	s.record(err)
}
