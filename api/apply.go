package api

import (
	"errors"
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store"
)

// applyAll is a server-side apply of many objects: all are valid and written at
// once, or none is and every fault of every object is told.
func (s *Server) applyAll(c *call) error {
	c.outcome = "refused"
	documents, faults, err := c.declared()
	if err != nil {
		return err
	}
	dry, err := dryRun(c.query["dryRun"])
	if err != nil {
		return err
	}
	manager := c.query.Get("fieldManager")
	if manager == "" || len(manager) > 128 {
		return badRequest("fieldManager must have 1 to 128 characters")
	}
	changes := make([]*change, len(documents))
	trees := make([]*manifest.Tree, len(documents))
	for i, d := range documents {
		meta := d.Resource.Meta()
		kind := kindNamed(d.Resource.Type().Kind)
		for _, verb := range []string{verbCreate, verbPatch} {
			a := access{verb, kind, "", meta.Namespace}
			if ok, why := c.person.allowed(a); !ok {
				faults = append(faults, d.Place(bocage.Faults{{
					Message: fmt.Sprintf("User %q cannot %s %s: %s", c.person.Name, verb, kind.Plural, why),
				}})...)
				break
			}
		}
		changes[i] = &change{
			access: access{verbPatch, kind, "", meta.Namespace}, name: meta.Name,
			manager: manager, dryRun: dry, validation: metav1.FieldValidationStrict,
		}
		parsed, broken := manifest.Parse("", d.JSON)
		if len(parsed) != 1 {
			return fmt.Errorf("read back %s: %w", d.Source, broken.Err())
		}
		trees[i] = parsed[0]
	}
	if len(faults) > 0 || len(changes) == 0 {
		writeJSON(c.w, http.StatusUnprocessableEntity, bocage.ApplyResult{DryRun: dry, Faults: faults})
		return nil
	}
	err = s.commit(c.r.Context(), changes, func(b *batch) error {
		faults = nil
		for i, ch := range changes {
			err := b.apply(ch, trees[i], isTrue(c.query.Get("force")))
			var p *problem
			if errors.As(err, &p) && p.Code < http.StatusInternalServerError {
				faults = append(faults, documents[i].Place(p.faults())...)
			} else if err != nil {
				return err
			}
		}
		return faults.Err()
	})
	switch {
	case len(faults) > 0:
		writeJSON(c.w, http.StatusUnprocessableEntity, bocage.ApplyResult{DryRun: dry, Faults: faults})
		return nil
	case errors.Is(err, store.ErrTooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
			"too much at once: an object may have %d bytes, and one apply makes at most %d changes, of which a workload takes several; this one has %d objects: apply them in parts",
			store.MaxValue, store.MaxOps, len(changes))
	case err != nil:
		return err
	}
	result := bocage.ApplyResult{DryRun: dry}
	for _, ch := range changes {
		result.Objects = append(result.Objects, bocage.AppliedObject{
			Kind: ch.kind.Name, Namespace: ch.namespace, Name: ch.name, Outcome: ch.outcome(),
			Object: withRevision(ch.value, ch.kind, ch.revision),
		})
		s.auditWrite(c, ch.access, ch.name, ch.outcome(), http.StatusOK)
	}
	c.outcome = fmt.Sprintf("applied %d", len(changes))
	writeJSON(c.w, http.StatusOK, result)
	return nil
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
