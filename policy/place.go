package policy

import (
	"maps"
	"reflect"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// place says which hosts get something new, and numbers what they get. A host is
// never given a number below one that it had.
func (b *build) place() {
	if b.base == nil && (b.prev == nil || b.prev.base == nil) {
		return // nothing is known of what is in force: hosts keep what they have
	}
	base := b.base
	if base == nil {
		base = b.prev.base
	}
	s := &served{record: b.next, base: base, candidate: b.candidate}
	hosts := b.hosts()
	type plan struct {
		enforced, evaluated *outcome
		touched, other      bool
	}
	plans := make([]plan, len(hosts))
	for i, host := range hosts {
		p := plan{}
		p.enforced, p.evaluated = s.of(host)
		p.touched = b.touched(host, p.enforced)
		if p.evaluated != nil && !differs(p.enforced, p.evaluated).at(host) {
			p.evaluated = nil // it would say the same
		}
		p.other = p.evaluated != nil && b.evaluatesOther(host, p.evaluated)
		plans[i] = p
		if p.touched && b.was.Hosts[host][0] >= p.enforced.number {
			if p.enforced == base {
				b.fresh = true
			} else {
				b.freshCandidate = true
			}
		}
	}
	// The base first: what is on its way comes after what it replaces.
	fresh := map[*outcome]*outcome{base: base, b.candidate: b.candidate}
	if b.fresh {
		b.next.Number++
		fresh[base] = base.numbered(b.next.Number)
	}
	if b.candidate != nil && (b.freshCandidate || b.candidate.number <= fresh[base].number) {
		b.next.Number++
		fresh[b.candidate] = b.candidate.numbered(b.next.Number)
	}
	b.next.Hosts = make(map[string][2]uint64, len(hosts))
	for i, host := range hosts {
		p, was := plans[i], b.was.Hosts[host]
		now := was
		if p.touched {
			now[0] = fresh[p.enforced].number
		}
		switch {
		case p.evaluated == nil:
			now[1] = 0
		case p.other || was[1] <= now[0]:
			now[1] = fresh[p.evaluated].number
		}
		b.next.Hosts[host] = now
		if now != was {
			b.next.Moved = b.now.UTC()
		}
	}
	if b.base != nil {
		b.base = fresh[b.base]
		b.next.Base = version{b.base.number, b.base.output.Ruleset.Digest, b.base.policy.name()}
	}
	if b.candidate != nil {
		b.candidate = fresh[b.candidate]
		b.next.Candidate.version = version{b.candidate.number, b.candidate.output.Ruleset.Digest, b.candidate.policy.name()}
	}
	if b.next.ConfirmBy.IsZero() {
		b.next.Confirmed = b.next.Base
	}
	if b.was.Base.Number != 0 && b.next.Pin == nil && b.next.Base.Policy != b.was.Base.Policy {
		b.next.Stood = b.was.left(b.was.Base.Policy)
	}
}

// touched reports whether what a host enforces is another than it has.
func (b *build) touched(host string, now *outcome) bool {
	if _, has := b.was.Hosts[host]; !has {
		return true
	}
	if b.prev != nil && b.prev.base != nil {
		before, _ := b.prev.of(host)
		return differs(before, now).at(host)
	}
	was := b.was.Base
	if b.was.canary(host) {
		was = b.was.Candidate.version
	}
	return was.Digest != now.output.Ruleset.Digest
}

// evaluatesOther is the same of what it evaluates beside.
func (b *build) evaluatesOther(host string, now *outcome) bool {
	if b.was.Hosts[host][1] == 0 {
		return true
	}
	if b.prev != nil && b.prev.candidate != nil {
		return differs(b.prev.candidate, now).at(host)
	}
	return b.was.Candidate == nil || b.was.Candidate.Digest != now.output.Ruleset.Digest
}

// hosts lists everyone who needs a ruleset: hosts with an agent, and hosts that
// workloads are placed on.
func (b *build) hosts() []string {
	names := map[string]bool{}
	for _, h := range b.v.hosts {
		names[h.Name] = true
	}
	for _, w := range b.v.input.Workloads {
		names[w.Spec.Host] = true
	}
	delete(names, "")
	return slices.Sorted(maps.Keys(names))
}

// difference is how two outcomes differ, for hosts.
type difference struct {
	to      *outcome
	all     bool            // in what every host has
	touched map[string]bool // else the hosts for which they do
}

// none reports whether no host would see a difference.
func (d *difference) none() bool { return !d.all && len(d.touched) == 0 }

// at reports whether a host would.
func (d *difference) at(host string) bool { return d.all || d.touched[host] }

// differs compares what hosts get of two outcomes, apart from numbers. It errs
// only towards saying that something differs.
func differs(from, to *outcome) *difference {
	if from == to || from.output.Ruleset == to.output.Ruleset {
		return &difference{to: to}
	}
	if d := from.compared.Load(); d != nil && d.to == to {
		return d
	}
	d := compare(from, to)
	d.to = to
	from.compared.Store(d)
	return d
}

func compare(from, to *outcome) *difference {
	a, b := from.output.Ruleset, to.output.Ruleset
	all := &difference{all: true}
	if a.Default != b.Default || !equal(a.Peers, b.Peers) || !equal(a.Groups, b.Groups) || !equal(a.Refused, b.Refused) ||
		!slices.EqualFunc(a.Decoys, b.Decoys, func(x, y bocage.DecoyPlacement) bool { return reflect.DeepEqual(x, y) }) {
		return all
	}
	altered := alteredDecisions(a, b)
	if altered[a.Default] || slices.ContainsFunc(a.Refused, func(r bocage.Refusal) bool { return altered[r.Decision] }) {
		return all
	}
	groups := map[bocage.Group]bool{}
	changedRules(a.Rules, b.Rules, altered, func(r bocage.Rule) { groups[r.From], groups[r.To] = true, true })
	senders, receivers := map[bocage.Group]bool{}, map[bocage.Group]bool{}
	changedRules(a.Reasons, b.Reasons, altered, func(r bocage.Rule) { senders[r.From], receivers[r.To] = true, true })
	if senders[bocage.GroupAny] || receivers[bocage.GroupAny] {
		return all
	}
	if len(senders) > 0 {
		for _, g := range b.Groups {
			if senders[g.Sender] || receivers[g.Receiver] {
				groups[g.Group] = true
			}
		}
	}
	if groups[bocage.GroupAny] {
		return all
	}
	return &difference{touched: placedDifference(from, to, groups)}
}

// onlyRefusals reports whether two outcomes differ in who is cut off, and in
// nothing else that decides.
func onlyRefusals(from, to *outcome) bool {
	a, b := from.output.Ruleset, to.output.Ruleset
	return a.Default == b.Default && !equal(a.Refused, b.Refused) && equal(a.Rules, b.Rules) && equal(a.Reasons, b.Reasons) &&
		equal(a.Peers, b.Peers) && equal(a.Groups, b.Groups) && len(alteredDecisions(a, b)) == 0 &&
		slices.EqualFunc(a.Decoys, b.Decoys, func(x, y bocage.DecoyPlacement) bool { return reflect.DeepEqual(x, y) })
}

// changedRules calls note for every rule that only one of two sorted lists has, or
// whose decision was altered.
func changedRules(a, b []bocage.Rule, altered map[bocage.DecisionID]bool, note func(bocage.Rule)) {
	if same(a, b) && len(altered) == 0 {
		return
	}
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			if altered[a[i].Decision] {
				note(a[i])
			}
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && bocage.CompareRules(a[i], b[j]) < 0:
			note(a[i])
			i++
		default:
			note(b[j])
			j++
		}
	}
}

