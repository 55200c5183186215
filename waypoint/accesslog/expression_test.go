package accesslog

import (
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/message"
)

func TestAFilterOfTheTelemetryAPIChoosesWhatIsLogged(t *testing.T) {
	log := func(expression string) (*Log, error) {
		var p accesslogv3.AccessLog
		if err := protojson.Unmarshal([]byte(`{"name": "x", "filter": {"extension_filter": {"name": "cel", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", "expression": "`+expression+`"}}},
		 "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/stdout"}}`), &p); err != nil {
			t.Fatal(err)
		}
		l, err := Compile([]*accesslogv3.AccessLog{&p})
		if err != nil {
			return nil, err
		}
		return l[0], nil
	}
	l, err := log("response.code >= 400 || request.headers['x-debug'] == 'yes'")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		status      int
		debug, want bool
	}{{200, false, false}, {200, true, true}, {500, false, true}} {
		r := &message.Request{}
		if x.debug {
			r.Header.Add("x-debug", "yes")
		}
		if got := l.Wants(&Entry{Exchange: &filter.Exchange{Req: r, Resp: &message.Response{Status: x.status}}, Status: x.status}); got != x.want {
			t.Errorf("%+v: %v", x, got)
		}
	}
	if _, err := log("response.nothing"); err == nil {
		t.Error("an unknown attribute is accepted")
	}
}
