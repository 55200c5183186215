package http1

import (
	"errors"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// fault is a peer's breach of the rules; status is what a client gets to hear.
type fault struct {
	status int
	what   string
	kind   error
}

// Error implements error.
func (f *fault) Error() string { return f.what }

// Unwrap says which sentinel of package message applies.
func (f *fault) Unwrap() error { return f.kind }

func malformed(what string) error { return &fault{400, what, message.ErrMalformed} }

// errPartial says that more has to come. It never leaves the package.
var errPartial = errors.New("incomplete")

var (
	errBareLF      = malformed("line ends without CR")
	errBareCR      = malformed("CR without LF")
	errFold        = malformed("folded line")
	errName        = malformed("bad field name")
	errValue       = malformed("bad field value")
	errLine        = malformed("bad request line")
	errStatus      = malformed("bad status line")
	errMethod      = malformed("bad method")
	errTarget      = malformed("bad request target")
	errHost        = malformed("bad or missing Host")
	errHosts       = malformed("several Host fields")
	errLength      = malformed("bad Content-Length")
	errLengths     = malformed("several Content-Length fields")
	errCoding      = malformed("bad Transfer-Encoding")
	errBoth        = malformed("Content-Length beside Transfer-Encoding")
	errNominated   = malformed("Connection names a field of the framing")
	errConnectBody = malformed("CONNECT with a body")
	errTrailer     = malformed("field not allowed in a trailer")
	errChunk       = malformed("bad chunk")
	errExtension   = malformed("chunk extensions too long")
	errUnasked     = malformed("answer without a request")
	errSwitch      = malformed("change of protocol that was not asked for")
	errInterims    = malformed("too many interim responses")

	errUnknownCoding = error(&fault{501, "unknown transfer coding", message.ErrMalformed}) // RFC 9112 section 6.1
	errVersion       = error(&fault{505, "HTTP version not supported", message.ErrMalformed})
	errExpect        = error(&fault{417, "unknown expectation", message.ErrMalformed})
	errTooLarge      = error(&fault{431, "head too large", message.ErrTooLarge})
	errFields        = error(&fault{431, "too many fields", message.ErrTooLarge})
	errSlowHead      = error(&fault{408, "head too slow", message.ErrTimeout})
)

// errBodyLength is a fault of ours.
var errBodyLength = errors.New("body is not as long as its content-length")

// errUnwritable is a fault of ours: a head that would not be one on the wire.
var errUnwritable = errors.New("head cannot be written")

// statusOf is what a client gets to hear of err, or 0.
func statusOf(err error) int {
	var f *fault
	if errors.As(err, &f) {
		return f.status
	}
	return 0
}

// streamError wraps what ended an exchange through the peer's fault or by its end.
func streamError(err error) *message.StreamError {
	var e *message.StreamError
	if errors.As(err, &e) {
		return e
	}
	code := message.CodeCancel
	if errors.Is(err, message.ErrMalformed) || errors.Is(err, message.ErrTooLarge) {
		code = message.CodeProtocol
	}
	return &message.StreamError{Code: code, Remote: true, Cause: err}
}
