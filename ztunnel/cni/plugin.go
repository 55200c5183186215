// Package cni is the chained CNI plugin: it lets no packet out of a new pod before capture knows of the pod. It touches no
// network itself. It tells the node's capture process of every sandbox, over the socket of package podsock, and fails the
// sandbox when capture does not answer that the pod is captured or is none of ours; the kubelet then tries again.
//
// While capture is away (upgrade, crash, node boot) pods outside the mesh must start all the same: then the Memory that
// capture left on the node decides. What it does not know for certain to be outside the mesh waits.
//
// The kubelet waits for the whole chain, so the plugin is bounded (Timeout), and it never waits for a pod that is needed to
// answer it: pods of the mesh's own node agent pass before anything else (Config.Agent).
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambit-mesh/ambit/ztunnel/podsock"
)

const (
	// Name is the plugin's type in a network configuration, and the name of its binary.
	Name = "ambit-cni"

	// Timeout is how long ADD waits for capture. The kubelet gives the whole chain 4 minutes.
	Timeout = 25 * time.Second
	// short bounds what is best effort: DEL and STATUS.
	short = 5 * time.Second

	patience = 10 * time.Second       // for a capture that is away: it may be about to start
	pause    = 250 * time.Millisecond // between attempts of an ADD
	tryAgain = 11                     // CNI's code for "try again later"
	notReady = 50                     // CNI's code of STATUS: the plugin cannot serve ADD
)

// Config is what the plugin is told in its entry of a network configuration, besides what each plugin is.
type Config struct {
	// Socket is capture's socket for pods. Mandatory.
	Socket string `json:"socket"`
	// Memory is the file that capture leaves for the time it is away (package podsock). "" means none: then every pod waits.
	Memory string `json:"memory,omitempty"`
	// Agent are the pods of the mesh's node agent, as namespace/name-prefix: they pass unseen, or the node could not boot.
	Agent []string `json:"agent,omitempty"`
}

// conf is the plugin's whole entry. It is only decoded: types.PluginConf encodes itself and nothing beside it.
type conf struct {
	types.PluginConf
	Config
}

// kubeArgs is what Kubernetes says of the pod in CNI_ARGS.
type kubeArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString //nolint:revive // names of the protocol
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

// Funcs are the plugin's commands, for skel. GC is none of its business: capture notices itself when a namespace is gone.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: add, Del: del, Status: status,
		Check: func(*skel.CmdArgs) error { return nil },
		GC:    func(*skel.CmdArgs) error { return nil },
	}
}

// Versions are the versions of CNI that the plugin speaks.
func Versions() version.PluginInfo { return version.All }

func parse(stdin []byte) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode network configuration: "+err.Error(), "")
	}
	if c.Socket == "" {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, Name+` has no "socket" in its network configuration`, "")
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "decode prevResult: "+err.Error(), "")
	}
	return c, nil
}

// sandbox is what the arguments say of the pod. ok is false where no Kubernetes is behind them.
func sandbox(args *skel.CmdArgs) (s podsock.Sandbox, ok bool, err error) {
	k := kubeArgs{CommonArgs: types.CommonArgs{IgnoreUnknown: true}}
	if err := types.LoadArgs(args.Args, &k); err != nil {
		return s, false, types.NewError(types.ErrInvalidEnvironmentVariables, "read CNI_ARGS: "+err.Error(), "")
	}
	s = podsock.Sandbox{
		UID: string(k.K8S_POD_UID), Namespace: string(k.K8S_POD_NAMESPACE), Name: string(k.K8S_POD_NAME), Netns: args.Netns,
	}
	return s, s.Namespace != "" && s.Name != "", nil
}

// result is what the chain has made so far, which is also what it has made after us.
func (c *conf) result() (types.Result, []netip.Addr, error) {
	if c.PrevResult == nil { // no plugin before us
		r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
		return r, nil, nil
	}
	r, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "convert prevResult: "+err.Error(), "")
	}
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return c.PrevResult, addrs, nil
}

// ours says that the pod belongs to the mesh's node agent.
func (c *Config) ours(s podsock.Sandbox) bool {
	return slices.ContainsFunc(c.Agent, func(a string) bool { return strings.HasPrefix(s.Namespace+"/"+s.Name, a) })
}

func add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	result, addrs, err := c.result()
	if err != nil {
		return err
	}
	s, isPod, err := sandbox(args)
	if err != nil {
		return err
	}
	if isPod && !c.ours(s) {
		s.Addresses = addrs
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		if err := c.admit(ctx, s); err != nil {
			return err
		}
	}
	return types.PrintResult(result, c.CNIVersion)
}

// admit returns nil when the pod may start: it is captured, or is none of ours.
func (c *Config) admit(ctx context.Context, s podsock.Sandbox) error {
	client := podsock.NewClient(c.Socket)
	s.Begun = time.Now()
	var last *podsock.Error // what capture has said
	for {
		_, err := client.AddSandbox(ctx, &s)
		var refused *podsock.Error
		if errors.As(err, &refused) {
			last = refused
		}
		switch {
		case err == nil:
			return nil
		case last != nil && (!last.Retry || ctx.Err() != nil):
			return failure("pod %s/%s is not captured: %s", s.Namespace, s.Name, last.Text)
		case refused == nil: // nobody is there: a pod outside the mesh need not wait
			outside, why := podsock.ReadMemory(c.Memory).Outside(s.Namespace)
			if outside {
				return nil
			}
			if ctx.Err() != nil || time.Since(s.Begun) > patience {
				return failure("pod %s/%s waits for ambit's capture on this node, which does not answer at %s (%v); %s. "+
					"Look at the ztunnel pod of this node: kubectl get pods -A -l app=ztunnel -o wide", s.Namespace, s.Name, c.Socket, err, why)
			}
		}
		time.Sleep(pause)
	}
}

func failure(format string, args ...any) error {
	return types.NewError(tryAgain, fmt.Sprintf(Name+": "+format, args...), "")
}

// del says that a sandbox is gone. It never fails: capture would notice itself, and a runtime that cannot delete a sandbox
// cannot start the next one.
func del(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return nil
	}
	s, isPod, err := sandbox(args)
	if err != nil || !isPod || s.Netns == "" || c.ours(s) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), short)
	defer cancel()
	_ = podsock.NewClient(c.Socket).RemoveSandbox(ctx, &s)
	return nil
}

// status says whether pods of the mesh can be started: a runtime that asks marks the node's network as not ready otherwise.
func status(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), short)
	defer cancel()
	if _, err := podsock.NewClient(c.Socket).List(ctx); err != nil {
		return types.NewError(notReady, Name+": capture does not answer: "+err.Error(), "")
	}
	return nil
}
