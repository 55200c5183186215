// Package kube holds the Kubernetes, Gateway API and Istio objects that the control plane works from, and the sources
// they come from.
//
// The central type is Objects: a frozen set of typed objects. A Source produces a sequence of Snapshots, each with a
// complete set and the problems found on the way. Two sets of one sequence share every object that did not change, so a
// reader finds out what changed by pointer (Objects.Diff) and need not look inside.
//
// The directory source (Directory) stands in for an API server: it reads manifests, decodes them strictly, fills in the
// defaults that an API server would and validates the fields that this control plane uses. A file with an error is
// rejected whole and its last good content stays in force; other files go on.
//
// Objects are never changed after they entered a set. Everything here may be used by several goroutines at once unless
// a comment says otherwise.
package kube

import (
	"cmp"
	"context"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is an object of one of the accepted kinds, as a pointer to its Go type.
type Object interface {
	metav1.Object
	runtime.Object
}

// Kind is the name of an accepted kind, as written in a manifest.
type Kind string

// Name is what tells objects of one kind apart. Namespace is empty for kinds that have none.
type Name struct {
	Namespace, Name string
}

// String is "namespace/name", or the name alone when there is no namespace.
func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// Key names one object of a set.
type Key struct {
	Kind Kind
	Name
}

// String is "Kind namespace/name".
func (k Key) String() string { return strings.TrimSpace(string(k.Kind) + " " + k.Name.String()) }

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name.Name, o.Name.Name))
}

// KeyOf is the key of an object whose namespace has been defaulted. Its kind is empty for a type that is not accepted.
func KeyOf(o Object) Key {
	return Key{Kind: kindOf(o), Name: Name{Namespace: o.GetNamespace(), Name: o.GetName()}}
}

// Snapshot is one complete state of a source.
type Snapshot struct {
	// Objects is never nil.
	Objects *Objects
	// Problems are those that stand at this moment, in order of file and line: the complete list, not the new ones.
	Problems []Problem
}

// Source is where objects come from: a directory of manifests, an API server.
type Source interface {
	// Run watches until ctx ends and returns after everything it started has ended. It calls deliver with the first
	// complete state and after each change, never twice at a time. An error means the source could not start.
	Run(ctx context.Context, deliver func(Snapshot)) error
}
