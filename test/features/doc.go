// Package features has a test for each feature of the waypoint, named as a user would name it: a table of small manifests,
// requests of a client, and what must come of them. One lab serves all cases, each by a Service of its own; the table runs
// on our waypoint and on a real Envoy under the same control plane. docs/features.md is made of the table.
package features

//go:generate go test -count=1 -run TestDocumentOfFeaturesIsCurrent . -update
