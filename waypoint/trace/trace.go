// Package trace is a waypoint's part in distributed traces: which requests are recorded, what their spans say, how the
// context goes on to endpoints, and how spans are told to a collector. It is compiled from the tracing of Envoy's connection
// manager. It opens no connection: a [Sink] makes and judges calls, which the data path carries.
package trace

import (
	"strconv"
	"strings"
	"time"

	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/secret"
	"github.com/ambit-mesh/ambit/waypoint/field"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// scale is of shares: a hundredth of a percent.
const scale = 10000

// defaultPath is how long a path in a span may be, in bytes, if the configuration does not say (Envoy's default).
const defaultPath = 256

// Config is a compiled tracing configuration. It is immutable.
type Config struct {
	// Sink takes spans; nil: there is no provider, and requests are not recorded here.
	Sink Sink

	client, random, overall uint64 // of scale
	tags                    []customTag
	maxPath                 int
	forms                   Forms // that are sent, whatever has come
	short                   bool  // IDs of new traces have 64 bits
	quiet                   bool  // endpoints are told of no trace, the caller's neither
}

// Sink says how a collector is told.
type Sink interface {
	// Call is the request that tells the collector of the spans.
	Call(spans []*Span) (*filter.Call, error)
	// Check judges its answer.
	Check(a *filter.CallAnswer) error
}

// Span is what is told of one request.
type Span struct {
	Context
	// Parent is the span above, zero if there is none.
	Parent     [8]byte
	Name       string
	Start, End time.Time
	Tags       []Tag
	// Failed says that the request failed on our side or the endpoint's.
	Failed bool
}

// Tag is one thing that a span says.
type Tag struct{ Key, Value string }

// Add adds a tag. The value has to outlive the request.
func (s *Span) Add(key, value string) { s.Tags = append(s.Tags, Tag{key, value}) }

// Size is about how many bytes the span takes, in memory and on its way.
func (s *Span) Size() int {
	n := 128 + len(s.Name) + len(s.State)
	for _, t := range s.Tags {
		n += len(t.Key) + len(t.Value) + 8
	}
	return n
}

// Compile compiles the tracing of a connection manager. Tracers that are not known are refused.
func Compile(p *hcmv3.HttpConnectionManager_Tracing) (*Config, error) {
	c := &Config{client: share(p.GetClientSampling()), random: share(p.GetRandomSampling()), overall: share(p.GetOverallSampling()), maxPath: defaultPath, forms: W3C,
		quiet: p.GetNoContextPropagation()}
	if n := p.GetMaxPathTagLength(); n != nil {
		c.maxPath = int(n.GetValue())
	}
	for i, t := range p.GetCustomTags() {
		x, err := compileTag(t)
		if err != nil {
			return nil, field.Index(err, "custom_tags", i)
		}
		c.tags = append(c.tags, x)
	}
	if p.GetProvider() == nil {
		return c, nil
	}
	return c, field.At(c.compileProvider(p.GetProvider()), "provider")
}

// share is a percentage of scale; 100 % if nothing is said.
func share(p *typev3.Percent) uint64 {
	if p == nil {
		return scale
	}
	return uint64(min(max(p.GetValue(), 0), 100) * scale / 100)
}

func (c *Config) compileProvider(p *tracev3.Tracing_Http) (err error) {
	a := p.GetTypedConfig()
	switch {
	case a.MessageIs((*tracev3.ZipkinConfig)(nil)):
		var m tracev3.ZipkinConfig
		if err = a.UnmarshalTo(&m); err == nil {
			c.forms, c.short = B3Multi, !m.GetTraceId_128Bit()
			c.Sink, err = compileZipkin(&m)
		}
	case a.MessageIs((*tracev3.OpenTelemetryConfig)(nil)):
		var m tracev3.OpenTelemetryConfig
		if err = a.UnmarshalTo(&m); err == nil {
			c.Sink, err = compileOTLP(&m)
		}
	default:
		return field.Errorf("typed_config", "unknown tracer %q of type %q; known are ZipkinConfig and OpenTelemetryConfig of envoy.config.trace.v3", p.GetName(), a.GetTypeUrl())
	}
	return field.At(err, "typed_config")
}

// customTag is one that the configuration asks for. Of its values one is set.
type customTag struct {
	name, def string
	literal   string
	env       string
	header    string
	format    *route.Format
	kind      metadataKind
	filter    string
	path      []string
}

type metadataKind uint8

const (
	noMetadata metadataKind = iota
	ofRequest
	ofRoute
	ofOther // of the cluster or the endpoint: we keep none
)

func compileTag(p *tracingv3.CustomTag) (t customTag, err error) {
	if t.name = p.GetTag(); t.name == "" {
		return t, field.Errorf("tag", "required")
	}
	switch k := p.GetType().(type) {
	case *tracingv3.CustomTag_Literal_:
		t.literal = k.Literal.GetValue()
	case *tracingv3.CustomTag_Environment_:
		t.env, t.def = k.Environment.GetName(), k.Environment.GetDefaultValue()
	case *tracingv3.CustomTag_RequestHeader:
		t.header, t.def = strings.ToLower(k.RequestHeader.GetName()), k.RequestHeader.GetDefaultValue()
	case *tracingv3.CustomTag_Value:
		t.format, err = route.CompileShown(k.Value)
		return t, field.At(err, "value")
	case *tracingv3.CustomTag_Metadata_:
		t.def, t.filter = k.Metadata.GetDefaultValue(), k.Metadata.GetMetadataKey().GetKey()
		for _, s := range k.Metadata.GetMetadataKey().GetPath() {
			t.path = append(t.path, s.GetKey())
		}
		switch k.Metadata.GetKind().GetKind().(type) {
		case *metadatav3.MetadataKind_Request_:
			t.kind = ofRequest
		case *metadatav3.MetadataKind_Route_:
			t.kind = ofRoute
		default:
			t.kind = ofOther
		}
	default:
		return t, field.Unsupported(p, "type")
	}
	return t, nil
}

// value is the tag's value, "" if there is none; then the tag is left out.
func (t *customTag) value(x *filter.Exchange, env func(string) (string, bool)) string {
	v, ok := t.literal, true
	switch {
	case t.env != "":
		if v, ok = env(t.env); ok && secret.Named(t.env) {
			v = secret.Hidden
		}
	case t.header != "":
		if v, ok = x.Req.Header.Lookup(t.header); ok {
			v = strings.Clone(secret.Header(t.header, v))
		}
	case t.format != nil:
		var space [128]byte
		v = string(t.format.Append(space[:0], x.Context(), ""))
	case t.kind == ofRequest:
		v, ok = text(x.Metadata(t.filter), t.path)
	case t.kind == ofRoute:
		if r := x.Route(); r != nil {
			v, ok = text(r.Metadata.GetFilterMetadata()[t.filter], t.path)
		} else {
			ok = false
		}
	case t.kind == ofOther:
		ok = false
	}
	if !ok {
		return t.def
	}
	return v
}

// text is a value of metadata.
func text(s *structpb.Struct, path []string) (string, bool) {
	var v *structpb.Value
	for i, k := range path {
		if i > 0 {
			s = v.GetStructValue()
		}
		v = s.GetFields()[k]
	}
	switch k := v.GetKind().(type) {
	case nil:
		return "", false
	case *structpb.Value_StringValue:
		return k.StringValue, true
	case *structpb.Value_NumberValue:
		return strconv.FormatFloat(k.NumberValue, 'f', -1, 64), true
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue), true
	}
	b, err := proto.Marshal(v)
	return string(b), err == nil
}

