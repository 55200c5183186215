// Package zds speaks ZDS, the protocol by which the process that knows the pods of a node (istio-cni's agent or our
// capture) hands them to the process that moves their bytes (the Rust ztunnel or our proxy).
//
// The transport is a unix SOCK_SEQPACKET socket; a packet is one message of at most MaxPacket bytes, descriptors ride
// along as SCM_RIGHTS. The proxy dials and says hello, then the agent asks and the proxy answers, one request at a time:
//
//	proxy                                       agent
//	  hello{V1, listeners, dns}         ->
//	                                    <-      node setup (BPF map)            ours only
//	  ack                               ->
//	                                    <-      return{uid}                     ours only, after capture's restart
//	  ack (netns, 15001, 15006, 15008;  ->
//	       15053 UDP and TCP)
//	                                    <-      add{uid, info} (netns, ...) or keep{uid}, for every pod
//	  ack                               ->
//	                                    <-      snapshot sent
//	  ack                               ->
//	                                    <-      add or del, as pods come and go
//	  ack                               ->
//
// Client is the proxy's end, Tracker keeps its list of pods, Server is capture's end. Client also works under istio-cni:
// an agent that sends no node setup passes one descriptor with an add, the namespace.
package zds

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

const (
	// MaxPacket is the largest message in bytes, either way (Z1).
	MaxPacket = 1024
	// DefaultTimeout is how long a hello, an answer or a write may take (Z10).
	DefaultTimeout = 5 * time.Second

	// maxFiles is the largest number of descriptors of a message, and one more than that is read to notice extra ones.
	maxFiles = listenerFiles + 2
	// listenerFiles is the number of descriptors of a pod whose DNS queries are not captured.
	listenerFiles = 4
)

// ErrProtocol is wrapped by errors that end a connection because the peer broke the protocol: a message that cannot be
// decoded, too many or too few descriptors, a message out of order. A Handler that returns it has the connection closed
// after the error was answered; any other error of a Handler is only answered (Z3, Z5).
var ErrProtocol = errors.New("zds protocol broken")

// Workload is a pod as ZDS names it.
type Workload struct {
	// UID is the pod's UID.
	UID string
	// Name, Namespace and ServiceAccount are the pod's.
	Name, Namespace, ServiceAccount string
	// Addrs are the pod's addresses; empty under istio-cni.
	Addrs []netip.Addr
	// Files are the pod's descriptors.
	Files Files
}

// Setup is what the proxy must know of the node's redirection. Only our capture sends it.
type Setup struct {
	// Mark and Mask route a packet to the loopback device of its pod.
	Mark, Mask uint32
	// AppPortMin and AppPortMax bound the source ports of connections towards applications.
	AppPortMin, AppPortMax uint16
	// Exempt is the BPF map that exempts the proxy's own sockets from capture.
	Exempt *File
}

// Request is a message of the agent: *Add, *Del, *Keep, *SnapshotSent, *NodeSetup or *Return.
type Request interface{ request() }

// Add hands over a pod. Who is given an Add owns its descriptors.
type Add struct{ Workload }

// Del takes a pod away. With Drain the pod lives on outside of the mesh: take what waits in its listeners, close them,
// and let its connections end by themselves. Without, the pod is gone (Z6, S3).
type Del struct {
	UID   string
	Drain bool
}

// Keep names a pod that exists but whose descriptors the agent does not have: what the proxy has stays. Only before
// SnapshotSent (Z4).
type Keep struct{ UID string }

// SnapshotSent ends the list of pods that exist; what was not named since the connection was opened is gone (Z4).
type SnapshotSent struct{}

// NodeSetup is the first request of our capture. Who is given it owns the descriptor.
type NodeSetup struct{ Setup }

// Return asks for the descriptors of a pod back.
type Return struct{ UID string }

func (*Add) request()          {}
func (*Del) request()          {}
func (*Keep) request()         {}
func (*SnapshotSent) request() {}
func (*NodeSetup) request()    {}
func (*Return) request()       {}

// PeerError is a request that the peer answered with an error. The connection goes on.
type PeerError struct {
	// Text is the peer's.
	Text string
}

// Error implements error.
func (e *PeerError) Error() string { return fmt.Sprintf("proxy answered: %s", e.Text) }
