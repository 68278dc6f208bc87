//go:build !race

package shift_test

const usualRamps = 500
