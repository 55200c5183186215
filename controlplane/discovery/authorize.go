package discovery

import (
	"fmt"
	"slices"
	"strings"
)

// Policy is the usual Config.Authorize: who may have which mesh-wide types (4.2). Immutable.
type Policy struct {
	// NodeAccounts are the service accounts ("namespace/name") of node proxies.
	NodeAccounts []string
	// NodeTypes are the type URLs that a node proxy may have.
	NodeTypes []string
	// WaypointTypes are the type URLs that a waypoint may have. WaypointShared are those of them that are the same for
	// all; of the others Waypoint finds the scope. Nil: waypoints are not served.
	WaypointTypes, WaypointShared []string
	Waypoint                      func(c Client, typeURL string) (scope string, err error)
}

// Authorize checks that a client is who it says it is and may have a type. A node of type ztunnel must be one of
// NodeAccounts, since it learns of the whole mesh, and gets NodeTypes only. A waypoint is any account of the namespace
// of a Gateway. Other node types are not served.
func (p Policy) Authorize(c Client, typeURL string) (Set, error) {
	account := c.Caller.Namespace + "/" + c.Caller.ServiceAccount
	if ns := c.Metadata["NAMESPACE"]; ns != "" && ns != c.Caller.Namespace {
		return Set{}, fmt.Errorf("node says namespace %q, its token is of %s", ns, account)
	}
	if sa := c.Metadata["SERVICE_ACCOUNT"]; sa != "" && sa != c.Caller.ServiceAccount {
		return Set{}, fmt.Errorf("node says service account %q, its token is of %s", sa, account)
	}
	if node := c.Metadata["NODE_NAME"]; node != "" && c.Caller.Node != "" && node != c.Caller.Node {
		return Set{}, fmt.Errorf("node says it is on %q, its token is for %q", node, c.Caller.Node)
	}
	kind, _, _ := strings.Cut(c.NodeID, "~")
	if kind == "waypoint" && p.Waypoint != nil {
		return p.waypoint(c, typeURL)
	}
	if kind != "ztunnel" {
		return Set{}, fmt.Errorf("nodes of type %q are not served", kind)
	}
	if !slices.Contains(p.NodeAccounts, account) {
		return Set{}, fmt.Errorf("%s is no account of node proxies", account)
	}
	if !slices.Contains(p.NodeTypes, typeURL) {
		return Set{}, fmt.Errorf("a node proxy may not have %s", typeURL)
	}
	return Set{TypeURL: typeURL}, nil
}

func (p Policy) waypoint(c Client, typeURL string) (Set, error) {
	switch {
	case slices.Contains(p.WaypointShared, typeURL):
		return Set{TypeURL: typeURL}, nil
	case !slices.Contains(p.WaypointTypes, typeURL):
		return Set{}, fmt.Errorf("a waypoint may not have %s", typeURL)
	}
	scope, err := p.Waypoint(c, typeURL)
	return Set{TypeURL: typeURL, Scope: scope}, err
}
