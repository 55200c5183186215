package route

import (
	"os"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/ambit-mesh/ambit/waypoint/dumptest"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

// routeConfigs are the tables of a scenario's chains.
func routeConfigs(t *testing.T, s *dumptest.Scenario) []*routev3.RouteConfiguration {
	t.Helper()
	var out []*routev3.RouteConfiguration
	for _, l := range s.Listeners {
		for _, fc := range l.GetFilterChains() {
			for _, f := range fc.GetFilters() {
				var m hcmv3.HttpConnectionManager
				if f.GetTypedConfig().MessageIs(&m) {
					if err := f.GetTypedConfig().UnmarshalTo(&m); err != nil {
						t.Fatal(err)
					}
					out = append(out, m.GetRouteConfig())
				}
			}
		}
	}
	return out
}

func TestEveryRecordedTableCompiles(t *testing.T) {
	tables, routes := 0, 0
	for _, s := range dumptest.Load(t, os.Getenv("AMBIT_DUMPS")) {
		for _, c := range routeConfigs(t, s) {
			table, err := Compile(c, Options{})
			if err != nil {
				t.Errorf("%s: %s: %v", s.Name, c.GetName(), err)
				continue
			}
			tables++
			for _, vh := range table.Hosts {
				for _, r := range vh.Routes {
					routes++
					if r.Redirect == nil && r.Direct == nil && r.Action(&message.Request{}, 0) == nil {
						t.Errorf("%s: %s: route %q does nothing", s.Name, c.GetName(), r.Name)
					}
				}
			}
		}
	}
	t.Logf("%d tables, %d routes", tables, routes)
}
