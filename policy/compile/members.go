package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// addWorkloads divides the workloads into subjects.
func (p *population) addWorkloads() {
	p.asked = questions(p.in)
	p.threats = conditionsByWorkload(p.in, p.findings)
	p.of = make([]int32, len(p.in.workloads))
	for at, w := range p.in.workloads {
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
				p.also[int32(at)] = append(p.also[int32(at)], i)
			}
		})
	}
	for i := p.workloads; i < len(p.subjects); i++ {
		p.everyone = append(p.everyone, int32(i))
		p.index(int32(i), func(list []int32, i int32) []int32 { return append(list, i) })
	}
	p.sortBlocks()
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
	s := subject{key: key, name: w.Namespace, namespace: w.Namespace, labels: w.LabelsIn(p.zones[w.Spec.Host]), block: block}
	for _, pair := range pairs {
		s.name += " " + pair
	}
	if len(p.threats) > 0 {
		for _, t := range p.threats[w.NamespacedName()] {
			s.name += " (" + string(t.Spec.Level) + ": " + t.Name + ")"
		}
	}
	s.enforce = slices.ContainsFunc(p.in.scopes, func(scope *bocage.Scope) bool {
		return scope.Spec.Mode == bocage.ModeEnforce && s.picked(scope.Spec.Namespaces, &scope.Spec.Workload)
	})
	return p.addSubject(s)
}

func (p *population) addSubject(s subject) int32 {
	i := int32(len(p.subjects))
	p.subjects = append(p.subjects, s)
	p.byKey[s.key] = i
	return i
}

// index enters a group of workloads, or takes it out, wherever it is looked up.
func (p *population) index(i int32, change func(list []int32, i int32) []int32) {
	s := &p.subjects[i]
	into(p.byPlace, s.namespace, i, change)
	for key, value := range s.labels {
		if key == bocage.LabelNamespace || p.asked.tells(key, value) {
			into(p.byLabel, label{key, value}, i, change)
		}
	}
	if s.block.IsValid() {
		into(p.byBlock, s.block, i, change)
	}
	ports := s.members[0].Spec.Ports
	for j, port := range ports {
		again := slices.ContainsFunc(ports[:j], func(q bocage.NamedPort) bool { return q.Name == port.Name })
		if p.asked.ports[port.Name] > 0 && !again {
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

// find returns the place of a workload, by its "namespace/name".
func (a *admitted) find(name string) (int, bool) {
	namespace, name, _ := strings.Cut(name, "/")
	return slices.BinarySearchFunc(a.workloads, [2]string{namespace, name}, func(w *bocage.Workload, want [2]string) int {
		return cmp.Or(cmp.Compare(w.Namespace, want[0]), cmp.Compare(w.Name, want[1]))
	})
}
