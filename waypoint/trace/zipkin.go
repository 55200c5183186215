package trace

import (
	"encoding/hex"
	"encoding/json"

	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"

	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

//lint:file-ignore SA1019 fields that Envoy calls deprecated are still sent

// zipkin sends spans as Zipkin's JSON, version 2.
type zipkin struct{ post *post }

func compileZipkin(p *tracev3.ZipkinConfig) (Sink, error) {
	if v := p.GetCollectorEndpointVersion(); v != tracev3.ZipkinConfig_HTTP_JSON {
		return nil, field.Errorf("collector_endpoint_version", "unsupported %v; supported is HTTP_JSON", v)
	}
	if s := p.GetCollectorService(); s != nil {
		x, err := compilePost(s, "application/json")
		return &zipkin{x}, field.At(err, "collector_service")
	}
	s := &post{cluster: p.GetCollectorCluster(), host: p.GetCollectorHostname(), path: p.GetCollectorEndpoint(), scheme: "http", content: "application/json", timeout: callTime}
	switch {
	case s.cluster == "":
		return nil, field.Errorf("collector_cluster", "required")
	case s.path == "" || s.path[0] != '/':
		return nil, field.Errorf("collector_endpoint", "%q is not a path", s.path)
	case s.host == "":
		s.host = s.cluster
	}
	return &zipkin{s}, nil
}

type zipkinSpan struct {
	Trace     string            `json:"traceId"`
	ID        string            `json:"id"`
	Parent    string            `json:"parentId,omitempty"`
	Kind      string            `json:"kind"`
	Name      string            `json:"name"`
	Timestamp int64             `json:"timestamp"` // microseconds
	Duration  int64             `json:"duration"`
	Local     zipkinEndpoint    `json:"localEndpoint"`
	Tags      map[string]string `json:"tags"`
}

type zipkinEndpoint struct {
	Service string `json:"serviceName,omitempty"`
}

// Call implements Sink.
func (z *zipkin) Call(spans []*Span) (*filter.Call, error) {
	out := make([]zipkinSpan, len(spans))
	for i, s := range spans {
		p := zipkinSpan{
			Trace: string(appendTrace(nil, s.Trace)), ID: hex.EncodeToString(s.Span[:]), Kind: "SERVER", Name: s.Name,
			Timestamp: s.Start.UnixMicro(), Duration: max(1, s.End.Sub(s.Start).Microseconds()), Tags: map[string]string{},
		}
		if s.Parent != [8]byte{} {
			p.Parent = hex.EncodeToString(s.Parent[:])
		}
		for _, t := range s.Tags {
			p.Tags[t.Key] = t.Value
			if t.Key == nodeCluster {
				p.Local.Service = t.Value
			}
		}
		if s.Failed {
			p.Tags["error"] = "true"
		}
		out[i] = p
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	return z.post.call(b), nil
}

// nodeCluster is the tag that names the proxy.
const nodeCluster = "istio.canonical_service"

// Check implements Sink.
func (z *zipkin) Check(a *filter.CallAnswer) error { return z.post.check(a) }
