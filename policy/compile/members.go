package compile

import (
	"hash/maphash"
	"maps"
	"math"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// settle brings the population up to date with what is declared. It gives up
// where it would have to begin anew.
func (c *compiler) settle(was *admitted, d *change) bool {
	if d.first {
		c.pop = newPopulation(c.in)
	}
	p := c.pop
	if !d.first && p.readdressed() {
		return false
	}
	c.replaceApplications(d)
	for _, o := range d.applicationsGone {
		p.asked.sign = -1
		p.asked.application(o)
	}
	for _, o := range d.applicationsCome {
		p.asked.sign = 1
		p.asked.application(o)
	}
	p.asked.follow(was, c.in, d)
	if d.of(kindGuardrail, kindException, kindResponse, kindDecoy, kindAddressGroup) {
		if !d.first {
			p.otherPrefixes(was, p.namePrefix(-1, nil))
			p.addresses = byName(c.in.addressGroups)
		}
		c.hear(&c.units.prefixes, func() { p.otherPrefixes(c.in, p.namePrefix(1, &c.findings)) })
	}
	p.followKubernetesPrefixes(was, c.in, d)
	threats := p.threats
	if d.of(kindThreatCondition, kindWorkload) {
		c.hear(&c.units.conditions, func() { p.threats = conditionsByWorkload(c.in, &c.findings) })
	}
	if d.first {
		p.addPrefixes()
		p.addWorkloads()
		p.number()
		d.subjects = true
		return true
	}
	if d.of(kindNamespace) {
		p.namespaces = byName(c.in.namespaces)
	}
	if !p.changePrefixes(d) {
		return false
	}
	questions := p.asked.changed()
	at, few := p.mayAnswerOtherwise(questions)
	if !few {
		return false
	}
	asked := askedOtherwise(questions)
	p.picks.forget(asked)
	elsewhere := differingThreats(threats, p.threats)
	if len(elsewhere) == 0 && !d.of(kindZone) {
		at = p.regroup(at, asked, d)
	}
	for name := range elsewhere {
		if i, known := c.in.find(name); known {
			at = append(at, i)
		}
	}
	if d.of(kindZone) {
		at = p.rezone(at)
	}
	p.move(at, d)
	if d.of(kindScope) {
		p.enforceAgain()
	}
	p.renumber(d)
	d.subjects = len(d.gone)+len(d.come)+len(d.altered) > 0
	c.groupsBefore = d.regrouped
	c.came = map[int32]bool{}
	for _, i := range d.come {
		c.came[i] = true
	}
	return true
}

// readdressed reports whether an address came into the inventory or left it that
// some declaration names as one outside, or would if it were.
func (p *population) readdressed() bool {
	named := func(w *bocage.Workload) bool {
		return w != nil && slices.ContainsFunc(w.Spec.Addresses, func(a netip.Addr) bool { return p.named[single(a)] > 0 || p.shadowed[a] > 0 })
	}
	return slices.ContainsFunc(p.in.replaced, func(r replacement) bool { return named(r.was) || named(r.now) })
}

// rezone looks up where hosts stand now, and adds the workloads of those that
// stand elsewhere.
func (p *population) rezone(at []int32) []int32 {
	was := p.zones
	p.zones = zonesByHost(p.in.zones)
	moved := map[string]bool{}
	for _, hosts := range [2]map[string]string{was, p.zones} {
		for host := range hosts {
			if was[host] != p.zones[host] {
				moved[host] = true
			}
		}
	}
	for host := range moved {
		at = p.labels.find(at, label{bocage.LabelHost, host})
	}
	return at
}

// enforceAgain finds whom scopes enforce.
func (p *population) enforceAgain() {
	for i := range p.subjects {
		p.subjects[i].enforce = false
	}
	for _, scope := range p.in.scopes {
		if scope.Spec.Mode == bocage.ModeEnforce {
			for _, i := range p.match(scope.Spec.Namespaces, &scope.Spec.Workload) {
				p.subjects[i].enforce = true
			}
		}
	}
}

// differingThreats returns the names whose threat conditions are not the same.
func differingThreats(a, b map[string][]*bocage.ThreatCondition) map[string]bool {
	out := map[string]bool{}
	for _, m := range [2]map[string][]*bocage.ThreatCondition{a, b} {
		for name := range m {
			same := slices.EqualFunc(a[name], b[name], func(x, y *bocage.ThreatCondition) bool {
				return x.Name == y.Name && x.Spec.Level == y.Spec.Level && x.Spec.Profile == y.Spec.Profile
			})
			if !same {
				out[name] = true
			}
		}
	}
	return out
}

// addWorkloads divides the workloads into subjects.
func (p *population) addWorkloads() {
	p.of = make([]int32, len(p.in.workloads))
	for at := range p.of {
		p.of[at] = unset
	}
	for _, at := range p.in.order { // members are in the order of names
		w := p.in.workloads[at]
		p.orchestrated = p.orchestrated || w.Spec.Orchestrator != ""
		first := true
		p.eachKey(w, func(key []byte, pairs []string, block netip.Prefix) {
			i, known := p.byKey[string(key)]
			if !known {
				i = p.addGroup(string(key), pairs, block, w)
			}
			p.subjects[i].members = append(p.subjects[i].members, w)
			if first {
				p.of[at], first = i, false
			} else {
				p.also[at] = append(p.also[at], i)
			}
		})
	}
	for i := p.workloads; i < len(p.subjects); i++ {
		p.everyone = append(p.everyone, int32(i))
		p.index(int32(i), false, func(list []int32, i int32) []int32 { return append(list, i) })
	}
	p.sortBlocks()
	p.asked.touched = map[any]bool{}
	p.labels = indexLabels(p.in.workloads)
}

// mayAnswerOtherwise lists the workloads that may answer otherwise since the questions
// changed; false if they are too many to look at one by one.
func (p *population) mayAnswerOtherwise(questions []any) (at []int32, few bool) {
	few = true
	scan := func(concerned func(*bocage.Workload) bool) {
		for i, w := range p.in.workloads {
			if w != nil && concerned(w) {
				at = append(at, int32(i))
			}
		}
	}
	has := func(key string) func(*bocage.Workload) bool {
		return func(w *bocage.Workload) bool { return inherent(key) || carries(w, key) }
	}
	for _, question := range questions {
		switch question := question.(type) {
		case label:
			switch question.key {
			case bocage.LabelNamespace:
			case bocage.LabelZone:
				scan(func(w *bocage.Workload) bool { return p.zones[w.Spec.Host] == question.value })
			case bocage.LabelAssurance:
				scan(func(w *bocage.Workload) bool { return assuranceOf(w) == question.value })
			default:
				at = p.labels.find(at, question)
			}
		case askedExists:
			scan(has(string(question)))
		case askedWhich:
			scan(has(string(question)))
		case askedPort:
			scan(func(w *bocage.Workload) bool {
				return slices.ContainsFunc(w.Spec.Ports, func(q bocage.NamedPort) bool { return q.Name == string(question) })
			})
		case askedBlock:
			scan(func(w *bocage.Workload) bool {
				return slices.ContainsFunc(w.Spec.Addresses, netip.Prefix(question).Contains)
			})
		}
	}
	return at, len(at) <= 64+len(p.in.workloads)/4
}

func carries(w *bocage.Workload, key string) bool {
	_, there := w.Labels[key]
	return there
}

// move puts workloads into the subjects that they belong to now.
func (p *population) move(at []int32, d *change) {
	touched := map[int32]bool{}
	fresh := len(p.subjects)
	replaced := make(map[int32]*bocage.Workload, len(p.in.replaced)) // who was there before
	for _, r := range p.in.replaced {
		replaced[r.at] = r.was
		at = append(at, r.at)
		if r.now != nil {
			p.labels.enter(r.at, r.was, r.now)
			p.orchestrated = p.orchestrated || r.now.Spec.Orchestrator != ""
		}
	}
	if p.labels.workloads = p.in.workloads; p.labels.crowded() {
		p.labels = indexLabels(p.in.workloads)
	}
	for len(p.of) < len(p.in.workloads) {
		p.of = append(p.of, unset)
	}
	slices.Sort(at)
	for _, n := range slices.Compact(at) {
		w := p.in.workloads[n]
		was, other := replaced[n]
		if !other {
			was = w
		}
		var now []int32
		if w != nil {
			p.eachKey(w, func(key []byte, pairs []string, block netip.Prefix) {
				i, known := p.byKey[string(key)]
				if !known {
					i = p.addGroup(string(key), pairs, block, w)
				}
				now = append(now, i)
			})
		}
		var before []int32
		if p.of[n] != unset {
			before = p.subjectsOf(n)
		}
		if was == w && slices.Equal(before, now) {
			if len(before) > 0 {
				p.lookAt(&p.subjects[before[0]], w) // its zone may be another that nobody asks for
			}
			continue
		}
		if was != nil {
			d.left = append(d.left, was)
		}
		if w != nil {
			d.moved = append(d.moved, n)
		}
		for _, i := range before {
			touched[i] = true
			if members := p.subjects[i].members; len(members) == 1 && int(i) < fresh {
				p.index(i, true, withoutNumber) // while there is somebody to look at
			}
			p.subjects[i].members = changeMembers(p.subjects[i].members, was, false)
		}
		for _, i := range now {
			touched[i] = true
			again := len(p.subjects[i].members) == 0 && int(i) < fresh
			p.subjects[i].members = changeMembers(p.subjects[i].members, w, true)
			if again {
				p.lookAt(&p.subjects[i], w)
				p.index(i, false, withNumber)
			}
		}
		delete(p.also, n)
		switch len(now) {
		case 0:
			p.of[n] = unset
		case 1:
			p.of[n] = now[0]
		default:
			p.of[n], p.also[n] = now[0], now[1:]
		}
	}
	everyone := p.everyone
	for _, i := range slices.Sorted(maps.Keys(touched)) {
		switch s := &p.subjects[i]; {
		case len(s.members) == 0 && int(i) >= fresh:
			delete(p.byKey, s.key) // it came and went
			s.key = ""
		case len(s.members) == 0:
			everyone = withoutNumber(everyone, i)
			p.letGo(i, d)
		case int(i) >= fresh:
			p.index(i, false, withNumber)
			everyone = withNumber(everyone, i)
			d.come = append(d.come, i)
		default:
			p.lookAt(s, s.members[0]) // those who stay may not have what nobody asked for so far
			d.altered = append(d.altered, i)
		}
	}
	p.everyone = everyone
	p.sortBlocks()
	p.picks.follow(p, d)
}

// number gives every subject its group.
func (p *population) number() {
	keys := make([]string, 0, len(p.byKey))
	for key, i := range p.byKey {
		if i != worldSubject {
			keys = append(keys, key)
		}
	}
	p.numbers = newNumbering(uint32(bocage.GroupFirst), keys)
	for key, i := range p.byKey {
		p.subjects[i].group = bocage.Group(p.numbers.of(key))
	}
	p.subjects[worldSubject].group = bocage.GroupWorld
}

// renumber gives the subjects that came, or took another key, their groups.
func (p *population) renumber(d *change) {
	keys := make([]string, len(d.come))
	for n, i := range d.come {
		keys[n] = p.subjects[i].key
	}
	for i := range d.regrouped {
		keys = append(keys, p.subjects[i].key)
	}
	for _, key := range p.numbers.change(d.goneKeys, keys) {
		p.subjects[p.byKey[key]].group = bocage.Group(p.numbers.of(key))
		d.renumbered = true
	}
	for _, i := range d.come {
		p.subjects[i].group = bocage.Group(p.numbers.of(p.subjects[i].key))
	}
	for i := range d.regrouped {
		p.subjects[i].group = bocage.Group(p.numbers.of(p.subjects[i].key))
	}
}

// withNumber and withoutNumber change sorted lists that others may still read.
func withNumber(list []int32, i int32) []int32 {
	at, found := slices.BinarySearch(list, i)
	if found {
		return list
	}
	out := make([]int32, 0, len(list)+1)
	return append(append(append(out, list[:at]...), i), list[at:]...)
}

func withoutNumber(list []int32, i int32) []int32 {
	at, found := slices.BinarySearch(list, i)
	if !found {
		return list
	}
	out := make([]int32, 0, len(list)-1)
	return append(append(out, list[:at]...), list[at+1:]...)
}

// changeMembers adds or removes one of a list in the order of names.
func changeMembers(list []*bocage.Workload, w *bocage.Workload, add bool) []*bocage.Workload {
	at, _ := slices.BinarySearchFunc(list, w, compareWorkloads)
	if add {
		return slices.Insert(slices.Clip(list), at, w)
	}
	return slices.Delete(slices.Clone(list), at, at+1)
}

// eachKey visits what names the subjects of a workload: one, unless blocks of
// addresses that somebody asks for tell its addresses apart.
func (p *population) eachKey(w *bocage.Workload, visit func(key []byte, pairs []string, block netip.Prefix)) {
	p.pairs = p.asked.answers(p.pairs[:0], w, p.zones[w.Spec.Host])
	alike := len(p.pairs)
	for at, address := range w.Spec.Addresses {
		block := p.asked.blockAt(address)
		if slices.ContainsFunc(w.Spec.Addresses[:at], func(a netip.Addr) bool { return p.asked.blockAt(a) == block }) {
			continue
		}
		if p.pairs = p.pairs[:alike]; block.IsValid() {
			p.pairs = append(p.pairs, "in "+block.String())
		}
		key := append(append(p.key[:0], "workloads "...), w.Namespace...)
		for _, pair := range p.pairs {
			key = append(append(key, ' '), pair...)
		}
		if len(p.threats) > 0 {
			for _, t := range p.threats[w.NamespacedName()] {
				key = append(append(append(append(key, " threat "...), t.Name...), ' '), t.Spec.Level...)
				key = append(append(key, ' '), t.Spec.Profile...)
			}
		}
		p.key = key
		visit(key, p.pairs, block)
	}
}

// addGroup makes a subject of workloads like the given one.
func (p *population) addGroup(key string, pairs []string, block netip.Prefix, w *bocage.Workload) int32 {
	s := subject{key: key, name: p.nameOf(w, pairs), namespace: w.Namespace, block: block}
	p.lookAt(&s, w)
	s.enforce = slices.ContainsFunc(p.in.scopes, func(scope *bocage.Scope) bool {
		return scope.Spec.Mode == bocage.ModeEnforce && s.picked(scope.Spec.Namespaces, &scope.Spec.Workload)
	})
	return p.addSubject(s)
}

// nameOf is how people read of workloads that answer like the given one.
func (p *population) nameOf(w *bocage.Workload, pairs []string) string {
	name := []byte(w.Namespace)
	for _, pair := range pairs {
		name = append(append(name, ' '), pair...)
	}
	if len(p.threats) > 0 {
		for _, t := range p.threats[w.NamespacedName()] {
			name = append(append(append(append(append(name, " ("...), t.Spec.Level...), ": "...), t.Name...), ')')
		}
	}
	return string(name)
}

// lookAt makes a workload the one that tells of its subject.
func (p *population) lookAt(s *subject, w *bocage.Workload) {
	s.first, s.zone = w, p.zones[w.Spec.Host]
}

func (p *population) addSubject(s subject) int32 {
	i := int32(len(p.subjects))
	p.subjects = append(p.subjects, s)
	p.byKey[s.key] = i
	return i
}

// index enters a group of workloads wherever it is looked up, or takes it out:
// then from wherever it may ever have been entered, whatever is asked now.
func (p *population) index(i int32, out bool, change func(list []int32, i int32) []int32) {
	s := &p.subjects[i]
	into(p.byPlace, s.namespace, i, change)
	enter := func(key string) {
		value, there := s.label(key)
		if there && (out || key == bocage.LabelNamespace || p.asked.tells(key, value)) {
			into(p.byLabel, label{key, value}, i, change)
		}
	}
	for key := range s.first.Labels {
		if !inherent(key) {
			enter(key)
		}
	}
	for _, key := range [5]string{bocage.LabelNamespace, bocage.LabelName, bocage.LabelHost, bocage.LabelZone, bocage.LabelAssurance} {
		enter(key)
	}
	if s.block.IsValid() {
		into(p.byBlock, s.block, i, change)
	}
	ports := s.first.Spec.Ports
	for j, port := range ports {
		again := slices.ContainsFunc(ports[:j], func(q bocage.NamedPort) bool { return q.Name == port.Name })
		if (out || p.asked.ports[port.Name] > 0) && !again {
			into(p.byPort, port.Name, i, change)
		}
	}
}

func into[K comparable](m map[K][]int32, key K, i int32, change func([]int32, int32) []int32) {
	if list := change(m[key], i); len(list) > 0 {
		m[key] = list
	} else {
		delete(m, key)
	}
}

func (p *population) sortBlocks() {
	p.blocks = p.blocks[:0]
	for block := range p.byBlock {
		p.blocks = append(p.blocks, block)
	}
	slices.SortFunc(p.blocks, comparePrefixes)
}

// labelIndex finds the workloads with a value of a label.
type labelIndex struct {
	workloads []*bocage.Workload
	seed      maphash.Seed
	entries   []uint64           // sorted: a hash of the label, then the workload's place
	later     map[uint64][]int32 // places by hash, of those who came later
	entered   int                // how many those are
}

func indexLabels(workloads []*bocage.Workload) *labelIndex {
	x := &labelIndex{workloads: workloads, seed: maphash.MakeSeed(), later: map[uint64][]int32{}}
	count := 0
	for _, w := range workloads {
		if w != nil {
			count += len(w.Labels) + 2
		}
	}
	x.entries = make([]uint64, 0, count)
	for at, w := range workloads {
		if w != nil {
			eachLabel(w, func(l label) { x.entries = append(x.entries, x.hash(l)|uint64(at)) })
		}
	}
	slices.Sort(x.entries)
	return x
}

// eachLabel visits the labels of a workload that it can be looked up by.
func eachLabel(w *bocage.Workload, visit func(label)) {
	for key, value := range w.Labels {
		if !inherent(key) {
			visit(label{key, value})
		}
	}
	visit(label{bocage.LabelName, w.Name})
	visit(label{bocage.LabelHost, w.Spec.Host})
}

// enter adds a workload in the place of another, or of nobody. What was entered of
// the other one is passed over when it is found.
func (x *labelIndex) enter(at int32, was, now *bocage.Workload) {
	eachLabel(now, func(l label) {
		if was != nil && hasLabel(was, l) {
			return
		}
		hash := x.hash(l)
		x.later[hash] = append(x.later[hash], at)
		x.entered++
	})
}

// crowded reports whether so much was entered that the index should be made anew.
func (x *labelIndex) crowded() bool { return x.entered > len(x.entries)/4+1<<16 }

func hasLabel(w *bocage.Workload, l label) bool {
	switch l.key {
	case bocage.LabelName:
		return w.Name == l.value
	case bocage.LabelHost:
		return w.Spec.Host == l.value
	}
	value, there := w.Labels[l.key]
	return there && value == l.value
}

func (x *labelIndex) hash(l label) uint64 { return maphash.Comparable(x.seed, l) &^ math.MaxUint32 }

// find appends the places of the workloads with the label, some of them twice.
func (x *labelIndex) find(at []int32, l label) []int32 {
	hash := x.hash(l)
	look := func(place int32) {
		if w := x.workloads[place]; w != nil && hasLabel(w, l) {
			at = append(at, place)
		}
	}
	first, _ := slices.BinarySearch(x.entries, hash)
	for _, e := range x.entries[first:] {
		if e&^math.MaxUint32 != hash {
			break
		}
		look(int32(uint32(e)))
	}
	for _, place := range x.later[hash] {
		look(place)
	}
	return at
}
