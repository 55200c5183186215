package zds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSource is a list of pods.
type fakeSource struct {
	mu       sync.Mutex
	pods     map[string]Files
	missing  []string
	returned map[string]Files
	answered chan string
}

func newFakeSource() *fakeSource {
	return &fakeSource{pods: map[string]Files{}, returned: map[string]Files{}, answered: make(chan string, 100)}
}

func (s *fakeSource) set(uid string, f Files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[uid] = f
}

func (s *fakeSource) Pods() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for uid := range s.pods {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}

func (s *fakeSource) Workload(uid string) (*Workload, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.pods[uid]
	if !ok {
		return nil, false
	}
	d, err := f.Dup()
	return &Workload{UID: uid, Name: uid, Files: d}, err == nil
}

func (s *fakeSource) Missing() []string { return s.missing }

func (s *fakeSource) Returned(uid string, f Files) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned[uid] = f
	s.pods[uid] = f
	return nil
}

func (s *fakeSource) Answered(uid string, err error) { s.answered <- fmt.Sprint(uid, " ", err) }

// recorder is a Handler that passes on what it is told.
type recorder struct {
	events chan string
	err    func(Request) error
	files  Files
}

func newRecorder() *recorder { return &recorder{events: make(chan string, 100)} }

func (r *recorder) Connected()         { r.events <- "connected" }
func (r *recorder) Disconnected(error) { r.events <- "disconnected" }

func (r *recorder) Handle(_ context.Context, q Request) (Files, error) {
	var answer Files
	switch q := q.(type) {
	case *Add:
		r.events <- "add " + q.UID
		q.Files.Close()
	case *Del:
		r.events <- fmt.Sprint("del ", q.UID, " ", q.Drain)
	case *Keep:
		r.events <- "keep " + q.UID
	case *SnapshotSent:
		r.events <- "snapshot"
	case *NodeSetup:
		r.events <- fmt.Sprint("setup ", q.Mark, " ", q.Exempt.FD() >= 0)
		q.Exempt.Close()
	case *Return:
		r.events <- "return " + q.UID
		answer, _ = r.files.Dup()
	}
	if r.err != nil {
		return answer, r.err(q)
	}
	return answer, nil
}

func (r *recorder) want(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		select {
		case got := <-r.events:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-t.Context().Done():
			t.Fatalf("no %q", want)
		}
	}
}

// start runs f until the test ends.
func start(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func startServer(t *testing.T, src Source) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zds.sock")
	s := NewServer(ServerConfig{Path: path, Source: src, Setup: Setup{Mark: 9, Exempt: tempFile(t)}, UID: uint32(os.Getuid())})
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	start(t, func(ctx context.Context) error { return s.serve(ctx, l) })
	return s, path
}

func connect(t *testing.T, path string, h Handler) (stop func()) {
	t.Helper()
	c := NewClient(ClientConfig{Path: path})
	return start(t, func(ctx context.Context) error { return c.Run(ctx, h) })
}

