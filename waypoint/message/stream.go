package message

// Taker takes the body that the peer of a stream sends. A codec calls it on the loop.
type Taker interface {
	// Data takes as much of p as it can now and returns how much; p is valid during the call. Of what is not taken the codec
	// keeps hold, slows the peer down, and offers it again after Resume.
	Data(p []byte) int
	// End says that the message is complete. trailer is nil if there is none, and valid during the call.
	End(trailer *Header)
	// Failed says that the message will not be completed: reset by the peer, connection gone, malformed. It is the last call.
	Failed(err error)
	// Room says that SendData has room again after it took less than it was given.
	Room()
}

// ServerStream is one request of a client, and its answer.
//
// The stream is over once its answer is complete (SendEnd, or SendHead with end), after Reset, and after Taker.Failed: the
// taker is not called any more, what the client still sends is dropped, and the stream must not be used any more. It, and
// the Request, stay valid until the end of that turn of the loop; calls in that turn do nothing.
//
// A tunnel (101, 2xx to CONNECT) has two directions that end each for itself: SendEnd ends ours, Taker.End tells of the
// client's, and the stream is over after both.
type ServerStream interface {
	// Request is the head of the request. It may be changed.
	Request() *Request
	// SetTaker begins the delivery of the body, later. Until then a bounded number of bytes is held.
	SetTaker(t Taker)
	// Resume has what the taker has not taken offered again, later.
	Resume()
	// SendInterim sends a 1xx response, but not 101. Nothing is sent to clients of HTTP/1.0.
	SendInterim(r *Response)
	// SendHead sends the final response's head; end says that nothing follows. The codec adds the framing: a field
	// content-length in the header is kept and held to, otherwise the body is chunked or its end marked. 101, and 2xx to
	// CONNECT, make the stream a tunnel of bytes.
	SendHead(r *Response, end bool)
	// SendData copies as much of p as there is room for and returns how much. If that is less than all of it, Taker.Room
	// will be called. A stream that is over takes, and drops, everything.
	SendData(p []byte) int
	// SendEnd completes the response.
	SendEnd(trailer *Header)
	// Reset gives the stream up, and with HTTP/1 the connection. err may be a *StreamError with the code to send.
	Reset(err error)
}

// ServerHandler is told of requests.
type ServerHandler interface {
	// ServeRequest begins a request. It may use the stream at once.
	ServeRequest(s ServerStream)
}

// ClientHandler follows a request that was opened on a ClientConn.
type ClientHandler interface {
	Taker
	// Interim is a 1xx response, but not 101. r is valid during the call.
	Interim(r *Response)
	// Head is the final response's head. end says that there is no body; End follows all the same. r may be changed and is
	// valid until the end of the turn in which End or Failed is called.
	Head(r *Response, end bool)
}

// ClientStream is one request to a server. It is over after End and Failed of its handler and after Reset: it must not be
// used any more then. If the answer ends before the request, the codec gives up the rest of the request. A tunnel is over
// after End and SendEnd.
type ClientStream interface {
	// SendData, SendEnd, Resume and Reset are as in ServerStream. After Reset the handler is not called any more.
	SendData(p []byte) int
	SendEnd(trailer *Header)
	Resume()
	Reset(err error)
}

// ClientConn is a connection to a server.
type ClientConn interface {
	// Open sends the head of a request; end says that nothing follows. h is called later, never from here. The error is a
	// *StreamError that is Retryable: nothing was sent. req is not kept.
	Open(req *Request, end bool, h ClientHandler) (ClientStream, error)
	// Room is how many streams may be opened now.
	Room() int
	// Drain lets the streams end and then closes the connection; Room is 0 from now on.
	Drain()
	// Close ends the connection at once. Streams get err by Failed.
	Close(err error)
}

// ConnHandler is told of a connection's fate. It is called on the loop.
type ConnHandler interface {
	// Closed says that the connection is gone and its pipe closed. Its streams have been told before. It is the last call.
	Closed(err error)
	// Changed says that Room may have changed.
	Changed()
}
