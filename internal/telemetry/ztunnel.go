package telemetry

// Ztunnel are the metrics of a node proxy besides the connection metrics, under the names of section 9.3 of the protocol.
type Ztunnel struct {
	SocketsOpen      *GaugeVec   // reporter
	OnDemandDNS      *CounterVec // source workload and hostname
	CRLRejections    *CounterVec // reporter
	CRLUntracked     *CounterVec // reporter
	XDSTerminations  *CounterVec // reason: ConnectionError, Error, Reconnect, Complete
	XDSMessages      *CounterVec // url
	XDSMessageBytes  *CounterVec // url
	ActiveProxies    Gauge
	PendingProxies   Gauge
	ProxiesStarted   Counter
	ProxiesStopped   Counter
	DNSRequests      *CounterVec // DNSLabels
	DNSUpstream      *CounterVec // DNSLabels
	DNSFailures      *CounterVec // DNSLabels
	DNSUpstreamTimes *HistogramVec
}

// DNSLabels are the labels of the DNS metrics.
var DNSLabels = []string{
	"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision",
}

// NewZtunnel registers the metrics of a node proxy.
func NewZtunnel(r *Registry) *Ztunnel {
	dnsBuckets := []float64{.0005, .001, .01, .1, 1, 5} // seconds
	return &Ztunnel{
		SocketsOpen:   r.Gauges("istio_tcp_sockets_open", "Open sockets.", "reporter"),
		OnDemandDNS:   r.Counters("istio_on_demand_dns_total", "Hostnames resolved for a connection.", append(sourceLabels(), "hostname")...),
		CRLRejections: r.Counters("istio_crl_policy_rejections_total", "Connections refused or cut because of a CRL.", "reporter"),
		CRLUntracked:  r.Counters("istio_crl_untracked_connections_total", "Connections that a CRL reload cannot check.", "reporter"),
		XDSTerminations: r.Counters("istio_xds_connection_terminations_total",
			"Ends of the connection to the control plane.", "reason"),
		XDSMessages:      r.Counters("istio_xds_message_total", "Messages from the control plane.", "url"),
		XDSMessageBytes:  r.Counters("istio_xds_message_bytes_total", "Bytes of messages from the control plane.", "url"),
		ActiveProxies:    r.Gauge("workload_manager_active_proxy_count", "Pods that are proxied."),
		PendingProxies:   r.Gauge("workload_manager_pending_proxy_count", "Pods that wait to be proxied."),
		ProxiesStarted:   r.Counter("workload_manager_proxies_started_total", "Pods whose proxying started."),
		ProxiesStopped:   r.Counter("workload_manager_proxies_stopped_total", "Pods whose proxying stopped."),
		DNSRequests:      r.Counters("istio_dns_requests_total", "DNS requests.", DNSLabels...),
		DNSUpstream:      r.Counters("istio_dns_upstream_requests_total", "DNS requests sent on.", DNSLabels...),
		DNSFailures:      r.Counters("istio_dns_upstream_failures_total", "DNS requests sent on that failed.", DNSLabels...),
		DNSUpstreamTimes: r.Histograms("istio_dns_upstream_request_duration_seconds", "Time of DNS requests sent on.", dnsBuckets, DNSLabels...),
	}
}
