//go:build tools

// Package tools pins the version of Nomad, which tests talk to as a peer. It is built by the Makefile and never linked into
// anything else.
package tools

import _ "github.com/hashicorp/nomad"
