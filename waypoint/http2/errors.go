package http2

import (
	"fmt"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// ConnError is why a connection was ended by one of its sides, with GOAWAY.
type ConnError struct {
	// Code is what was sent or received.
	Code message.ErrCode
	// Remote says that the peer ended it.
	Remote bool
	// Reason is for the log. The peer's is at most 256 bytes, not checked for anything.
	Reason string
}

// Error implements error.
func (e *ConnError) Error() string {
	who := "connection ended"
	if e.Remote {
		who = "connection ended by the peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("%s: %v", who, e.Code)
	}
	return fmt.Sprintf("%s: %v: %q", who, e.Code, e.Reason)
}

// Unwrap makes a fault of the peer message.ErrMalformed.
func (e *ConnError) Unwrap() error {
	if e.Remote {
		return nil
	}
	return message.ErrMalformed
}

func connError(code message.ErrCode, reason string) *ConnError {
	return &ConnError{Code: code, Reason: reason}
}

// malformed is a message that breaks a rule, by the rule.
type malformed string

func (m malformed) Error() string { return "malformed message: " + string(m) }
func (m malformed) Unwrap() error { return message.ErrMalformed }

// Errors of streams that do not depend on anything.
var (
	errNoRoom     = &message.StreamError{Code: codeRefused, Retryable: true, Cause: message.ErrNoRoom}
	errRefused    = &message.StreamError{Code: codeRefused, Remote: true, Retryable: true}
	errNoConnect  = &message.StreamError{Code: message.CodeHTTP11Required, Retryable: true, Cause: malformed("the server does not take extended CONNECT")}
	errStalled    = &message.StreamError{Code: message.CodeCancel, Cause: message.ErrTimeout}
	errLengthOurs = &message.StreamError{Code: message.CodeInternal, Cause: malformed("body is not as long as its content-length")}
	errHeadTooBig = &message.StreamError{Code: message.CodeInternal, Cause: message.ErrTooLarge}
)
