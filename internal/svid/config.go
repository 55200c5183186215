package svid

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Errors of Manager.
var (
	// ErrPending: no answer of the CA has come yet for this identity.
	ErrPending = errors.New("certificate is not there yet")
	// ErrForgotten: Forget was called while the certificate was being waited for.
	ErrForgotten = errors.New("identity is no longer used")
	// ErrExpired: the certificate ran out and could not be renewed. The error around it has the cause.
	ErrExpired = errors.New("certificate expired")
)

// CAClient signs certificates.
type CAClient interface {
	// Sign asks for a certificate of id for the key in csr (PKCS#10, PEM), valid for ttl. It blocks until the answer
	// or the end of ctx and returns PEM elements: the leaf, intermediates, and last the root bundle.
	Sign(ctx context.Context, csr []byte, id spiffe.ID, ttl time.Duration) (chain []string, err error)
}

// Config is what a Manager needs. It is not modified and must not be after NewManager.
type Config struct {
	// CA signs. Required.
	CA CAClient
	// TTL is the lifetime asked for; 0 = 24 h (C2).
	TTL time.Duration
	// MaxInFlight bounds the concurrent calls of CA; 0 = 8 (C7). With more than one, the last is kept for calls that
	// somebody waits for.
	MaxInFlight int
	// CallTimeout bounds one call of CA; 0 = 10 s.
	CallTimeout time.Duration
	// MinBackoff and MaxBackoff bound the wait after a failure, which doubles; 0 = 1 s and 150 s (C6).
	MinBackoff, MaxBackoff time.Duration
	// Rand returns numbers in [0, 1) for jitter; nil = math/rand/v2.
	Rand func() float64
	// Logger; nil = nothing is logged.
	Logger *slog.Logger
}

func (c Config) ttl() time.Duration         { return orDefault(c.TTL, 24*time.Hour) }
func (c Config) callTimeout() time.Duration { return orDefault(c.CallTimeout, 10*time.Second) }
func (c Config) minBackoff() time.Duration  { return orDefault(c.MinBackoff, time.Second) }
func (c Config) maxBackoff() time.Duration  { return orDefault(c.MaxBackoff, 150*time.Second) }
func (c Config) maxInFlight() int           { return orDefault(c.MaxInFlight, 8) }

func (c Config) rand() float64 {
	if c.Rand != nil {
		return c.Rand()
	}
	return rand.Float64()
}

func (c Config) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.New(slog.DiscardHandler)
}

// spread is d with a jitter of +-part, for example 0.2 for 20 %.
func (c Config) spread(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 + part*(2*c.rand()-1)))
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}
