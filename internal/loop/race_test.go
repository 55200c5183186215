//go:build race

package loop

// raceEnabled says that sync.Pool drops things at random.
const raceEnabled = true
