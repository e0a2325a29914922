//go:build race

package sim

// raced: the race detector is at work, which shuffles goroutines on purpose.
const raced = true
