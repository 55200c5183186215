package zds

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// agent plays istio-cni: it reads the hello and then exchanges packets.
type agent struct {
	t *testing.T
	c *packetConn
}

// newAgent has a Client talk to an agent; further dials fail.
func newAgent(t *testing.T, h Handler) *agent {
	a, b := pairOfConns(t)
	first := true
	c := NewClient(ClientConfig{dial: func(context.Context, string) (conn, error) {
		if !first {
			return nil, io.ErrUnexpectedEOF
		}
		first = false
		return b, nil
	}})
	start(t, func(ctx context.Context) error { return c.Run(ctx, h) })
	ag := &agent{t: t, c: a}
	got, _, err := a.read()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := decodeHello(got); err != nil || !h.listeners {
		t.Errorf("hello: %v, %v", h, err)
	}
	return ag
}

func (a *agent) ask(b []byte, files ...*File) (string, error) {
	a.t.Helper()
	if err := a.c.write(b, files); err != nil {
		a.t.Fatal(err)
	}
	return a.answer()
}

func (a *agent) answer() (string, error) {
	got, _, err := a.c.read()
	if err != nil {
		return "", err
	}
	return decodeAck(got)
}

func TestUnderIstioCNIAnAddHasOneDescriptor(t *testing.T) {
	r := newRecorder()
	a := newAgent(t, r)
	add := []byte("\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x01s\x1a\x02sa")
	if text, err := a.ask(add, tempFile(t)); text != "" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err := a.ask([]byte("\x1a\x00")); text != "" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	r.want(t, "connected", "add u", "snapshot")
}

func TestABrokenRequestIsAnsweredThenTheConnectionEnds(t *testing.T) {
	f := tempFile(t)
	for _, c := range []struct {
		name  string
		b     []byte
		files []*File
	}{
		{"not protobuf", []byte{0xff}, nil},
		{"del with a descriptor", []byte("\x12\x03\x12\x01u"), []*File{f}},
		{"add with four descriptors", []byte("\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x01s\x1a\x02sa"), []*File{f, f, f, f}},
		{"too long", make([]byte, MaxPacket+1), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRecorder()
			a := newAgent(t, r)
			before := openFDs(t)
			if text, err := a.ask(c.b, c.files...); text == "" || err != nil {
				t.Errorf("got %q, %v, want an error text (Z3)", text, err)
			}
			if _, err := a.answer(); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want io.EOF", err)
			}
			r.want(t, "connected", "disconnected")
			if after := openFDs(t); after > before {
				t.Errorf("%d descriptors leaked", after-before)
			}
		})
	}
}

func TestAnErrorOfTheHandlerIsAnsweredAndTheConnectionGoesOn(t *testing.T) {
	r := newRecorder()
	r.err = func(Request) error { return errors.New("no") }
	a := newAgent(t, r)
	for range 2 {
		if text, err := a.ask([]byte("\x12\x03\x12\x01u")); text != "no" || err != nil {
			t.Errorf("got %q, %v", text, err)
		}
	}
}

func TestTheClientBacksOffFrom20Milliseconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Duration
		begin := time.Now()
		c := NewClient(ClientConfig{MaxRetry: 15 * time.Second, dial: func(context.Context, string) (conn, error) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			return nil, errors.New("nobody there")
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if err := c.Run(ctx, newRecorder()); err != nil {
			t.Error(err)
		}
		var gaps []time.Duration
		for i := 1; i < len(at); i++ {
			gaps = append(gaps, at[i]-at[i-1])
		}
		if gaps[0] < 16*time.Millisecond || gaps[0] > 24*time.Millisecond {
			t.Errorf("first pause is %v (Z7)", gaps[0])
		}
		if last := slices.Max(gaps); last > 18*time.Second || last < 12*time.Second {
			t.Errorf("longest pause is %v", last)
		}
	})
}
