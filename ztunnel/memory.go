package ztunnel

import (
	"context"
	"time"

	"github.com/ambit-mesh/ambit/internal/memory"
)

// settled is how long after the start of capture its memory is given back.
const settled = 2 * time.Second

// giveBackAfterStart gives memory back once the start is over.
func giveBackAfterStart(ctx context.Context) {
	t := time.NewTimer(settled)
	defer t.Stop()
	select {
	case <-t.C:
		memory.GiveBack()
	case <-ctx.Done():
	}
}
