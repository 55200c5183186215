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
}

// Authorize checks that a client is who it says it is and may have a type. A node of type ztunnel must be one of
// NodeAccounts, since it learns of the whole mesh, and gets NodeTypes only. Other node types are not served yet.
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
