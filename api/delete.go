package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// delete serves DELETE of one object.
func (s *Server) delete(c *call) error {
	ch, options, err := s.newDeletion(c)
	if err != nil {
		return err
	}
	err = s.commit(c.r.Context(), []*change{ch}, func(b *batch) error { return b.delete(ch, options) })
	if err != nil {
		c.outcome = "refused"
		return err
	}
	c.outcome = ch.outcome()
	s.warnHeld(c, ch)
	if !ch.removed {
		c.outcome = "held" // by its finalizers
		c.warn(waiting(ch.kind, ch.value))
		return c.writeObject(http.StatusOK, withRevision(ch.value, ch.kind, ch.revision))
	}
	writeJSON(c.w, http.StatusOK, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: ch.name, Group: ch.kind.Group(), Kind: ch.kind.Plural, UID: ch.old.object.GetUID()},
	})
	return nil
}

// newDeletion reads the options of a deletion from the query and the body.
func (s *Server) newDeletion(c *call) (*change, *metav1.DeleteOptions, error) {
	ch := &change{access: c.access, name: c.name, by: c.person}
	data, err := c.readBody()
	if err != nil {
		return nil, nil, err
	}
	if data, err = protobufAsJSON(data, deleteOptionsMessage()); err != nil {
		return nil, nil, badRequest("the DeleteOptions cannot be read: %v", err)
	}
	options, err := queriedDeletion(c.query)
	if err != nil {
		return nil, nil, err
	}
	if len(bytes.TrimSpace(data)) > 0 {
		tree, err := c.parse(data)
		if err != nil {
			return nil, nil, err
		}
		if err := json.Unmarshal(tree.JSON(), options); err != nil {
			return nil, nil, badRequest("the DeleteOptions cannot be read: %v", err)
		}
		if options.Kind != "" && options.Kind != deleteOptions {
			// Somebody meant something else, and what they asked for cannot be told.
			return nil, nil, badRequest("the body is a %s, and what a deletion takes is DeleteOptions", options.Kind)
		}
	}
	wanted := append(options.DryRun, c.query["dryRun"]...)
	c.dryRun = len(wanted) > 0
	ch.dryRun, err = dryRun(verbDelete, wanted)
	return ch, options, err
}

// queriedDeletion reads the options that stand in the query: those in the body count
// before them.
func queriedDeletion(query url.Values) (*metav1.DeleteOptions, error) {
	options := &metav1.DeleteOptions{}
	if policy := metav1.DeletionPropagation(query.Get("propagationPolicy")); policy != "" {
		options.PropagationPolicy = &policy
	}
	if text := query.Get("orphanDependents"); text != "" {
		orphan, err := strconv.ParseBool(text)
		if err != nil {
			return nil, badRequest("orphanDependents %q is neither true nor false", text)
		}
		//lint:ignore SA1019 old clients send it
		options.OrphanDependents = &orphan
	}
	return options, nil
}

func (b *batch) delete(ch *change, options *metav1.DeleteOptions) error {
	ch.removed, ch.same = false, false
	if err := b.load(ch); err != nil {
		return err
	}
	if p := options.Preconditions; p != nil {
		if is := ch.old.object.GetUID(); p.UID != nil && *p.UID != is {
			return conflict(ch.kind, ch.name, fmt.Sprintf("Precondition failed: UID in precondition: %s, UID in object meta: %s", *p.UID, is))
		}
		if is := formatRevision(ch.old.revision); p.ResourceVersion != nil && *p.ResourceVersion != is {
			return conflict(ch.kind, ch.name, fmt.Sprintf("Precondition failed: ResourceVersion in precondition: %s, ResourceVersion in object meta: %s", *p.ResourceVersion, is))
		}
	}
	object := ch.old.object.DeepCopy()
	if err := b.hold(ch, object, options); err != nil {
		return err
	}
	if err := b.holdDeletion(ch, object); err != nil {
		return err
	}
	if len(object.GetFinalizers()) == 0 && ch.kind.Name != "Namespace" {
		ch.removed = true
		return b.remove(ch)
	}
	if object.GetDeletionTimestamp() == nil {
		now := metav1.Time{Time: b.server.now()}
		object.SetDeletionTimestamp(&now)
	}
	return b.put(ch, object)
}

// deletedTogether is how many objects of a collection go in one transaction.
const deletedTogether = 100

// deleteCollection serves DELETE of everything that a list would show. All that was
// there when it began is gone afterwards, or its answer says how much is not.
func (s *Server) deleteCollection(c *call) error {
	options, deletion, err := s.newDeletion(c)
	if err != nil {
		return err
	}
	found, err := s.collect(c)
	if err != nil {
		return err
	}
	c.outcome = fmt.Sprintf("deleted %d", len(found.objects))
	done := 0
	for some := range slices.Chunk(found.objects, deletedTogether) {
		if err := s.deleteSome(c, options, deletion, some, &done); err != nil {
			c.outcome = fmt.Sprintf("deleted %d of %d", done, len(found.objects))
			p := *asProblem(err)
			p.Message = fmt.Sprintf("%d of %d objects are dealt with, the others are as they were: %s", done, len(found.objects), p.Message)
			return &p
		}
	}
	s.warnHeld(c, options)
	return c.writeList(found)
}

// deleteSome deletes objects together, or one by one if that is refused: then those
// before the first that may not go do. done counts what has been dealt with.
func (s *Server) deleteSome(c *call, options *change, deletion *metav1.DeleteOptions, objects []*object, done *int) error {
	changes := make([]*change, len(objects))
	for i, o := range objects {
		ch := *options
		ch.namespace, ch.name = o.namespace, o.name
		changes[i] = &ch
	}
	if err := s.deleteTogether(c, deletion, changes); err == nil {
		*done += len(objects)
		return nil
	} else if c.r.Context().Err() != nil {
		return err
	}
	for i := range changes {
		if err := s.deleteTogether(c, deletion, changes[i:i+1]); err != nil {
			return err
		}
		*done++
	}
	return nil
}

func (s *Server) deleteTogether(c *call, deletion *metav1.DeleteOptions, changes []*change) error {
	var gone map[*change]bool
	err := s.commit(c.r.Context(), changes, func(b *batch) error {
		gone = map[*change]bool{}
		for _, ch := range changes {
			ch.told = nil
			if s.view.get(ch.kind, ch.namespace, ch.name) == nil {
				gone[ch] = true // since it was listed
				continue
			}
			err := b.delete(ch, deletion)
			var p *problem
			if errors.As(err, &p) && p.Reason == metav1.StatusReasonNotFound {
				gone[ch] = true // somebody else was faster
				continue
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, ch := range changes {
		if !gone[ch] {
			s.auditWrite(c, ch.access, ch.name, ch.outcome(), http.StatusOK, nil)
		}
	}
	return nil
}
