package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Some declarations take effect once a second person agrees: where two people decide,
// guardrails and whatever may take something out of their reach (see bocage.Reach);
// and exceptions whose guardrail names approvers, or whose author could not decide
// alone. What was approved before stays in force meanwhile. Who wrote a generation
// never approves it, with whatever token.

const subresourceApproval = "approval"

func approvable(kind bocage.Kind) bool { return bocage.Approvable(kind.Name) }

// awaitApproval notes in an object that is being written whether somebody has to
// agree. Its spec has changed if the generation has.
func (b *batch) awaitApproval(ch *change, resource bocage.Resource) error {
	if ch.approving != nil {
		return nil // this write is the approval
	}
	var old bocage.Resource
	if ch.old != nil {
		var err error
		if old, err = typed(ch.kind, ch.old.object); err != nil {
			return err
		}
		if old.Meta().Generation == resource.Meta().Generation {
			return nil
		}
	}
	switch o := resource.(type) {
	case *bocage.Guardrail:
		before, _ := old.(*bocage.Guardrail)
		o.Status.Approval = b.guardrailApproval(ch, o, before)
		ch.tellWaiting(o.Status.Approval, o.Generation)
	case *bocage.Exception:
		before, _ := old.(*bocage.Exception)
		approval, err := b.exceptionApproval(ch, o, before)
		if err != nil {
			return err
		}
		o.Status.Approval = approval
		ch.tellWaiting(approval, o.Generation)
	default:
		return b.awaitConsent(ch, resource, old)
	}
	return nil
}

// awaitConsent notes whether a change takes something out of guardrails' reach, so
// that somebody has to agree. Whatever else is in force at once, what waited
// included.
func (b *batch) awaitConsent(ch *change, resource, old bocage.Resource) error {
	consent, depends := bocage.ConsentOf(resource)
	if !depends {
		return nil
	}
	var counts bocage.Resource
	if old != nil {
		counts = bocage.AsAgreed(old)
	}
	why, err := b.server.weakens(b.ctx, counts, resource)
	if err != nil {
		return err
	}
	ch.told = nil
	if why == "" {
		*consent.Approval = deletedStill(*consent.Approval, resource)
		consent.Keep(nil)
		return nil
	}
	approval, waited := &bocage.Approval{}, false
	if *consent.Approval != nil {
		*approval, waited = **consent.Approval, (*consent.Approval).Waits(old.Meta().Generation)
	}
	approval.Reason = why
	if !waited {
		approval.Generation = 0
		if counts != nil {
			approval.Generation = old.Meta().Generation
		}
	}
	wrote(approval, ch.by.principal(), waited)
	*consent.Approval = approval
	consent.Keep(counts)
	ch.tellWaiting(approval, resource.Meta().Generation)
	return nil
}

func (b *batch) guardrailApproval(ch *change, g, before *bocage.Guardrail) *bocage.Approval {
	if !b.server.config.TwoPerson {
		return deletedStill(g.Status.Approval, g)
	}
	approval := &bocage.Approval{}
	waited := false
	switch {
	case before == nil:
	case before.Status.Approval != nil:
		*approval, waited = *before.Status.Approval, before.Status.Approval.Waits(before.Generation)
	default:
		// It was written when nobody had to agree, and is in force.
		approval.Generation, approval.Approved = before.Generation, &before.Spec
	}
	approval.Approvers = nil
	if approval.Approved != nil && sameJSON(approval.Approved, g.Spec) {
		// It is what was approved again: there is nothing left to agree to.
		approval.Generation, approval.Authors = g.Generation, nil
		return approval
	}
	wrote(approval, ch.by.principal(), waited)
	return approval
}

// wrote notes who changed what has to be approved. Whoever had a hand in what waited
// already has one in it still: approving it would be agreeing with themselves.
func wrote(a *bocage.Approval, by string, waited bool) {
	authors := authorsOf(a)
	if !waited {
		authors = nil
	}
	authors = slices.DeleteFunc(slices.Clone(authors), func(name string) bool { return name == by })
	a.Author, a.Authors = by, append(authors, by)
}

// authorsOf lists everybody who had a hand in what waits.
func authorsOf(a *bocage.Approval) []string {
	if len(a.Authors) == 0 && a.Author != "" {
		return []string{a.Author} // it was kept before all of them were
	}
	return a.Authors
}

