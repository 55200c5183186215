package message

import (
	"errors"
	"fmt"
)

// ErrCode says why a stream was given up: HTTP/2's error codes (RFC 9113 section 7), also used for HTTP/1.
type ErrCode uint32

// The codes.
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

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String is the code's name.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// StreamError is why a message was not completed.
type StreamError struct {
	// Code is the error code that was sent or received, or the nearest to it.
	Code ErrCode
	// Remote says that the peer gave the stream up, by a reset or by closing the connection.
	Remote bool
	// Retryable says that the peer has certainly not acted on the request, so that it may be sent again whatever it is
	// (RFC 9113 section 8.7). An HTTP/1 connection that was reused and died before any byte of an answer has it too (RFC
	// 9112 section 9.3.1): the caller is to look at the method there, see Reused.
	Retryable bool
	// Reused says that Retryable rests on the reuse of an idle HTTP/1 connection only.
	Reused bool
	// Cause may be nil.
	Cause error
}

// Error implements error.
func (e *StreamError) Error() string {
	who := "stream given up"
	if e.Remote {
		who = "stream given up by the peer"
	}
	if e.Cause != nil {
		return fmt.Sprintf("%s: %v: %v", who, e.Code, e.Cause)
	}
	return fmt.Sprintf("%s: %v", who, e.Code)
}

// Unwrap returns the cause.
func (e *StreamError) Unwrap() error { return e.Cause }

// CodeOf is the code of err, or otherwise the code def.
func CodeOf(err error, def ErrCode) ErrCode {
	var e *StreamError
	if errors.As(err, &e) {
		return e.Code
	}
	return def
}

var (
	// ErrMalformed is wrapped by the errors of what breaks the protocol's rules.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLarge is wrapped by the errors of heads beyond a limit.
	ErrTooLarge = errors.New("message too large")
	// ErrGone is wrapped when the peer closed the connection.
	ErrGone = errors.New("connection closed by the peer")
	// ErrTimeout is wrapped when the peer was too slow.
	ErrTimeout = errors.New("peer too slow")
	// ErrDrained ends connections that were drained.
	ErrDrained = errors.New("connection drained")
	// ErrNoRoom is the cause of an Open that was refused.
	ErrNoRoom = errors.New("connection takes no more streams")
)
