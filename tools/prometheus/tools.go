//go:build tools

// Package tools pins the version of Prometheus, which tests let find what to scrape. It is built by the Makefile and never
// linked into anything else.
package tools

import _ "github.com/prometheus/prometheus/cmd/prometheus"
