package filter

import (
	"net/netip"
	"testing"
)

func TestTheClientsAddressIsStateOfTheConnection(t *testing.T) {
	x := &Exchange{}
	if v, ok := x.FilterState("envoy.filters.listener.original_dst.remote_ip"); ok {
		t.Errorf("got %q without a client", v)
	}
	x.Client.Addr = netip.MustParseAddrPort("10.0.0.7:4711")
	if v, ok := x.FilterState("envoy.filters.listener.original_dst.remote_ip"); !ok || v != "10.0.0.7:4711" {
		t.Errorf("got %q, %t, want the client's address", v, ok)
	}
}
