package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"bocage.dev/bocage/store"
)

// A store that was restored from a backup knows nothing of the generations that were
// numbered since. Hosts have them: they would take nothing up to the highest number that
// they ever took, and would take what gets one of those numbers now for what they have
// already. So numbering goes on above all that was given, and every host is given what
// is in force anew. How far it went is known to
//
//   - controllers, who note it beside their state (Config.Numbered);
//   - hosts, who show what controllers signed for them. What they merely say does not
//     count: one that lies would use up the numbers.

// skipped is how many numbers are left out above the highest that is known to have been
// given in a time that is lost: others may have been, such as of candidates.
const skipped = 1000

// lost reports whether a host has what this record never gave it.
func (r record) lost(host string, q Question) bool {
	return r.Hosts[host][0] < q.Have || max(r.Said, r.Floor) < q.Confirmed
}

// tooLate reports whether a host went back from what a person confirmed after all: the
// word came when the host's time was over, which is earlier than the others' where a
// canary's stage was longer than planned, since no controller was there to end it. It
// would keep what was before for good. Nobody can have that said again without another
// confirmation.
func (r record) tooLate(host string, q Question) bool {
	return q.Left != 0 && q.Left == r.Hosts[host][0] && r.Floor < q.Left && q.Left <= r.Said
}

// foreign answers a host that has what the store never gave it.
func (p *Policy) foreign(ctx context.Context, r record, host string, q Question) (Answer, error) {
	switch has := max(q.Have, q.Confirmed); {
	case has <= r.Floor:
		return Answer{}, nil // it is being numbered anew
	case q.Proved >= has:
		return Answer{}, p.renumber(ctx, has, slog.String("host", host))
	case q.Proves && !q.Shown:
		return Answer{Prove: true}, nil
	default:
		p.logger.WarnContext(ctx, "host has a generation that this site never gave it, and cannot show that a controller signed it", slog.String("host", host), slog.Uint64("has", has), slog.Uint64("given", r.Hosts[host][0]))
		return Answer{}, fmt.Errorf("this host has generation %d, and the site, which may have been restored from a backup, knows of none above %d that it gave it; nor can the host show that a controller signed it. "+
			"To have it take what is in force: stop its agent, remove ruleset* from the folder identity in its state folder, and start it; what is enforced stays until then", has, r.Hosts[host][0])
	}
}

// renumber has numbering go on above a number that was given.
func (p *Policy) renumber(ctx context.Context, above uint64, whoKnows slog.Attr) error {
	for {
		r, revision, err := readRecord(ctx, p.store)
		if err != nil {
			return err
		}
		if above <= r.Floor {
			return nil
		}
		was := r.Number
		if r.Floor = above; above > r.Number {
			r.Floor += skipped
		}
		r.Number = max(r.Number, r.Floor)
		op, err := r.op(revision)
		if err != nil {
			return err
		}
		if _, err = p.store.Apply(ctx, op); errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("number generations above %d: %w", above, err)
		}
		wake(p.mirror.changed)
		if above <= was {
			p.logger.WarnContext(ctx, "a host went back from what was confirmed, or is of another time: every host is given what is in force anew", slog.Uint64("generation", above), whoKnows)
			return nil
		}
		p.logger.WarnContext(ctx, "generations were given that the store does not know, as after it was restored from a backup: numbering goes on above them, and every host is given what is in force anew",
			slog.Uint64("given", above), slog.Uint64("known", was), whoKnows)
		if r.Base.Number != 0 {
			p.notices.tell("Generation", "", generationName(r.Base.Number), "Renumbered",
				fmt.Sprintf("generations up to %d were given to hosts and this store knows of none above %d, as after it was restored from a backup: hosts are given what is in force anew", above, was), true)
		}
		return nil
	}
}

// goOn has numbering go on above what this controller knows to have been given.
func (p *Policy) goOn(ctx context.Context, r record) (again bool, err error) {
	known := p.numbered.Load()
	if known <= r.Number {
		return false, nil
	}
	return true, p.renumber(ctx, known, slog.String("controller", p.node))
}

// Numbered is the highest number of a generation that this controller knows of: to be
// kept for the next process (see Config.Numbered).
func (p *Policy) Numbered() uint64 { return p.numbered.Load() }
