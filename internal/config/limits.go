package config

// Bounds of the routing and security kinds. Envoy, or every caller's sidecar, holds
// what an entry says, so that each list and each text ends somewhere.
const (
	maxRoutes       = 1000
	maxConditions   = 50 // headers or parameters of one match
	maxModifiers    = 50 // headers that one leg adds, sets or removes
	maxStatusCodes  = 50
	maxRetries      = 100
	maxSplits       = 100
	maxSubsets      = 100
	maxTargets      = 50
	maxHashPolicies = 20
	maxPermissions  = 100    // of one source
	maxRules        = 10_000 // permissions of one entry
	maxProviders    = 20
	maxClaims       = 20
	maxClaimDepth   = 10
	maxAudiences    = 100
	maxLocations    = 20
	maxKeys         = 100
	maxKeySet       = 64 << 10
	maxText         = 1024 // of a path, a value to compare with, a filter, an issuer
	maxValue        = 4096 // of a header that is added or set
	maxClockSkew    = 86_400
	maxTokenCache   = 100_000
	maxAudited      = 1000
)

// most reports a list that is too long, and whether it is.
func (r *report) most(path, what string, n, limit int) bool {
	if n > limit {
		r.addf(path, "%d %s are more than the limit of %d", n, what, limit)
		return true
	}
	return false
}
