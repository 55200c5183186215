package filter

import (
	"strconv"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// fault delays requests and answers them with an error, by configured shares.
type fault struct {
	name
	faults
}

// faults are what a chain, or a route, sets.
type faults struct {
	delay      time.Duration
	delayShare *route.Fraction // nil: no delay
	abort      int             // HTTP status
	grpc       int             // gRPC status; -1: none
	abortShare *route.Fraction // nil: no abort
	body       string

	headerDelay, headerAbort bool // the request says what

	headers []*route.HeaderMatcher
	cluster string
}

// The request's headers by which a client asks for faults, where the configuration lets it.
const (
	delayHeader      = "x-envoy-fault-delay-request"
	abortHeader      = "x-envoy-fault-abort-request"
	abortGRPCHeader  = "x-envoy-fault-abort-grpc-request"
	delayShareHeader = "x-envoy-fault-delay-request-percentage"
	abortShareHeader = "x-envoy-fault-abort-request-percentage"
)

func compileFaults(p *faultv3.HTTPFault) (f faults, err error) {
	f.grpc = -1
	if p.GetResponseRateLimit() != nil {
		return f, field.Errorf("response_rate_limit", "not supported; delay and abort are")
	}
	if len(p.GetDownstreamNodes()) > 0 {
		return f, field.Errorf("downstream_nodes", "not supported")
	}
	if err := f.compileDelay(p.GetDelay()); err != nil {
		return f, field.At(err, "delay")
	}
	if err := f.compileAbort(p.GetAbort()); err != nil {
		return f, field.At(err, "abort")
	}
	for i, h := range p.GetHeaders() {
		m, err := route.CompileHeader(h)
		if err != nil {
			return f, field.Index(err, "headers", i)
		}
		f.headers = append(f.headers, m)
	}
	f.cluster = p.GetUpstreamCluster()
	return f, nil
}

func (f *faults) compileDelay(p *commonv3.FaultDelay) (err error) {
	if p == nil {
		return nil
	}
	if f.delayShare, err = route.CompileFraction(p.GetPercentage()); err != nil {
		return field.At(err, "percentage")
	}
	switch d := p.GetFaultDelaySecifier().(type) {
	case *commonv3.FaultDelay_FixedDelay:
		if f.delay, err = field.Duration("fixed_delay", d.FixedDelay, 0); err == nil && f.delay == 0 {
			err = field.Errorf("fixed_delay", "not positive")
		}
	case *commonv3.FaultDelay_HeaderDelay_:
		f.headerDelay = true
	default:
		err = field.Errorf("fault_delay_secifier", "required")
	}
	return err
}

func (f *faults) compileAbort(p *faultv3.FaultAbort) (err error) {
	if p == nil {
		return nil
	}
	if f.abortShare, err = route.CompileFraction(p.GetPercentage()); err != nil {
		return field.At(err, "percentage")
	}
	f.body = p.GetResponseBody()
	switch a := p.GetErrorType().(type) {
	case *faultv3.FaultAbort_HttpStatus:
		if a.HttpStatus < 200 || a.HttpStatus > 599 {
			return field.Errorf("http_status", "%d is not between 200 and 599", a.HttpStatus)
		}
		f.abort = int(a.HttpStatus)
	case *faultv3.FaultAbort_GrpcStatus:
		f.abort, f.grpc = 200, int(a.GrpcStatus)
	case *faultv3.FaultAbort_HeaderAbort_:
		f.headerAbort = true
	default:
		return field.Errorf("error_type", "required")
	}
	return nil
}

func compileFault(p *faultv3.HTTPFault) (Filter, error) {
	f, err := compileFaults(p)
	return &fault{faults: f}, err
}

func compileFaultPart(p *faultv3.HTTPFault) (any, error) {
	f, err := compileFaults(p)
	return &f, err
}

// Request implements Filter.
func (f *fault) Request(x *Exchange) Action {
	r := &f.faults
	if v, off := x.settings(f.name.name); off {
		return Continue
	} else if own, ok := v.(*faults); ok {
		r = own
	}
	if r.delayShare == nil && r.abortShare == nil || !r.applies(x) {
		return Continue
	}
	if d := r.delayFor(x); d > 0 {
		x.Flags |= DelayInjected
		x.After(d, func() Action { return r.abortNow(x) })
		return Wait
	}
	return r.abortNow(x)
}

func (r *faults) applies(x *Exchange) bool {
	for _, h := range r.headers {
		if !h.Match(x.Req) {
			return false
		}
	}
	if r.cluster == "" {
		return true
	}
	a := x.RouteAction()
	return a != nil && a.ClusterName(x.Req) == r.cluster
}

func (r *faults) delayFor(x *Exchange) time.Duration {
	if r.delayShare == nil {
		return 0
	}
	d := r.delay
	if r.headerDelay {
		ms, ok := number(x, delayHeader)
		if !ok || !within(x, delayShareHeader) {
			return 0
		}
		d = time.Duration(min(ms, 1<<31)) * time.Millisecond
	}
	if !r.delayShare.Hit(x.Rand.Uint64()) {
		return 0
	}
	return d
}

func (r *faults) abortNow(x *Exchange) Action {
	if r.abortShare == nil {
		return Continue
	}
	status, grpc := r.abort, r.grpc
	if r.headerAbort {
		if n, ok := number(x, abortHeader); ok && 200 <= n && n <= 599 {
			status = int(n)
		} else if n, ok := number(x, abortGRPCHeader); ok {
			status, grpc = 200, int(min(n, 1<<16))
		} else {
			return Continue
		}
		if !within(x, abortShareHeader) {
			return Continue
		}
	}
	if !r.abortShare.Hit(x.Rand.Uint64()) {
		return Continue
	}
	body := r.body
	if body == "" {
		body = "fault filter abort"
	}
	x.Answered(status, body, "fault_filter_abort", FaultInjected)
	if grpc >= 0 {
		x.Reply.HasGRPC, x.Reply.GRPC = true, grpc
	}
	return Stop
}

// number reads a header that holds a number.
func number(x *Exchange, name string) (uint64, bool) {
	v, ok := x.Req.Header.Lookup(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 64)
	return n, err == nil
}

// within draws by a percentage that the client may give; without one it is always true: the configured share is drawn
// besides.
func within(x *Exchange, name string) bool {
	n, ok := number(x, name)
	return !ok || x.Rand.Uint64N(100) < n
}
