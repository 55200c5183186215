package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/hbone"
	"github.com/ambit-mesh/ambit/internal/rbac"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/telemetry"
)

// How a connection can end other than well. Every one has a text for the access log, a response flag for the metrics
// (9.4) and, for a CONNECT, a status (3.4).
var (
	errUnknownWorkload = errors.New("the control plane has not delivered this pod's record in time")
	errUnsupported     = errors.New("the destination is on another network, which is not supported yet")
	errDrained         = errors.New("closed by drain: the proxy stops")
	errPodGone         = errors.New("the pod is gone")
)

// deniedError is a policy's refusal.
type deniedError struct{ decision rbac.Decision }

func (e deniedError) Error() string { return e.decision.Error() }

// policyChangedError ends a connection that the policy of now would not let in.
type policyChangedError struct{ decision rbac.Decision }

func (e policyChangedError) Error() string { return "closed by policy change: " + e.decision.Error() }

// connectError is a TCP connection that could not be made.
type connectError struct {
	addr netip.AddrPort
	err  error
}

func (e connectError) Error() string { return fmt.Sprintf("connect %s: %v", e.addr, e.err) }
func (e connectError) Unwrap() error { return e.err }

// tunnelError is a tunnel or a stream in it that could not be opened.
type tunnelError struct {
	addr netip.AddrPort
	err  error
}

func (e tunnelError) Error() string {
	if errors.Is(e.err, unix.ETIMEDOUT) {
		return fmt.Sprintf("connect %s: timed out; does a NetworkPolicy block port 15008?", e.addr) // H25
	}
	return fmt.Sprintf("open tunnel to %s: %v", e.addr, e.err)
}
func (e tunnelError) Unwrap() error { return e.err }

// handshakeError is a TLS handshake that one side refused.
type handshakeError struct{ err error }

func (e handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e handshakeError) Unwrap() error { return e.err }

// identityError is a certificate that cannot be had.
type identityError struct {
	id  spiffe.ID
	err error
}

func (e identityError) Error() string { return fmt.Sprintf("no certificate for %s: %v", e.id, e.err) }
func (e identityError) Unwrap() error { return e.err }

// clientGoneError is a client that reset its connection before it was joined.
type clientGoneError struct{ err error }

func (e clientGoneError) Error() string { return "the client is gone: " + e.err.Error() }
func (e clientGoneError) Unwrap() error { return e.err }

// copyError is what the log says of the end of a joined connection: resets and the like by the applications are a
// normal end (H19).
func copyError(err error) error {
	if err == nil {
		return nil
	}
	var se *hbone.StreamError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ENOTCONN):
		return nil
	case errors.As(err, &se) && se.Remote && (se.Code == hbone.CodeCancel || se.Code == hbone.CodeNo || se.Code == hbone.CodeConnect):
		return nil
	case errors.As(err, &se) && se.Cause != nil:
		return copyError(se.Cause)
	}
	return err
}

// flagOf is the response flag (9.4).
func flagOf(err error) telemetry.Flag {
	if err == nil { // before the variables, which are on the heap
		return telemetry.OK
	}
	var (
		denied  deniedError
		changed policyChangedError
		id      identityError
		hs      handshakeError
		tun     tunnelError
		h2      *hbone.ConnError
	)
	switch {
	case errors.Is(err, errDrained):
		return telemetry.OK
	case errors.As(err, &denied), errors.As(err, &changed):
		return telemetry.Denied
	case errors.As(err, &id):
		return telemetry.Identity
	case errors.As(err, &hs):
		return telemetry.TLSFailure
	case errors.As(err, &tun) && errors.Is(err, unix.ETIMEDOUT):
		return telemetry.NetworkPolicy
	case errors.As(err, &h2):
		return telemetry.H2Handshake
	}
	return telemetry.Connect
}

// statusOf is the answer to a CONNECT that fails (3.4).
func statusOf(err error) int {
	var (
		denied deniedError
		route  *RouteError
	)
	switch {
	case errors.As(err, &denied):
		return 401
	case errors.As(err, &route):
		return route.Reason.Status()
	}
	return 503
}
