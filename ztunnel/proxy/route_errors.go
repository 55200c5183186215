package proxy

// Reason classifies why a connection could not be routed; it is an error, so errors.Is(err, NoHealthyUpstream) works on
// what Route and ResolveTarget return.
type Reason uint8

// The reasons.
const (
	SelfCall           Reason = iota + 1 // the destination is a port of the proxy itself
	NoHealthyUpstream                    // the service has no usable endpoint, or does not declare the port
	NoValidDestination                   // the chosen workload has no address and no gateway
	UnknownWaypoint                      // the waypoint does not exist or has no healthy replica
	UnknownGateway                       // the same of another network's gateway
	BadAuthority                         // the CONNECT authority is not host:port
	AddressMismatch                      // the CONNECT authority does not lead to this pod
	UnknownService                       // no service of the authority's hostname is served here
	NoValidPort                          // the service has no such port here
)

var reasonTexts = [...]string{
	SelfCall:           "destination is the proxy itself",
	NoHealthyUpstream:  "no healthy upstream",
	NoValidDestination: "no valid destination",
	UnknownWaypoint:    "unknown waypoint",
	UnknownGateway:     "unknown network gateway",
	BadAuthority:       "bad authority",
	AddressMismatch:    "address does not belong to this pod",
	UnknownService:     "no such service here",
	NoValidPort:        "no valid port",
}

// Error returns the reason in words; access logs show it.
func (r Reason) Error() string {
	if int(r) < len(reasonTexts) && reasonTexts[r] != "" {
		return reasonTexts[r]
	}
	return "unknown reason"
}

// Status returns the HTTP status with which an inbound tunnel is refused for this reason (section 3.4 of the protocol).
func (r Reason) Status() int {
	switch r {
	case BadAuthority, AddressMismatch:
		return 400
	}
	return 503
}

// RouteError is the error of Route and ResolveTarget.
type RouteError struct {
	Reason Reason
	Object string // what it is about: a service key, a workload uid, a gateway, an address
}

// Error implements error.
func (e *RouteError) Error() string { return e.Reason.Error() + ": " + e.Object }

// Unwrap returns the reason.
func (e *RouteError) Unwrap() error { return e.Reason }

func routeError(r Reason, object string) error { return &RouteError{Reason: r, Object: object} }
