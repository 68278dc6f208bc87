// Package docs carries the documents that servers hand out themselves.
package docs

import _ "embed" // of the documents

// OpenAPI describes the API below /v1/crossfade/, in OpenAPI 3.1. A test of package server
// holds it to what is served.
//
//go:embed openapi.yaml
var OpenAPI []byte
