package client

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrNoAddress is the cause of a call's error when neither way has an address.
var ErrNoAddress = errors.New("no address: neither the old nor the new way has one")

// Kind says what is wrong.
type Kind string

// What can be wrong. None of it but [NoAddress] makes a call fail.
const (
	BadPercent    Kind = "bad_percent"    // a value is no percent; the last good one stays
	BadAddress    Kind = "bad_address"    // a value is no address; it counts as unset
	NoNewAddress  Kind = "no_new_address" // calls that should take the new way take the old
	NoOldAddress  Kind = "no_old_address" // calls that should take the old way take the new
	NoAddress     Kind = "no_address"     // calls fail with [ErrNoAddress]
	KVUnreachable Kind = "kv_unreachable" // KV cannot be read; the last percent stays
	NotRead       Kind = "not_read"       // a variable has the name in upper case, and is ignored
)

// Problem is something wrong with a pair's settings.
type Problem struct {
	Kind  Kind
	Where string // a variable, or a key of KV
	Err   error
}

// Error implements error.
func (p Problem) Error() string { return fmt.Sprintf("%s: %v", p.Where, p.Err) }

// Unwrap returns the cause.
func (p Problem) Unwrap() error { return p.Err }

type place struct {
	kind  Kind
	where string
}

// problems are those of now. Only a pair that is being opened, and then its watcher, change them.
type problems map[place]Problem

// add returns whether the problem is news. An unreachable KV is one problem, in whatever words.
func (ps problems) add(p Problem) bool {
	at := place{p.Kind, p.Where}
	was, known := ps[at]
	ps[at] = p
	return !known || p.Kind != KVUnreachable && was.Error() != p.Error()
}

func (ps problems) sorted() []Problem {
	return slices.SortedFunc(maps.Values(ps), func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Where, b.Where))
	})
}
