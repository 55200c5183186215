// Package atomicfile replaces files that others read.
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write makes a file of content and mode, or puts it in the place of the one that is there: a reader, and whoever looks after
// a crash, sees the old one or the new one. Until then the new one is a hidden file beside it that ends in .tmp. Blocks until
// the content is on the disk; the directory must exist.
func Write(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
