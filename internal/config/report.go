package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxReported bounds how many problems of one file are told.
const maxReported = 20

// problem is one thing wrong. Line 0 means that the place is not known.
type problem struct {
	line    int
	subject string // `service-defaults "web"`, or empty
	path    string // "UpstreamConfig.Overrides[0].Name", or empty
	text    string
}

// report collects what is wrong with one file or body. Invariant: every text is one line.
type report struct {
	file    string // empty for a request body
	subject string // what the next problems are about
	root    *node  // where paths start, to find their lines; nil without a document
	list    []problem
	more    int // problems beyond maxReported
}

// at notes a problem on a known line.
func (r *report) at(line int, path, format string, args ...any) {
	if r.full() {
		r.more++
		return
	}
	r.list = append(r.list, problem{line, r.subject, path, fmt.Sprintf(format, args...)})
}

// addf notes a problem with the field at path.
func (r *report) addf(path, format string, args ...any) {
	if r.full() {
		r.more++
		return
	}
	r.at(r.root.lineOf(path), path, format, args...)
}

// full says that nothing further will be told, so that costly hints can be spared.
func (r *report) full() bool { return len(r.list) >= maxReported }

// err is all problems by line, or nil.
func (r *report) err() error {
	if len(r.list) == 0 {
		return nil
	}
	slices.SortStableFunc(r.list, func(a, b problem) int { return a.line - b.line })
	all := make([]error, 0, len(r.list)+1)
	for _, p := range r.list {
		all = append(all, r.format(p))
	}
	if r.more > 0 {
		all = append(all, r.format(problem{text: fmt.Sprintf("%d more problems", r.more)}))
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// first is the problem found first, or nil.
func (r *report) first() error {
	if len(r.list) == 0 {
		return nil
	}
	return r.format(r.list[0])
}

func (r *report) format(p problem) error {
	var b strings.Builder
	switch {
	case r.file != "" && p.line > 0:
		fmt.Fprintf(&b, "%s:%d: ", r.file, p.line)
	case r.file != "":
		fmt.Fprintf(&b, "%s: ", r.file)
	case p.line > 1:
		fmt.Fprintf(&b, "line %d: ", p.line)
	}
	for _, part := range []string{p.subject, p.path} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	b.WriteString(p.text)
	return errors.New(b.String())
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// shown is a name from a document, fit to stand in a path: quoted and cut unless plain.
func shown(name string) string {
	if plainName.MatchString(name) {
		return name
	}
	return strconv.Quote(cut(name))
}

// cut shortens text from a document for a message.
func cut(s string) string { return shorten(s, 64) }

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// oneLine joins what a parser says over several lines.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
