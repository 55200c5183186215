package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// port is the one that queries go to; what comes to the sockets by another was not captured.
const port = 53

// pod is a captured pod whose queries are answered.
type pod struct {
	// immutable
	s                        *Server
	name, namespace, account string
	id                       zds.FileID
	ns                       *netns.NS
	datagrams, streams       *os.File
	back                     replier
	ctx                      context.Context
	cancel                   context.CancelFunc
	// taking ends when nothing new is taken.
	taking context.Context
	leave  context.CancelFunc

	slots chan struct{} // one for each query that is with a nameserver
	conns chan struct{} // one for each connection
	wg    sync.WaitGroup
}

// newPod makes duplicates of a pod's sockets and namespace.
func newPod(s *Server, w *zds.Workload, id zds.FileID) (*pod, error) {
	p := &pod{
		s: s, name: w.Name, namespace: w.Namespace, account: w.ServiceAccount, id: id,
		slots: make(chan struct{}, s.cfg.MaxPerPod), conns: make(chan struct{}, maxConns),
	}
	fd, err := duplicate(w.Files.NetNS)
	if err != nil {
		return nil, err
	}
	if p.ns, err = netns.FromFD(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	udp, err := duplicate(w.Files.DNS)
	if err != nil {
		p.ns.Close()
		return nil, err
	}
	p.datagrams = os.NewFile(uintptr(udp), "dns")
	tcp, err := duplicate(w.Files.DNSStream)
	if err != nil {
		p.datagrams.Close()
		p.ns.Close()
		return nil, err
	}
	p.streams = os.NewFile(uintptr(tcp), "dns")
	p.back = newReplier(p.ns)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.taking, p.leave = context.WithCancel(p.ctx)
	return p, nil
}

func duplicate(f *zds.File) (int, error) {
	fd, err := unix.FcntlInt(uintptr(f.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return fd, nil
}

func (p *pod) start() {
	for _, take := range []func(){p.takeDatagrams, p.takeStreams} {
		p.wg.Go(func() {
			if p.s.mayTake(p.taking) {
				take()
			}
		})
	}
}

// drain takes what waits in the sockets of a pod that leaves the mesh; nobody else would.
func (p *pod) drain() {
	p.drainDatagrams()
	p.drainStreams()
}

// stop ends the pod. What is under way is cut, or ends by itself; stop does not wait for that.
func (p *pod) stop(cut bool) {
	p.leave()
	if cut {
		p.cancel()
	}
	p.datagrams.Close()
	p.streams.Close()
	p.s.wg.Go(func() {
		p.wg.Wait()
		p.cancel()
		p.back.Close()
		p.ns.Close()
	})
}

// query is one message of a pod, which isQuery.
type query struct {
	b      []byte
	to     netip.AddrPort // the nameserver
	stream bool
	// Exactly one of these is called once, by any goroutine: reply sends an answer; take, if it is not nil, has the rest of
	// the connection go on with the nameserver.
	reply func(b []byte)
	take  func(to *os.File)
}

// serve does with a message what is to be done. It does not block: what takes time goes on in the background, on a copy.
func (p *pod) serve(q query) {
	if !p.s.ready() {
		q.b = slices.Clone(q.b)
		p.background(&q, func() { p.serveLate(&q) })
		return
	}
	d := p.decide(q.b)
	p.count(&q, &d)
	if d.forward {
		q.b = slices.Clone(q.b)
		p.background(&q, func() { p.forward(&q, &d) })
		return
	}
	p.answer(&q, &d)
}

// serveLate is serve for a message that came before the table of the mesh.
func (p *pod) serveLate(q *query) {
	if !p.s.synced(p.ctx) {
		p.s.log.Debug("control plane has not told of the mesh yet", "src.workload", p.name, "src.namespace", p.namespace)
		q.reply(failure(q.b, dns.RcodeServerFailure))
		return
	}
	d := p.decide(q.b)
	p.count(q, &d)
	if d.forward {
		p.forward(q, &d)
		return
	}
	p.answer(q, &d)
}

func (p *pod) view() *workload.View { return p.s.cfg.Workloads.View() }

func (p *pod) decide(b []byte) decision {
	v := p.view()
	if p.s.cfg.Off {
		v = p.s.none
	}
	return p.s.cfg.Lookup.decide(v, p.namespace, b)
}

// answer sends what the mesh says.
func (p *pod) answer(q *query, d *decision) {
	if d.reply == nil {
		p.log(d, "malformed")
		q.reply(d.raw)
		return
	}
	b, err := pack(d.reply, d.query, !q.stream)
	if err != nil {
		p.s.log.Warn("answer not made", "src.workload", p.name, "src.namespace", p.namespace, "err", err)
		b = failure(q.b, dns.RcodeServerFailure)
	}
	p.log(d, "mesh")
	q.reply(b)
}

// background runs f on a goroutine of its own, if the pod and the node have one free; else the message fails at once.
func (p *pod) background(q *query, f func()) {
	for i, slots := range []chan struct{}{p.slots, p.s.slots} {
		select {
		case slots <- struct{}{}:
			continue
		default:
		}
		if i == 1 {
			<-p.slots
		}
		p.s.log.Debug("too many queries are with nameservers", "src.workload", p.name, "src.namespace", p.namespace)
		q.reply(failure(q.b, dns.RcodeServerFailure))
		return
	}
	p.wg.Go(func() {
		defer func() { <-p.slots; <-p.s.slots }()
		f()
	})
}

// forward asks the nameserver and passes on what it says.
func (p *pod) forward(q *query, d *decision) {
	labels := p.labels(q, d)
	p.s.cfg.Metrics.DNSUpstream.WithLabelValues(labels...).Inc()
	start := time.Now()
	dial := p.s.dialer()
	var b []byte
	var err error
	switch {
	case dial == nil:
		err = errors.New("the node was not set up")
	case q.take != nil:
		err = p.handOver(dial, q)
	case q.stream:
		b, err = p.exchangeStream(dial, q)
	default:
		b, err = p.exchangeDatagram(dial, q)
	}
	p.s.cfg.Metrics.DNSUpstreamTimes.WithLabelValues(labels...).Observe(time.Since(start).Seconds())
	result := "forwarded"
	if err != nil {
		p.s.cfg.Metrics.DNSFailures.WithLabelValues(labels...).Inc()
		result = "nameserver: " + err.Error()
	}
	p.log(d, result)
	if err == nil && b == nil {
		return // handed over
	}
	q.reply(d.settle(b, q.b))
}

// labels are those of the metrics (9.3). Types are those that have a name: a client must not choose how many series there
// are.
func (p *pod) labels(q *query, d *decision) []string {
	service, revision, protocol, qtype := "unknown", "unknown", "udp", "unknown"
	if w := p.view().Pod(p.name, p.namespace, p.account); w != nil {
		if w.CanonicalName != "" {
			service = w.CanonicalName
		}
		if w.CanonicalRevision != "" {
			revision = w.CanonicalRevision
		}
	}
	if q.stream {
		protocol = "tcp"
	}
	if d.query != nil {
		if s, ok := dns.TypeToString[d.query.Question[0].Qtype]; ok {
			qtype = s
		}
	}
	return []string{qtype, protocol, service, revision}
}

func (p *pod) count(q *query, d *decision) {
	p.s.cfg.Metrics.DNSRequests.WithLabelValues(p.labels(q, d)...).Inc()
}

// log writes the line of a query (D13).
func (p *pod) log(d *decision, result string) {
	if !p.s.log.Enabled(p.ctx, slog.LevelDebug) {
		return
	}
	args := []any{"src.workload", p.name, "src.namespace", p.namespace}
	if d.query != nil {
		q := d.query.Question[0]
		args = append(args, "query", dns.Type(q.Qtype).String(), "domain", q.Name)
	}
	args = append(args, "result", result)
	if s := d.answer.Service; s != nil {
		args = append(args, "service", s.Key)
	}
	if len(d.answer.Addrs) > 0 && !d.forward {
		args = append(args, "endpoints", d.answer.Addrs)
	}
	p.s.log.Debug("dns query", args...)
}
