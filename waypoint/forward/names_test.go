package forward

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/ambit-mesh/ambit/waypoint/listener"
)

func TestTLSGoesThroughByItsServerName(t *testing.T) {
	r := newRig(t)
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	r.cluster("secure", "", s.Listener.Addr().String())
	l, err := listener.Compile(parse(t, &listenerv3.Listener{}, fmt.Sprintf(namesJSON, vip.Port(), vip.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	r.snap.Store(&Snapshot{Listener: l, Clusters: r.set.View()})
	for name, good := range map[string]bool{"a.example": true, "b.example": false} {
		c, err := r.dial(t.Context(), vip)
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		tc.SetDeadline(time.Now().Add(5 * time.Second))
		if err := tc.Handshake(); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
}

const namesJSON = `{"name": "main_internal", "internal_listener": {},
 "filter_chains": [{"name": "chain", "filters": [{"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "secure"}}]}],
 "filter_chain_matcher": {"matcher_tree": {"input": {"name": "port", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"}},
  "exact_match_map": {"map": {"%d": {"matcher": {"matcher_tree": {"input": {"name": "sni", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"}},
   "exact_match_map": {"map": {"a.example": {"action": {"name": "chain", "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "chain"}}}}}}}}}}}}%.0s}`

// A DENY of the name let everything through when nobody read the ClientHello.
func TestARuleAboutTheServerNameHoldsHoweverLateTheNameComes(t *testing.T) {
	r := newRig(t)
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	r.cluster("secure", "", s.Listener.Addr().String())
	l, err := listener.Compile(parse(t, &listenerv3.Listener{}, denyNameJSON))
	if err != nil {
		t.Fatal(err)
	}
	if !l.Chains[0].TCP.ReadsName {
		t.Fatal("the chain does not wait for the name")
	}
	r.snap.Store(&Snapshot{Listener: l, Clusters: r.set.View()})
	for name, good := range map[string]bool{"good.example": true, "evil.example": false} {
		for _, late := range []bool{false, true} {
			c, err := r.dial(t.Context(), vip)
			if err != nil {
				t.Fatal(err)
			}
			if late {
				c = &torn{Conn: c}
			}
			tc := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
			tc.SetDeadline(time.Now().Add(5 * time.Second))
			if err := tc.Handshake(); (err == nil) != good {
				t.Errorf("%s, late %v: %v", name, late, err)
			}
			c.Close()
		}
	}
	c, err := r.dial(t.Context(), vip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{tlsHandshake, 3, 1, 0, 5, 99, 0, 0, 1, 0}) // a record that is no ClientHello
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("what cannot be read was passed on: %d bytes, %v", n, err)
	}
}

// torn sends the first bytes one by one.
type torn struct {
	net.Conn
	sent int
}

// Write implements net.Conn.
func (c *torn) Write(p []byte) (int, error) {
	for i := range p {
		if c.sent++; c.sent > 100 {
			n, err := c.Conn.Write(p[i:])
			return i + n, err
		}
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

var denyNameJSON = fmt.Sprintf(`{"name": "main_internal", "internal_listener": {},
 "filter_chains": [{"name": "chain", "filters": [
  {"name": "rbac", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC", "stat_prefix": "x", "rules": {"action": "DENY", "policies": {"p": {
   "permissions": [{"requested_server_name": {"exact": "evil.example"}}], "principals": [{"any": true}]}}}}},
  {"name": "tcp", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "secure"}}]}],
 "filter_chain_matcher": {"matcher_tree": {"input": {"name": "port", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"}},
  "exact_match_map": {"map": {"%d": {"action": {"name": "chain", "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "chain"}}}}}}}}`, vip.Port())
