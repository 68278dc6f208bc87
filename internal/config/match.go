package config

import (
	"regexp"
	"slices"
	"strings"
)

var (
	tokenShape  = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$") // RFC 9110: header and cookie names
	subsetShape = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// methods that a request can have, as Consul knows them.
func methods() []string {
	return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}
}

// subset checks the name of a resolver's subset, which is a label of cluster and SNI.
func (r *report) subset(path, name string) {
	if name != "" && !subsetShape.MatchString(name) {
		r.addf(path, "%q: want 1 to 63 lower case letters, digits and -, with no - first or last", cut(name))
	}
}

// serviceName checks a name that may be left out.
func (r *report) serviceName(path, name string) {
	if name != "" {
		r.name(path, name)
	}
}

// datacenter checks a name that may be left out.
func (r *report) datacenter(path, name string) {
	if name != "" && (len(name) > 63 || !datacenterShape.MatchString(name)) {
		r.addf(path, "%q: want at most 63 letters, digits, - and _", cut(name))
	}
}

var datacenterShape = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// headerName checks the name of a header that is matched: a token, or one of the
// names that HTTP/2 gives to method, path, scheme and host.
func (r *report) headerName(path, name string) {
	switch name {
	case "":
		r.addf(path, "missing")
	case ":method", ":path", ":authority", ":scheme":
	default:
		r.token(path, name)
	}
}

// token checks the name of a header or a cookie.
func (r *report) token(path, name string) {
	switch {
	case name == "":
		r.addf(path, "missing")
	case !tokenShape.MatchString(name):
		r.addf(path, "%q: want at most 128 letters, digits and !#$%%&'*+.^_`|~-", cut(name))
	}
}

// text checks what is compared with a part of a request.
func (r *report) text(path, text string) {
	switch {
	case len(text) > maxText:
		r.addf(path, "longer than %d bytes", maxText)
	case strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }):
		r.addf(path, "%q: want printable ASCII", cut(text))
	}
}

// urlPath checks the beginning of a path, or all of it, which may be left out.
func (r *report) urlPath(path, text string) {
	switch {
	case text == "":
	case text[0] != '/':
		r.addf(path, "%q: must begin with /", cut(text))
	case strings.ContainsAny(text, "?#"):
		r.addf(path, "%q: would match nothing, since a path ends before ? and #", cut(text))
	default:
		r.text(path, text)
	}
}

// httpPath checks the three ways to say a path.
func (r *report) httpPath(at, exact, prefix, regex string) {
	r.urlPath(join(at, "PathExact"), exact)
	r.urlPath(join(at, "PathPrefix"), prefix)
	r.regex(join(at, "PathRegex"), regex)
	if count(exact != "", prefix != "", regex != "") > 1 {
		r.addf(at, "at most one of PathExact, PathPrefix and PathRegex may be set")
	}
}

// httpMethods checks the methods of a match, in any case.
func (r *report) httpMethods(path string, names []string) {
	if r.most(path, "methods", len(names), len(methods())) {
		return
	}
	seen := map[string]bool{}
	for i, name := range names {
		upper := strings.ToUpper(name)
		switch {
		case !slices.Contains(methods(), upper):
			r.addf(index(path, i), "%q: want %s", cut(name), strings.Join(methods(), ", "))
		case seen[upper]:
			r.addf(index(path, i), "%q is given more than once", upper)
		}
		seen[upper] = true
	}
}

func upperAll(words []string) {
	for i := range words {
		words[i] = strings.ToUpper(words[i])
	}
}

// given is one way of several to compare a value, and how it was filled in.
type given struct {
	name  string
	value string
}

// oneCondition checks that exactly one way to compare was chosen, and its value.
func (r *report) oneCondition(path string, present bool, ways ...given) {
	n := count(present)
	names := []string{"Present"}
	for _, w := range ways {
		names = append(names, w.name)
		n += count(w.value != "")
		if w.name == "Regex" {
			r.regex(join(path, w.name), w.value)
		} else {
			r.text(join(path, w.name), w.value)
		}
	}
	if n != 1 {
		last := len(names) - 1
		r.addf(path, "exactly one of %s and %s must be set", strings.Join(names[:last], ", "), names[last])
	}
}

func count(truths ...bool) (n int) {
	for _, t := range truths {
		if t {
			n++
		}
	}
	return n
}

// orNil is p, or nil when it points to a zero value: of two spellings of nothing one is kept.
func orNil[T comparable](p *T) *T {
	var zero T
	if p == nil || *p == zero {
		return nil
	}
	return p
}
