package cni

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const bridge = `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","x":{"y":[1,2.50]}},{"type":"portmap"}],"later":true}`

type host struct {
	*Installer
	t *testing.T
}

func newHost(t *testing.T, files map[string]string) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, Installer: &Installer{
		ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Binary: filepath.Join(dir, "ambit-cni"),
		Entry: Config{Socket: "/run/ambit/pods.sock", Agent: []string{"istio-system/ztunnel-"}},
	}}
	for _, d := range []string{h.ConfDir, h.BinDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write(h.Binary, "binary")
	for name, content := range files {
		h.write(filepath.Join(h.ConfDir, name), content)
	}
	return h
}

func (h *host) write(path, content string) {
	h.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		h.t.Fatal(err)
	}
}

// types are the plugins of a configuration.
func (h *host) types(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.ConfDir, name))
	var list struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, p := range list.Plugins {
		out = append(out, p.Type)
	}
	return list.Name + ": " + strings.Join(out, " ")
}

func (h *host) files() string {
	files, _ := os.ReadDir(h.ConfDir)
	var out []string
	for _, f := range files {
		out = append(out, f.Name())
	}
	return strings.Join(out, " ")
}

func TestThePluginBecomesTheLastOfTheChainAndWhatOthersWroteStays(t *testing.T) {
	h := newHost(t, map[string]string{"10-a.conflist": bridge, "20-b.conflist": bridge})
	path, changed, err := h.Install()
	if err != nil || !changed || filepath.Base(path) != "10-a.conflist" || !h.Installed() {
		t.Fatalf("%q, %v, %v", path, changed, err)
	}
	if got := h.types("10-a.conflist"); got != "pods: bridge portmap ambit-cni" {
		t.Error(got)
	}
	if got := h.types("20-b.conflist"); got != "pods: bridge portmap" {
		t.Error(got)
	}
	b, _ := os.ReadFile(path)
	var list struct {
		Later   bool
		Plugins []json.RawMessage
	}
	if c, err := parse(append([]byte(`{"cniVersion":"1.0.0","name":"pods",`), last(t, b)[1:]...)); err != nil || !reflect.DeepEqual(c.Config, h.Entry) {
		t.Errorf("the plugin reads %+v, %v", c, err)
	}
	if err := json.Unmarshal(b, &list); err != nil || !list.Later || !strings.Contains(string(list.Plugins[0]), "2.50") {
		t.Errorf("%v: %s", err, b)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	if st, err := os.Stat(filepath.Join(h.BinDir, Name)); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("binary: %v", err)
	}
	if _, changed, err := h.Install(); changed || err != nil {
		t.Errorf("again: %v, %v", changed, err)
	}
	if got := h.files(); got != "10-a.conflist 20-b.conflist" {
		t.Error(got)
	}
}

// last is the last plugin's entry in a list.
func last(t *testing.T, conf []byte) []byte {
	t.Helper()
	var list struct{ Plugins []json.RawMessage }
	if err := json.Unmarshal(conf, &list); err != nil {
		t.Fatal(err)
	}
	return list.Plugins[len(list.Plugins)-1]
}

func TestAConfigurationOfOnePluginBecomesAList(t *testing.T) {
	h := newHost(t, map[string]string{"10-a.conf": `{"cniVersion":"0.4.0","name":"net","type":"ptp"}`})
	if _, _, err := h.Install(); err != nil {
		t.Fatal(err)
	}
	if got := h.types("10-a.conflist"); got != "net: ptp ambit-cni" || h.files() != "10-a.conflist" {
		t.Error(got, h.files())
	}
}

