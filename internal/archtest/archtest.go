// Package archtest holds the rules of docs/architecture.md as a test: which package may import which, who may use which
// library, and what no package may do. It has no code of its own.
package archtest
