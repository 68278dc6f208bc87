package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	// silenceTime is for how long a callee must have taken no plaintext; a day by default.
	silenceTime = "3s"
	strictLimit = 40 * time.Second
)

// strict completes the move: everything goes by mTLS, nothing else is taken, and the old
// mesh is switched off.
func (d *demo) strict(ctx context.Context, p *Proof) error {
	m := d.traffic.mark()
	callees := []string{"catalog", "payments", "assignments"}
	for _, pr := range d.traffic.pairs {
		if err := d.complete(ctx, pr); err != nil {
			return err
		}
	}
	if d.plainSent {
		text, err := d.mesh.crossfade(ctx, "shift", "--service", "catalog", "--stage", "strict")
		d.out.line("  %s", d.out.bold("$ crossfade shift --service catalog --stage strict"))
		d.out.line("    %s", d.out.faint(lastLine(text)))
		p.check(err != nil && strings.Contains(text, "plaintext came from"), "strict is refused while plaintext came inside the last 24 hours, and says from whom")
	}
	for _, service := range callees {
		if d.o.sabotaged("strict") {
			d.out.step("sabotage: %s is not told to be strict", service)
			continue
		}
		args := []string{"shift", "--service", service, "--stage", "strict", "--window-of-silence", silenceTime}
		var text string
		err := await(ctx, strictLimit, service+" is strict", func() (err error) {
			text, err = d.mesh.crossfade(ctx, args...)
			return err
		})
		if err != nil {
			return err
		}
		d.out.line("  %s", d.out.bold("$ crossfade "+strings.Join(args, " ")))
		d.out.line("    %s", d.out.faint(strings.ReplaceAll(text, "\n", "\n    ")))
	}
	for _, pr := range d.traffic.pairs {
		row, err := d.mesh.api.ledger(ctx, pr.from.service, pr.to.service)
		if err != nil {
			return err
		}
		p.check(row.Stage == "strict" && row.Shares.MTLS == 100, "%s: stage %s, %s, %d of %d instances have a sidecar", pr.key(), row.Stage, row.Shares, row.Callee.Sidecars, row.Callee.Instances)
	}
	var served []string
	for _, in := range d.mesh.running() {
		s, err := in.status()
		if err != nil {
			return err
		}
		if in.service == "storefront" {
			continue
		}
		ok, err := answersWithoutCertificate(s.PublicAddress, true)
		if err != nil {
			return err
		}
		if ok {
			served = append(served, in.id)
		}
	}
	p.check(len(served) == 0, "a request in plaintext is answered by %s of the callees' sidecars", orNone(served))
	if err := d.endOld(ctx, p); err != nil {
		return err
	}
	return d.nothingFailed(ctx, p, m)
}

// complete puts all of a pair on mtls. One that moves by itself is waited for.
func (d *demo) complete(ctx context.Context, pr *pair) error {
	from, to := pr.from.service, pr.to.service
	row, err := d.mesh.api.ledger(ctx, from, to)
	if err != nil {
		return err
	}
	s := row.Shift
	if row.Shares.MTLS == 100 {
		if s != nil && !s.Held {
			d.out.step("%s is at %s: it moved by itself, in steps of %v %% that its guard let pass", pr.key(), row.Shares, s.Steps)
		}
		return nil
	}
	if s == nil || s.Held || s.Status != "running" {
		if err := d.order(ctx, "shift", "--service", to, "--stage", "permissive"); err != nil {
			return err
		}
		return d.order(ctx, "shift", from, to, "--via", "mtls=100")
	}
	d.out.step("%s moves by itself, and is at %s", pr.key(), row.Shares)
	return await(ctx, strictLimit, pr.key()+" has moved by itself", func() error {
		row, err := d.mesh.api.ledger(ctx, from, to)
		if err == nil && row.Shares.MTLS != 100 {
			err = fmt.Errorf("it is at %s", row.Shares)
			if row.Shift != nil {
				err = fmt.Errorf("%w: %s %s: %s", err, row.Shift.Status, row.Shift.Wait, row.Shift.Reason)
			}
		}
		return err
	})
}

// endOld ends what was open on the old mesh all the time, and the old mesh.
func (d *demo) endOld(ctx context.Context, p *Proof) error {
	t := d.traffic
	watched, paid, watchErr := t.hangUpLong(ctx)
	p.check(watchErr == nil, "a gRPC stream opened on the old mesh stayed open there all the time: %s messages in sequence, none lost%s", count(watched), because(watchErr))
	p.check(t.line.Err() == nil, "so did a TCP connection: %s payments on it%s", count(paid), because(t.line.Err()))
	if err := t.openLong(); err != nil {
		return err
	}
	left := func() error {
		t.payments.Prune()
		open, err := connectionsTo([]string{d.mesh.old.addr("payments")})
		if err == nil && len(open) > 0 {
			err = fmt.Errorf("%d still there", len(open))
		}
		return err
	}
	if err := await(ctx, strictLimit, "no TCP connection of payments is left on the old mesh", left); err != nil {
		return err
	}
	if err := d.mesh.stopOldMesh(ctx); err != nil {
		return err
	}
	p.check(true, "no connection of payments was left on the old mesh, and it is switched off")
	return pause(ctx, time.Second)
}

func lastLine(text string) string { return text[strings.LastIndexByte(text, '\n')+1:] }

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
