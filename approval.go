package bocage

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Approval is what a second person said of a declaration.
type Approval struct {
	// Author is who wrote the generation of the object that waits or was approved.
	Author string `json:"author,omitempty"`
	// Authors are all who had a hand in what waits: who wrote since it was approved
	// last, Author among them. None of them may approve it.
	Authors []string `json:"authors,omitempty"`
	// Approvers are who may approve it, besides its authors: names of people, or
	// "group:NAME". None means every person with the role that writes the kind.
	Approvers []string `json:"approvers,omitempty"`
	// Reason is why it waits, of kinds of which not every change does.
	Reason string `json:"reason,omitempty"`
	// Generation is the object's generation that was approved last; 0 is none.
	Generation int64     `json:"generation,omitempty"`
	By         string    `json:"by,omitempty"`
	At         time.Time `json:"at,omitzero"`
	// Deleter is who deletes the object, where a second person has to agree to
	// that: it stays in force until then.
	Deleter string `json:"deleter,omitempty"`
	// Going is the object's generation of which a second person agreed that it goes;
	// 0 is none.
	Going int64 `json:"going,omitempty"`
	// Approved is the guardrail's spec of that generation, which stays in force
	// while a newer one waits. Other kinds have it beside their approval.
	Approved *GuardrailSpec `json:"approved,omitempty"`
}

// FinalizerApproval holds an object that is to be deleted until a second person
// agrees that it goes.
const FinalizerApproval = "bocage.dev/approval"

// Waits reports whether the object as it stands has not been approved.
func (a *Approval) Waits(generation int64) bool {
	return a != nil && cmp.Compare(a.Generation, generation) != 0
}

// Approvable says whether people approve objects of a kind, or that they go.
func Approvable(kind string) bool {
	switch kind {
	case "Guardrail", "Exception", "Scope", "AddressGroup", "InspectionProfile", "Zone":
		return true
	}
	return false
}

// Consent is where an object of a kind on which the reach of guardrails depends
// carries what two people agreed to.
type Consent struct {
	Approval **Approval
	// Keep notes the declaration of another state of the object, or none, as what
	// stays in force while this one waits.
	Keep func(before Resource)
	// Kept reports whether there is such a one.
	Kept func() bool
}

// ConsentOf returns an object's; false if every change of its kind, or none, waits.
func ConsentOf(r Resource) (Consent, bool) {
	switch o := r.(type) {
	case *Scope:
		return consent(&o.Status.Approval, &o.Status.Approved, func(b *Scope) ScopeSpec { return b.Spec }), true
	case *AddressGroup:
		return consent(&o.Status.Approval, &o.Status.Approved, func(b *AddressGroup) AddressGroupSpec { return b.Spec }), true
	case *InspectionProfile:
		return consent(&o.Status.Approval, &o.Status.Approved, func(b *InspectionProfile) InspectionProfileSpec { return b.Spec }), true
	case *Zone:
		return consent(&o.Status.Approval, &o.Status.Approved, func(b *Zone) ZoneSpec { return b.Spec }), true
	}
	return Consent{}, false
}

func consent[T Resource, S any](approval **Approval, approved **S, spec func(T) S) Consent {
	return Consent{approval, func(before Resource) {
		if *approved = nil; before != nil {
			*approved = new(spec(before.(T)))
		}
	}, func() bool { return *approved != nil }}
}

// AsAgreed returns an object as it counts for policy: with the declaration that two
// people agreed to while a newer one waits, nil if there is none yet. Guardrails and
// Exceptions, which say so themselves, are returned as they are.
func AsAgreed(r Resource) Resource {
	c, depends := ConsentOf(r)
	if !depends || !(*c.Approval).Waits(r.Meta().Generation) {
		return r
	}
	if !c.Kept() {
		return nil
	}
	switch o := r.(type) {
	case *Scope:
		copied := *o
		copied.Spec = *o.Status.Approved
		return &copied
	case *AddressGroup:
		copied := *o
		copied.Spec = *o.Status.Approved
		return &copied
	case *InspectionProfile:
		copied := *o
		copied.Spec = *o.Status.Approved
		return &copied
	case *Zone:
		copied := *o
		copied.Spec = *o.Status.Approved
		return &copied
	}
	return r
}