func (b *batch) exceptionApproval(ch *change, e, before *bocage.Exception) (*bocage.Approval, error) {
	approvers, known, err := b.approversOf(e.Spec.Guardrail)
	if err != nil {
		return nil, err
	}
	approval := &bocage.Approval{}
	waited := false
	if before != nil && before.Status.Approval != nil {
		*approval, waited = *before.Status.Approval, before.Status.Approval.Waits(before.Generation)
	}
	approval.Approvers = approvers
	// Whoever cannot decide about exceptions asks for one; and what a guardrail that
	// is not in force would ask for nobody knows.
	switch decides := known && len(approvers) == 0 && ch.by.mayChange(ch.kind); {
	case decides && !waited:
		return nil, nil
	case decides:
		// What somebody else asks for is not agreed to by changing it. They may do that
		// afterwards: they are not held to be its author.
	default:
		wrote(approval, ch.by.principal(), waited)
	}
	return approval, nil
}

// approversOf reads who a guardrail names, as it is in force and as it is being
// written by the same request. One that is not in force yet is not known.
func (b *batch) approversOf(name string) (approvers []string, known bool, err error) {
	kind := kindNamed("Guardrail")
	key := kind.Key("", name)
	var entry store.Entry
	if i, writes := b.at[key]; writes && !b.ops[i].Delete {
		entry = store.Entry{Key: key, Value: b.ops[i].Value}
	} else if entry, err = b.server.config.Store.Get(b.ctx, key); isAny(err, store.ErrNotFound) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	object, err := store.DecodeObject(kind, entry)
	if err != nil {
		return nil, false, err
	}
	guardrail := object.(*bocage.Guardrail)
	spec := guardrail.InForce()
	if spec == nil {
		return guardrail.Spec.Exceptions.Approvers, false, nil
	}
	return spec.Exceptions.Approvers, true, nil
}

// twoDecide says whether there are objects of a kind about which two people decide.
func (s *Server) twoDecide(kind bocage.Kind) bool {
	return s.config.TwoPerson && approvable(kind) && kind.Name != "Exception"
}

// goesByTwo says whether two people decide that an object goes, and have not yet.
func (s *Server) goesByTwo(ctx context.Context, kind bocage.Kind, resource bocage.Resource) (bool, error) {
	if !s.twoDecide(kind) {
		return false, nil
	}
	// Who agreed that it goes looked at that generation.
	meta := resource.Meta()
	if a := *approvalOf(resource); a != nil && meta.DeletionTimestamp != nil && a.Going == meta.Generation {
		return false, nil
	}
	if kind.Name == "Guardrail" {
		return true, nil
	}
	why, err := s.weakens(ctx, bocage.AsAgreed(resource), nil)
	return why != "", err
}

// inForceAs is an approval that says no more than that an object is in force as it
// stands.
func inForceAs(resource bocage.Resource) *bocage.Approval {
	a := &bocage.Approval{Generation: resource.Meta().Generation}
	if g, ok := resource.(*bocage.Guardrail); ok {
		a.Approved = &g.Spec
	}
	return a
}

// deletedStill is the approval of an object to which nobody has to agree as it
// stands: none, unless it is going. Who deletes it is remembered, since that is who
// must not agree that it goes.
func deletedStill(was *bocage.Approval, resource bocage.Resource) *bocage.Approval {
	if was == nil || was.Deleter == "" || resource.Meta().DeletionTimestamp == nil {
		return nil
	}
	a := inForceAs(resource)
	a.Deleter = was.Deleter
	return a
}

// holdDeletion keeps an object until a second person agrees that it goes, where two
// decide about that. Only people begin it: what its owner's end comes to, see
// sweepOwned. Of one that something else holds it notes who deletes it: two may
// decide by the time it is let go, see keepHold.
func (b *batch) holdDeletion(ch *change, object *unstructured.Unstructured) error {
	if !b.server.twoDecide(ch.kind) || ch.approving != nil {
		return nil
	}
	resource, err := typed(ch.kind, object)
	if err != nil {
		return err
	}
	meta := resource.Meta()
	held := slices.Contains(meta.Finalizers, bocage.FinalizerApproval)
	if !held {
		if held, err = b.server.goesByTwo(b.ctx, ch.kind, resource); err != nil {
			return err
		}
		if held {
			object.SetFinalizers(append(object.GetFinalizers(), bocage.FinalizerApproval))
			meta.Finalizers = object.GetFinalizers()
		}
	}
	a, by := approvalOf(resource), ch.by.principal()
	switch {
	case len(meta.Finalizers) == 0 || by == "":
		return nil
	case meta.DeletionTimestamp != nil && *a != nil && ((*a).Deleter != "" || (*a).Going == meta.Generation):
		ch.told = nil
		return nil
	}
	if *a == nil {
		*a = inForceAs(resource)
	}
	(*a).Deleter = by
	if ch.told = nil; held {
		ch.tellHeld(*a)
	}
	changed, err := untyped(ch.kind, resource)
	if err != nil {
		return err
	}
	object.Object = changed.Object
	return nil
}

