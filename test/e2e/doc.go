// Package e2e tests the mesh as a whole, with the real programs in a lab: that everything between nodes is TLS 1.3 and
// begins as the protocol says, that no pod has a moment in plaintext, that nothing reaches a port of the proxy by a
// detour, what policy lets through, and what becomes of connections while pods are enrolled, certificates renewed and
// programs killed. It has no code of its own.
package e2e
