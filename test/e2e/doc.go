// Package e2e tests the mesh as a whole, with the real programs in a lab. It has no code of its own.
package e2e
