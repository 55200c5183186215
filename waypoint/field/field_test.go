package field

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestThePathGrowsFromTheInside(t *testing.T) {
	cause := errors.New("wrong")
	err := At(Index(Key(At(cause, "d"), "c", "k"), "b", 2), "a")
	if got, want := err.Error(), `a.b[2].c["k"].d: wrong`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
	var e *Error
	if !errors.As(err, &e) || e.Path != `a.b[2].c["k"].d` {
		t.Errorf("path %q", e.Path)
	}
	if At(nil, "a") != nil || Index(nil, "a", 1) != nil || Key(nil, "a", "b") != nil {
		t.Error("no error became one")
	}
	if got := At(fmt.Errorf("read it: %w", Errorf("x", "y")), "a").Error(); got != "a: read it: x: y" {
		t.Errorf("an error that only contains one: %s", got)
	}
}

func TestADurationIsNeitherMalformedNorNegative(t *testing.T) {
	for _, c := range []struct {
		d    *durationpb.Duration
		want string
	}{
		{nil, "5s"}, {durationpb.New(2 * time.Second), "2s"}, {durationpb.New(0), "0s"},
		{durationpb.New(-1), "a: negative duration -1ns"}, {&durationpb.Duration{Seconds: 1, Nanos: -1}, "a: "},
	} {
		d, err := Duration("a", c.d, 5*time.Second)
		got := d.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want && !(c.want == "a: " && err != nil) {
			t.Errorf("%v: %s, want %s", c.d, got, c.want)
		}
	}
}

func TestARangeDropsBitsBehindThePrefix(t *testing.T) {
	p, err := CIDR(&corev3.CidrRange{AddressPrefix: "10.1.2.3", PrefixLen: wrapperspb.UInt32(8)})
	if err != nil || p.String() != "10.0.0.0/8" {
		t.Errorf("%v %v", p, err)
	}
}

func TestUnsupportedNamesTheFieldThatIsSet(t *testing.T) {
	a := &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{}}}
	if got := Unsupported(a, "address").Error(); got != "pipe: unsupported" {
		t.Error(got)
	}
	if got := Unsupported(&corev3.Address{}, "address").Error(); got != "address: required" {
		t.Error(got)
	}
	if got := Unsupported((*corev3.Address)(nil), "address").Error(); got != "address: required" {
		t.Error(got)
	}
}
