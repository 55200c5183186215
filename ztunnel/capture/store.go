package capture

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
	"github.com/ambit-mesh/ambit/ztunnel/zds"
)

// record is what must be known of a pod after a restart of capture: the rest is in the kernel (pins) and with the proxy
// (listeners). It is written before anything is done to the pod and removed after everything is undone.
type record struct {
	Pod      podsock.Pod `json:"pod"`
	NetnsDev uint64      `json:"netnsDev"`
	NetnsIno uint64      `json:"netnsIno"`
	// DirDev and DirIno identify the directory of Pod.Netns: only there its absence means something.
	DirDev uint64 `json:"dirDev"`
	DirIno uint64 `json:"dirIno"`
	// Draining pods have left the mesh and may have connections.
	Draining bool `json:"draining,omitempty"`
}

func (r *record) netns() zds.FileID { return zds.FileID{Dev: r.NetnsDev, Ino: r.NetnsIno} }
func (r *record) dir() zds.FileID   { return zds.FileID{Dev: r.DirDev, Ino: r.DirIno} }

// store keeps a file for each pod in a directory that lives as long as the pins do: until the node restarts.
type store struct{ dir string }

const (
	recordSuffix = ".json"
	maxUID       = 64 // three times that is still a file name
)

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	return &store{dir: dir}, nil
}

func (s *store) path(uid string) string {
	return filepath.Join(s.dir, url.PathEscape(uid)+recordSuffix)
}

// save writes a record. If the process ends halfway, the old one stays.
func (s *store) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode state of pod %q: %w", r.Pod.UID, err)
	}
	tmp := s.path(r.Pod.UID) + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write state of pod %q: %w", r.Pod.UID, err)
	}
	if err := os.Rename(tmp, s.path(r.Pod.UID)); err != nil {
		return fmt.Errorf("write state of pod %q: %w", r.Pod.UID, err)
	}
	return nil
}

func (s *store) remove(uid string) error {
	if err := os.Remove(s.path(uid)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove state of pod %q: %w", uid, err)
	}
	return nil
}

// load returns all records. Those that cannot be read are reported in the error, the others are returned all the same.
func (s *store) load() ([]*record, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "*"+recordSuffix))
	if err != nil {
		return nil, fmt.Errorf("list state: %w", err)
	}
	var out []*record
	var errs []error
	for _, name := range names {
		b, err := os.ReadFile(name)
		r := &record{}
		if err == nil {
			err = json.Unmarshal(b, r)
		}
		if err == nil && (!validUID(r.Pod.UID) || s.path(r.Pod.UID) != name) {
			err = fmt.Errorf("state of pod %q is in the wrong file", r.Pod.UID)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read state %q: %w", name, err))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// validUID keeps UIDs usable as names of files and of pins, when escaped.
func validUID(uid string) bool {
	if len(uid) == 0 || len(uid) > maxUID {
		return false
	}
	for _, c := range []byte(uid) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
