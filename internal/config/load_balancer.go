package config

// Policies of a [LoadBalancer].
const (
	PolicyRandom       = "random"
	PolicyRoundRobin   = "round_robin"
	PolicyLeastRequest = "least_request"
	PolicyRingHash     = "ring_hash"
	PolicyMaglev       = "maglev"
)

// Fields that a [HashPolicy] can hash.
const (
	HashHeader         = "header"
	HashCookie         = "cookie"
	HashQueryParameter = "query_parameter"
)

// Envoy's bounds and defaults of a ring, and its bounds of choices.
const (
	defaultMinRing         = 1024
	maxRing                = 8 << 20
	minChoices, maxChoices = 2, 1000
)

func (l *LoadBalancer) check(r *report, path string) {
	if l == nil {
		return
	}
	r.oneOf(path+".Policy", l.Policy, "", PolicyRandom, PolicyRoundRobin, PolicyLeastRequest, PolicyRingHash, PolicyMaglev)
	if c := l.RingHashConfig; c != nil {
		if l.Policy != PolicyRingHash {
			r.addf(path+".RingHashConfig", "needs Policy %s", PolicyRingHash)
		}
		low, high := c.MinimumRingSize, c.MaximumRingSize
		switch {
		case low > maxRing || high > maxRing:
			r.addf(path+".RingHashConfig", "a ring has at most %d entries", maxRing)
		case high != 0 && low > high:
			r.addf(path+".RingHashConfig", "MinimumRingSize %d is more than MaximumRingSize %d", low, high)
		case high != 0 && low == 0 && high < defaultMinRing:
			r.addf(path+".RingHashConfig.MaximumRingSize", "%d: is less than MinimumRingSize, which is %d when not given", high, defaultMinRing)
		}
	}
	if c := l.LeastRequestConfig; c != nil {
		if l.Policy != PolicyLeastRequest {
			r.addf(path+".LeastRequestConfig", "needs Policy %s", PolicyLeastRequest)
		}
		if c.ChoiceCount != 0 && (c.ChoiceCount < minChoices || c.ChoiceCount > maxChoices) {
			r.addf(path+".LeastRequestConfig.ChoiceCount", "%d: want %d to %d", c.ChoiceCount, minChoices, maxChoices)
		}
	}
	if len(l.HashPolicies) > 0 && l.Policy != PolicyRingHash && l.Policy != PolicyMaglev {
		r.addf(path+".HashPolicies", "need Policy %s or %s", PolicyRingHash, PolicyMaglev)
	}
	if r.most(path+".HashPolicies", "policies", len(l.HashPolicies), maxHashPolicies) {
		return
	}
	for i, h := range l.HashPolicies {
		h.check(r, index(path+".HashPolicies", i))
	}
}

func (h HashPolicy) check(r *report, path string) {
	switch {
	case h.SourceIP && h.Field+h.FieldValue != "":
		r.addf(path, "either SourceIP or Field and FieldValue may be set")
	case h.SourceIP:
	case h.Field == "":
		r.addf(path, "want Field and FieldValue, or SourceIP")
	case h.FieldValue == "":
		r.addf(path+".FieldValue", "missing: the name of the %s", h.Field)
	case h.Field == HashHeader:
		r.headerName(path+".FieldValue", h.FieldValue)
	case h.Field == HashCookie:
		r.token(path+".FieldValue", h.FieldValue)
	default:
		r.parameter(path+".FieldValue", h.FieldValue)
	}
	r.oneOf(path+".Field", h.Field, "", HashHeader, HashCookie, HashQueryParameter)
	c := h.CookieConfig
	if c == nil {
		return
	}
	path += ".CookieConfig"
	switch {
	case h.Field != HashCookie:
		r.addf(path, "needs Field %s", HashCookie)
	case c.Session && c.TTL != 0:
		r.addf(path+".TTL", "a session's cookie has none")
	case c.Path != "" && !c.Session && c.TTL == 0:
		r.addf(path+".Path", "has no effect without Session or TTL, since no cookie is made")
	}
	r.cookie(path, c.TTL, c.Path)
}

// cookie checks the attributes of a cookie that Envoy makes.
func (r *report) cookie(path string, ttl Duration, cookiePath string) {
	r.notNegative(path+".TTL", ttl)
	r.urlPath(path+".Path", cookiePath)
}