func TestTheRuntimesChoiceIsOurs(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a broken one is passed over":         {map[string]string{"05-x.conflist": "{", "10-a.conflist": bridge}, "10-a.conflist"},
		"one without plugins is passed over":  {map[string]string{"05-x.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[]}`, "10-a.conflist": bridge}, "10-a.conflist"},
		"one without a type is passed over":   {map[string]string{"05-x.conf": `{"cniVersion":"1.0.0","name":"x"}`, "10-a.conflist": bridge}, "10-a.conflist"},
		"other files are none":                {map[string]string{"00-README": bridge, "10-a.conflist": bridge, ".10-a.conflist-1.tmp": bridge}, "10-a.conflist"},
		"there is none yet":                   {nil, "."},
		"ours alone is none to put ours into": {map[string]string{"10-a.conflist": `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"ambit-cni"}]}`}, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, tc.files)
			path, _, err := h.Install()
			got := filepath.Base(path)
			if err != nil {
				got = "error"
			}
			if got != tc.want || h.Installed() != strings.HasSuffix(tc.want, ".conflist") {
				t.Errorf("%q, %v, installed %v", path, err, h.Installed())
			}
		})
	}
}

func TestThePluginMovesToTheConfigurationThatTheRuntimeTakesNow(t *testing.T) {
	h := newHost(t, map[string]string{"10-a.conflist": bridge})
	h.Install()
	h.write(filepath.Join(h.ConfDir, "05-cilium.conflist"), bridge)
	if path, _, err := h.Install(); err != nil || filepath.Base(path) != "05-cilium.conflist" {
		t.Errorf("%q, %v", path, err)
	}
	if got := h.types("10-a.conflist"); got != "pods: bridge portmap" {
		t.Error(got)
	}
}

func TestRemovalLeavesTheConfigurationAsItWas(t *testing.T) {
	h := newHost(t, map[string]string{"10-a.conflist": bridge})
	h.Install()
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := h.types("10-a.conflist"); got != "pods: bridge portmap" {
		t.Error(got)
	}
	if files, _ := os.ReadDir(h.BinDir); len(files) != 0 || h.Installed() {
		t.Errorf("left: %v", files)
	}
	if err := h.Remove(); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestABinaryThatIsAnotherOneIsReplaced(t *testing.T) {
	h := newHost(t, map[string]string{"10-a.conflist": bridge})
	for range 2 {
		if _, _, err := h.Install(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(h.BinDir, Name)); err != nil || string(b) != "binary" {
			t.Errorf("%q, %v", b, err)
		}
		h.write(filepath.Join(h.BinDir, Name), "another")
	}
	if _, changed, err := h.Install(); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
}

func TestAProgramThatKeepsUndoingTheInstallationIsToldOf(t *testing.T) {
	h := newHost(t, nil)
	var log syncBuffer
	h.Logger = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(h.ConfDir, "10-a.conflist")
	for range war {
		h.write(path, bridge)
		for end := time.Now().Add(10 * time.Second); h.types("10-a.conflist") != "pods: bridge portmap ambit-cni"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(h.types("10-a.conflist"))
			}
		}
		time.Sleep(2 * settle) // what was written is looked at, and found well
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), "another program keeps removing"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(log.String())
		}
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestADirectoryOfAnotherUserIsToldOfWithTheFix(t *testing.T) {
	const want = "permission denied: where the directories of CNI are not root's, capture needs the capability DAC_OVERRIDE (the chart's ztunnel.capture.addCapabilities)"
	if got := fix(&fs.PathError{Op: "open", Path: "/etc/cni/net.d/x", Err: syscall.EACCES}).Error(); !strings.HasSuffix(got, want) {
		t.Errorf("got %q", got)
	}
	if got := fix(fs.ErrNotExist); got != fs.ErrNotExist {
		t.Errorf("another error becomes %v", got)
	}
}

func TestADirectoryThatCannotBeWatchedIsAnError(t *testing.T) {
	h := newHost(t, nil)
	h.BinDir = h.Binary // a file
	if err := h.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "watch "+h.BinDir) {
		t.Errorf("got %v", err)
	}
}

func TestWhatAnotherProgramUndoesIsRepaired(t *testing.T) {
	h := newHost(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(h.ConfDir, "10-a.conflist")
	for range 2 { // first the cluster's own plugin comes, later it writes its configuration again
		h.write(path, bridge)
		for end := time.Now().Add(10 * time.Second); h.types("10-a.conflist") != "pods: bridge portmap ambit-cni"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(h.types("10-a.conflist"))
			}
		}
	}
}
