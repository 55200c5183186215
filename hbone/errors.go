package hbone

import (
	"errors"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113 section 7).
type ErrCode uint32

// The error codes of RFC 9113 section 7.
const (
	CodeNo                 ErrCode = 0x0
	CodeProtocol           ErrCode = 0x1
	CodeInternal           ErrCode = 0x2
	CodeFlowControl        ErrCode = 0x3
	CodeSettingsTimeout    ErrCode = 0x4
	CodeStreamClosed       ErrCode = 0x5
	CodeFrameSize          ErrCode = 0x6
	CodeRefusedStream      ErrCode = 0x7
	CodeCancel             ErrCode = 0x8
	CodeCompression        ErrCode = 0x9
	CodeConnect            ErrCode = 0xa
	CodeEnhanceYourCalm    ErrCode = 0xb
	CodeInadequateSecurity ErrCode = 0xc
	CodeHTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String is the name in RFC 9113.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %#x", uint32(c))
}

// Errors that callers tell apart.
var (
	// ErrDraining: the Pool or Server takes nothing new.
	ErrDraining = errors.New("draining")
	// ErrCanceled: the stream was given up on this side.
	ErrCanceled = errors.New("canceled")
	// ErrPingTimeout: the peer has been silent for too long.
	ErrPingTimeout = errors.New("ping timeout")
	// ErrKeysWorn: so much was sent that the keys are not safe any more (RFC 8446 section 5.5).
	ErrKeysWorn = errors.New("the tunnel's keys are worn")
)

// StatusError is a peer's answer to CONNECT other than 200.
type StatusError struct {
	Status int
	Header []HeaderField
}

func (e *StatusError) Error() string { return fmt.Sprintf("http status: %d", e.Status) }

// StreamError is the end of one stream by RST_STREAM.
type StreamError struct {
	Code ErrCode
	// Remote is true if the peer sent it.
	Remote bool
	// Cause is our reason for sending it; it may be nil.
	Cause error
}

func (e *StreamError) Error() string {
	switch {
	case e.Remote:
		return "stream reset by peer: " + e.Code.String()
	case e.Cause != nil:
		return fmt.Sprintf("stream reset (%v): %v", e.Code, e.Cause)
	}
	return "stream reset: " + e.Code.String()
}

// Unwrap returns Cause.
func (e *StreamError) Unwrap() error { return e.Cause }

// ConnError is the end of a whole connection by GOAWAY.
type ConnError struct {
	Code ErrCode
	// Remote is true if the peer sent it.
	Remote bool
	// Reason is for humans. If Remote, the peer chose it.
	Reason string
}

func (e *ConnError) Error() string {
	who := "connection ended"
	if e.Remote {
		who = "connection ended by peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("%s: %v", who, e.Code)
	}
	return fmt.Sprintf("%s: %v: %q", who, e.Code, e.Reason)
}

// DialError says that no connection could be made.
type DialError struct {
	Key Key
	Err error
}

func (e *DialError) Error() string { return fmt.Sprintf("connect to %v: %v", e.Key.Addr, e.Err) }

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// connError makes the error of a peer that broke a rule of the connection.
func connError(code ErrCode, reason string) *ConnError { return &ConnError{Code: code, Reason: reason} }

var (
	errConnClosed = errors.New("connection closed")
	errRefused    = &StreamError{Code: CodeRefusedStream, Remote: true}
)
