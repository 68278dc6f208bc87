//go:build race

package shift_test

// usualRamps is smaller here: the race detector makes arithmetic six times slower.
const usualRamps = 60
