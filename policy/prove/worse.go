package prove

import (
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// A blast radius is the one statement that can cease to hold although nobody changes what
// is declared: a workload that joins, or is labelled otherwise, adds to what is reached.
// The other statements hold by construction, whoever joins: the compiler refuses what
// never and separate say, and gives every cell the duties of require, as it compiles. If
// one of those fails, a program is wrong, and nothing that it has compiled may pass.
//
// So a change of declarations is held against the declarations in force, both with the
// inventory of today: it may not make more reachable from anybody from whom too much can be
// reached afterwards. What was too much before, and is no more now, keeps back nothing.

// Worse returns those failed proofs of a policy that keep it back: the others did not hold
// before either, from the same workloads, and it makes no more reachable from any of them.
// Both inputs have today's inventory and are of the same moment.
func (v *Prover) Worse(failed []bocage.Proof, before, after compile.Input) []bocage.Proof {
	var out []bocage.Proof
	var moments []moment
	for _, f := range failed {
		was, is := radiusOf(before, f.By), radiusOf(after, f.By)
		if was == nil || is == nil {
			out = append(out, f)
			continue
		}
		if moments == nil {
			moments = v.both(before, after)
		}
		for _, m := range moments {
			x, y := m.before.radius(was), m.after.radius(is)
			if i, w := y.worseThan(x); i >= 0 {
				f.Counterexample = m.said + y.text(i, w)
				f.Workloads = y.named(y.exceeding())
				out = append(out, f)
				break
			}
		}
	}
	return out
}

// Inventory reports whether a failed proof is of a statement that the inventory alone can
// break.
func Inventory(failed bocage.Proof) bool {
	return failed.By.Kind == "Guardrail" && failed.By.Field == blastField
}

// Standing returns proofs with those marked that failed and keep nothing back; worse are
// the others that failed.
func Standing(proofs, worse []bocage.Proof) []bocage.Proof {
	if len(Failed(proofs)) == 0 {
		return proofs
	}
	out := slices.Clone(proofs)
	for i, f := range out {
		if f.Holds {
			continue
		}
		at := slices.IndexFunc(worse, func(w bocage.Proof) bool { return w.Statement == f.Statement && w.By == f.By })
		if out[i].Standing = at < 0; at >= 0 {
			out[i] = worse[at]
		}
	}
	return out
}

// radiusOf finds the bound that a failed proof is about, as far as it is in force; nil if
// the proof is about something else.
func radiusOf(in compile.Input, by bocage.Ref) *bocage.BlastRadius {
	if !Inventory(bocage.Proof{By: by}) {
		return nil
	}
	for _, g := range byName(in.Guardrails) {
		if spec := g.InForce(); g.Name == by.Name && spec != nil {
			return spec.BlastRadius
		}
	}
	return nil
}

// moment is one of those at which two policies are compared.
type moment struct {
	before, after *prover
	said          string // the beginning of what is said of it
}

// both compiles two policies for now and for every moment at which something begins in one
// of them.
func (v *Prover) both(before, after compile.Input) []moment {
	begin := beginnings(after)
	for _, m := range beginnings(before) {
		if !slices.ContainsFunc(begin, func(b beginning) bool { return b.at.Equal(m.at) }) {
			begin = append(begin, m)
		}
	}
	slices.SortFunc(begin, func(a, b beginning) int { return a.at.Compare(b.at) })
	begin = slices.Insert(begin, 0, beginning{at: after.Now})
	out := make([]moment, len(begin))
	compilers := [2]*compile.Compiler{compile.NewCompiler(), compile.NewCompiler()}
	for i, b := range begin {
		provers := [2]*prover{}
		for k, in := range []compile.Input{before, after} {
			in = b.of(in)
			rs := compilers[k].Compile(in).Ruleset()
			provers[k] = newProver(in, rs)
			provers[k].sides = new(sides).of(in, rs)
		}
		out[i] = moment{before: provers[0], after: provers[1], said: b.said()}
	}
	return out
}

// worseThan finds a place from which more than the bound can be reached, and by more than
// before, and the workload there; -1 if there is none.
func (r *radius) worseThan(before *radius) (int, *bocage.Workload) {
	for _, i := range r.exceeding() {
		for _, w := range r.members(i) {
			if excess := r.of(i, w) - r.bound.MaxWeight; excess > 0 && excess > before.excessOf(w) {
				return i, w
			}
		}
		if len(r.members(i)) == 0 && r.most(i)-r.bound.MaxWeight > before.excessAround(r, i) {
			return i, nil
		}
	}
	return -1, nil
}

// excessOf is by how much what a workload reaches exceeds the bound; 0 if it does not, or
// the bound is not about it.
func (r *radius) excessOf(w *bocage.Workload) int {
	var at []int32
	for _, group := range r.p.groupsOf[w.Status.Identity] {
		at = append(at, int32(r.p.placeOf(group)))
	}
	slices.Sort(at)
	i := -1
	switch {
	case len(at) == 1:
		i = int(at[0])
	case len(at) > 1:
		if k, known := r.graph.placeOf(at); known {
			i = k
		}
	}
	if i < 0 || !r.begins(i) {
		return 0
	}
	return max(r.of(i, w)-r.bound.MaxWeight, 0)
}

// excessAround is by how much what addresses outside reach exceeds the bound at least, of
// all that are together at a place of another radius. Prefixes that one policy tells apart
// the other may not.
func (r *radius) excessAround(other *radius, i int) int {
	group := other.p.groups[i]
	least := -1
	note := func(g bocage.Group) {
		excess := 0
		if k := r.p.placeOf(g); r.begins(k) {
			excess = max(r.most(k)-r.bound.MaxWeight, 0)
		}
		if least < 0 || excess < least {
			least = excess
		}
	}
	var there []netip.Prefix
	for _, n := range other.p.outside {
		there = append(there, canonical(n.prefix))
	}
	prefixes := other.p.members[group].prefixes
	if group == bocage.GroupWorld {
		prefixes = anywhere()
		note(bocage.GroupWorld)
	}
	for _, outer := range prefixes {
		outer = canonical(outer)
		if group != bocage.GroupWorld {
			note(r.p.around(outer))
		}
		r.p.eachInside(outer, func(g bocage.Group) {
			for _, p := range r.p.members[g].prefixes {
				if p = canonical(p); p != outer && outer.Contains(p.Addr()) && !slices.Contains(there, p) {
					note(g)
				}
			}
		})
	}
	return max(least, 0)
}

// placeOf is where a group is in prover.groups.
func (p *prover) placeOf(g bocage.Group) int {
	if g == bocage.GroupWorld {
		return 0
	}
	i, _ := slices.BinarySearch(p.groups[1:], g)
	return i + 1
}

// around is the group of the longest named prefix around another, or the world.
func (p *prover) around(inner netip.Prefix) bocage.Group {
	group, bits := bocage.GroupWorld, -1
	for _, n := range p.outside {
		if outer := canonical(n.prefix); outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr()) && outer.Bits() > bits {
			group, bits = n.group, outer.Bits()
		}
	}
	return group
}

