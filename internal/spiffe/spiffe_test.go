package spiffe_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, uri string
		ok        bool
	}{
		{"a service account", "spiffe://cluster.local/ns/default/sa/sleep", true},
		{"dots, digits, dashes and underscores", "spiffe://td_1.example.com/ns/a-b/sa/x.y-z_0", true},
		{"no scheme", "cluster.local/ns/default/sa/sleep", false},
		{"another scheme", "https://cluster.local/ns/default/sa/sleep", false},
		{"upper-case scheme", "SPIFFE://cluster.local/ns/default/sa/sleep", false},
		{"upper-case trust domain", "spiffe://Cluster.local/ns/default/sa/sleep", false},
		{"upper-case name", "spiffe://cluster.local/ns/default/sa/Sleep", false},
		{"percent-encoding", "spiffe://cluster.local/ns/default/sa/sl%65ep", false},
		{"NUL", "spiffe://cluster.local/ns/default/sa/sleep\x00", false},
		{"dot-dot segment", "spiffe://cluster.local/ns/../sa/sleep", false},
		{"dot segment", "spiffe://cluster.local/ns/default/sa/.", false},
		{"empty namespace", "spiffe://cluster.local/ns//sa/sleep", false},
		{"empty service account", "spiffe://cluster.local/ns/default/sa/", false},
		{"empty trust domain", "spiffe:///ns/default/sa/sleep", false},
		{"trailing slash", "spiffe://cluster.local/ns/default/sa/sleep/", false},
		{"six parts", "spiffe://cluster.local/ns/default/sa/sleep/x", false},
		{"literals swapped", "spiffe://cluster.local/sa/default/ns/sleep", false},
		{"a port", "spiffe://cluster.local:80/ns/default/sa/sleep", false},
		{"user info", "spiffe://me@cluster.local/ns/default/sa/sleep", false},
		{"a query", "spiffe://cluster.local/ns/default/sa/sleep?x", false},
		{"an empty fragment", "spiffe://cluster.local/ns/default/sa/sleep#", false},
		{"not ASCII", "spiffe://cluster.local/ns/default/sa/sl\u0435ep", false},
		{"trust domain of 255 bytes", "spiffe://" + strings.Repeat("a", 255) + "/ns/a/sa/b", true},
		{"trust domain of 256 bytes", "spiffe://" + strings.Repeat("a", 256) + "/ns/a/sa/b", false},
		{"more than 2048 bytes", "spiffe://td/ns/a/sa/" + strings.Repeat("b", 2048), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := spiffe.Parse(tt.uri)
			if (err == nil) != tt.ok {
				t.Fatalf("Parse(%q) = %v, %v; want ok %v", tt.uri, id, err, tt.ok)
			}
			if err != nil && (!errors.Is(err, spiffe.ErrInvalid) || !id.IsZero()) {
				t.Errorf("got ID %v and error %v, want the zero ID and ErrInvalid", id, err)
			}
			if err == nil && id.String() != tt.uri {
				t.Errorf("String() = %q, want %q", id, tt.uri)
			}
		})
	}
}

func TestPartsOfAnID(t *testing.T) {
	id, err := spiffe.New("cluster.local", "default", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{id.String(), id.Principal(), id.TrustDomain(), id.Namespace(), id.ServiceAccount()}
	want := []string{"spiffe://cluster.local/ns/default/sa/sleep", "cluster.local/ns/default/sa/sleep", "cluster.local", "default", "sleep"}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("part %d: got %q, want %q", i, got[i], want[i])
		}
	}
	if again, _ := spiffe.Parse(id.String()); again != id {
		t.Errorf("Parse(String()) = %#v, want %#v", again, id)
	}
	var zero spiffe.ID
	if s := zero.String() + zero.Principal() + zero.TrustDomain() + zero.Namespace() + zero.ServiceAccount(); s != "" || !zero.IsZero() {
		t.Errorf("zero ID has parts %q", s)
	}
}

func TestNewRefusesSlashes(t *testing.T) {
	for _, parts := range [][3]string{{"td/ns/x/sa/y", "a", "b"}, {"td", "a/sa/b", "c"}, {"td", "a", "b/c"}} {
		if id, err := spiffe.New(parts[0], parts[1], parts[2]); err == nil {
			t.Errorf("New(%q) = %v, want an error", parts, id)
		}
	}
}

func TestTextRoundTrip(t *testing.T) {
	id, _ := spiffe.New("cluster.local", "default", "sleep")
	text, _ := id.MarshalText()
	var got spiffe.ID
	if err := got.UnmarshalText(text); err != nil || got != id {
		t.Errorf("got %v, %v; want %v", got, err, id)
	}
	if err := got.UnmarshalText([]byte("x")); err == nil {
		t.Error("UnmarshalText(x) succeeded")
	}
	if err := got.UnmarshalText(nil); err != nil || !got.IsZero() {
		t.Errorf("empty text gave %v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/sleep")
	f.Add("spiffe://td/ns/../sa/%00")
	f.Add("spiffe:////sa/ns//")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := spiffe.Parse(uri)
		if err != nil {
			return
		}
		again, err := spiffe.New(id.TrustDomain(), id.Namespace(), id.ServiceAccount())
		if err != nil || again != id || again.String() != uri {
			t.Fatalf("Parse(%q) = %#v, rebuilt %#v, %v", uri, id, again, err)
		}
	})
}
