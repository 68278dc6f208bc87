package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/api"
)

func newShift(s streams) *cobra.Command {
	var via []string
	var service, legacyAddress, legacyHost string
	var dryRun, force, pause, resume, abort bool
	var to, stage, window string
	var plan api.Plan
	cmd := &cobra.Command{
		Use:   "shift SOURCE DESTINATION --via WAY=PERCENT... | --to WAY | --stage STAGE",
		Short: "Change by which ways a pair's requests travel, and in what shares",
		Long: `Change by which ways the requests of a pair travel, and in what shares: it writes the
pair's traffic-shift, prints the shares before and after, and returns when every sidecar
that this changes has acknowledged it. Shares are percents in steps of 0.01.

The ways are "legacy", the old mesh's address, "direct", the destination's own port, and
"mtls", from sidecar to sidecar. Where nothing was shifted all goes by mtls.

Of several --via the ways left out have nothing, and the others add up to 100. One --via
alone takes its share from the way that has the largest share of the others, then from the
next; it gives to the largest. Where no other way has any, the rest goes to the old way:
legacy if the pair has an address for it, else direct.

A pair that an entry of "*" has decided for gets an entry of its own, which begins as a copy.
"*" as SOURCE or DESTINATION writes the entry of all that have none of their own. When somebody
else changes a pair at the same moment nothing is changed, of all pairs named.

The way "plain" wants a destination with MutualTLSMode = "permissive"; one that is "strict"
takes "mtls" alone.

With --to shares move by themselves, in steps, each of which lasts for a dwell and until the
shift guard has seen enough; the plan is kept in the traffic-shift. The shift guard compares the
new way with the old one of the same pair in the same seconds, attempt by attempt, and takes all
back when the new one is worse, or with --on-breach pause stops there. It watches shares set
with --via as well. Two shifts of one destination do not run at once: the later one waits.

A stage says which ways are open: "client" legacy and direct, "plain" also plain, "permissive"
all; with --service "strict" makes a destination refuse plaintext. Shares on ways that a stage
closes go to the old way, so that going back is always possible, unless that takes no requests; a
share on a closed way is refused. plain and permissive set the destination's MutualTLSMode to "permissive", which the
mesh entry has to allow. Strict is refused while a caller sends anything but mtls, while
plaintext came inside the --window-of-silence, while an instance is not watched, and while an app's own port
can be reached from another host; --force does it in spite of all that, and the history says so.

A legacy address that is new to a pair is tried first, and refused when the server cannot
connect to it; --force takes it all the same. Of the other ways nothing is tried.

Shares that the callee cannot bear are refused as well: with sidecars on some of its instances
those would get more than one and a half times the mean. --force sets them.`,
		Example: `  crossfade shift storefront catalog --via legacy=99,mtls=1 --legacy-address 10.0.0.5:4140 --legacy-host catalog.old
  crossfade shift storefront catalog --via mtls=10
  crossfade shift storefront catalog --via legacy=60 --via direct=30 --via mtls=10
  crossfade shift --service catalog --via mtls=50 --dry-run
  crossfade shift storefront catalog --to mtls --steps 1,5,25,50,100 --dwell 10m
  crossfade shift storefront catalog --pause`,
	}
	t, wait := addTarget(cmd, s), addWaiting(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&via, "via", nil, "WAY=PERCENT; may be given several times, or as a list with commas")
	f.StringVar(&legacyAddress, "legacy-address", "", "host:port at which the old mesh takes requests for the destination (default as it is)")
	f.StringVar(&legacyHost, "legacy-host", "", "with --legacy-address: Host of requests on the way legacy (default as the app sent it)")
	f.StringVar(&service, "service", "", "a destination: shift all its callers that declare it or have an entry")
	f.StringVar(&to, "to", "", "a way: shares move to it by themselves, step by step, watched by the shift guard")
	f.Float64SliceVar(&plan.Steps, "steps", nil, "with --to: percents of the way, rising (default as the traffic-shift says, else 1,5,25,50,100)")
	f.StringVar(&plan.Dwell, "dwell", "", "with --to: how long each step lasts at least (default as the traffic-shift says, else 5m)")
	f.StringArrayVar(&plan.Windows, "window", nil, `with --to: when steps may run, as "Mon-Fri 09:00-17:00"; may be given several times (default always)`)
	f.StringVar(&plan.OnBreach, "on-breach", "", `with --to: what the shift guard does when the way is worse, "revert" or "pause" (default revert)`)
	f.BoolVar(&pause, "pause", false, "take no further step of a shift that is under way; it stays guarded")
	f.BoolVar(&resume, "resume", false, "go on with a shift that is paused")
	f.BoolVar(&abort, "abort", false, "end a shift that is under way, and take its shares back")
	f.StringVar(&stage, "stage", "", "client, plain, permissive or, with --service, strict")
	f.StringVar(&window, "window-of-silence", "", "with --stage strict: for how long no plaintext must have come, in watched time (default 24h)")
	f.BoolVar(&force, "force", false, "set shares though a shift is under way or the callee cannot bear them; take a legacy address that does not answer; set a stage in spite of what speaks against it")
	f.BoolVar(&dryRun, "dry-run", false, "write nothing: print the shares, and what config plan says of the entries")
	complete(cmd, "via", waysGiven())
	complete(cmd, "stage", cobra.FixedCompletions([]string{"client", "plain", "permissive", "strict"}, cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "to", cobra.FixedCompletions(api.Ways(), cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "service", t.destinations())
	cmd.Args = pairOr("SOURCE DESTINATION or --service DESTINATION", func() int { return count(service != "") })
	cmd.ValidArgsFunction = t.pairArgs()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait.check(cmd); err != nil {
			return err
		}
		in := api.ShiftRequest{Service: service, DryRun: true}
		if service == "" {
			in.Pairs = []api.PairIndex{{PairName: api.PairName{Source: args[0], Destination: args[1]}}}
		}
		var err error
		if in.Via, err = readVia(via); err == nil {
			err = oneOfShift(len(via) > 0, to != "", stage != "", pause, resume, abort, legacyAddress != "")
		}
		in.To, in.Force, in.Stage, in.Window = to, force, stage, window
		if to != "" {
			in.Plan = &plan
		} else if len(plan.Steps)+len(plan.Windows) > 0 || plan.Dwell != "" || plan.OnBreach != "" {
			err = cmp.Or(err, errors.New("shift: --steps, --dwell, --window and --on-breach go with --to"))
		}
		for verb, given := range map[string]bool{api.Pause: pause, api.Resume: resume, api.Abort: abort} {
			if given {
				in.Do = verb
			}
		}
		if err == nil && legacyHost != "" && legacyAddress == "" {
			err = errors.New("--legacy-host: give --legacy-address too")
		}
		if err != nil {
			return usageError{err, cmd.CommandPath() + " --help"}
		}
		if legacyAddress != "" {
			in.Legacy = &api.LegacyWay{Address: legacyAddress, Host: legacyHost}
		}
		return shiftPairs(cmd, t, wait, in, dryRun)
	}
	return cmd
}

// oneOfShift refuses flags that do not go together.
func oneOfShift(via, to, stage, pause, resume, abort, legacy bool) error {
	switch n := count(via, to, stage, pause, resume, abort); {
	case n > 1:
		return errors.New("shift: want one of --via, --to, --stage, --pause, --resume and --abort")
	case n == 0 && !legacy:
		return errors.New("shift: give --via WAY=PERCENT, --to WAY, --stage STAGE, or --legacy-address")
	}
	return nil
}

// shiftPairs looks at what a shift would do, and does it unless a pair has changed since.
func shiftPairs(cmd *cobra.Command, t *target, wait *waiting, in api.ShiftRequest, dryRun bool) error {
	var would api.Changed
	if err := t.post(cmd, "/v1/crossfade/shift", in, &would); err != nil {
		return err
	}
	if dryRun {
		return t.showShift(cmd, would)
	}
	in.DryRun = false
	if in.Stage != "strict" {
		in.Service, in.Pairs = "", nil
	}
	for _, p := range would.Pairs {
		if in.Stage == "strict" {
			break
		}
		in.Pairs = append(in.Pairs, api.PairIndex{PairName: p.PairName, Index: &p.Index})
	}
	began := time.Now()
	var done api.Changed
	if err := t.post(cmd, "/v1/crossfade/shift", in, &done); err != nil {
		return err
	}
	if in.To != "" || in.Do != "" {
		return t.tellShifts(in, done)
	}
	return wait.tellPairs(cmd, t, "shift", "shifted", done, began)
}

// tellShifts says what became of shifts that move by themselves.
func (t *target) tellShifts(in api.ShiftRequest, done api.Changed) error {
	var errs []error
	for _, p := range done.Pairs {
		switch {
		case p.Refused != "":
			errs = append(errs, fmt.Errorf("shift %q: %s", p.String(), p.Refused))
		case in.To != "":
			fmt.Fprintf(t.s.out, "%s: %s; a shift to %s is %s: watch it with crossfade pairs show %s %s\n", p.PairName, p.Before, in.To, p.Status, p.Source, p.Destination)
		default:
			fmt.Fprintf(t.s.out, "%s: %s; the shift is %s\n", p.PairName, p.Before, p.Status)
		}
	}
	for _, text := range done.Warnings {
		fmt.Fprintf(t.s.err, "warning: %s\n", text)
	}
	return errors.Join(errs...)
}

// showShift says what a shift would do.
func (t *target) showShift(cmd *cobra.Command, would api.Changed) error {
	t.printPairs(would)
	body := struct {
		Entries []json.RawMessage `json:"entries"`
		Delete  []planKey         `json:"delete"`
	}{}
	for _, p := range would.Pairs {
		if !p.Same() {
			body.Entries = append(body.Entries, p.Entry)
		}
	}
	if len(body.Entries) == 0 {
		fmt.Fprintln(t.s.out, "nothing would change")
		return nil
	}
	var p planned
	if err := t.post(cmd, "/v1/crossfade/config/plan", body, &p); err != nil {
		return err
	}
	p.print(t.s.out)
	return nil
}

// post sends and takes JSON.
func (t *target) post(cmd *cobra.Command, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return t.call(cmd.Context(), http.MethodPost, path, body, out)
}

// tellPairs says what was done with each pair, waits for the sidecars, and says what they
// made of it.
func (w *waiting) tellPairs(cmd *cobra.Command, t *target, verb, what string, done api.Changed, began time.Time) error {
	t.printPairs(done)
	var errs []error
	changed := 0
	var one api.PairName
	for _, p := range done.Pairs {
		switch {
		case p.Refused != "":
			errs = append(errs, fmt.Errorf("%s %q: not %s: %s", verb, p.String(), what, p.Refused))
		case !p.Same() || p.Stage != "":
			changed++
			one = p.PairName
		}
	}
	if !w.not && done.Index > 0 {
		d := awaited{
			subject: fmt.Sprintf("%s of %d pairs", verb, changed), what: what, index: strconv.FormatUint(done.Index, 10), began: began,
			absent: done.Disconnected, absentTotal: done.DisconnectedTotal,
		}
		if changed == 1 {
			d.subject = fmt.Sprintf("%s %q", verb, one.String())
			if verb == "shift" {
				d.back = "crossfade revert " + one.Source + " " + one.Destination
			}
		}
		errs = append(errs, w.settle(cmd.Context(), t, d))
	}
	return errors.Join(errs...)
}

// printPairs shows shares before and after.
func (t *target) printPairs(c api.Changed) {
	for _, p := range c.Pairs {
		switch {
		case p.Refused != "":
		case p.Stage != "":
			fmt.Fprintf(t.s.out, "%s: stage %s; %s\n", p.PairName, p.Stage, p.After)
		case p.Same():
			fmt.Fprintf(t.s.out, "%s: %s, unchanged\n", p.PairName, p.After)
		default:
			fmt.Fprintf(t.s.out, "%s: %s -> %s\n", p.PairName, p.Before, p.After)
		}
	}
	if c.Unsaved != "" {
		fmt.Fprintf(t.s.err, "warning: in force, and not saved: %s; it is tried again, and sidecars hold it over a restart of the server\n", c.Unsaved)
	}
	for _, text := range c.Warnings {
		fmt.Fprintf(t.s.err, "warning: %s\n", text)
	}
}

// readVia reads WAY=PERCENT.
func readVia(list []string) (map[string]float64, error) {
	out := map[string]float64{}
	for _, raw := range list {
		way, text, ok := strings.Cut(raw, "=")
		p, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
		switch _, again := out[way]; {
		case !ok || err != nil:
			return nil, fmt.Errorf("--via %q: want WAY=PERCENT, such as mtls=10", clip(raw, 80))
		case !slices.Contains(api.Ways(), way):
			return nil, fmt.Errorf("--via %q: no such way: want %s", clip(raw, 80), or(api.Ways()))
		case !(p >= 0 && p <= 100):
			return nil, fmt.Errorf("--via %q: want 0 to 100 percent", clip(raw, 80))
		case again:
			return nil, fmt.Errorf("--via %q: the way is given twice", clip(raw, 80))
		}
		out[way] = p
	}
	return out, nil
}

// pairOr is a check for SOURCE DESTINATION, or for nothing where flags say which pairs.
func pairOr(want string, flags func() int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch n := flags(); {
		case n == 0 && len(args) == 2 && args[0] != "" && args[1] != "":
			return nil
		case n == 1 && len(args) == 0:
			return nil
		}
		return usageError{fmt.Errorf("%s: want %s", verb(cmd), want), cmd.CommandPath() + " --help"}
	}
}

// count is how many are true.
func count(all ...bool) (n int) {
	for _, one := range all {
		if one {
			n++
		}
	}
	return n
}
