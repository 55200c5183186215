package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Run keeps a stream open until ctx ends and returns nil after it has been closed. It blocks and must be called once,
// after all calls of Subscribe.
func (c *Client) Run(ctx context.Context) error {
	c.becomeReady()
	var backoff time.Duration
	for ctx.Err() == nil {
		answered, err := c.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if answered {
			backoff = 0
		}
		var wait time.Duration
		wait, backoff = c.wait(err, answered, backoff)
		c.setConnected(false, err)
		c.log().Info("xds stream ended", slog.Any("err", err), slog.Duration("retryIn", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// wait says how long to wait after a stream that ended with err, and the backoff from now on (X11). A stream on which
// nothing was ever answered counts as a failure, however it ended.
func (c *Client) wait(err error, answered bool, backoff time.Duration) (time.Duration, time.Duration) {
	if answered && soon(err) {
		// With jitter, so that the clients of a server that went away do not come to the next all at once.
		return time.Duration(float64(c.cfg.minBackoff()) * (1 + 4*c.cfg.rand())), 0
	}
	backoff = min(max(2*backoff, c.cfg.minBackoff()), c.cfg.maxBackoff())
	return time.Duration(float64(backoff) * (0.5 + 0.5*c.cfg.rand())), backoff
}

// soon tells whether err is a way in which a healthy server ends a stream.
func soon(err error) bool {
	if err == nil || errors.Is(err, io.EOF) {
		return true
	}
	switch status.Code(err) {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		// gRPC has no code for it: its own text for a GOAWAY or a transport that was closed.
		msg := err.Error()
		return strings.Contains(msg, "closing") || strings.Contains(msg, "GOAWAY") || strings.Contains(msg, "EOF")
	}
	return false
}

// stream runs one stream to its end and tells whether the server ever answered on it.
func (c *Client) stream(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := c.cfg.Transport.Open(ctx)
	if err != nil {
		cancel()
		return false, fmt.Errorf("open stream: %w", err)
	}
	responses := make(chan *discoverypb.DeltaDiscoveryResponse)
	ended := make(chan error, 1)
	go c.receive(ctx, st, responses, ended)
	running := true
	defer func() {
		cancel()
		if running {
			<-ended // after cancel Recv returns, so no goroutine outlives the stream
		}
	}()
	for _, s := range c.subs {
		req := s.first()
		if req == nil {
			continue
		}
		if err := st.Send(req); err != nil {
			return false, c.sendError(&running, ended, err)
		}
	}
	c.setConnected(true, nil)
	c.log().Info("xds stream open")
	for {
		select {
		case resp := <-responses:
			answered = true
			ack := c.answer(resp)
			// What the resources make us ask for goes first, as from an Envoy: a server that waits for the ACK of clusters knows
			// then of the endpoints that they need.
			for _, req := range append(c.next(), ack) {
				if err := st.Send(req); err != nil {
					return true, c.sendError(&running, ended, err)
				}
			}
		case <-c.asked:
			for _, req := range c.next() {
				if err := st.Send(req); err != nil {
					return answered, c.sendError(&running, ended, err)
				}
			}
		case err := <-ended:
			running = false
			return answered, err
		case <-ctx.Done():
			return answered, ctx.Err()
		}
	}
}

// next are the requests that subscriptions have to make. Run's goroutine only.
func (c *Client) next() []*discoverypb.DeltaDiscoveryRequest {
	var out []*discoverypb.DeltaDiscoveryRequest
	for _, s := range c.subs {
		if req := s.next(); req != nil {
			out = append(out, req)
		}
	}
	return out
}

// sendError is the reason behind a failed Send: gRPC says only io.EOF there, Recv has the status.
func (c *Client) sendError(running *bool, ended <-chan error, err error) error {
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("send request: %w", err)
	}
	*running = false
	return <-ended
}

// receive hands on responses one by one until the stream ends.
func (c *Client) receive(ctx context.Context, st Stream, responses chan<- *discoverypb.DeltaDiscoveryResponse, ended chan<- error) {
	for {
		resp, err := st.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case responses <- resp:
		case <-ctx.Done():
			ended <- ctx.Err()
			return
		}
	}
}

// answer applies a response and makes the ACK or NACK (X5).
func (c *Client) answer(resp *discoverypb.DeltaDiscoveryResponse) *discoverypb.DeltaDiscoveryRequest {
	req := &discoverypb.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	var sub *Subscription
	for _, s := range c.subs {
		if s.url == resp.GetTypeUrl() {
			sub = s
		}
	}
	if sub == nil {
		c.log().Warn("response of a type that was not asked for", slog.String("type", resp.GetTypeUrl()))
		return req
	}
	if nack := sub.take(resp); nack != "" {
		c.log().Warn("xds resources rejected", slog.String("type", sub.url), slog.String("nonce", resp.GetNonce()), slog.String("err", nack))
		req.ErrorDetail = &statuspb.Status{Message: nack}
		return req
	}
	c.log().Debug("xds response applied", slog.String("type", sub.url), slog.String("nonce", resp.GetNonce()),
		slog.Int("resources", len(resp.GetResources())), slog.Int("removed", len(resp.GetRemovedResources())))
	if !sub.acked {
		sub.acked = true
		if sub.opts.wildcard() {
			c.mu.Lock()
			c.waiting--
			c.mu.Unlock()
			c.becomeReady()
		}
	}
	return req
}

// becomeReady closes ready when no wildcard type is waited for. Run's goroutine only.
func (c *Client) becomeReady() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting > 0 {
		return
	}
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

func (c *Client) setConnected(connected bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected = connected
	if err != nil {
		c.lastErr = err
	}
}

// poke tells Run that a subscription has something to send.
func (c *Client) poke() {
	select {
	case c.asked <- struct{}{}:
	default:
	}
}

func (c *Client) log() *slog.Logger { return c.cfg.logger() }
