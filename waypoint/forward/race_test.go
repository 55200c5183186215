//go:build race

package forward

// underRace says that the race detector is on: it has sync.Pool drop things, so that allocations say nothing.
const underRace = true
