package config

// MeshName is the only name a mesh entry has. Consul's mesh entry carries no Name field.
const MeshName = "mesh"

// Mesh is Consul's mesh entry: what holds for every sidecar.
type Mesh struct {
	Kind Kind `json:"Kind"`
	// AllowEnablingPermissiveMutualTLS lets entries set MutualTLSMode to "permissive".
	AllowEnablingPermissiveMutualTLS bool `json:"AllowEnablingPermissiveMutualTLS,omitempty"`

	HTTP *MeshHTTP         `json:"HTTP,omitempty"`
	Meta map[string]string `json:"Meta,omitempty"`
}

// MeshHTTP is the HTTP part of a mesh entry.
type MeshHTTP struct {
	Incoming *MeshIncoming `json:"Incoming,omitempty"`
}

// MeshIncoming is how sidecars treat requests that arrive for their service.
type MeshIncoming struct {
	RequestNormalization *RequestNormalization `json:"RequestNormalization,omitempty"`
}

// RequestNormalization is how a request's path and headers are made canonical
// before rules see them. Nil fields take our default, see docs/envoy.md.
type RequestNormalization struct {
	InsecureDisablePathNormalization bool   `json:"InsecureDisablePathNormalization,omitempty"`
	MergeSlashes                     *bool  `json:"MergeSlashes,omitempty"`
	PathWithEscapedSlashesAction     string `json:"PathWithEscapedSlashesAction,omitempty"` // KEEP_UNCHANGED, REJECT_REQUEST, UNESCAPE_AND_REDIRECT, UNESCAPE_AND_FORWARD
	HeadersWithUnderscoresAction     string `json:"HeadersWithUnderscoresAction,omitempty"` // ALLOW, REJECT_REQUEST, DROP_HEADER
}

// EntryKind implements [Entry].
func (e *Mesh) EntryKind() Kind { return KindMesh }

// EntryName implements [Entry].
func (e *Mesh) EntryName() string { return MeshName }

// Normalize implements [Entry].
func (e *Mesh) Normalize() {
	e.Kind = KindMesh
	if n := e.normalization(); n != nil && n.PathWithEscapedSlashesAction == envoyDefault {
		n.PathWithEscapedSlashesAction = "KEEP_UNCHANGED" // what Envoy's default is
	}
}

const envoyDefault = "IMPLEMENTATION_SPECIFIC_DEFAULT"

// Validate implements [Entry].
func (e *Mesh) Validate() error { return validate(e) }

func (e *Mesh) check(r *report) {
	r.meta("Meta", e.Meta)
	if n := e.normalization(); n != nil {
		const path = "HTTP.Incoming.RequestNormalization."
		r.oneOf(path+"PathWithEscapedSlashesAction", n.PathWithEscapedSlashesAction,
			"", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD", envoyDefault)
		r.oneOf(path+"HeadersWithUnderscoresAction", n.HeadersWithUnderscoresAction,
			"", "ALLOW", "REJECT_REQUEST", "DROP_HEADER")
	}
}

func (e *Mesh) normalization() *RequestNormalization {
	if e.HTTP == nil || e.HTTP.Incoming == nil {
		return nil
	}
	return e.HTTP.Incoming.RequestNormalization
}
