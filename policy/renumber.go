package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"bocage.dev/bocage/store"
)

// A store that was restored from a backup does not know the generations that were numbered
// after the backup, but hosts have them. A host takes nothing up to the highest number that
// it ever took, and would believe that it already has a new generation with such a number.
// So numbering continues above every number that was given to a host, and every host is
// given what is in force again. The highest number is known to
//
//   - controllers, who note it beside their state (Config.Numbered);
//   - hosts, who show what controllers signed for them. What they merely say does not
//     count: one that lies would use up the numbers.

// numberGap is how many numbers are left out above the highest one that is known to have
// been given: others may have been given, too, to candidates for instance.
const numberGap = 1000

// unknownTo reports whether a host has something that this record never gave it.
func (r record) unknownTo(host string, q Question) bool {
	return r.Hosts[host][0] < q.Have || max(r.ConfirmedUpTo, r.Floor) < q.Confirmed
}

// revertedAfterConfirm reports whether a host went back from a generation that a person
// then confirmed: the confirmation reached it after its deadline. That of a canary can be
// earlier than that of the other hosts, if its stage was longer than planned because no
// controller was there to end it. Such a host would keep the older generation for good, so
// it has to be given what is in force under a new number.
func (r record) revertedAfterConfirm(host string, q Question) bool {
	return q.Left != 0 && q.Left == r.Hosts[host][0] && r.Floor < q.Left && q.Left <= r.ConfirmedUpTo
}

// answerUnknown answers a host that has something that the record never gave it.
func (p *Policy) answerUnknown(ctx context.Context, r record, host string, q Question) (Answer, error) {
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

// renumber makes numbering continue above a number that was given to a host.
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
			r.Floor += numberGap
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

// continueNumbering makes numbering continue above the highest number that this controller
// knows of, if the record is behind it.
func (p *Policy) continueNumbering(ctx context.Context, r record) (again bool, err error) {
	known := p.numbered.Load()
	if known <= r.Number {
		return false, nil
	}
	return true, p.renumber(ctx, known, slog.String("controller", p.node))
}

// Numbered is the highest number of a generation that this controller knows of: to be
// kept for the next process (see Config.Numbered).
func (p *Policy) Numbered() uint64 { return p.numbered.Load() }
