package proxy

import (
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// What may be done with a path that has escaped slashes, and with a header name
// that has underscores. Envoy's and Consul's words.
const (
	EscapedSlashesKeep     = "KEEP_UNCHANGED"
	EscapedSlashesReject   = "REJECT_REQUEST"
	EscapedSlashesRedirect = "UNESCAPE_AND_REDIRECT"
	EscapedSlashesForward  = "UNESCAPE_AND_FORWARD"

	UnderscoresAllow  = "ALLOW"
	UnderscoresReject = "REJECT_REQUEST"
	UnderscoresDrop   = "DROP_HEADER"
)

// Normalization is how a request is made canonical, or refused, before rules and
// the app see it.
type Normalization struct {
	Path                 bool // RFC 3986
	MergeSlashes         bool
	EscapedSlashesAction string
	UnderscoresAction    string // "" when the mesh entry does not say
}

// Underscores is what happens to a header name that has underscores. Unless told
// otherwise it is refused, but for gRPC, where no app takes "a_b" for "a-b".
func (n Normalization) Underscores(protocol string) string {
	switch {
	case n.UnderscoresAction != "":
		return n.UnderscoresAction
	case protocol == config.GRPC:
		return UnderscoresAllow
	default:
		return UnderscoresReject
	}
}

// normalization is strict, except for what the mesh entry relaxes.
func (b *builder) normalization() Normalization {
	b.read(config.Key{Kind: config.KindMesh, Name: config.MeshName})
	n := Normalization{Path: true, MergeSlashes: true, EscapedSlashesAction: EscapedSlashesReject}
	e := b.in.Config.Mesh()
	if e == nil || e.HTTP == nil || e.HTTP.Incoming == nil || e.HTTP.Incoming.RequestNormalization == nil {
		return n
	}
	want := e.HTTP.Incoming.RequestNormalization
	n.Path = !want.InsecureDisablePathNormalization
	if want.MergeSlashes != nil {
		n.MergeSlashes = *want.MergeSlashes
	}
	choose := func(field, value string, into *string, known ...string) {
		switch {
		case value == "":
		case slices.Contains(known, value):
			*into = value
		default:
			b.problem("mesh/mesh", "%s %q is unknown: the default stays in force", field, value)
		}
	}
	choose("PathWithEscapedSlashesAction", want.PathWithEscapedSlashesAction, &n.EscapedSlashesAction,
		EscapedSlashesKeep, EscapedSlashesReject, EscapedSlashesRedirect, EscapedSlashesForward)
	choose("HeadersWithUnderscoresAction", want.HeadersWithUnderscoresAction, &n.UnderscoresAction,
		UnderscoresAllow, UnderscoresReject, UnderscoresDrop)
	return n
}
