package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// benchDirectory has 10,000 pods in a file each, as the lab writes them, or 100 to a file.
func benchDirectory(b *testing.B, perFile int) (*tree, func(i int, ip string)) {
	b.Helper()
	dir := b.TempDir()
	const pods = 10000
	ips := make([]string, pods)
	write := func(file int) {
		var s strings.Builder
		for i := file * perFile; i < (file+1)*perFile; i++ {
			fmt.Fprintf(&s, "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-%d\n  namespace: demo\n  labels: {app: app-%d, version: v1}\n  annotations: {ambient.istio.io/redirection: enabled}\nspec:\n  serviceAccountName: app-%d\n  nodeName: node-%d\n  containers:\n  - name: c\n    image: app\n    ports: [{name: http, containerPort: 8080}]\nstatus:\n  phase: Running\n  podIP: %s\n  conditions:\n  - {type: Ready, status: \"True\"}\n", i, i%1000, i%1000, i%10, ips[i])
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.yaml", file))
		if err := os.WriteFile(path+".tmp", []byte(s.String()), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			b.Fatal(err)
		}
	}
	for i := range ips {
		ips[i] = fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)
	}
	for f := range pods / perFile {
		write(f)
	}
	return newTree(dir, NewDirectory(DirectoryConfig{}).cfg.Logger), func(i int, ip string) {
		ips[i] = ip
		write(i / perFile)
	}
}

func BenchmarkRead10000Pods(b *testing.B) {
	t, _ := benchDirectory(b, 100)
	b.ReportAllocs()
	for b.Loop() {
		fresh := newTree(t.root, t.logger)
		if err := fresh.scan(); err != nil || fresh.objects.Len() != 10000 {
			b.Fatal(err, fresh.objects.Len())
		}
	}
}

func BenchmarkOnePodChanged(b *testing.B) {
	for _, perFile := range []int{1, 100, 10000} {
		b.Run(fmt.Sprintf("%d per file", perFile), func(b *testing.B) {
			t, change := benchDirectory(b, perFile)
			if err := t.scan(); err != nil {
				b.Fatal(err)
			}
			n := 0
			for b.Loop() {
				b.StopTimer()
				change(77, fmt.Sprintf("10.9.%d.1", n%250))
				n++
				before := t.objects
				b.StartTimer()
				if err := t.scan(); err != nil {
					b.Fatal(err)
				}
				if d := t.objects.Diff(before); len(d) != 1 {
					b.Fatal(d)
				}
			}
		})
	}
}
