package forward

import (
	"crypto/tls"
	"fmt"
	"net/http/httptest"
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
