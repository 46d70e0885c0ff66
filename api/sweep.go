package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
)

// What goes because something else went: objects whose owners are gone, and what
// is in a namespace that is being deleted. As in Kubernetes, owners wait for
// what they own (foreground), do not wait (background, the default), or leave it
// behind (orphan). Every replica sweeps; deletions that somebody else did first
// change nothing.

const (
	sweepRetry = time.Second
	// sweepDelay gathers what goes together.
	sweepDelay = 20 * time.Millisecond

	finalizerForeground = metav1.FinalizerDeleteDependents
	finalizerOrphan     = metav1.FinalizerOrphanDependents
	sweeperName         = "system:sweeper"
)

// tended is an object that may have to go or be changed because others went.
type tended struct {
	*object
	meta bocage.ObjectMeta
}

// tend reads what the sweeper has to know of an object; nil if it has no business
// with it. Most objects are told apart without being decoded.
func tend(o *object) *tended {
	if !bytes.Contains(o.value, []byte(`"ownerReferences":[{`)) && !o.going() {
		return nil
	}
	var read struct {
		Metadata bocage.ObjectMeta `json:"metadata"`
	}
	if json.Unmarshal(o.value, &read) != nil {
		return nil
	}
	return &tended{o, read.Metadata}
}

// tendTo keeps the view's list of such objects; its lock is held.
func (v *view) tendTo(kind *seenKind, key string, is *object) {
	name := kind.Plural + "/" + key
	_, was := v.tended[name]
	delete(v.tended, name)
	if is != nil {
		if t := tend(is); t != nil {
			v.tended[name] = t
			was = true
		}
	}
	if was || is == nil && len(v.tended) > 0 {
		select {
		case v.sweeping <- struct{}{}:
		default:
		}
	}
}

// dependents lists the objects that name an owner.
func (v *view) dependents(uid string) []*tended {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var found []*tended
	for _, t := range v.tended {
		if slices.ContainsFunc(t.meta.OwnerReferences, func(o bocage.OwnerReference) bool { return o.UID == uid }) {
			found = append(found, t)
		}
	}
	return found
}

// hold marks an object that is to be deleted with what has to be done before.
func (b *batch) hold(ch *change, object *unstructured.Unstructured, options *metav1.DeleteOptions) error {
	policy := metav1.DeletePropagationBackground
	//lint:ignore SA1019 old clients send it
	orphan := options.OrphanDependents
	if options.PropagationPolicy != nil || orphan != nil {
		// Who names a policy replaces what was asked for before; who names none leaves it.
		object.SetFinalizers(slices.DeleteFunc(object.GetFinalizers(), func(f string) bool {
			return f == finalizerForeground || f == finalizerOrphan
		}))
	}
	switch {
	case options.PropagationPolicy != nil && orphan != nil:
		return wrongOption(deleteOptions, "propagationPolicy", "orphanDependents says the same: send the one or the other")
	case options.PropagationPolicy != nil:
		policy = *options.PropagationPolicy
	case orphan != nil && *orphan:
		policy = metav1.DeletePropagationOrphan
	}
	finalizer := ""
	switch policy {
	case metav1.DeletePropagationBackground:
	case metav1.DeletePropagationForeground:
		finalizer = finalizerForeground
	case metav1.DeletePropagationOrphan:
		finalizer = finalizerOrphan
	default:
		return wrongOption(deleteOptions, "propagationPolicy", "%q is not Background, Foreground or Orphan", policy)
	}
	if finalizer != "" {
		if err := b.server.view.fresh(b.ctx); err != nil {
			return err
		}
		if len(b.server.view.dependents(string(object.GetUID()))) > 0 && !slices.Contains(object.GetFinalizers(), finalizer) {
			object.SetFinalizers(append(object.GetFinalizers(), finalizer))
		}
	}
	if ch.kind.Name != "Namespace" {
		return nil
	}
	if ch.name == defaultNamespace {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"namespaces %q is forbidden: this namespace may not be deleted", ch.name).about(ch.kind, ch.name)
	}
	if err := b.server.view.fresh(b.ctx); err != nil {
		return err
	}
	if b.server.view.emptyNamespace(ch.name) {
		unstructured.RemoveNestedField(object.Object, "spec", "finalizers")
	}
	return nil
}

