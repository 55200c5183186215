package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/netns"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

// LabNode stands in for our ztunnel program on a node of the lab: the verb "capture" is a node agent as istio-cni's, which
// redirects the pods of the node and hands them over by ZDS, and "proxy" becomes the ztunnel that the environment's
// ZTUNNEL_BIN names. args are those that the lab gives to ours. The agent serves until ctx ends; it remembers no pods.
//
// Of this program's environment the ztunnel keeps what passed names.
func LabNode(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("no verb: accepted: capture, proxy")
	}
	flags := map[string]string{}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		flags[k] = v
	}
	switch args[0] {
	case "capture":
		return serveLab(ctx, flags["run-dir"])
	case "proxy":
		return execLab(flags)
	}
	return fmt.Errorf("verb %q: accepted: capture, proxy", args[0])
}

func zdsSocket(dir string) string { return filepath.Join(dir, "istio-zds.sock") }

// passed are the beginnings of variables that the ztunnel keeps.
var passed = []string{"PATH=", "RUST_LOG=", "CONNECTION_TERMINATION_DEADLINE=", "SECRET_TTL="}

// execLab replaces this process by the ztunnel.
func execLab(flags map[string]string) error {
	bin := os.Getenv("ZTUNNEL_BIN")
	if bin == "" {
		return errors.New("ZTUNNEL_BIN does not name a ztunnel")
	}
	addr, err := ownAddress()
	if err != nil {
		return err
	}
	env := []string{
		"NODE_NAME=" + flags["node"], "INPOD_UDS=" + zdsSocket(flags["run-dir"]), "ISTIO_META_DNS_CAPTURE=false",
		"XDS_ADDRESS=" + flags["xds-address"], "CA_ADDRESS=" + flags["ca-address"], "XDS_ROOT_CA=" + flags["root-ca"],
		"CA_ROOT_CA=" + flags["root-ca"], "AUTH_TOKEN=" + flags["token"], "CLUSTER_ID=" + flags["cluster-id"],
		"NETWORK=" + flags["network"], "POD_NAMESPACE=istio-system", "POD_NAME=ztunnel-" + flags["node"], "INSTANCE_IP=" + addr,
	}
	for _, e := range os.Environ() {
		if slices.ContainsFunc(passed, func(p string) bool { return strings.HasPrefix(e, p) }) {
			env = append(env, e)
		}
	}
	if err := syscall.Exec(bin, []string{bin, "proxy", "ztunnel"}, env); err != nil {
		return fmt.Errorf("run %q: %w", bin, err)
	}
	return nil
}

// ownAddress is the first address of this namespace that others reach.
func ownAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("the namespace has no address")
}

// labAgent is the agent behind the socket where the lab tells of pods.
type labAgent struct {
	agent *agent

	mu   sync.Mutex
	pods map[string]*netns.NS // captured, by UID
}

func serveLab(ctx context.Context, dir string) (err error) {
	a := &labAgent{pods: map[string]*netns.NS{}}
	if a.agent, err = listenAgent(zdsSocket(dir), nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.agent.close()) }()
	path := filepath.Join(dir, "pods.sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for pods: %w", err)
	}
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (a *labAgent) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(verb string, f func(*podsock.Pod) (podsock.Result, error)) {
		mux.HandleFunc("POST /v1/pods/"+verb, func(w http.ResponseWriter, r *http.Request) {
			p, status := &podsock.Pod{}, http.StatusOK
			var answer any
			err := json.NewDecoder(r.Body).Decode(p)
			if err == nil {
				a.mu.Lock()
				answer, err = f(p)
				a.mu.Unlock()
			}
			if err != nil {
				status, answer = http.StatusServiceUnavailable, &podsock.Error{Text: err.Error(), Retry: true}
			}
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(answer) // the lab may have given up
		})
	}
	handle("add", a.set)
	handle("update", a.set)
	handle("remove", func(p *podsock.Pod) (podsock.Result, error) {
		return podsock.Result{Result: podsock.Removed}, a.drop(p.UID, true)
	})
	return mux
}

// set enrols a pod or takes it out of the mesh; with a.mu held.
func (a *labAgent) set(p *podsock.Pod) (podsock.Result, error) {
	d := capture.Policy{}.Decide(p)
	if !d.Enrol {
		return podsock.Result{Result: podsock.Skipped, Reason: d.Reason}, a.drop(p.UID, false)
	}
	done := podsock.Result{Result: podsock.Captured}
	if a.pods[p.UID] != nil {
		return done, nil
	}
	ns, err := netns.Open(p.Netns)
	if err != nil {
		return done, err
	}
	info := PodInfo{NS: ns, UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
	if err := errors.Join(Redirect(ns), a.agent.add(info)); err != nil { // rules first: refused rather than in plaintext
		return done, errors.Join(err, ns.Close())
	}
	a.pods[p.UID] = ns
	return done, nil
}

// drop ends the capture of a pod, if it is captured; with a.mu held. The rules of one that is gone went with it.
func (a *labAgent) drop(uid string, gone bool) error {
	ns := a.pods[uid]
	if ns == nil {
		return nil
	}
	delete(a.pods, uid)
	var err error
	if !gone {
		err = Unredirect(ns)
	}
	return errors.Join(err, a.agent.remove(uid), ns.Close())
}
