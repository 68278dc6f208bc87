//go:build tools

// Package tools pins the version of consul-template, which tests render files with. It is built by the Makefile and never
// linked into anything else.
package tools

import _ "github.com/hashicorp/consul-template"
