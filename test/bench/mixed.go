package main

import (
	"context"
	"errors"
)

// mixed has ours on one node and Istio's ztunnel on the other. Between two of one kind ours negotiates AES-128-GCM and the
// peer AES-256-GCM; between one and the other it is AES-128-GCM whoever begins, since either server follows the
// client's order or has that of ours. So the two ways round together are each proxy in both parts at one cipher.
type mixed struct {
	ours ours
	rust rust
	back bool // Istio's is on the client's node
}

func (m mixed) name() string {
	if m.back {
		return mixedBackName
	}
	return mixedName
}

func (m mixed) start(ctx context.Context, opts options) (*instance, error) {
	in := &instance{procs: map[role][]int{}, about: map[string]string{"cipher": "TLS_AES_128_GCM_SHA256 by the rules of both"}}
	if err := m.build(ctx, in, opts); err != nil {
		return nil, errors.Join(err, in.stop())
	}
	return in, nil
}

func (m mixed) build(ctx context.Context, in *instance, opts options) error {
	plane, err := in.newPlane(ctx, m.name(), m.ours.bin, opts)
	if err != nil {
		return err
	}
	a, b := in.bed.Nodes[0], in.bed.Nodes[1]
	if m.back {
		return errors.Join(m.rust.node(ctx, in, opts, plane, a, proxyA), m.ours.node(ctx, in, plane, b, proxyB))
	}
	return errors.Join(m.ours.node(ctx, in, plane, a, proxyA), m.rust.node(ctx, in, opts, plane, b, proxyB))
}

// equalCipher is, round by round, the CPU of ours in both parts over that of the peer in both.
func (b *bencher) equalCipher(workload string) spread {
	there, back := b.series(key{mixedName, workload}), b.series(key{mixedBackName, workload})
	var v []float64
	for round, x := range there {
		if y, ok := back[round]; ok {
			v = append(v, (x.cpuPerUnit(proxyA)+y.cpuPerUnit(proxyB))/(y.cpuPerUnit(proxyA)+x.cpuPerUnit(proxyB)))
		}
	}
	return spreadOf(v)
}
