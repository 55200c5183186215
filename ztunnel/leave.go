package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/ebpf/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/capture"
	"github.com/ambit-mesh/ambit/ztunnel/capture/nodepods"
)

const (
	// DefaultPropagation is that of KubernetesConfig.
	DefaultPropagation = 5 * time.Second

	prepared  = 10 * time.Minute       // how long a node that is prepared to leave waits for the word
	leaveStep = 500 * time.Millisecond // between looks at what remains
)

// left says that the mesh was told to leave the node.
func (c *cluster) left() bool {
	wish := c.source.Leave()
	return wish == nodepods.LeaveNow || wish == nodepods.LeaveCut
}

// prepare waits until the mesh is to leave the node, and returns false if ctx ended before. Meanwhile it opens the node's pods to
// those that have left the mesh on other nodes when it is asked to, and closes them again when the wish is taken back, or when
// nothing came of it for long.
func (c *cluster) prepare(ctx context.Context, m *capture.Manager) bool {
	lapse := time.NewTimer(prepared)
	defer lapse.Stop()
	lapse.Stop()
	for {
		open := false
		select {
		case <-ctx.Done():
			return false
		case <-lapse.C:
			c.log.Error("the mesh stays on this node: it was prepared to leave, and not asked to", "after", prepared)
		case <-c.source.Leaving():
			switch c.source.Leave() {
			case nodepods.LeaveNow, nodepods.LeaveCut:
				return true
			case nodepods.LeavePrepare:
				open = true
				lapse.Reset(prepared)
			default:
				lapse.Stop()
			}
		}
		for !c.open(ctx, m, open) {
			if !pause(ctx, leaveStep) {
				return false
			}
		}
	}
}

// open opens the node's pods, or closes them again, and answers.
func (c *cluster) open(ctx context.Context, m *capture.Manager, open bool) bool {
	answer := ""
	if open {
		answer = nodepods.LeftPrepared
		c.log.Warn("the mesh is about to leave this node: its pods take plaintext, whatever the policies say", "cause", "ambit uninstall asked for it")
	} else {
		c.log.Warn("the mesh stays on this node: policies count for plaintext again")
	}
	err := m.Open(ctx, open)
	if err == nil {
		err = c.source.TellLeft(ctx, answer)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Error("node not prepared for the end of the mesh", "open", open, "err", err)
	}
	return err == nil
}

// leave takes the node out of the mesh, in an order in which nothing is refused that was not before and no pod's start
// waits: no more pods are let in, the CNI plugin goes, the others learn, then the pods are let go. It goes on counting what
// remains until ctx is done, and returns whether all pods were told.
func (c *cluster) leave(ctx context.Context, m *capture.Manager) bool {
	c.log.Warn("the mesh leaves this node", "cause", "ambit uninstall asked for it")
	m.Leave()
	for c.installer != nil {
		err := c.installer.Withdraw()
		if err == nil {
			break
		}
		c.log.Error("CNI plugin not taken out of the network configuration", "err", err)
		if !pause(ctx, leaveStep) {
			return false
		}
	}
	c.source.Withdraw()
	if !pause(ctx, c.propagation) {
		return false
	}
	c.source.Release()
	for said := ""; ; {
		if c.source.Leave() == nodepods.LeaveCut {
			m.Cut(ctx)
		}
		n := 0
		for _, p := range m.List() {
			if p.State != capture.StateSkipped {
				n++
			}
		}
		if now := strconv.Itoa(n); now != said {
			if err := c.source.TellLeft(ctx, now); err != nil {
				c.log.Warn("what remains of the mesh is not told", "err", err)
			} else {
				said = now
			}
		}
		if !pause(ctx, leaveStep) {
			return true
		}
	}
}

// pause reports whether it ended before ctx did.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Unload removes every trace of capture from the node: pods leave the mesh at once, and connections that the proxy carries
// into applications are cut; the CNI plugin goes too, where cfg says that there is one. No capture may run on the node;
// Unload refuses if one does.
func Unload(cfg CaptureConfig) error {
	if i := installer(&cfg, nil); i != nil { // first: from here on no pod's start waits for capture
		if err := i.Remove(); err != nil {
			return fmt.Errorf("remove CNI plugin: %w", err)
		}
	}
	forget, err := capture.Forget(cfg.RunDir)
	if err != nil {
		return err
	}
	if err := redirect.Unload(cfg.PinDir); err != nil {
		return err
	}
	return forget()
}

// vacate is Unload, and empties the run directory, which nobody uses again.
func vacate(cfg CaptureConfig) error {
	if err := Unload(cfg); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(cfg.PinDir)) // the last node's, on a machine with several
	files, err := os.ReadDir(cfg.RunDir)
	errs := []error{err}
	for _, f := range files {
		errs = append(errs, os.RemoveAll(filepath.Join(cfg.RunDir, f.Name())))
	}
	return errors.Join(errs...)
}
