package shift

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Way is how a request of a pair travels.
type Way string

// The four ways, in the order in which a move takes them.
const (
	Legacy Way = "legacy" // the old mesh's address
	Direct Way = "direct" // the callee's own port
	Plain  Way = "plain"  // sidecar to sidecar, not encrypted
	MTLS   Way = "mtls"   // sidecar to sidecar, both proven
)

// Ways are all ways in their order.
func Ways() []Way { return []Way{Legacy, Direct, Plain, MTLS} }

// Sidecar says whether the way ends at the callee's sidecar, and so reaches
// only those instances that have one.
func (w Way) Sidecar() bool { return w == Plain || w == MTLS }

// Stage says which ways of a pair are open. Its zero value is "not known":
// nothing is open, so nothing moves.
type Stage string

// The stages, in the safe order.
const (
	Outside     Stage = "outside"    // the app is not on its sidecar yet: no way is the sidecar's to choose
	Client      Stage = "client"     // the caller's sidecar stands, the callee's does not count yet
	PlainStage  Stage = "plain"      // the callee's sidecar takes plaintext
	Permissive  Stage = "permissive" // and mTLS
	StrictStage Stage = "strict"     // mTLS only; it belongs to the callee
)

// Stages are all stages in their order.
func Stages() []Stage { return []Stage{Outside, Client, PlainStage, Permissive, StrictStage} }

// OpenWays are the ways that may carry a share, in the order of [Ways].
func (s Stage) OpenWays() []Way {
	switch s {
	case Client:
		return []Way{Legacy, Direct}
	case PlainStage:
		return []Way{Legacy, Direct, Plain}
	case Permissive:
		return []Way{Legacy, Direct, Plain, MTLS}
	case StrictStage:
		return []Way{MTLS}
	}
	return nil
}

// Opens says whether the way is open.
func (s Stage) Opens(w Way) bool { return slices.Contains(s.OpenWays(), w) }

// Pair is a source and a destination, both names of services.
type Pair struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

// String is "storefront -> catalog".
func (p Pair) String() string { return p.Source + " -> " + p.Destination }

// Compare orders pairs by source, then by destination.
func (p Pair) Compare(q Pair) int {
	if c := strings.Compare(p.Source, q.Source); c != 0 {
		return c
	}
	return strings.Compare(p.Destination, q.Destination)
}

// Share is a part of a pair's requests in hundredths of a percent.
type Share int

// Whole is 100 %.
const Whole Share = 10_000

// Percent makes a share of whole percents.
func Percent(n int) Share { return Share(n) * 100 }

// String is "12.5%".
func (s Share) String() string {
	return strconv.FormatFloat(float64(s)/100, 'f', -1, 64) + "%"
}

// Shares divide a pair's requests over its ways.
type Shares struct {
	Legacy Share `json:"legacy,omitempty"`
	Direct Share `json:"direct,omitempty"`
	Plain  Share `json:"plain,omitempty"`
	MTLS   Share `json:"mtls,omitempty"`
}

// AllOn is everything on one way.
func AllOn(w Way) Shares { return Shares{}.With(w, Whole) }

// Of is the share of a way; 0 for a word that is no way.
func (s Shares) Of(w Way) Share {
	switch w {
	case Legacy:
		return s.Legacy
	case Direct:
		return s.Direct
	case Plain:
		return s.Plain
	case MTLS:
		return s.MTLS
	}
	return 0
}

// With is s with one way's share replaced; a word that is no way changes nothing.
func (s Shares) With(w Way, share Share) Shares {
	switch w {
	case Legacy:
		s.Legacy = share
	case Direct:
		s.Direct = share
	case Plain:
		s.Plain = share
	case MTLS:
		s.MTLS = share
	}
	return s
}

// Sum is what the shares add to.
func (s Shares) Sum() Share { return s.Legacy + s.Direct + s.Plain + s.MTLS }

// String names the ways that have a share: "direct 75%, plain 25%".
func (s Shares) String() string {
	var out []string
	for _, w := range Ways() {
		if n := s.Of(w); n != 0 {
			out = append(out, string(w)+" "+n.String())
		}
	}
	if out == nil {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

// Validate says all that is wrong with the shares of a pair in a stage: they
// add to 100 %, none is negative, and only open ways have one.
func (s Shares) Validate(p Pair, stage Stage) error {
	var errs []error
	for _, w := range Ways() {
		n := s.Of(w)
		if n < 0 {
			errs = append(errs, fmt.Errorf("shares of %q: way %q has %v: a share is between 0%% and 100%%", p, w, n))
		}
		if n != 0 && !stage.Opens(w) {
			errs = append(errs, fmt.Errorf("shares of %q: way %q has %v: %s", p, w, n, stage.whyClosed(w)))
		}
	}
	if sum := s.Sum(); sum != Whole {
		errs = append(errs, fmt.Errorf("shares of %q: they add to %v: they must add to 100%%", p, sum))
	}
	return errors.Join(errs...)
}

// whyClosed says why a way that is not open is not, and what opens it.
func (s Stage) whyClosed(w Way) string {
	switch {
	case s == "":
		return "the pair's stage is not known"
	case s == Outside:
		return "stage outside opens no way, the app is not on its sidecar yet"
	case s == StrictStage:
		return "stage strict closes it, the callee takes nothing but mtls"
	case w == MTLS:
		return fmt.Sprintf("stage %s closes it, mtls opens with stage permissive", s)
	case w == Plain:
		return fmt.Sprintf("stage %s closes it, plain opens with stage plain", s)
	}
	return fmt.Sprintf("stage %q closes it", string(s))
}