// Describe adds what the request says, by Envoy's names, and the tags that the configuration asks for. Secrets are in none.
func (c *Config) Describe(s *Span, x *filter.Exchange, env func(string) (string, bool)) {
	r := x.Req
	h := func(tag, name string) {
		if v, ok := r.Header.Lookup(name); ok {
			s.Add(tag, strings.Clone(v))
		}
	}
	s.Add("component", "proxy")
	h("guid:x-request-id", "x-request-id")
	h("guid:x-client-trace-id", "x-client-trace-id")
	path := r.Path
	if v, ok := r.Header.Lookup("x-envoy-original-path"); ok {
		path = v
	}
	path = secret.URL(path)
	s.Add("http.url", r.Scheme+"://"+r.Authority+path[:min(len(path), c.maxPath)])
	s.Add("http.method", strings.Clone(r.Method))
	s.Add("http.protocol", r.Proto.String())
	h("user_agent", "user-agent")
	s.Add("peer.address", x.Client.Addr.Addr().String())
	if route.IsGRPC(r) {
		s.Add("grpc.path", strings.Clone(secret.URL(r.Path)))
		s.Add("grpc.authority", strings.Clone(r.Authority))
		h("grpc.content_type", "content-type")
		h("grpc.timeout", "grpc-timeout")
	}
	if x.Resp != nil {
		s.Add("http.status_code", strconv.Itoa(x.Resp.Status))
		s.Failed = x.Resp.Status >= 500
	} else {
		s.Add("http.status_code", "0")
		s.Failed = true
	}
	s.Add("response_flags", x.Flags.String())
	for i := range c.tags {
		if v := c.tags[i].value(x, env); v != "" {
			s.Add(c.tags[i].name, v)
		}
	}
}
