// Package capture tests what capture promises, with the real programs in a lab: that everything between nodes is TLS 1.3
// and begins as the protocol says, that nothing reaches a port of the proxy by a detour, that no pod has a moment in
// plaintext, and that connections outlive enrolment. It has no code of its own.
package capture
