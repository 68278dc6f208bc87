package proxy

// hatch lets text in Envoy's own words through, if the server allows that at all.
// Whoever may write it can make the Envoy of a service do anything.
func (b *builder) hatch(subject, key, text string) string {
	if text == "" || b.in.AllowEscapeHatches {
		return text
	}
	b.problem(subject, "%s: escape hatches are off, it has no effect: start the servers with --allow-escape-hatches", key)
	return ""
}
