package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"
)

const (
	firstRetry   = 20 * time.Millisecond // Z7
	defaultRetry = time.Second
)

// Handler is what a Client does with the requests of the agent. Its methods are called one at a time, from Run.
type Handler interface {
	// Connected is called when a connection stands: the agent is about to name every pod, then to send SnapshotSent.
	Connected()
	// Handle carries a request out. Its error is the answer to the agent; if it wraps ErrProtocol the connection is
	// closed then. Only a *Return is answered with descriptors, which Handle hands over. ctx ends with Run.
	Handle(ctx context.Context, r Request) (Files, error)
	// Disconnected is called once for every Connected. Pods keep running (Z7).
	Disconnected(err error)
}

// ClientConfig configures a Client.
type ClientConfig struct {
	// Path is the agent's socket (INPOD_UDS). Mandatory.
	Path string
	// MaxRetry bounds the pause between attempts to connect. 0 means 1 s; Z7 has 15 s, but a dial of a local socket costs
	// nothing and a restarted capture waits for us.
	MaxRetry time.Duration
	// Logger, nil for none.
	Logger *slog.Logger

	dial func(ctx context.Context, path string) (conn, error) // for tests
}

// Client is the proxy's end of ZDS.
type Client struct {
	cfg ClientConfig
	log *slog.Logger
}

// NewClient returns a Client; Run starts it.
func NewClient(cfg ClientConfig) *Client {
	if cfg.MaxRetry == 0 {
		cfg.MaxRetry = defaultRetry
	}
	if cfg.dial == nil {
		cfg.dial = dial
	}
	c := &Client{cfg: cfg, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Run connects, serves requests with h and connects again when the connection ends, until ctx is done; then it returns
// nil. Where Z4 ends the process we end the connection: the agent sees the same and traffic goes on.
func (c *Client) Run(ctx context.Context, h Handler) error {
	pause := firstRetry
	for {
		served, err := c.connection(ctx, h)
		if ctx.Err() != nil {
			return nil
		}
		if served {
			pause = firstRetry
			c.log.Info("zds connection ended", "err", err)
		} else {
			c.log.Debug("no zds connection", "err", err)
		}
		t := time.NewTimer(time.Duration(float64(pause) * (0.8 + 0.4*rand.Float64())))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		pause = min(2*pause, c.cfg.MaxRetry)
	}
}

// connection lives one connection. served says that the agent asked something.
func (c *Client) connection(ctx context.Context, h Handler) (served bool, err error) {
	pc, err := c.cfg.dial(ctx, c.cfg.Path)
	if err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { pc.close() })
	defer func() {
		stop()
		pc.close()
	}()
	b, err := encodeHello(hello{listeners: true, dns: true, pid: int64(os.Getpid())})
	if err != nil {
		return false, err
	}
	if err := pc.write(b, nil); err != nil {
		return false, fmt.Errorf("send hello: %w", err)
	}
	c.log.Info("zds connected", "path", c.cfg.Path)
	h.Connected()
	defer func() { h.Disconnected(err) }()
	listeners := false
	for {
		b, files, err := pc.read()
		if err != nil && !errors.Is(err, ErrProtocol) {
			return served, fmt.Errorf("read request: %w", err)
		}
		served = true
		var answer Files
		var r Request
		if err == nil {
			if r, err = decodeRequest(b, files, listeners); err != nil {
				closeFiles(files)
			}
		}
		if err == nil {
			if _, ok := r.(*NodeSetup); ok {
				listeners = true
			}
			answer, err = h.Handle(ctx, r)
		}
		werr := c.answer(pc, answer, err)
		if errors.Is(err, ErrProtocol) {
			return served, err
		}
		if werr != nil {
			return served, fmt.Errorf("answer request: %w", werr)
		}
	}
}

// answer sends the one answer of a request (Z2) and closes the descriptors that went with it.
func (c *Client) answer(pc conn, files Files, err error) error {
	defer files.Close()
	b, merr := encodeAck(err)
	if merr != nil {
		return merr
	}
	return pc.write(b, files.list())
}
