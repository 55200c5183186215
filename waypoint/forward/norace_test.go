//go:build !race

package forward

// underRace says that the race detector is on.
const underRace = false
