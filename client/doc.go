// Package client picks the old or the new way of each call, by percent, for services
// whose calls must not yet go through a sidecar.
//
// In: environment variables, one key of Consul's KV, and calls. Out: for each call an
// address, the old or the new one. [Transport] does it for net/http, package grpcway
// for gRPC; [Pair.Choose] is for everything else. Left to others: the call itself. A
// call that fails on its way is not tried on the other, so that a share is what it
// says and a way that does not work is seen.
//
// # The convention
//
// Of a call of web to catalog,
//
//	CROSSFADE_PERCENT_catalog                 percent of calls on the new way, 0 if unset
//	CROSSFADE_LEGACY_ADDR_catalog             the old address
//	NOMAD_UPSTREAM_ADDR_catalog               the new address, as Nomad and sidecars set it
//	KV crossfade/web/catalog/mesh_percent     the same percent, hot
//
// A name is looked up as it is, then with each byte that Nomad would replace in a
// variable's name replaced by an underscore: all but ASCII letters, digits, underscores
// and dots, and a digit in front. Case is kept. An empty variable counts as unset.
//
// A percent is a number from 0 to 100 with at most two decimals, and an address is
// host:port, with http:// or https:// in front where that must change.
//
// KV beats the environment. A value that is no percent keeps the last good one, and so
// does a KV that cannot be read; a key that is not there falls back to the environment.
// At 0 no call takes the new way, and at 100 none the old.
//
// # Stickiness
//
// A call with a key (a user, a session) takes the way of its key: the new one if the
// first four bytes of the key's SHA-256, as a big-endian number modulo 10,000, are below
// percent × 100. Raising the percent moves only those who must move, and every process,
// in any language, answers alike.
//
// # Failures
//
// No setting makes a call fail. Without a new address all calls take the old way,
// without an old one the new way; only a pair with neither has nothing to offer, and
// its calls fail with [ErrNoAddress]. Whatever is wrong is told to
// [Options.OnProblem], listed by [Pair.Problems], and counted in [Stats].
package client