// approvalOf is where an object carries its approval; nil if its kind needs none.
func approvalOf(resource bocage.Resource) **bocage.Approval {
	switch o := resource.(type) {
	case *bocage.Guardrail:
		return &o.Status.Approval
	case *bocage.Exception:
		return &o.Status.Approval
	}
	consent, _ := bocage.ConsentOf(resource)
	return consent.Approval
}

// approveCommand is what people type to agree.
func approveCommand(kind bocage.Kind, name string) string {
	return "bocage approve " + strings.ToLower(kind.Name) + " " + name
}

// deletionCommand is what people type to agree that something goes.
func deletionCommand(kind bocage.Kind, name string) string {
	return approveCommand(kind, name) + " --deletion"
}

// tellHeld says that a deletion waits.
func (ch *change) tellHeld(a *bocage.Approval) {
	who := "somebody"
	if a != nil && a.Deleter != "" {
		who = a.Deleter
	}
	ch.told = append(ch.told, notice{"DeletionWaits", who + " deletes it: it stays in force until somebody else approves that: " + deletionCommand(ch.kind, ch.name)})
}

// keepHold undoes what a person's write does to the hold of a deletion. It holds what
// would go with this write, too, if two people decide that by now: what was deleted
// while one did, and was kept by another finalizer, may have been changed since, or
// named by a guardrail.
func (b *batch) keepHold(ch *change, resource bocage.Resource) error {
	meta := resource.Meta()
	if !b.server.twoDecide(ch.kind) || ch.approving != nil || ch.old == nil || meta.DeletionTimestamp == nil ||
		slices.Contains(meta.Finalizers, bocage.FinalizerApproval) {
		return nil
	}
	held := slices.Contains(ch.old.object.GetFinalizers(), bocage.FinalizerApproval)
	if !held && len(meta.Finalizers) == 0 {
		two, err := b.server.goesByTwo(b.ctx, ch.kind, resource)
		if err != nil {
			return err
		}
		if held = two; two {
			ch.tellHeld(*approvalOf(resource))
		}
	}
	if held {
		meta.Finalizers = append(meta.Finalizers, bocage.FinalizerApproval)
	}
	return nil
}

// approval is what a person agrees to.
type approval struct {
	// Generation, if it is there, is the one that they looked at.
	Generation int64 `json:"generation,omitempty"`
	// Deletion says that they agree that the object goes.
	Deletion bool `json:"deletion,omitempty"`
	person   Person
}

// approve serves the approval of one object:
//
//	POST .../guardrails/NAME/approval   {"generation": 3}
//
// The body may be left out: then the object is approved as it stands. "approve"
// is another name for it.
func (s *Server) approve(c *call) error {
	given := &approval{person: c.person}
	data, err := c.readBody()
	if err != nil {
		return err
	}
	if text := strings.TrimSpace(string(data)); text != "" && text != "null" {
		if err := json.Unmarshal(data, given); err != nil {
			return badRequest("the approval cannot be read: %v: send {\"generation\": N}, with \"deletion\": true where the object is to go", err)
		}
	}
	ch, err := s.newChange(c)
	if err != nil {
		return err
	}
	ch.approving = given
	err = s.commit(c.r.Context(), []*change{ch}, func(b *batch) error { return b.approve(ch) })
	return s.answer(c, ch, err)
}