// Reach is what decides, besides guardrails themselves, whom they reach: what they
// and the exceptions from them name, and where scopes have them enforced. The zero
// value is that of no guardrail.
type Reach struct {
	// firm are AddressGroups by which guardrails refuse, oblige or protect, loose
	// those by which they grant, protect or are excepted from.
	firm, loose map[string]bool
	profiles    map[string]bool
	zoned       bool // something picks by zone
	// unread names what could not be read and may name anything; empty: all was.
	unread string
}

// ReachOf returns that of guardrails, of what waits to become one, and of the
// exceptions that are not over.
func ReachOf(guardrails []*Guardrail, exceptions []*Exception, scopes []*Scope, now time.Time) Reach {
	r := Reach{firm: map[string]bool{}, loose: map[string]bool{}, profiles: map[string]bool{}}
	for _, g := range guardrails {
		r.take(&g.Spec)
		if spec := g.InForce(); spec != nil && spec != &g.Spec {
			r.take(spec)
		}
	}
	for _, e := range exceptions {
		if now.Before(e.Spec.Until) {
			r.match(e.Spec.Match, r.loose)
		}
	}
	for _, s := range scopes {
		counts, _ := AsAgreed(s).(*Scope)
		for _, spec := range []*ScopeSpec{&s.Spec, counts.spec()} {
			r.zoned = r.zoned || spec.Mode == ModeEnforce && spec.Workload.names(LabelZone)
		}
	}
	return r
}

// spec is a scope's; of none, that which picks nothing.
func (s *Scope) spec() *ScopeSpec {
	if s == nil {
		return &ScopeSpec{}
	}
	return &s.Spec
}

func (r *Reach) take(spec *GuardrailSpec) {
	r.match(spec.Match, r.firm)
	for _, m := range spec.Never {
		r.match(m, r.firm)
	}
	for _, m := range spec.Grant {
		r.match(m, r.loose)
	}
	for _, m := range spec.Protect {
		r.match(m, r.firm, r.loose)
	}
	if b := spec.BlastRadius; b != nil {
		r.match(CellMatch{From: b.From}, r.firm)
	}
	if s := spec.Separate; s != nil {
		r.zoned = r.zoned || s.Label() == LabelZone
	}
	if d := spec.Require; d != nil && d.Inspect != "" {
		r.profiles[d.Inspect] = true
	}
}

func (r *Reach) match(m CellMatch, groups ...map[string]bool) {
	for _, side := range []Side{m.From, m.To} {
		for _, set := range groups {
			for _, name := range side.AddressGroups {
				set[name] = true
			}
		}
		r.zoned = r.zoned || side.Workload != nil && side.Workload.names(LabelZone)
	}
}

// names reports whether a selector looks at a label.
func (s Selector) names(key string) bool {
	_, matches := s.MatchLabels[key]
	return matches || slices.ContainsFunc(s.MatchExpressions, func(r Requirement) bool { return r.Key == key })
}

// Known reports whether it was read, and is not the zero value.
func (r Reach) Known() bool { return r.firm != nil }

// Unread returns the reach if something that decides it, which is named, could not be
// read: guardrails may reach by whatever there is.
func (r Reach) Unread(what string) Reach {
	r.unread, r.zoned = what, true
	return r
}

// because is why two people decide about a change, which may be that nobody knows.
func (r Reach) because(why string) string {
	if r.unread != "" {
		return r.unread + " cannot be read, and may name it"
	}
	return why
}