// sweep does what is to be done, when something went, until ctx ends.
func (s *Server) sweep(ctx context.Context) {
	for {
		select {
		case <-s.view.sweeping:
		case <-ctx.Done():
			return
		}
		for !s.sweepOnce(ctx) {
			select {
			case <-time.After(sweepRetry):
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(sweepDelay):
		case <-ctx.Done():
			return
		}
	}
}

// sweepOnce looks at every object that has owners or is being deleted. It returns
// false if something could not be done.
func (s *Server) sweepOnce(ctx context.Context) bool {
	s.view.mu.RLock()
	list := make([]*tended, 0, len(s.view.tended))
	for _, t := range s.view.tended {
		list = append(list, t)
	}
	s.view.mu.RUnlock()
	done := true
	for _, t := range list {
		err := s.sweepObject(ctx, t)
		var p *problem
		switch {
		case err == nil, errors.As(err, &p) && (p.Reason == metav1.StatusReasonNotFound || p.Reason == metav1.StatusReasonConflict):
			// What somebody else changed comes back through the view.
		case ctx.Err() != nil:
			return true
		default:
			s.logger.Warn("sweep", "kind", t.kind.Name, "namespace", t.namespace, "name", t.name, "error", err)
			done = false
		}
	}
	return done
}

func (s *Server) sweepObject(ctx context.Context, t *tended) error {
	if t.meta.DeletionTimestamp == nil {
		return s.sweepOwned(ctx, t)
	}
	if slices.Contains(t.meta.Finalizers, finalizerOrphan) {
		for _, d := range s.view.dependents(t.meta.UID) {
			if err := s.disown(ctx, d, nil, t.meta.UID); err != nil {
				return err
			}
		}
		if len(s.view.dependents(t.meta.UID)) > 0 {
			return nil // the next sweep sees what was done
		}
		return s.letGo(ctx, t, finalizerOrphan)
	}
	if slices.Contains(t.meta.Finalizers, finalizerForeground) && !s.view.blocked(t) {
		return s.letGo(ctx, t, finalizerForeground)
	}
	if t.kind.Name == "Namespace" {
		return s.emptyOut(ctx, t)
	}
	return nil
}

// blocked says whether something that an object owns has to go before it. What
// waits for the object in turn, because it owns it over some steps, or is it, does
// not: they would wait for each other for ever.
func (v *view) blocked(t *tended) bool {
	v.mu.RLock()
	blocking := map[string][]*tended{} // by the owner that they block
	for _, d := range v.tended {
		for _, o := range d.meta.OwnerReferences {
			if o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion {
				blocking[o.UID] = append(blocking[o.UID], d)
			}
		}
	}
	v.mu.RUnlock()
	return slices.ContainsFunc(blocking[t.meta.UID], func(d *tended) bool { return !waitsFor(d, t, blocking) })
}

// waitsFor says whether an object goes only after another one, given what blocks
// each.
func waitsFor(d, t *tended, blocking map[string][]*tended) bool {
	seen := map[string]bool{}
	next := []*tended{d}
	for len(next) > 0 {
		at := next[len(next)-1]
		next = next[:len(next)-1]
		switch {
		case at.meta.UID == t.meta.UID:
			return true
		case !seen[at.meta.UID] && at.going() && slices.Contains(at.meta.Finalizers, finalizerForeground):
			next = append(next, blocking[at.meta.UID]...)
		}
		seen[at.meta.UID] = true
	}
	return false
}

// sweepOwned deletes an object whose owners are all gone or going, and drops
// owners that are gone from one that has others.
func (s *Server) sweepOwned(ctx context.Context, t *tended) error {
	var gone []string
	solid, waiting := 0, 0
	for _, owner := range t.meta.OwnerReferences {
		switch s.ownerState(t, owner) {
		case ownerGone:
			gone = append(gone, owner.UID)
		case ownerWaits:
			waiting++
			gone = append(gone, owner.UID)
		default:
			solid++
		}
	}
	two := false
	if len(gone) > 0 && solid == 0 && s.twoDecide(t.kind.Kind) {
		resource := t.kind.New()
		err := json.Unmarshal(t.value, resource)
		if err == nil {
			two, err = s.goesByTwo(ctx, t.kind.Kind, resource)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case len(gone) == 0:
		return nil
	case solid > 0:
		return s.disown(ctx, t, nil, gone...)
	case two:
		// Who names an owner, or deletes it, is one person. Where two decide, it stays
		// as if it had none; who wants it gone deletes it.
		return s.disown(ctx, t, []notice{{"OwnerGone", "what owned it is gone; it stays in force, since two people decide that it goes: bocage delete " +
			strings.ToLower(t.kind.Name) + " " + t.name}}, gone...)
	}
	options := &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(t.meta.UID)}
	if waiting > 0 && len(s.view.dependents(t.meta.UID)) > 0 {
		options.PropagationPolicy = new(metav1.DeletePropagationForeground)
	}
	return s.sweepAway(ctx, t.object, options)
}

type ownerState int

const (
	ownerThere ownerState = iota
	ownerWaits            // it is being deleted in the foreground
	ownerGone
)

// ownerState says what became of an owner. One of a kind that is not known here
// is somebody else's business and counts as there.
func (s *Server) ownerState(t *tended, owner bocage.OwnerReference) ownerState {
	var kind *seenKind
	for _, k := range s.view.kinds {
		if k.Name == owner.Kind && k.Reads(owner.APIVersion) {
			kind = k
		}
	}
	if kind == nil || kind.Namespaced && !t.kind.Namespaced {
		return ownerThere
	}
	o := s.view.get(kind.Kind, t.namespace, owner.Name)
	if o == nil || o.virtual {
		return ownerGone
	}
	var read struct {
		Metadata bocage.ObjectMeta `json:"metadata"`
	}
	switch {
	case json.Unmarshal(o.value, &read) != nil:
		return ownerThere
	case read.Metadata.UID != owner.UID:
		return ownerGone
	case read.Metadata.DeletionTimestamp != nil && slices.Contains(read.Metadata.Finalizers, finalizerForeground):
		return ownerWaits
	}
	return ownerThere
}

// emptyOut deletes everything in a namespace, and the namespace once it is empty.
func (s *Server) emptyOut(ctx context.Context, t *tended) error {
	left := 0
	for plural, kind := range s.view.kinds {
		if !kind.Namespaced {
			continue
		}
		objects, _, _ := s.view.snapshot(plural, t.name)
		for _, o := range objects {
			if inhabits(kind.Kind) {
				left++
			}
			if o.going() {
				continue // its finalizers hold it
			}
			if err := s.sweepAway(ctx, o, &metav1.DeleteOptions{}); err != nil && !isNotFound(err) {
				return err
			}
		}
	}
	if left > 0 || !s.view.emptyNamespace(t.name) {
		return nil // each deletion that arrives leads back here
	}
	return s.alter(ctx, t.object, "update", nil, func(object *unstructured.Unstructured) bool {
		unstructured.RemoveNestedField(object.Object, "spec", "finalizers")
		return true
	})
}

func isNotFound(err error) bool {
	var p *problem
	return errors.As(err, &p) && p.Reason == metav1.StatusReasonNotFound
}

// sweepAway deletes an object. Without a policy, what its finalizers ask for is done.
func (s *Server) sweepAway(ctx context.Context, o *object, options *metav1.DeleteOptions) error {
	ch := &change{access: access{verbDelete, o.kind.Kind, "", o.namespace}, name: o.name}
	err := s.commit(ctx, []*change{ch}, func(b *batch) error { return b.delete(ch, options) })
	if err == nil {
		s.logSweep(o, verbDelete)
	}
	return err
}

// disown removes owners from an object, and tells people so.
func (s *Server) disown(ctx context.Context, t *tended, told []notice, uids ...string) error {
	return s.alter(ctx, t.object, verbPatch, told, func(object *unstructured.Unstructured) bool {
		owners := object.GetOwnerReferences()
		kept := slices.DeleteFunc(slices.Clone(owners), func(o metav1.OwnerReference) bool { return slices.Contains(uids, string(o.UID)) })
		object.SetOwnerReferences(kept)
		return len(kept) < len(owners)
	})
}

// letGo removes a finalizer, and with the last one the object.
func (s *Server) letGo(ctx context.Context, t *tended, finalizer string) error {
	return s.alter(ctx, t.object, verbPatch, nil, func(object *unstructured.Unstructured) bool {
		finalizers := object.GetFinalizers()
		kept := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool { return f == finalizer })
		object.SetFinalizers(kept)
		return len(kept) < len(finalizers)
	})
}

