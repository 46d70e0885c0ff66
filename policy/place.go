package policy

import (
	"maps"
	"reflect"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// place decides which hosts get something new, and numbers it. A host is never given a
// lower number than one that it had.
func (b *build) place() {
	if b.base == nil && (b.prev == nil || b.prev.base == nil) {
		return // the outcome in force is unknown: hosts keep what they have
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
		p.touched = b.touched(host, p.enforced) || b.was.Hosts[host][0] <= b.was.Floor
		if p.evaluated != nil && !differs(p.enforced, p.evaluated).at(host) {
			p.evaluated = nil // the candidate is the same for this host
		}
		p.other = p.evaluated != nil && b.evaluatesOther(host, p.evaluated)
		plans[i] = p
		if p.touched && max(b.was.Hosts[host][0], b.was.Floor) >= p.enforced.number {
			if p.enforced == base {
				b.newBaseNumber = true
			} else {
				b.newCandidateNumber = true
			}
		}
	}
	// The base is numbered first: the candidate must have a higher number than what it replaces.
	fresh := map[*outcome]*outcome{base: base, b.candidate: b.candidate}
	if b.newBaseNumber {
		b.next.Number++
		fresh[base] = base.numbered(b.next.Number)
	}
	if b.candidate != nil && (b.newCandidateNumber || b.candidate.number <= fresh[base].number) {
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
		b.next.Base = version{b.base.number, b.base.output.Digest(), b.base.policy.name()}
	}
	if b.candidate != nil {
		b.candidate = fresh[b.candidate]
		b.next.Candidate.version = version{b.candidate.number, b.candidate.output.Digest(), b.candidate.policy.name()}
	}
	if b.next.ConfirmBy.IsZero() {
		b.next.Confirmed = b.next.Base
	}
	if b.was.Base.Number != 0 && b.next.Pin == nil && b.next.Base.Policy != b.was.Base.Policy {
		b.next.FormerPolicies = b.was.withFormer(b.was.Base.Policy)
	}
}

// touched reports whether a host has to enforce something else than it has.
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
	return was.Digest != now.output.Digest()
}

// evaluatesOther reports the same of the candidate that a host evaluates in shadow.
func (b *build) evaluatesOther(host string, now *outcome) bool {
	if b.was.Hosts[host][1] == 0 {
		return true
	}
	if b.prev != nil && b.prev.candidate != nil {
		return differs(b.prev.candidate, now).at(host)
	}
	return b.was.Candidate == nil || b.was.Candidate.Digest != now.output.Digest()
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

// difference is how two outcomes differ in what hosts get.
type difference struct {
	compile.Difference
	to      *outcome
	touched map[string]bool // the hosts for which they differ, unless that is everywhere
}

// none reports whether no host would see a difference.
func (d *difference) none() bool { return !d.Everywhere && len(d.touched) == 0 }

// at reports whether a host would see a difference.
func (d *difference) at(host string) bool { return d.Everywhere || d.touched[host] }

// differs compares what hosts get of two outcomes, apart from numbers. It may report a
// difference where there is none, never the reverse.
func differs(from, to *outcome) *difference {
	if from == to {
		return &difference{to: to}
	}
	if d := from.compared.Load(); d != nil && d.to == to {
		return d
	}
	d := &difference{Difference: from.output.Compare(to.output), to: to}
	d.Everywhere = d.Everywhere || newcomersDiffer(from, to)
	if !d.Everywhere {
		d.touched = placedDifference(from, to, d.Groups)
	}
	from.compared.Store(d)
	return d
}

// newcomersDiffer reports whether an interface without a known workload would be treated
// differently on some host (see bocage.Newcomers).
func newcomersDiffer(from, to *outcome) bool {
	before, after := from.input, to.input
	if same(before.Scopes, after.Scopes) && same(before.Zones, after.Zones) {
		return false
	}
	a, b := compile.Enforcing(before), compile.Enforcing(after)
	return !slices.EqualFunc(a, b, func(x, y *bocage.Scope) bool { return x == y || reflect.DeepEqual(x.Spec, y.Spec) }) ||
		len(a) > 0 && !maps.Equal(bocage.ZonesOfHosts(before.Zones), bocage.ZonesOfHosts(after.Zones))
}

// placedDifference returns the hosts on which a workload is placed that changed itself, or
// whose group has other rules.
func placedDifference(from, to *outcome, groups map[bocage.Group]bool) map[string]bool {
	touched := to.output.HostsOf(groups) // the peers are equal in both
	if same(from.input.Workloads, to.input.Workloads) {
		return touched
	}
	before, after := from.input.Workloads, to.input.Workloads
	for i, j := 0, 0; i < len(before) || j < len(after); {
		switch order := compareAt(before, i, after, j); {
		case order < 0:
			touched[before[i].Spec.Host] = true
			i++
		case order > 0:
			touched[after[j].Spec.Host] = true
			j++
		default:
			if old, w := before[i], after[j]; old != w && (old.Spec.Interface != w.Spec.Interface || old.Spec.MAC != w.Spec.MAC || old.Spec.Instance != w.Spec.Instance ||
				!reflect.DeepEqual(old.Spec.MoreInterfaces, w.Spec.MoreInterfaces) || old.Spec.Host != w.Spec.Host || old.Status.Identity != w.Status.Identity || !slices.Equal(old.Spec.Addresses, w.Spec.Addresses)) {
				touched[old.Spec.Host], touched[w.Spec.Host] = true, true
			}
			i, j = i+1, j+1
		}
	}
	return touched
}
