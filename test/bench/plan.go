package main

import (
	pathpkg "path"
	"strings"
	"time"
)

// A path is where a connection goes.
type path string

const (
	crossNode   path = "cross-node"  // to a pod of the mesh on the other node: two proxies
	sameNode    path = "same-node"   // to a pod of the mesh on the same node: one proxy
	passthrough path = "passthrough" // to a pod on the other node that is not in the mesh: one proxy, plaintext
)

// A kind is what the client does.
type kind string

const (
	bulkUp   kind = "up"   // send as fast as it goes
	bulkDown kind = "down" // receive as fast as it goes
	pingPong kind = "rr"   // 1 KB there, 1 KB back, on open connections
	connect  kind = "crr"  // connect, 1 KB there and back, close
	stalled  kind = "rr-stalled"
)

// A workload is one case to measure.
type workload struct {
	Name  string `json:"name"`
	Kind  kind   `json:"kind"`
	Path  path   `json:"path"`
	Conns int    `json:"conns"` // connections, or workers for connect
	// Streams is how many requests a connection of HTTP/2 carries at a time; Log has the proxy write an access log.
	Streams int  `json:"streams,omitempty"`
	Log     bool `json:"log,omitempty"`
	Size    int  `json:"size,omitempty"` // bytes of a message
	Rate    int  `json:"rate,omitempty"` // messages a second over all connections; zero: as fast as it goes
}

// bytes says that the unit of work is the gigabyte and not the round trip.
func (w workload) bytes() bool { return w.Kind == bulkUp || w.Kind == bulkDown }

// unit names CPU per unit of work.
func (w workload) unit() string {
	if w.bytes() {
		return "s/GB"
	}
	return "us/op"
}

var allWorkloads = []workload{
	{Name: "up-1", Kind: bulkUp, Path: crossNode, Conns: 1},
	{Name: "up-8", Kind: bulkUp, Path: crossNode, Conns: 8},
	{Name: "down-1", Kind: bulkDown, Path: crossNode, Conns: 1},
	{Name: "down-8", Kind: bulkDown, Path: crossNode, Conns: 8},
	{Name: "rr-1", Kind: pingPong, Path: crossNode, Conns: 1, Size: 1024},
	{Name: "rr-16", Kind: pingPong, Path: crossNode, Conns: 16, Size: 1024},
	{Name: "rr-128", Kind: pingPong, Path: crossNode, Conns: 128, Size: 1024},
	{Name: "paced-1000", Kind: pingPong, Path: crossNode, Conns: 64, Size: 1024, Rate: 1000},
	{Name: "paced-4000", Kind: pingPong, Path: crossNode, Conns: 64, Size: 1024, Rate: 4000},
	{Name: "crr-1", Kind: connect, Path: crossNode, Conns: 1, Size: 1024},
	{Name: "crr-16", Kind: connect, Path: crossNode, Conns: 16, Size: 1024},
	{Name: "stalled-rr-1", Kind: stalled, Path: crossNode, Conns: 1, Size: 1024},
	{Name: "same-up-1", Kind: bulkUp, Path: sameNode, Conns: 1},
	{Name: "same-down-1", Kind: bulkDown, Path: sameNode, Conns: 1},
	{Name: "same-rr-1", Kind: pingPong, Path: sameNode, Conns: 1, Size: 1024},
	{Name: "same-rr-16", Kind: pingPong, Path: sameNode, Conns: 16, Size: 1024},
	{Name: "same-crr-16", Kind: connect, Path: sameNode, Conns: 16, Size: 1024},
	{Name: "pass-up-1", Kind: bulkUp, Path: passthrough, Conns: 1},
	{Name: "pass-down-1", Kind: bulkDown, Path: passthrough, Conns: 1},
	{Name: "pass-rr-16", Kind: pingPong, Path: passthrough, Conns: 16, Size: 1024},
	{Name: "pass-crr-16", Kind: connect, Path: passthrough, Conns: 16, Size: 1024},
}

// The suites.
const (
	ztunnelSuite  = "ztunnel"
	waypointSuite = "waypoint"
)

// requestWorkloads are those of the waypoint's suite.
var requestWorkloads = []workload{
	{Name: "wp-h1-32", Kind: http1Requests, Path: throughWaypoint, Conns: 32, Size: replySize},
	{Name: "wp-h1-1000", Kind: http1Requests, Path: throughWaypoint, Conns: 32, Size: replySize, Rate: 1000},
	{Name: "wp-h2-8x10", Kind: http2Requests, Path: throughWaypoint, Conns: 8, Streams: 10, Size: replySize},
	{Name: "wp-grpc-8x10", Kind: grpcUnary, Path: throughWaypoint, Conns: 8, Streams: 10, Size: replySize},
	{Name: "wp-grpc-1000", Kind: grpcUnary, Path: throughWaypoint, Conns: 32, Streams: 1, Size: replySize, Rate: 1000},
	{Name: "wp-stream-8x10", Kind: grpcStreams, Path: throughWaypoint, Conns: 8, Streams: 10, Size: replySize},
	{Name: "wp-h1-32-log", Kind: http1Requests, Path: throughWaypoint, Conns: 32, Size: replySize, Log: true},
	{Name: "wp-h1-1000-log", Kind: http1Requests, Path: throughWaypoint, Conns: 32, Size: replySize, Rate: 1000, Log: true},
	{Name: "wp-grpc-8x10-log", Kind: grpcUnary, Path: throughWaypoint, Conns: 8, Streams: 10, Size: replySize, Log: true},
	{Name: "h1-32", Kind: http1Requests, Path: plainHTTP1, Conns: 32, Size: replySize},
	{Name: "h1-1000", Kind: http1Requests, Path: plainHTTP1, Conns: 32, Size: replySize, Rate: 1000},
	{Name: "h2-8x10", Kind: http2Requests, Path: plainHTTP2, Conns: 8, Streams: 10, Size: replySize},
}

// A profile is how much is run.
type profile struct {
	name         string
	rounds       int
	window, warm time.Duration // measured, and before it
	memoryRounds int
	idle         []int // connections to hold idle
	tables       []int // workloads that the proxy knows of, besides those that take part
	extraRounds  int   // at most so many rounds more for a workload whose direct control went astray
}

var profiles = map[string]profile{
	"quick": {name: "quick", rounds: 5, window: time.Second, warm: 400 * time.Millisecond,
		memoryRounds: 1, idle: []int{1000, 10000}, tables: []int{0, 1000}, extraRounds: 1},
	"full": {name: "full", rounds: 9, window: 1500 * time.Millisecond, warm: 500 * time.Millisecond,
		memoryRounds: 3, idle: []int{1000, 10000}, tables: []int{0, 1000, 10000}, extraRounds: 2},
}

// selected are the workloads of the suite whose names match one of the comma-separated patterns (of path.Match).
func selected(suite, patterns string) []workload {
	all := allWorkloads
	if suite == waypointSuite {
		all = requestWorkloads
	}
	if patterns == "" {
		return all
	}
	var ws []workload
	for _, w := range all {
		for f := range strings.SplitSeq(patterns, ",") {
			if ok, err := pathpkg.Match(f, w.Name); err == nil && ok {
				ws = append(ws, w)
				break
			}
		}
	}
	return ws
}
