package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store"
)

// applyAll is a server-side apply of many objects: all are valid, or nothing is
// written and every fault of every object is told.
func (s *Server) applyAll(c *call) error {
	c.outcome = "refused"
	// Many objects take their time, to be sent and to be written. Who serves no
	// connection has no deadlines to lift.
	_ = endless(http.NewResponseController(c.w))
	documents, faults, err := c.declared()
	if err != nil {
		return err
	}
	dry, err := dryRun(verbPatch, c.query["dryRun"])
	if err != nil {
		return err
	}
	manager := c.query.Get("fieldManager")
	if manager == "" {
		return wrongOption(patchOptions, "fieldManager", "is required for apply patch")
	}
	if wrong := managerFault(manager); wrong != "" {
		return wrongOption(patchOptions, "fieldManager", "%s", wrong)
	}
	changes := make([]*change, len(documents))
	trees := make([]*manifest.Tree, len(documents))
	for i, d := range documents {
		meta := d.Resource.Meta()
		kind := kindNamed(d.Resource.Type().Kind)
		creating, changing := access{verbCreate, kind, "", meta.Namespace}, access{verbPatch, kind, "", meta.Namespace}
		mayCreate, why := c.person.allowed(creating)
		mayChange, whyNot := c.person.allowed(changing)
		if !mayCreate && !mayChange {
			faults = append(faults, d.Place(bocage.Faults{{
				Message: fmt.Sprintf("User %q cannot %s %s: %s", c.person.Name, verbCreate, kind.Plural, why),
			}})...)
		}
		changes[i] = &change{
			access: access{verbPatch, kind, "", meta.Namespace}, name: meta.Name,
			manager: manager, dryRun: dry, validation: metav1.FieldValidationStrict, by: c.person,
		}
		if !mayCreate {
			changes[i].mayNotCreate = forbidden(c.person, creating, meta.Name, why)
		}
		if !mayChange {
			changes[i].mayNotChange = forbidden(c.person, changing, meta.Name, whyNot)
		}
		parsed, broken := manifest.Parse("", d.JSON)
		if len(parsed) != 1 {
			return fmt.Errorf("read back %s: %w", d.Source, broken.Err())
		}
		trees[i] = parsed[0]
		changes[i].version, _ = trees[i].Text("apiVersion")
	}
	if len(faults) > 0 || len(changes) == 0 {
		writeJSON(c.w, http.StatusUnprocessableEntity, bocage.ApplyResult{DryRun: dry, Faults: faults})
		return nil
	}
	force := says(c.query, "force")
	written, err := s.commitAll(c.r.Context(), changes, func(b *batch, i int) error {
		err := b.apply(changes[i], trees[i], force)
		if errors.Is(err, store.ErrTooLarge) {
			return documents[i].Place(bocage.Faults{{Message: fmt.Sprintf(
				"is too large as it is stored, with a note of who owns which field: an object may have %d bytes; make several of it", store.MaxValue)}})
		}
		var p *problem
		if errors.As(err, &p) && p.Code < http.StatusInternalServerError {
			return documents[i].Place(p.faults())
		}
		return err
	})
	if err != nil && written == 0 {
		return c.appliedNothing(err, dry)
	}
	s.warnHeld(c, changes[:written]...)
	s.answerApplied(c, changes, written, dry, err)
	return nil
}

// appliedNothing tells why.
func (c *call) appliedNothing(err error, dry bool) error {
	var faults bocage.Faults
	if errors.As(err, &faults) {
		writeJSON(c.w, http.StatusUnprocessableEntity, bocage.ApplyResult{DryRun: dry, Faults: faults})
		return nil
	}
	return err
}

// answerApplied tells what became of each object; err is why those from written
// on were not.
func (s *Server) answerApplied(c *call, changes []*change, written int, dry bool, err error) {
	result := bocage.ApplyResult{DryRun: dry}
	code := http.StatusOK
	if err != nil {
		code = int(asProblem(err).Code)
		if !errors.As(err, &result.Faults) {
			result.Faults.Add("", "%v", asProblem(err).Message)
		}
		result.Faults = append(result.Faults, bocage.Fault{Message: fmt.Sprintf(
			"%d of %d objects were applied before that, and the others were not: apply all of them again", written, len(changes))})
	}
	for i, ch := range changes {
		applied := bocage.AppliedObject{Kind: ch.kind.Name, Namespace: ch.namespace, Name: ch.name, Outcome: bocage.OutcomePending}
		if i < written {
			applied.Outcome = ch.outcome()
			if object, err := c.revealed(ch.kind, withRevision(ch.value, ch.kind, ch.revision)); err == nil {
				applied.Object = object
			}
			applied.Note = waiting(ch.kind, ch.value)
			s.auditWrite(c, ch.access, ch.name, ch.outcome(), http.StatusOK, ch.value)
		}
		result.Objects = append(result.Objects, applied)
	}
	c.outcome = fmt.Sprintf("applied %d of %d", written, len(changes))
	writeJSON(c.w, code, result)
}

