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
	unknown loop.Timer // until endpoints are asked for again, which were still to come
	tries   int
	relay   *relay

	sent, received int64

	series                 *telemetry.TCPSeries // once the endpoint is known
	toldSent, toldReceived int64                // to series
	reports                loop.Timer
	pace                   time.Duration // of reports
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
	c := s.cluster
	if c == nil {
		c = s.in.snap.Clusters.Get(s.tcp.Cluster(s.Rand.Uint64()))
	}
	if c == nil {
		s.Flags |= filter.NoCluster
		s.end(errors.New("no such cluster"))
		return
	}
	c = s.in.w.p.newest(c)
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
	if errors.Is(err, cluster.ErrUnknown) && s.in.w.loop.Now()-s.begun < unknownTime {
		s.in.w.loop.Start(&s.unknown, unknownPause, (*endpointsDue)(s))
		return
	}
	if err != nil {
		s.Flags |= filter.NoHealthyUpstream
		s.end(err)
		return
	}
	s.connect(h)
}

type endpointsDue stream

// Expired implements loop.TimerHandler: the endpoints may have come.
func (d *endpointsDue) Expired(*loop.Timer) {
	if !d.in.over {
		(*stream)(d).dial()
	}
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
	s.pace = reportTime
	in.w.loop.Start(&s.reports, s.pace, (*reportDue)(s))
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