func (b *batch) approve(ch *change) error {
	ch.created, ch.removed, ch.same, ch.told = false, false, false, nil
	if err := b.load(ch); err != nil {
		return err
	}
	resource, err := typed(ch.kind, ch.old.object)
	if err != nil {
		return err
	}
	meta := resource.Meta()
	if ch.approving.Generation == 0 {
		// Should its author be faster now, then that is not what was approved.
		ch.approving.Generation = meta.Generation
	}
	kept := approvalOf(resource)
	a := *kept
	deleting := meta.DeletionTimestamp != nil && slices.Contains(meta.Finalizers, bocage.FinalizerApproval)
	if err := ch.mayApprove(a, meta, deleting); err != nil {
		return err
	}
	by := ch.approving.person.principal()
	if deleting {
		meta.Finalizers = slices.DeleteFunc(meta.Finalizers, func(f string) bool { return f == bocage.FinalizerApproval })
		if a == nil {
			a = inForceAs(resource)
		}
		a.Going, *kept = meta.Generation, a
		ch.told = append(ch.told, notice{"DeletionApproved", by + " approved that it goes"})
	} else {
		authors := strings.Join(authorsOf(a), " and ")
		a.Generation, a.By, a.At, a.Authors, a.Reason = meta.Generation, by, b.server.now(), nil, ""
		if g, ok := resource.(*bocage.Guardrail); ok {
			a.Approved = &g.Spec
		} else if consent, depends := bocage.ConsentOf(resource); depends {
			consent.Keep(nil)
		}
		ch.told = append(ch.told, notice{"Approved", fmt.Sprintf("%s approved generation %d, which %s wrote", by, meta.Generation, authors)})
	}
	object, err := untyped(ch.kind, resource)
	if err != nil {
		return err
	}
	return b.put(ch, object)
}

// mayApprove says why somebody may not approve what waits.
func (ch *change) mayApprove(a *bocage.Approval, meta *bocage.ObjectMeta, deleting bool) error {
	p := ch.approving.person
	refuse := func(format string, args ...any) error {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden, "%s %q: User %q cannot approve it: %s",
			qualified(ch.kind), ch.name, p.Name, fmt.Sprintf(format, args...)).about(ch.kind, ch.name)
	}
	var approvers, authors []string
	if deleting {
		if a != nil && a.Deleter != "" {
			authors = []string{a.Deleter}
		}
	} else if a != nil {
		approvers, authors = a.Approvers, authorsOf(a)
	}
	switch {
	case len(approvers) > 0 && !slices.ContainsFunc(approvers, p.isNamed):
		return refuse("its approvers are %s", strings.Join(approvers, ", "))
	case len(approvers) == 0 && !p.mayChange(ch.kind):
		return refuse("whoever may write it may approve it")
	case a == nil && !deleting:
		return conflict(ch.kind, ch.name, "nobody has to approve it: it is in force")
	case deleting && len(authors) == 0 && !p.aboveAll():
		return refuse("it is not known who deleted it: delete it once more, and a second person can agree to that; or root approves it on a controller's host")
	case slices.Contains(authors, p.principal()) && len(authors) > 1:
		return refuse("%s wrote what waits since it was approved last, and a person who had no hand in it has to agree", strings.Join(authors, " and "))
	case slices.Contains(authors, p.principal()):
		what := fmt.Sprintf("wrote generation %d", meta.Generation)
		if deleting {
			what = "deleted it"
		}
		return refuse("%s %s, and a second person has to agree", p.principal(), what)
	case deleting && !ch.approving.Deletion:
		return conflict(ch.kind, ch.name, fmt.Sprintf("%s deleted it, and it goes once that is approved: look at it again, and say that it is the deletion that you agree to (%s, or \"deletion\": true)",
			cmp.Or(strings.Join(authors, " and "), "somebody"), deletionCommand(ch.kind, ch.name)))
	case !deleting && ch.approving.Deletion:
		return conflict(ch.kind, ch.name, "nobody deletes it")
	case ch.approving.Generation != meta.Generation:
		return conflict(ch.kind, ch.name, fmt.Sprintf("generation %d was to be approved, and it is %d by now: look at it again", ch.approving.Generation, meta.Generation))
	case !deleting && !a.Waits(meta.Generation):
		return conflict(ch.kind, ch.name, fmt.Sprintf("generation %d is approved already, by %s", meta.Generation, a.By))
	}
	return nil
}

// isNamed says whether an approver, a name or group:NAME, means this person. A
// token that only whoever has the machine can make stands for its name.
func (p Person) isNamed(approver string) bool {
	if group, ok := strings.CutPrefix(approver, bocage.GroupSubject); ok {
		return slices.Contains(p.Groups, group)
	}
	return approver == p.Name || p.Maker == nil && tokenName+approver == p.Name
}

// notice is what people are told of an object, as an Event.
type notice struct{ reason, message string }

func (ch *change) tellWaiting(a *bocage.Approval, generation int64) {
	ch.told = nil
	if !a.Waits(generation) {
		return
	}
	who := "somebody else"
	if len(a.Approvers) > 0 {
		who = strings.Join(a.Approvers, " or ")
	}
	why := ""
	if a.Reason != "" {
		why = ", since " + a.Reason
	}
	ch.told = append(ch.told, notice{"ApprovalWaits", fmt.Sprintf("%s wrote it, and %s has to approve it%s: %s",
		strings.Join(authorsOf(a), " and "), who, why, approveCommand(ch.kind, ch.name))})
}

