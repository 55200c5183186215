// Command images makes the container images of the mesh from static binaries: nothing else is in them. Each is an archive of
// an OCI image layout for all architectures, which containerd, podman, skopeo and crane read:
//
//	images -bin DIR -out DIR -registry ghcr.io/ambit-mesh -version V
//
// with the binaries in DIR/ARCHITECTURE/. The same binaries make the same archives, byte for byte.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// images are the programs of each image; the first one is its entry point.
var images = []struct {
	name     string
	programs []string
}{
	{"controlplane", []string{"controlplane"}},
	{"ztunnel", []string{"ztunnel", "ambit-cni"}},
	{"waypoint", []string{"waypoint"}},
	{"ambit", []string{"ambit"}},
}

func main() {
	bin := flag.String("bin", "", "directory with a directory of binaries for each architecture")
	out := flag.String("out", "", "directory for the archives")
	registry := flag.String("registry", "ghcr.io/ambit-mesh", "registry and path of the images' names")
	version := flag.String("version", "dev", "tag of the images")
	flag.Parse()
	if err := build(*bin, *out, *registry, *version); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func build(bin, out, registry, version string) error {
	archs, err := os.ReadDir(bin)
	if err != nil {
		return fmt.Errorf("list architectures: %w", err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, i := range images {
		var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
		for _, arch := range archs {
			img, err := image(filepath.Join(bin, arch.Name()), arch.Name(), i.programs)
			if err != nil {
				return fmt.Errorf("image %s for %s: %w", i.name, arch.Name(), err)
			}
			index = mutate.AppendManifests(index, mutate.IndexAddendum{
				Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch.Name()}},
			})
		}
		ref := registry + "/ambit-" + i.name + ":" + version
		path := filepath.Join(out, "ambit-"+i.name+".tar")
		if err := archive(path, index, ref, version); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		fmt.Println(path, ref)
	}
	return nil
}

// image is one of the programs for an architecture.
func image(dir, arch string, programs []string) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, p := range programs {
		b, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, err
		}
		if err := file(w, p, 0o755, b); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), l)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	cfg.Config.Entrypoint = []string{"/" + programs[0]}
	return mutate.ConfigFile(img, cfg)
}

// archive writes an OCI image layout as an archive, its files in order of their names.
func archive(path string, index v1.ImageIndex, ref, version string) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), "layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": version,
	})); err != nil {
		return err
	}
	var files []string
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, p)
		}
		return err
	}); err != nil {
		return err
	}
	slices.Sort(files)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if err := file(w, rel, 0o644, b); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// file adds a file without anything that depends on when or by whom it was made.
func file(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
