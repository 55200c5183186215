package listener

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
)

// heap is the number of bytes in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestAThousandServicesFitInFourMegabytes(t *testing.T) {
	const services = 1000
	var tags []string
	for i := range 25 {
		tags = append(tags, fmt.Sprintf(`{"tag":"istio.source_canonical_service_%d","value":"%%FILTER_STATE(downstream_peer_obj:FIELD:service)%%"}`, i))
	}
	var chains, ranges []string
	for i := range services {
		name := fmt.Sprintf("inbound-vip|80|http|web-%d.shop.svc.cluster.local", i)
		c := httpChain(name, `"tracing":{"random_sampling":{"value":1},"custom_tags":[`+strings.Join(tags, ",")+`]},"upgrade_configs":[{"upgrade_type":"websocket"}],"access_log":[{"name":"f","typed_config":{`+
			ext+`access_loggers.file.v3.FileAccessLog","path":"/dev/stdout"}}]`)
		c = strings.Replace(c, `"http_filters":[`, `"http_filters":[{"name":"envoy.filters.http.grpc_stats","typed_config":{`+ext+`filters.http.grpc_stats.v3.FilterConfig","emit_filter_state":true}},{"name":"envoy.filters.http.fault","typed_config":{`+ext+`filters.http.fault.v3.HTTPFault"}},{"name":"envoy.filters.http.cors","typed_config":{`+ext+`filters.http.cors.v3.Cors"}},`, 1)
		c = strings.Replace(c, `"route":{"cluster":"c"}`, `"decorator":{"operation":"web.shop:80/*"},"route":{"cluster":"`+name+`","timeout":"0s","max_grpc_timeout":"0s","retry_policy":{"retry_on":"connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes","num_retries":2,"host_selection_retry_max_attempts":"5","retry_host_predicate":[{"name":"envoy.retry_host_predicates.previous_hosts","typed_config":{`+ext+`retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}`, 1)
		chains = append(chains, c)
		ranges = append(ranges, ipRange(fmt.Sprintf("10.96.%d.%d/32", i/256, i%256), nested(match("DestinationPortInput", "", entry("80", action(name)))), ""))
	}
	var p listenerv3.Listener
	if err := dumptest.Unmarshal([]byte(internal(strings.Join(chains, ","), `,"filter_chain_matcher":`+ips("", ranges...))), &p); err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	p.Reset()
	chains, ranges = nil, nil
	before := heap()
	l, err := Decode("", b)
	if err != nil {
		t.Fatal(err)
	}
	used := heap() - before
	t.Logf("%d services, %d bytes on the wire: %d bytes each, %.1f MB in all", services, len(b), used/services, float64(used)/1e6)
	if used > 4e6 {
		t.Errorf("%.1f MB", float64(used)/1e6)
	}
	if l.Lookup(netip.MustParseAddrPort("10.96.3.231:80")) == nil {
		t.Error("the last one is not found")
	}
	runtime.KeepAlive(b)
}
