// Package shift decides how the requests of a pair move from one way to
// another: when a step runs, when it waits, when it is taken back.
//
// In: the time, a [State], and what was [Observed] since. Out: the next state
// and [Action] values for others to carry out. [Step] is pure, so a recorded
// log replays to the same decisions, byte for byte, and a state is plain data
// that survives a restart as JSON. [Ledger] makes the table of all pairs.
// It leaves to others: counting attempts, telling callers their shares,
// proving that they have them, storing the state, and the clock.
//
// # The shift guard
//
// A [Guard] compares the new way with the old way of the same pair in the same
// stretch of time, on four metrics: attempts that failed, attempts that got no
// connection, attempts slower than the old way's p99, and than its p50. Each is
// a table of two by two: attempts of each way, hits of each way.
//
// Envoy draws each request's way by chance. If the ways are alike, then given
// how many attempts and hits there were in all, the number of hits on the new
// way has the hypergeometric distribution, whatever else happened in that
// stretch: bursts, a daily wave, an outage that hits both ways. So that is what
// is tested, and no rate is assumed, learnt or compared with yesterday's.
//
// The guard looks every second, so the test must stay right under continuous
// looking. It bets: a stake of 1 is laid at fair odds on "the new way has
// 1.5, 3, 8, 30 times the odds of a hit" (each multiplies by the likelihood
// ratio of Fisher's noncentral hypergeometric distribution to the plain one).
// If the new way is no worse then what the stake becomes is a nonnegative
// supermartingale, and by Ville's inequality ever reaches 400 with probability
// at most 1/400. Four metrics at 400 each: at most 1 % of ramps, each as a
// whole and however long, are stopped for nothing. Looking is paid for by the
// threshold; a fixed test repeated each second would stop nearly every ramp.
// Part of the stake is held back and laid later, a fifth of it when a step
// begins and a little each round, so that a late fault finds a stake that
// hours of equal traffic have not worn away.
//
// References: R. Turner, A. Ly, P. Grünwald, "Generic E-variables for exact
// sequential k-sample tests that allow for optional stopping" (arXiv:2106.02693);
// A. Ramdas, P. Grünwald, V. Vovk, G. Shafer, "Game-theoretic statistics and
// safe anytime-valid inference" (arXiv:2210.01948), for betting and Ville.
//
// Being sure is not enough: a breach also needs a difference that matters
// ([Limits]), in recent attempts. And being unsure passes nothing: a step waits
// until both ways had their attempts.
//
// What the reasoning needs, and so does the observer: ways drawn by chance for
// each request; both ways' telemetry of the same callers over the same time,
// without stretches in which a caller changed its shares. A split that is
// sticky per user, and retries, make attempts fail in clusters; [Limits] has
// their size.
//
// # Where the old way carries nothing
//
// At 100 % on the new way there is no old way of the same time. What is left is the
// [Past]: the worst that the old way was, metric by metric, in blocks of a few seconds
// of the last ten minutes or more in which it carried requests, shift or no shift. The new way
// breaches when three blocks running are worse than that by ten times the limits. The
// reasoning above does not reach there: another time is another load, and a callee that
// falls over by itself looks the same as a way that breaks it. The worst of many blocks in
// place of their mean, wide limits and three blocks make up for it, which only
// simulations show. If traffic were alike before and after, three blocks
// running would be the worst of n with probability at most (3! (n-3)!)/n!, whatever
// their distribution. It lasts as long as the shift does: for the dwell of the last step.
package shift
