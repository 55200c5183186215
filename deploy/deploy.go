// Package deploy has what is deployed: the chart, for the command line to install.
package deploy

import "embed"

// Chart is the Helm chart, in the directory chart.
//
//go:embed all:chart
var Chart embed.FS
