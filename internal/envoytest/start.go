package envoytest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long an Envoy may take to listen, on a machine that is busy.
const patience = 2 * time.Minute

// Start runs Envoy (bin, as Find and Require give it) with a configuration until stop is called, and at the latest until the
// test ends. It blocks until something listens at an address, the last one that Envoy opens. name is that of the file that
// gets the configuration: its extension says what it is, .json or .pb.
func Start(t testing.TB, bin, name string, config []byte, network, address string) (stop func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command(bin, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		<-ended
	})
	t.Cleanup(stop)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if c, err := net.Dial(network, address); err == nil {
			c.Close()
			return stop
		}
		select {
		case err := <-ended:
			t.Fatalf("Envoy ended: %v\n%.4000s", err, log.String())
		case <-tick.C:
		}
	}
	stop() // its log is complete then
	t.Fatalf("Envoy does not listen:\n%.4000s", log.String())
	return nil
}
