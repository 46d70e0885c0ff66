package compile

import (
	"cmp"
	"reflect"
	"slices"

	"bocage.dev/bocage"
)

// Difference is how two outputs differ for those who enforce them, numbers of
// generations apart. It errs only towards saying that something differs.
type Difference struct {
	// Everywhere says that something differs that every host has.
	Everywhere bool
	// Groups are those of whose flows some are decided otherwise; where that is so
	// everywhere, they are not told.
	Groups map[bocage.Group]bool
	// Refused says that others are cut off.
	Refused bool
	// OnlyRefused says that nothing else differs that decides.
	OnlyRefused bool
}

// Compare finds how another output differs. It costs what differs, where the two
// were compiled one after the other.
func (o Output) Compare(to Output) Difference {
	a, b := o.whole, to.whole
	if a == b {
		return Difference{}
	}
	altered := alteredDecisions(a, b)
	groups, everyone := map[bocage.Group]bool{}, false
	eachChangedRule(a.rules, b.rules, altered, func(r *bocage.Rule) { groups[r.From], groups[r.To] = true, true })
	bocage.EachChangedTowardsNames(a.namings, b.namings, a.apart, b.apart, func(id bocage.DecisionID) bool { return altered[id] }, func(g bocage.Group) { groups[g] = true })
	senders, receivers := map[bocage.Group]bool{}, map[bocage.Group]bool{}
	reasons := false
	if !same(a.reasons, b.reasons) || len(altered) > 0 {
		eachChangedRule(newList(a.reasons), newList(b.reasons), altered, func(r *bocage.Rule) {
			senders[r.From], receivers[r.To], reasons = true, true, true
		})
	}
	if reasons {
		everyone = senders[bocage.GroupAny] || receivers[bocage.GroupAny]
		for _, block := range b.groups.blocks {
			for i := range block {
				if senders[block[i].Sender] || receivers[block[i].Receiver] {
					groups[block[i].Group] = true
				}
			}
		}
	}
	everyone = everyone || groups[bocage.GroupAny]
	shared := a.fallback != b.fallback || altered[a.fallback] || differ(a.peers, b.peers, comparePeers) || differ(a.groups, b.groups, compareGroups) ||
		!slices.Equal(a.wires, b.wires) || !slices.EqualFunc(a.decoys, b.decoys, func(x, y bocage.DecoyPlacement) bool { return reflect.DeepEqual(x, y) })
	refused := !slices.Equal(a.refused, b.refused)
	d := Difference{Refused: refused, OnlyRefused: refused && !shared && !reasons && len(groups) == 0 && len(altered) == 0, Groups: groups}
	if shared || everyone || refused || slices.ContainsFunc(a.refused, func(r bocage.Refusal) bool { return altered[r.Decision] }) {
		d.Everywhere, d.Groups = true, nil
	}
	return d
}

// HostsOf lists the hosts with an enforcement point in front of somebody in one of
// the groups.
func (o Output) HostsOf(groups map[bocage.Group]bool) map[string]bool {
	hosts := map[string]bool{}
	if len(groups) == 0 {
		return hosts
	}
	for _, block := range o.whole.peers.blocks {
		for i := range block {
			if p := &block[i]; p.Host != "" && groups[p.Group] {
				hosts[p.Host] = true
			}
		}
	}
	return hosts
}

// Size is how many peers, groups and rules the ruleset has. What many groups share
// towards a name counts once.
func (o Output) Size() (peers, groups, rules int) {
	rules = o.whole.rules.len()
	for _, n := range o.whole.namings {
		rules += len(n.To) * len(n.Cells)
	}
	return o.whole.peers.len(), o.whole.groups.len(), rules
}

// differ reports whether two lists do.
func differ[T comparable](a, b *list[T], compare func(a, b T) int) bool {
	if a.len() != b.len() {
		return true
	}
	found := false
	eachDifference(a, b, compare, func(x, y *T) bool { return *x == *y }, func(_, _ *T) { found = true })
	return found
}

// same reports whether two slices are one.
func same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// eachChangedRule visits the rules that only one of two lists has, and those of
// both whose decision was altered.
func eachChangedRule(a, b *list[bocage.Rule], altered map[bocage.DecisionID]bool, note func(*bocage.Rule)) {
	eachDifference(a, b, bocage.CompareRules, func(_, _ *bocage.Rule) bool { return true }, func(x, y *bocage.Rule) {
		if x == nil {
			x = y
		}
		note(x)
	})
	if len(altered) == 0 {
		return
	}
	for _, block := range b.blocks {
		for i := range block {
			if altered[block[i].Decision] {
				note(&block[i])
			}
		}
	}
}

// alteredDecisions are those whose number means something else than before: their
// numbers follow from their content, but for collisions, what guardrails ask for and
// what a profile says.
func alteredDecisions(a, b *whole) map[bocage.DecisionID]bool {
	altered := map[bocage.DecisionID]bool{}
	eachDifference(a.decisions, b.decisions, compareDecisions, sameDecision, func(x, y *bocage.Decision) {
		if x != nil && y != nil {
			altered[x.ID] = true
		}
	})
	if !slices.Equal(a.profiles, b.profiles) {
		old := make(map[uint16]bocage.Profile, len(a.profiles))
		for _, p := range a.profiles {
			old[p.Number] = p
		}
		changed := map[uint16]bool{}
		for _, p := range b.profiles {
			changed[p.Number] = old[p.Number] != p
		}
		eachElement(b.decisions, func(d *bocage.Decision) {
			if changed[d.Profile] {
				altered[d.ID] = true
			}
		})
	}
	for more := len(altered) > 0; more; { // what gives way to something altered is altered
		more = false
		eachElement(b.decisions, func(d *bocage.Decision) {
			if !d.Until.IsZero() && altered[d.Then] && !altered[d.ID] {
				altered[d.ID], more = true, true
			}
		})
	}
	return altered
}

func sameDecision(a, b *bocage.Decision) bool {
	duties := a.Duties == b.Duties || a.Duties != nil && b.Duties != nil && *a.Duties == *b.Duties
	return duties && a.Verdict == b.Verdict && a.Code == b.Code && a.Profile == b.Profile && a.Log == b.Log &&
		a.Until.Equal(b.Until) && a.Then == b.Then && slices.Equal(a.By, b.By)
}

// Outdated lists the decisions that another output does not have, or that mean
// something else there.
func (o Output) Outdated(in Output) []bocage.Decision {
	var out []bocage.Decision
	eachDifference(o.whole.decisions, in.whole.decisions, compareDecisions, sameDecision, func(x, _ *bocage.Decision) {
		if x != nil {
			out = append(out, *x)
		}
	})
	return out
}

// Decision returns the decision with the given id, or false.
func (o Output) Decision(id bocage.DecisionID) (bocage.Decision, bool) {
	return find(o.whole.decisions, id, func(d bocage.Decision, id bocage.DecisionID) int { return cmp.Compare(d.ID, id) })
}
