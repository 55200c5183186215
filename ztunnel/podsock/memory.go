package podsock

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

// MemoryFile is the name of the Memory in capture's run directory.
const MemoryFile = "namespaces.json"

// Modes of a namespace in a Memory.
const (
	// ModeOutside says that no pod of the namespace was in the mesh.
	ModeOutside = "outside"
	// ModeMixed says that some pods asked for the mesh by a label of their own.
	ModeMixed = "mixed"
	// ModeAmbient says that the namespace is in the mesh.
	ModeAmbient = "ambient"
)

// Memory is what capture last knew of the cluster's namespaces. It leaves it on the node for the CNI plugin, which
// otherwise could not tell, while capture is away, which pods have to wait for it.
type Memory struct {
	// Namespaces has a mode for each namespace.
	Namespaces map[string]string `json:"namespaces"`
}

// Outside says whether pods of the namespace are known to be outside the mesh, and otherwise what is known.
func (m Memory) Outside(namespace string) (ok bool, why string) {
	switch mode, known := m.Namespaces[namespace]; {
	case mode == ModeOutside:
		return true, ""
	case !known:
		return false, fmt.Sprintf("whether namespace %q is in the mesh is not known without it", namespace)
	case mode == ModeMixed:
		return false, fmt.Sprintf("pods of namespace %q are in the mesh by their own label", namespace)
	default:
		return false, fmt.Sprintf("namespace %q is in the mesh", namespace)
	}
}

// ReadMemory reads the file. What cannot be read is an empty Memory, which knows no namespace.
func ReadMemory(path string) Memory {
	var m Memory
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &m) != nil {
		return Memory{}
	}
	return m
}

// Write replaces the file at path; a reader sees the old one or the new one.
func (m Memory) Write(path string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode namespaces: %w", err)
	}
	if err := atomicfile.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("write namespaces: %w", err)
	}
	return nil
}
