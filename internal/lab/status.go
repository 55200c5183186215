package lab

import (
	"context"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"time"
)

// judged are the kinds whose status the control plane knows.
var judged = []string{
	"HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "Gateway", "GatewayClass", "Service", "ServiceEntry", "WorkloadEntry",
	"AuthorizationPolicy", "RequestAuthentication", "Telemetry", "EnvoyFilter",
}

// statusTimeout bounds the question to the control plane; objects are shown without its word rather than late.
const statusTimeout = 2 * time.Second

// withStatus puts what the control plane says into the status of objects of a kind, as it would write it to an API server.
func (l *Lab) withStatus(ctx context.Context, kind string, keys []key, docs map[key][]byte) {
	if l.ctl == nil || len(keys) == 0 || !slices.Contains(judged, kind) {
		return
	}
	home, err := l.ctl.homeNow()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	text, err := home.get(ctx, "http://127.0.0.1:15014/debug/status?kind="+url.QueryEscape(kind))
	if err != nil {
		return // it is starting, or stopped
	}
	var all map[string]map[string]any
	if json.Unmarshal([]byte(text), &all) != nil {
		return
	}
	for _, k := range keys {
		name := kind + " " + k.Name
		if k.Namespace != "" {
			name = kind + " " + k.Namespace + "/" + k.Name
		}
		said := all[name]
		var doc map[string]any
		if len(said) == 0 || json.Unmarshal(docs[k], &doc) != nil {
			continue
		}
		status, _ := doc["status"].(map[string]any)
		if status == nil {
			status = map[string]any{}
		}
		maps.Copy(status, said)
		doc["status"] = status
		docs[k] = encode(doc)
	}
}
