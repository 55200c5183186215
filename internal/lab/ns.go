package lab

import (
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/netns"
)

// netnsDir is where the lab's namespaces have their names.
const netnsDir = netns.Dir

// netNS is an open network namespace with its name.
type netNS struct {
	*netns.NS
	name string
}

func openNS(name string) (*netNS, error) {
	n, err := netns.Open(filepath.Join(netnsDir, name))
	if err != nil {
		return nil, err
	}
	return &netNS{n, name}, nil
}

func createNS(name string) (*netNS, error) {
	n, err := netns.Create(name)
	if err != nil {
		return nil, err
	}
	return &netNS{n, name}, nil
}