// waiting says what a stored object still waits for, in words for who just wrote
// it; empty: nothing.
func waiting(kind bocage.Kind, value []byte) string {
	if !approvable(kind) || len(value) == 0 {
		return ""
	}
	var object struct {
		Metadata bocage.ObjectMeta `json:"metadata"`
		Status   struct {
			Approval *bocage.Approval `json:"approval"`
			Approved json.RawMessage  `json:"approved"`
		} `json:"status"`
	}
	if json.Unmarshal(value, &object) != nil {
		return ""
	}
	meta, a := object.Metadata, object.Status.Approval
	command := approveCommand(kind, meta.Name)
	switch {
	case meta.DeletionTimestamp != nil && slices.Contains(meta.Finalizers, bocage.FinalizerApproval):
		return fmt.Sprintf("%s %s is not gone: it stays in force until a second person agrees to its deletion: %s", kind.Name, meta.Name, deletionCommand(kind, meta.Name))
	case a == nil || !a.Waits(meta.Generation):
		return ""
	}
	who := "somebody else than " + strings.Join(authorsOf(a), " and ")
	if len(a.Approvers) > 0 {
		who = strings.Join(a.Approvers, " or ")
	}
	before, why := "it has no effect", ""
	switch {
	case a.Approved != nil:
		before = "what was approved before is in force"
	case len(object.Status.Approved) > 0:
		before = "what was declared before is in force"
	}
	if a.Reason != "" {
		why = ", since " + a.Reason
	}
	return fmt.Sprintf("%s %s waits%s: %s until %s agrees to generation %d: %s", kind.Name, meta.Name, why, before, who, meta.Generation, command)
}

const (
	noticeLife = time.Hour
	noticeText = 1024
)

// tell writes what happened to an object as Events, one for each reason, and
// forgets those that are old. Nothing depends on them: who is told late or not
// at all reads the object.
func (s *Server) tell(ctx context.Context, ch *change) {
	if len(ch.told) == 0 || ch.dryRun || ch.same {
		return
	}
	kind := kindNamed("Event")
	now := s.now()
	var ops []store.Op
	objects, _, _ := s.view.snapshot(kind.Plural, "")
	for _, o := range objects {
		var e bocage.ObjectEvent
		if strings.Contains(string(o.value), `"reportingComponent":"api"`) && json.Unmarshal(o.value, &e) == nil &&
			now.Sub(e.LastTimestamp) > noticeLife && len(ops) < 100 {
			ops = append(ops, store.Op{Key: kind.Key(o.namespace, o.name), Delete: true, IfWas: store.AnyRevision})
		}
	}
	for _, n := range ch.told {
		hash := sha256.Sum256([]byte("api\x00" + ch.kind.Name + "\x00" + ch.namespace + "\x00" + ch.name + "\x00" + n.reason))
		meta := store.NewMeta(ch.name[:min(len(ch.name), 200)]+"."+hex.EncodeToString(hash[:8]), now)
		if meta.Namespace = ch.namespace; meta.Namespace == "" {
			meta.Namespace = defaultNamespace
		}
		event := &bocage.ObjectEvent{
			ObjectMeta: meta, Reason: n.reason, Message: n.message[:min(len(n.message), noticeText)], Weight: "Normal",
			InvolvedObject: bocage.ObjectReference{APIVersion: ch.kind.APIVersion, Kind: ch.kind.Name, Namespace: ch.namespace, Name: ch.name},
			Source:         bocage.EventSource{Component: "api", Host: s.config.Node}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
			ReportingComponent: "api", ReportingInstance: s.config.Node,
		}
		value, err := store.EncodeObject(kind, event)
		if err != nil {
			s.logger.Error("write an event", "error", err)
			return
		}
		key := kind.Key(meta.Namespace, meta.Name)
		ops = slices.DeleteFunc(ops, func(op store.Op) bool { return op.Key == key })
		ops = append(ops, store.Op{Key: key, Value: value, IfWas: store.AnyRevision})
	}
	if _, err := s.config.Store.Apply(ctx, ops...); err != nil {
		s.logger.Warn("write an event", "kind", ch.kind.Name, "name", ch.name, "error", err)
	}
}
