// Command ambit-cni is the chained CNI plugin of the mesh; package ztunnel/cni says what it does. Container runtimes run it
// with the environment and the standard input of the CNI specification.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambit-mesh/ambit/ztunnel/cni"
)

// version is set by the linker.
var version = "dev"

func main() {
	skel.PluginMainFuncs(cni.Funcs(), cni.Versions(), "CNI plugin "+cni.Name+" "+version)
}
