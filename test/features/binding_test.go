package features

// binding is which waypoint an object has.
func binding() []group {
	const use, traffic, canary = "istio.io/use-waypoint", "Gateway istio.io/waypoint-for", "istio.io/use-waypoint-canary"
	seen, unseen, refusedAll := "header.X-Request-Id=*", "!header.X-Request-Id=*", "error=reset"
	through := func(gateway string) string { return "peer=$P(" + gateway + "):*" }
	pod := func(name string) ask { return get("/").of("pod/" + name).at(8080).host("pod.example") }
	shared := func(weight string) feature {
		return feature{field: "Service " + canary + "-weight", labels: use + ": wp, " + canary + ": canary", annotations: canary + "-weight: \"" + weight + "\""}
	}
	named := func(f feature, name string, asks ...ask) feature { f.name, f.asks = name, asks; return f }
	return []group{
		{title: "bind to a waypoint", features: []feature{
			{name: "a namespace", field: "Namespace " + use, asks: []ask{get("/").want(ok, seen)}},
			{name: "a namespace, from another one", field: "Namespace " + use, asks: []ask{get("/").by("stranger").want(ok, seen)}},
			{name: "a service opts out", field: "Service " + use + ": none", labels: use + ": none", asks: []ask{get("/").want(ok, unseen)}},
			{name: "a service by itself", field: "Service " + use, labels: use + ": wp", asks: []ask{get("/").want(ok, seen)}},
			{name: "a service of a namespace with another waypoint", field: "Service " + use, labels: use + ": every", asks: []ask{get("/").times(5).anew().want(ok, seen, through("every"))}},
			{name: "a service of another namespace", field: "Service " + use + "-namespace", asks: []ask{get("/").of("across").want(ok, seen, through("wp"))}},
			{name: "a service without", field: "Service", asks: []ask{get("/").of("unbound").want(ok, unseen)}},
			{name: "a ServiceEntry", field: "ServiceEntry " + use, yaml: external("wp"), asks: []ask{get("/").of("entry-wp").want(ok, seen, through("wp"))}},
			{name: "a ServiceEntry of its own", field: "ServiceEntry " + use, yaml: bound("240.240.8.1", use+": every"), asks: []ask{get("/").of("240.240.8.1").want(ok, seen, through("every"))}},
			{name: "a ServiceEntry by its namespace", field: "Namespace " + use, yaml: bound("240.240.8.2", ""), asks: []ask{get("/").of("240.240.8.2").want(ok, seen, through("wp"))}},
			{name: "a ServiceEntry opts out", field: "ServiceEntry " + use + ": none", yaml: bound("240.240.8.3", use+": none"), asks: []ask{get("/").of("240.240.8.3").want(ok, unseen)}},
			{name: "a pod", field: "Pod " + use, asks: []ask{pod("by-itself").want(ok, seen, through("every"))}},
			{name: "a pod, to a waypoint of another namespace", field: "Pod " + use + "-namespace", asks: []ask{pod("by-another").want(ok, seen, through("podwise"))}},
			{name: "a pod by its namespace", field: "Namespace " + use, asks: []ask{pod("in-namespace").want(ok, seen, through("podwise"))}},
			{name: "a pod opts out", field: "Pod " + use + ": none", asks: []ask{pod("opted-out").want(ok, unseen)}},
			{name: "a pod's waypoint is by its address only", field: "Pod " + use, pods: "app: lone-not", asks: []ask{get("/").of("podwise-service").want(ok, unseen)}},
		}},
		{title: "take traffic for", features: []feature{
			{name: "services", field: traffic + ": service", asks: []ask{get("/").want(ok, seen), pod("alpha").want(ok, unseen)}},
			{name: "workloads", field: traffic + ": workload", asks: []ask{pod("in-namespace").want(ok, seen), get("/").of("podwise-service").want(ok, unseen)}},
			{name: "all, a service", field: traffic + ": all", labels: use + ": every", asks: []ask{get("/").want(ok, seen, through("every"))}},
			{name: "all, a pod", field: traffic + ": all", asks: []ask{pod("by-itself").want(ok, seen, through("every"))}},
			{name: "nothing", field: traffic + ": none", labels: use + ": idle", asks: []ask{get("/").want(ok, unseen)}},
		}},
		{title: "refuse without a waypoint", features: []feature{
			{name: "one that does not exist", field: "Service " + use, labels: use + ": ghost", asks: []ask{get("/").want(refusedAll)}},
			{name: "one that does not exist, in another namespace", field: "Service " + use, asks: []ask{get("/").of("bound").want(refusedAll)}},
			{name: "the log says which one does not exist", field: "Service " + use, labels: use + ": spectre", asks: []ask{get("/").want(refusedAll)}, logged: []string{"spectre.shop.unusable-waypoint", "error"}},
			{name: "one without endpoints", field: "Service " + use, labels: use + ": empty", asks: []ask{get("/").want(refusedAll)}},
			{name: "the log says that there are no endpoints", field: "Service " + use, labels: use + ": empty", asks: []ask{get("/").want(refusedAll)}, logged: []string{"empty.shop.svc.cluster.local", "error", "unknown waypoint"}},
			{name: "one of another namespace that does not let it in", field: "Gateway.listeners.allowedRoutes", asks: []ask{get("/").of("kept-out").want(refusedAll)}},
			{name: "a pod's that does not exist", field: "Pod " + use, asks: []ask{pod("by-none").want(refusedAll)}},
			{name: "a ServiceEntry's that does not exist", field: "ServiceEntry " + use, yaml: bound("240.240.8.4", use+": ghost"), asks: []ask{get("/").of("240.240.8.4").want(refusedAll)}},
		}},
		{title: "try a new waypoint", features: []feature{
			named(shared("0"), "with no weight", get("/").times(20).anew().want(ok, through("wp"))),
			named(shared("100"), "with all of it", get("/").times(20).anew().want(ok, through("canary"))),
			named(shared("40"), "with a share of the connections", get("/").times(100).anew().want(ok, seen).count(through("canary"), 18, 65)),
			{name: "for a namespace", field: "Namespace " + canary, asks: []ask{get("/").of("canary-of-namespace").times(5).anew().want(ok, through("every"))}},
			{name: "not where a service names its own", field: "Namespace " + canary, asks: []ask{get("/").of("own-waypoint").times(5).anew().want(ok, through("wp"))}},
			{name: "the routes of the service hold there", field: "Service " + canary, labels: use + ": wp, " + canary + ": canary", annotations: canary + "-weight: \"50\"", yaml: httpRoute("matches: [{path: {type: PathPrefix, value: /a}}], " + refs("v2")), asks: []ask{get("/a").times(30).anew().want(ok, atV2).peers(1, 60)}},
		}},
	}
}

func external(waypoint string) string {
	return "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: entry-" + waypoint + ", namespace: shop, labels: {istio.io/use-waypoint: " + waypoint + "}}, spec: {hosts: [entry.example], addresses: [240.240.7.1], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], workloadSelector: {labels: {app: web}}}}\n---\n"
}

// bound is the case's ServiceEntry, with a pod of its own as endpoint, at an address.
func bound(address, label string) string {
	return "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: $S, namespace: shop, labels: {" + label + "}}, spec: {hosts: [$S.example], addresses: [" + address + "], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], workloadSelector: {labels: {app: web}}}}\n---\n"
}