// mostBeginnings bounds the moments to come for which a policy is compiled and proved.
const mostBeginnings = 8

// beginning is a moment at which exceptions begin. What ends needs none: what counts is
// what may ever be open from a moment on.
type beginning struct {
	at    time.Time
	name  string // of an exception that begins then
	early bool   // what begins later counts as if it began then
}

// beginnings lists the moments at which exceptions will begin, at most mostBeginnings. If
// there are more, all that begin after the last count from there on: that opens no less.
func beginnings(in compile.Input) []beginning {
	var out []beginning
	for _, e := range byName(in.Exceptions) {
		begins := e.Begins()
		if begins.After(in.Now) && begins.Before(e.Spec.Until) && !e.Status.Approval.Waits(e.Generation) &&
			!slices.ContainsFunc(out, func(b beginning) bool { return b.at.Equal(begins) }) {
			out = append(out, beginning{at: begins, name: e.Name})
		}
	}
	slices.SortFunc(out, func(a, b beginning) int { return a.at.Compare(b.at) })
	if len(out) > mostBeginnings {
		out = out[:mostBeginnings]
		out[mostBeginnings-1].early = true
	}
	return out
}

// of returns an input as it will be then.
func (b beginning) of(in compile.Input) compile.Input {
	if in.Now = b.at; !b.early {
		return in
	}
	in.Exceptions = slices.Clone(in.Exceptions)
	for i, e := range in.Exceptions {
		if begins := e.Begins(); begins.After(b.at) {
			earlier := *e
			earlier.Spec.From, earlier.Spec.Until = b.at, b.at.Add(e.Spec.Until.Sub(begins))
			in.Exceptions[i] = &earlier
		}
	}
	return in
}

func (b beginning) said() string {
	switch {
	case b.name == "":
		return ""
	case b.early:
		return "from " + b.at.UTC().Format(time.RFC3339) + " on, when Exception " + b.name + " begins (and, as more begin after it than are looked at one by one, with all of those): "
	}
	return "from " + b.at.UTC().Format(time.RFC3339) + " on, when Exception " + b.name + " begins: "
}

// later proves the blast radii for the moments at which exceptions will begin. The first
// moment at which one does not hold is what its proof says.
func (v *Prover) later(in compile.Input, proofs []bocage.Proof) {
	bounds := map[int]*bocage.BlastRadius{}
	for i, f := range proofs {
		if b := radiusOf(in, f.By); b != nil && f.Holds {
			bounds[i] = b
		}
	}
	if len(bounds) == 0 {
		return
	}
	for _, b := range beginnings(in) {
		if v.begun == nil {
			v.begun = compile.NewCompiler()
		}
		then := b.of(in)
		rs := v.begun.Compile(then).Ruleset()
		p := newProver(then, rs)
		p.sides = new(sides).of(then, rs)
		for i, bound := range bounds {
			r := p.radius(bound)
			over := r.exceeding()
			if len(over) == 0 {
				continue
			}
			worst := r.worst(over)
			proofs[i].Holds, proofs[i].Counterexample, proofs[i].Workloads = false, b.said()+r.text(worst, nil), r.named(over)
			delete(bounds, i)
		}
	}
}
