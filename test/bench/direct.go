package main

import (
	"context"
	"errors"
	"strconv"
)

// direct is the two applications with nothing between them.
type direct struct{}

func (direct) name() string { return "direct" }

func (d direct) start(ctx context.Context, _ options) (*instance, error) {
	in := &instance{}
	if _, err := in.newBed(ctx, d.name()); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

// splice is a plain relay on each node.
type splice struct{}

func (splice) name() string { return "splice" }

// Ports of the relays, as offsets: one relay for each path, so that the client's address says where it wants to go.
const (
	farOffset     = 0
	nearOffset    = 100
	outsideOffset = 200
)

func (s splice) start(ctx context.Context, _ options) (*instance, error) {
	in := &instance{}
	if err := s.build(ctx, in); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (s splice) build(ctx context.Context, in *instance) error {
	b, err := in.newBed(ctx, s.name())
	if err != nil {
		return err
	}
	in.procs = map[role][]int{}
	relays := []struct {
		role   role
		node   int
		to     string
		offset int
	}{
		{proxyB, 1, b.Pod(farPod).Addr.String(), farOffset},
		{proxyA, 0, b.Nodes[1].Addr.String(), farOffset},
		{proxyA, 0, b.Pod(nearPod).Addr.String(), nearOffset},
		{proxyA, 0, b.Pod(outsidePod).Addr.String(), outsideOffset},
	}
	for _, r := range relays {
		pid, err := in.startSelf(ctx, b.Nodes[r.node].NS, "relay", "-to", r.to, "-offset", strconv.Itoa(r.offset))
		if err != nil {
			return err
		}
		in.procs[r.role] = append(in.procs[r.role], pid)
	}
	gate := b.Nodes[0].Addr
	in.targets = map[path]target{
		crossNode: {gate, farOffset}, sameNode: {gate, nearOffset}, passthrough: {gate, outsideOffset},
	}
	return nil
}