// Weakens says why a change may take something out of guardrails' reach, so that two
// people decide about it; empty if it cannot. before is the object as it counts, nil
// where it is none yet, and after nil where it goes. It looks at both alone, and at
// no other object that may make up for what goes: two such changes at once could each
// count on the other. Where it is not plain that nothing goes it says that it does.
func (r Reach) Weakens(before, after Resource) string {
	switch {
	case before == nil && after == nil:
		return ""
	case before == nil:
		before = emptied(after)
	case after == nil:
		after = emptied(before)
	}
	switch was := before.(type) {
	case *Scope:
		is := after.(*Scope)
		switch {
		case was.Spec.Mode != ModeEnforce:
		case is.Spec.Mode != ModeEnforce:
			return "it takes guardrails out of force for whom the scope picks"
		case !is.Spec.covers(&was.Spec):
			return "it takes guardrails out of force for whom the scope no longer picks"
		}
	case *AddressGroup:
		is, name, unread := after.(*AddressGroup), was.Name, r.unread != ""
		switch {
		case (unread || r.firm[name]) && !within(was.Spec.Addresses, is.Spec.Addresses):
			return r.because("addresses go from it, and a guardrail reaches whom it names")
		case (unread || r.loose[name]) && !within(is.Spec.Addresses, was.Spec.Addresses):
			return r.because("addresses come to it, and a guardrail, or an exception from one, opens to whom it names")
		}
	case *InspectionProfile:
		is := after.(*InspectionProfile)
		closed := func(p *InspectionProfile) bool { return p.Spec.FailMode != "open" }
		if r.Depends(was) && (is.Spec.Signatures != was.Spec.Signatures || closed(was) && !closed(is)) {
			return r.because("a guardrail has flows inspected by it")
		}
	case *Zone:
		sorted := func(z *Zone) []string { return slices.Compact(slices.Sorted(slices.Values(z.Spec.Hosts))) }
		if r.zoned && !slices.Equal(sorted(was), sorted(after.(*Zone))) {
			return r.because("a guardrail, or a scope that enforces, picks by zone")
		}
	}
	return ""
}

// emptied stands for an object that is not there.
func emptied(of Resource) Resource {
	meta := ObjectMeta{Name: of.Meta().Name}
	switch of.(type) {
	case *Scope:
		return &Scope{ObjectMeta: meta}
	case *AddressGroup:
		return &AddressGroup{ObjectMeta: meta}
	case *InspectionProfile:
		return &InspectionProfile{ObjectMeta: meta}
	case *Zone:
		return &Zone{ObjectMeta: meta}
	}
	return of
}

// Depends reports whether guardrails reach whom they reach by an object.
func (r Reach) Depends(object Resource) bool {
	switch o := object.(type) {
	case *Scope:
		return true
	case *AddressGroup:
		return r.unread != "" || r.firm[o.Name] || r.loose[o.Name]
	case *InspectionProfile:
		return r.unread != "" || r.profiles[o.Name]
	case *Zone:
		return r.zoned
	}
	return false
}

// within reports whether every prefix of a lies in one of b.
func within(a, b []netip.Prefix) bool {
	return !slices.ContainsFunc(a, func(p netip.Prefix) bool {
		return !slices.ContainsFunc(b, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
	})
}

// covers reports whether a scope plainly picks everyone whom another picks.
func (s *ScopeSpec) covers(other *ScopeSpec) bool {
	if len(s.Namespaces) > 0 && (len(other.Namespaces) == 0 ||
		slices.ContainsFunc(other.Namespaces, func(n string) bool { return !slices.Contains(s.Namespaces, n) })) {
		return false
	}
	return !slices.ContainsFunc(s.Workload.requirements(), func(asked Requirement) bool {
		return !slices.ContainsFunc(other.Workload.requirements(), func(r Requirement) bool { return r.implies(asked) })
	})
}

// requirements are all that a selector asks for.
func (s Selector) requirements() []Requirement {
	all := slices.Clone(s.MatchExpressions)
	for key, value := range s.MatchLabels {
		all = append(all, Requirement{key, "In", []string{value}})
	}
	return all
}

// implies reports whether whoever meets a requirement plainly meets another.
func (r Requirement) implies(other Requirement) bool {
	subset := func(a, b []string) bool {
		return !slices.ContainsFunc(a, func(v string) bool { return !slices.Contains(b, v) })
	}
	switch {
	case r.Key != other.Key:
		return false
	case other.Operator == "Exists":
		return r.Operator == "Exists" || r.Operator == "In"
	case r.Operator != other.Operator:
		return false
	case other.Operator == "In":
		return subset(r.Values, other.Values)
	case other.Operator == "NotIn":
		return subset(other.Values, r.Values)
	}
	return true // DoesNotExist
}