// alter changes the system's own part of an object, if there is something to
// change, and tells people of it.
func (s *Server) alter(ctx context.Context, o *object, verb string, told []notice, edit func(*unstructured.Unstructured) bool) error {
	ch := &change{access: access{verb, o.kind.Kind, "", o.namespace}, name: o.name, told: told}
	err := s.commit(ctx, []*change{ch}, func(b *batch) error {
		ch.removed, ch.same = false, false
		if err := b.load(ch); err != nil {
			return err
		}
		object := ch.old.object.DeepCopy()
		if !edit(object) {
			ch.same = true
			return nil
		}
		return b.put(ch, object)
	})
	if err == nil && !ch.same {
		s.logSweep(o, verb)
	}
	return err
}

func (s *Server) logSweep(o *object, verb string) {
	s.logger.Log(context.Background(), s.auditLevel(), "audit", "person", sweeperName, "verb", verb, "kind", o.kind.Name, "namespace", o.namespace, "name", o.name, "outcome", "swept")
	if s.trail == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeLimit)
	defer cancel()
	if err := s.trail.Append(ctx, audit.Entry{Who: sweeperName, Verb: verb, Resource: o.kind.Plural, Namespace: o.namespace, Name: o.name, Code: http.StatusOK}); err != nil {
		s.logger.Error("record what was swept", "kind", o.kind.Name, "name", o.name, "error", err)
	}
}
