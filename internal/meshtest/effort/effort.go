// Package effort says how much a test does.
//
// In: how much it does by itself. Out: how much it does here, which is less under the race detector.
//
// Test only.
package effort

// raceCosts is about how many times longer arithmetic takes under the race detector.
const raceCosts = 8

// Rounds are how many of n tries a test makes: all, or fewer under the race detector, for whose sake
// nobody needs that many. What is cut down by it runs without the detector as well: see the Makefile.
func Rounds(n int) int {
	if underRace {
		return max(1, n/raceCosts)
	}
	return n
}