// A proxy of an earlier version, during an upgrade: it would refuse six descriptors.
func TestAProxyThatKnowsNoDNSGetsThePodWithoutItsSockets(t *testing.T) {
	src := newFakeSource()
	src.set("a", tempFiles(t))
	_, path := startServer(t, src)
	c, err := dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	b, err := encodeHello(hello{listeners: true, pid: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.write(b, nil); err != nil {
		t.Fatal(err)
	}
	ok, err := encodeAck(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, listenerFiles, 0} { // node setup, add, snapshot
		_, files, err := c.read()
		if err != nil || len(files) != want {
			t.Fatalf("got %d descriptors, %v, want %d", len(files), err, want)
		}
		closeFiles(files)
		if err := c.write(ok, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAProxyIsToldTheNodeThenAllPodsThenChanges(t *testing.T) {
	src := newFakeSource()
	src.set("a", tempFiles(t))
	src.set("b", Files{NetNS: tempFile(t)}) // its listeners are not at hand
	s, path := startServer(t, src)
	r := newRecorder()
	connect(t, path, r)
	r.want(t, "connected", "setup 9 true", "add a", "keep b", "snapshot")
	if got := []string{<-src.answered, <-src.answered}; !slices.Equal(got, []string{"a <nil>", "b <nil>"}) {
		t.Errorf("got %q", got)
	}
	src.set("c", tempFiles(t))
	if err := s.Add(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := s.Add(t.Context(), "nobody"); err == nil {
		t.Error("a pod that is not there was added")
	}
	if err := s.Del(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
	r.want(t, "add c", "del c true")
}

func TestARefusalIsThePeersAndTheConnectionGoesOn(t *testing.T) {
	src := newFakeSource()
	s, path := startServer(t, src)
	r := newRecorder()
	r.err = func(q Request) error {
		if _, ok := q.(*Add); ok {
			return errors.New("port taken")
		}
		return nil
	}
	src.set("a", tempFiles(t))
	connect(t, path, r)
	r.want(t, "connected", "setup 9 true", "add a", "snapshot")
	if got := <-src.answered; got != "a proxy answered: port taken" {
		t.Errorf("got %q", got)
	}
	var pe *PeerError
	if err := s.Add(t.Context(), "a"); !errors.As(err, &pe) || pe.Text != "port taken" {
		t.Errorf("got %v", err)
	}
	r.want(t, "add a")
	if err := s.Del(t.Context(), "a", false); err != nil {
		t.Error(err)
	}
	r.want(t, "del a false")
}

func TestAddsGoToTheNewestProxyAndDelsToAll(t *testing.T) {
	src := newFakeSource()
	s, path := startServer(t, src)
	if err := s.Add(t.Context(), "a"); !errors.Is(err, ErrNoProxy) {
		t.Errorf("without a proxy: %v", err)
	}
	old, young := newRecorder(), newRecorder()
	connect(t, path, old)
	old.want(t, "connected", "setup 9 true", "snapshot")
	stop := connect(t, path, young)
	young.want(t, "connected", "setup 9 true", "snapshot")
	src.set("a", tempFiles(t))
	if err := s.Add(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if err := s.Del(t.Context(), "a", false); err != nil {
		t.Error(err)
	}
	young.want(t, "add a", "del a false")
	old.want(t, "del a false")
	stop()
	young.want(t, "disconnected")
	if err := s.Add(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	old.want(t, "add a")
}

func TestARestartedServerGetsListenersBack(t *testing.T) {
	src := newFakeSource()
	src.missing = []string{"a"}
	_, path := startServer(t, src)
	r := newRecorder()
	r.files = tempFiles(t)
	connect(t, path, r)
	r.want(t, "connected", "setup 9 true", "return a", "add a", "snapshot")
	src.mu.Lock()
	defer src.mu.Unlock()
	got := src.returned["a"]
	if !sameListeners(got, r.files) || !sameFile(got.NetNS, r.files.NetNS) {
		t.Error("other files came back")
	}
	got.Close()
}

func TestAProxyOfAnotherUserIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zds.sock")
	s := NewServer(ServerConfig{Path: path, Source: newFakeSource(), UID: uint32(os.Getuid()) + 1})
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	start(t, func(ctx context.Context) error { return s.serve(ctx, l) })
	c, err := dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, _, err := c.read(); err == nil {
		t.Error("the server talks to it")
	}
}

func TestAProxyThatBreaksTheProtocolIsDropped(t *testing.T) {
	f := tempFile(t)
	hi, err := encodeHello(hello{listeners: true})
	if err != nil {
		t.Fatal(err)
	}
	rust, err := encodeHello(hello{})
	if err != nil {
		t.Fatal(err)
	}
	ack, err := encodeAck(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		play func(c *packetConn) error
	}{
		{"hello without listeners", func(c *packetConn) error { return c.write(rust, nil) }},
		{"hello that is not protobuf", func(c *packetConn) error { return c.write([]byte{0xff}, nil) }},
		{"hello with a descriptor", func(c *packetConn) error { return c.write(hi, []*File{f}) }},
		{"answer that is not protobuf", func(c *packetConn) error { return errors.Join(c.write(hi, nil), c.write([]byte{0xff}, nil)) }},
		{"answer with a descriptor", func(c *packetConn) error { return errors.Join(c.write(hi, nil), c.write(ack, []*File{f})) }},
		{"answer without a request", func(c *packetConn) error {
			err := c.write(hi, nil)
			for range 3 { // to node setup, snapshot sent, and nothing
				err = errors.Join(err, c.write(ack, nil))
			}
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pairOfConns(t)
			src := newFakeSource()
			s := NewServer(ServerConfig{Source: src, Setup: Setup{Exempt: f}})
			done := make(chan struct{})
			go func() { defer close(done); s.connection(t.Context(), a) }()
			if err := c.play(b); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}
			<-done
			if n := s.Proxies(); n != 0 {
				t.Errorf("%d proxies are connected", n)
			}
			for {
				_, files, err := b.read()
				closeFiles(files)
				if err != nil {
					break
				}
			}
		})
	}
}
