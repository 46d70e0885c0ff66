package compile

import (
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// A subject's group is a number that follows from what its workloads answer. So when a
// label is asked for that was not, or no longer is, hundreds of subjects get other
// groups, though the same workloads are one to policy as before: a guardrail about a
// team came, and everybody of that team is told from others already by the application
// that he belongs to. Such subjects stay what they are and take another key. What is
// stated of them, and how they are classified, holds on; their rules, peers and groups
// are written under the other number.

// otherwise is what is asked and was not, or no longer is.
type otherwise struct {
	labels map[string]*otherLabel // by key
	ports  map[string]bool
	blocks bool
}

type otherLabel struct {
	values        map[string]bool
	which, exists bool
}

func askedOtherwise(questions []any) *otherwise {
	o := &otherwise{labels: map[string]*otherLabel{}, ports: map[string]bool{}}
	of := func(key string) *otherLabel {
		if o.labels[key] == nil {
			o.labels[key] = &otherLabel{values: map[string]bool{}}
		}
		return o.labels[key]
	}
	for _, question := range questions {
		switch question := question.(type) {
		case label:
			of(question.key).values[question.value] = true
		case askedExists:
			of(string(question)).exists = true
		case askedWhich:
			of(string(question)).which = true
		case askedPort:
			o.ports[string(question)] = true
		case askedBlock:
			o.blocks = true
		}
	}
	return o
}

// regroup gives subjects of whom all members answer otherwise alike the key that they
// have now, and returns the places of the workloads that are left to be looked at one
// by one. at has the places of those that may answer otherwise, since questions changed
// and for no other reason.
func (p *population) regroup(at []int32, o *otherwise, d *change) []int32 {
	if len(at) == 0 || o.blocks {
		return at
	}
	replaced := make(map[int32]bool, len(p.in.replaced))
	for _, r := range p.in.replaced {
		replaced[r.at] = true
	}
	slices.Sort(at)
	at = slices.Compact(at)
	apart := func(n int32) bool { return replaced[n] || p.of[n] == unset || len(p.also[n]) > 0 }
	found := map[int32][]int32{} // by subject: the places of its members
	for _, n := range at {
		if !apart(n) {
			found[p.of[n]] = append(found[p.of[n]], n)
		}
	}
	var done []int32
	for _, i := range slices.Sorted(maps.Keys(found)) {
		members := p.subjects[i].members
		if len(found[i]) == len(members) && p.answerAlike(members, o) && p.rename(i, d) {
			done = append(done, i)
			d.moved, d.left = append(d.moved, found[i]...), append(d.left, members...)
		}
	}
	if len(done) == 0 {
		return at
	}
	p.indexAgain(done, o)
	return slices.DeleteFunc(at, func(n int32) bool {
		if apart(n) {
			return false
		}
		_, regrouped := d.regrouped[p.of[n]]
		return regrouped
	})
}

// answerAlike reports whether workloads that answered everything alike still do.
func (p *population) answerAlike(members []*bocage.Workload, o *otherwise) bool {
	first := members[0]
	for _, w := range members[1:] {
		for key, l := range o.labels {
			x, hasX := p.answerOf(first, key)
			y, hasY := p.answerOf(w, key)
			switch {
			case hasX == hasY && x == y:
			case l.which, l.exists && hasX != hasY, hasX && l.values[x], hasY && l.values[y]:
				return false
			}
		}
		if len(o.ports) == 0 {
			continue
		}
		others := func(q bocage.NamedPort) bool { return !o.ports[q.Name] }
		if !slices.Equal(slices.DeleteFunc(slices.Clone(first.Spec.Ports), others), slices.DeleteFunc(slices.Clone(w.Spec.Ports), others)) {
			return false
		}
	}
	return true
}

// answerOf returns the value of a label of a workload, where it stands now.
func (p *population) answerOf(w *bocage.Workload, key string) (value string, there bool) {
	switch key {
	case bocage.LabelNamespace:
		return w.Namespace, true
	case bocage.LabelName:
		return w.Name, true
	case bocage.LabelHost:
		return w.Spec.Host, true
	case bocage.LabelZone:
		value = p.zones[w.Spec.Host]
		return value, value != ""
	case bocage.LabelAssurance:
		return assuranceOf(w), true
	}
	value, there = w.Labels[key]
	return value, there
}

// rename gives a subject of workloads the key that its members have now, unless that is
// another subject's, or the same.
func (p *population) rename(i int32, d *change) bool {
	s, renamed := &p.subjects[i], false
	p.eachKey(s.members[0], func(key []byte, pairs []string, block netip.Prefix) {
		if _, taken := p.byKey[string(key)]; taken || block != s.block {
			return
		}
		delete(p.byKey, s.key)
		d.goneKeys = append(d.goneKeys, s.key)
		if d.regrouped == nil {
			d.regrouped = map[int32]bocage.Group{}
		}
		d.regrouped[i] = s.group
		s.key, s.name = string(key), p.nameOf(s.members[0], pairs)
		p.byKey[s.key] = i
		p.lookAt(s, s.members[0])
		renamed = true
	})
	return renamed
}

// indexAgain enters subjects where they are looked up by what is asked now, and takes
// them out of where nobody looks any more.
func (p *population) indexAgain(subjects []int32, o *otherwise) {
	lists := map[label][]int32{} // of whom it was asked, or is
	for _, i := range subjects {
		for key, l := range o.labels {
			if value, there := p.subjects[i].label(key); there && (l.which || l.values[value]) {
				lists[label{key, value}] = append(lists[label{key, value}], i)
			}
		}
		seen := map[string]bool{}
		for _, port := range p.subjects[i].first.Spec.Ports {
			if !o.ports[port.Name] || seen[port.Name] {
				continue
			}
			seen[port.Name] = true
			change := withoutNumber
			if p.asked.ports[port.Name] > 0 {
				change = withNumber
			}
			into(p.byPort, port.Name, i, change)
		}
	}
	for l, list := range lists {
		if l.key == bocage.LabelNamespace || p.asked.tells(l.key, l.value) {
			p.byLabel[l] = union(p.byLabel[l], list)
		} else if p.byLabel[l] = without(p.byLabel[l], list); len(p.byLabel[l]) == 0 {
			delete(p.byLabel, l)
		}
	}
}

// restated lists what is said between subjects that have other groups now and everyone
// else, but for what the last change has said anew anyhow.
func (g *grid) restated(regrouped map[int32]bocage.Group) []entry {
	if len(regrouped) == 0 {
		return nil
	}
	subjects := make([]bool, len(g.c.pop.subjects))
	for i := range regrouped {
		subjects[i] = true
	}
	is := func(i int32) bool { return i != anyone && subjects[i] }
	noted := map[pair]bool{}
	for _, e := range g.come {
		if is(e.from) || is(e.to) {
			noted[e.pair] = true
		}
	}
	var out []entry
	note := func(e entry) {
		if e.patch != 0 && !noted[e.pair] {
			out = append(out, e)
		}
	}
	for i := range regrouped {
		note(entry{pair{i, anyone}, g.sources.patchOf(int(i))})
		note(entry{pair{anyone, i}, g.targets.patchOf(int(i))})
	}
	for from := range g.rows {
		for _, r := range g.results[from] {
			if subjects[from] || subjects[r.to] {
				note(entry{pair{int32(from), r.to}, r.patch})
			}
		}
	}
	for class, list := range g.spelled {
		var towards []result // the regrouped ones
		for _, r := range list {
			if subjects[r.to] {
				towards = append(towards, r)
			}
		}
		for _, from := range g.sources.list[class].members {
			said := towards
			if subjects[from] {
				said = list
			}
			for _, r := range said {
				if len(g.mentioned(from, r.to)) == 0 {
					note(entry{pair{from, r.to}, r.patch})
				}
			}
		}
	}
	return out
}
