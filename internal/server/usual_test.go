//go:build !race

package server

// slower is how many times longer the race detector may make things take: here it is not.
const slower = 1
