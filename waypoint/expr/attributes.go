package expr

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/secret"
	"github.com/ambit-mesh/ambit/waypoint/filter"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Env is what an expression is about: a request or a connection that is over.
type Env struct {
	Exchange *filter.Exchange
	Status   int
	GRPC     string // "" if there is no status
	Duration time.Duration
	// Shown says that the value is for people to see: secrets (package secret) are not in it.
	Shown bool
}

// header is what the expression gets of a header.
func (e *Env) header(name, value string) string {
	if e.Shown {
		value = secret.Header(name, value)
	}
	return strings.Clone(value)
}

// target is a request's path and query.
func (e *Env) target() string {
	if e.Shown {
		return secret.URL(e.Exchange.Req.Path)
	}
	return e.Exchange.Req.Path
}

// value is an operator of Envoy's format strings.
func (e *Env) value(operator, arg string) string {
	if e.Exchange.Values == nil {
		return ""
	}
	b, ok := e.Exchange.Values.AppendValue(nil, operator, arg)
	if !ok {
		return ""
	}
	return string(b)
}

func (e *Env) number(operator string) Value {
	n, err := strconv.ParseInt(e.value(operator, ""), 10, 64)
	if err != nil {
		return Value{}
	}
	return number(n)
}

// path is a request's path without query.
func path(e *Env) string {
	p, _, _ := strings.Cut(e.target(), "?")
	return p
}

func header(name string) func(*Env) Value {
	return func(e *Env) Value { return request(e, name) }
}

func request(e *Env, name string) Value {
	if e.Exchange.Req == nil {
		return Value{}
	}
	name = strings.ToLower(name)
	v, ok := route.RequestHeader(e.Exchange.Req, name)
	if !ok {
		return Value{}
	}
	return text(e.header(name, v))
}

// ofRequest is an attribute that connections without HTTP do not have.
func ofRequest(f func(*Env) string) func(*Env) Value {
	return func(e *Env) Value {
		if e.Exchange.Req == nil {
			return Value{}
		}
		return text(strings.Clone(f(e)))
	}
}

func operator(name string) func(*Env) Value {
	return func(e *Env) Value { return maybe(e.value(name, "")) }
}

// plain are the attributes that are values, with Envoy's names.
var plain = map[string]func(*Env) Value{
	"request.path":      ofRequest((*Env).target),
	"request.url_path":  ofRequest(path),
	"request.host":      ofRequest(func(e *Env) string { return e.Exchange.Req.Authority }),
	"request.scheme":    ofRequest(func(e *Env) string { return e.Exchange.Req.Scheme }),
	"request.method":    ofRequest(func(e *Env) string { return e.Exchange.Req.Method }),
	"request.protocol":  ofRequest(func(e *Env) string { return e.Exchange.Req.Proto.String() }),
	"request.id":        header("x-request-id"),
	"request.referer":   header("referer"),
	"request.useragent": header("user-agent"),
	"request.query": ofRequest(func(e *Env) string {
		_, q, _ := strings.Cut(e.target(), "?")
		return q
	}),
	"request.size":       func(e *Env) Value { return e.number("BYTES_RECEIVED") },
	"request.total_size": func(e *Env) Value { return e.number("BYTES_RECEIVED") },
	"request.duration":   func(e *Env) Value { return Value{Kind: Duration, i: int64(e.Duration)} },

	"response.code": func(e *Env) Value {
		if e.Status == 0 && e.Exchange.Resp == nil {
			return Value{}
		}
		return number(int64(e.Status))
	},
	"response.code_details": operator("RESPONSE_CODE_DETAILS"),
	"response.flags":        operator("RESPONSE_FLAGS"),
	"response.grpc_status": func(e *Env) Value {
		if n, err := strconv.ParseInt(e.GRPC, 10, 64); err == nil {
			return number(n)
		}
		return Value{}
	},
	"response.size":       func(e *Env) Value { return e.number("BYTES_SENT") },
	"response.total_size": func(e *Env) Value { return e.number("BYTES_SENT") },

	"source.address":      func(e *Env) Value { return text(e.Exchange.Client.Addr.String()) },
	"source.port":         func(e *Env) Value { return number(int64(e.Exchange.Client.Addr.Port())) },
	"source.principal":    func(e *Env) Value { return maybe(e.Exchange.Client.Principal) },
	"destination.address": func(e *Env) Value { return text(e.Exchange.Dest.String()) },
	"destination.port":    func(e *Env) Value { return number(int64(e.Exchange.Dest.Port())) },

	"connection.mtls":                     func(e *Env) Value { return boolean(e.Exchange.Client.Principal != "") },
	"connection.requested_server_name":    func(e *Env) Value { return maybe(e.Exchange.ServerName) },
	"connection.uri_san_peer_certificate": func(e *Env) Value { return maybe(e.Exchange.Client.Principal) },

	"upstream.address":                  operator("UPSTREAM_HOST"),
	"upstream.transport_failure_reason": operator("UPSTREAM_TRANSPORT_FAILURE_REASON"),
	"xds.cluster_name":                  operator("UPSTREAM_CLUSTER"),
	"xds.route_name":                    operator("ROUTE_NAME"),
	"xds.virtual_host_name":             operator("VIRTUAL_HOST_NAME"),
}

func peer(object string) func(*Env, string) Value {
	return func(e *Env, key string) Value { return maybe(e.value("FILTER_STATE", object+":FIELD:"+key)) }
}

// keyed are the attributes that have parts by name.
var keyed = map[string]func(*Env, string) Value{
	"request.headers": request,
	"response.headers": func(e *Env, name string) Value {
		if e.Exchange.Resp == nil {
			return Value{}
		}
		name = strings.ToLower(name)
		v, ok := route.ResponseHeader(e.Exchange.Resp, name)
		if !ok {
			return Value{}
		}
		return text(e.header(name, v))
	},
	"filter_state.downstream_peer": peer("downstream_peer"),
	"filter_state.upstream_peer":   peer("upstream_peer"),
	"downstream_peer":              peer("downstream_peer"),
	"upstream_peer":                peer("upstream_peer"),
}

// Attributes are the names that are understood; those that have parts end in [].
func Attributes() []string {
	out := slices.Collect(maps.Keys(plain))
	for k := range keyed {
		out = append(out, k+"[]")
	}
	slices.Sort(out)
	return out
}