// commitAll prepares all changes, so that every fault of every one is found
// before anything is written, and then writes them: at once if the store takes
// them so, else in parts of which each is written whole. What somebody else
// changed meanwhile is prepared again. It returns how many were written, which is
// all of them if err is nil.
func (s *Server) commitAll(ctx context.Context, changes []*change, prepare func(b *batch, i int) error) (written int, err error) {
	for attempt := 1; ; attempt++ {
		b := newBatch(ctx, s)
		var faults bocage.Faults
		marks := make([]mark, 0, len(changes)-written)
		for i := written; i < len(changes); i++ {
			err := prepare(b, i)
			var wrong bocage.Faults
			if errors.As(err, &wrong) {
				faults = append(faults, wrong...)
			} else if err != nil {
				return written, err
			}
			marks = append(marks, b.mark())
		}
		if len(faults) > 0 {
			return written, faults
		}
		if changes[0].dryRun {
			return len(changes), nil
		}
		var count store.Op // of identities: goes with each part as far as that has counted
		if at, counts := b.at[identityCounter]; counts {
			count = b.ops[at]
		}
		for _, part := range b.parts(marks) {
			if part.counted > 0 {
				count.Value = strconv.AppendUint(nil, part.counted, 10)
				part.ops = append(part.ops, count)
			}
			var revision store.Revision
			if len(part.ops) > 0 {
				if revision, err = s.config.Store.Apply(ctx, part.ops...); err != nil {
					break
				}
				count.IfWas = revision
			}
			for _, ch := range changes[written : written+part.changes] {
				if !ch.same {
					ch.revision = revision
				}
				s.tell(ctx, ch)
			}
			written += part.changes
		}
		if err == nil || !isAny(err, store.ErrConflict, store.ErrNotFound) || attempt == maxAttempts {
			return written, err
		}
		err = nil
	}
}

// mark is how far a batch is after a change.
type mark struct {
	ops  int
	last uint64 // identity
}

func (b *batch) mark() mark {
	m := mark{ops: len(b.ops)}
	if b.last != nil {
		m.last = *b.last
	}
	return m
}

// part is what one write of the store holds.
type part struct {
	ops     []store.Op
	changes int
	counted uint64 // the last identity that it gives, if it is not in ops; 0: none
}

// parts cuts a batch, if it has to be cut, where a change ends.
func (b *batch) parts(marks []mark) []part {
	if len(b.ops) <= store.MaxOps && sizeOf(b.ops) <= store.MaxApply {
		return []part{{ops: b.ops, changes: len(marks)}}
	}
	var parts []part
	var now part
	size := 0
	from, given := 0, uint64(0)
	for _, m := range marks {
		ops := slices.DeleteFunc(slices.Clone(b.ops[from:m.ops]), func(op store.Op) bool { return op.Key == identityCounter })
		more := sizeOf(ops)
		// One place is kept for the counter.
		if now.changes > 0 && (len(now.ops)+len(ops) >= store.MaxOps || size+more > store.MaxApply-maxPartSlack) {
			parts, now, size = append(parts, now), part{}, 0
		}
		now.ops, now.changes, size = append(now.ops, ops...), now.changes+1, size+more
		if m.last > given {
			now.counted = m.last
		}
		from, given = m.ops, m.last
	}
	return append(parts, now)
}

// maxPartSlack is more than the counter takes.
const maxPartSlack = 1 << 10

func sizeOf(ops []store.Op) int {
	size := 0
	for _, op := range ops {
		size += len(op.Key) + len(op.Value)
	}
	return size
}

// faults returns what a problem is made of.
func (p *problem) faults() bocage.Faults {
	if p.Details == nil || len(p.Details.Causes) == 0 {
		return bocage.Faults{{Message: p.Message}}
	}
	var faults bocage.Faults
	for _, cause := range p.Details.Causes {
		faults = append(faults, bocage.Fault{Field: cause.Field, Message: cause.Message})
	}
	return faults
}