func equal[T comparable](a, b []T) bool { return same(a, b) || slices.Equal(a, b) }

// alteredDecisions are those whose number means something else than before: their
// numbers follow from their content, but for collisions and what a profile says.
func alteredDecisions(a, b *bocage.Ruleset) map[bocage.DecisionID]bool {
	altered := map[bocage.DecisionID]bool{}
	if same(a.Decisions, b.Decisions) && same(a.Profiles, b.Profiles) {
		return altered
	}
	profiles := map[uint16]bool{}
	old := make(map[uint16]bocage.Profile, len(a.Profiles))
	for _, p := range a.Profiles {
		old[p.Number] = p
	}
	for _, p := range b.Profiles {
		profiles[p.Number] = old[p.Number] != p
	}
	i := 0
	for _, d := range b.Decisions {
		for i < len(a.Decisions) && a.Decisions[i].ID < d.ID {
			i++
		}
		if i < len(a.Decisions) && a.Decisions[i].ID == d.ID && (profiles[d.Profile] || !sameDecision(a.Decisions[i], d)) {
			altered[d.ID] = true
		}
	}
	for range bocage.MostSuccessors { // what gives way to something altered is altered
		more := false
		for _, d := range b.Decisions {
			if !d.Until.IsZero() && altered[d.Then] && !altered[d.ID] {
				altered[d.ID], more = true, true
			}
		}
		if !more {
			break
		}
	}
	return altered
}

func sameDecision(a, b bocage.Decision) bool {
	duties := a.Duties == b.Duties || a.Duties != nil && b.Duties != nil && *a.Duties == *b.Duties
	return duties && a.Verdict == b.Verdict && a.Code == b.Code && a.Profile == b.Profile && a.Log == b.Log &&
		a.Until.Equal(b.Until) && a.Then == b.Then && slices.Equal(a.By, b.By)
}

// placedDifference tells hosts by what is placed on them: enforcement points of
// their own that changed, or whose group's rules did.
func placedDifference(from, to *outcome, groups map[bocage.Group]bool) map[string]bool {
	touched := map[string]bool{}
	for _, p := range to.output.Ruleset.Peers { // equal in both
		if groups[p.Group] && p.Host != "" {
			touched[p.Host] = true
		}
	}
	if !same(from.input.Workloads, to.input.Workloads) {
		ports := func(in compile.Input) map[string]*bocage.Workload {
			out := make(map[string]*bocage.Workload, len(in.Workloads))
			for _, w := range in.Workloads {
				out[w.NamespacedName()] = w
			}
			return out
		}
		before, after := ports(from.input), ports(to.input)
		for name, w := range after {
			old := before[name]
			if old == w {
				continue
			}
			if old == nil || old.Spec.Interface != w.Spec.Interface || old.Spec.MAC != w.Spec.MAC || old.Spec.Host != w.Spec.Host ||
				old.Status.Identity != w.Status.Identity || !slices.Equal(old.Spec.Addresses, w.Spec.Addresses) {
				touched[w.Spec.Host] = true
			}
			if old != nil && old.Spec.Host != w.Spec.Host {
				touched[old.Spec.Host] = true
			}
		}
		for name, w := range before {
			if after[name] == nil {
				touched[w.Spec.Host] = true
			}
		}
	}
	return touched
}
