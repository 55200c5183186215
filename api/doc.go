// Package api holds the wire contracts of the mesh: the .proto files and, beside each, the Go generated from it.
//
// The package names, field numbers and type URLs are Istio's; what is ours has numbers from 100 and says so.
package api

//go:generate sh generate.sh
