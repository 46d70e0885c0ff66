package compile

import (
	"cmp"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// What selectors pick is kept for as long as somebody asks them: it follows the
// subjects that come and go. Of a selector that nobody asks any more it would not do,
// for workloads that it tells apart become one subject then.

// mostPicked bounds how many subjects are kept in what selectors picked, and selectors:
// where they would be more together, all is looked for anew.
const mostPicked = 1 << 23

// picks keeps what selectors picked.
type picks struct {
	byKey      map[string]*pick
	bySelector map[asking]*pick         // the same, by the selectors themselves
	size       int                      // of them together
	ordered    map[*pick]bool           // those whose names are in order
	byLabel    map[label]map[*pick]bool // the same, by the labels that they ask for
}

// asking is a selector in one namespace, or in all. Objects are never changed, so
// that the same one asks the same.
type asking struct {
	namespace string
	selector  *bocage.Selector
}

// pick is what a selector picked.
type pick struct {
	key        string
	namespaces []string
	selector   *bocage.Selector
	list       []int32
	names      []called // the same in the order of names, if somebody asked for that
	dropped    bool     // it is kept no longer
}

// called is a subject by the name of its first member.
type called struct {
	name    string
	subject int32
}

// size is what a pick counts in the bound: one of nobody is kept too.
func (k *pick) size() int { return 1 + len(k.list) }

func compareCalled(a, b called) int {
	if a.name != b.name {
		return cmp.Compare(a.name, b.name)
	}
	return cmp.Compare(a.subject, b.subject)
}

func newPicks() *picks {
	return &picks{byKey: map[string]*pick{}, bySelector: map[asking]*pick{}, ordered: map[*pick]bool{}, byLabel: map[label]map[*pick]bool{}}
}

// of returns what a selector picks.
func (k *picks) of(p *population, namespaces []string, s *bocage.Selector) *pick {
	key := pickKey(namespaces, s)
	known := k.byKey[key]
	if known == nil {
		known = &pick{key: key, namespaces: slices.Clone(namespaces), selector: s, list: p.pick(namespaces, s)}
		if k.size += known.size(); k.size > mostPicked {
			*k = *newPicks()
			k.size = known.size()
		}
		k.byKey[key] = known
		eachAsked(s, func(l label) {
			if k.byLabel[l] == nil {
				k.byLabel[l] = map[*pick]bool{}
			}
			k.byLabel[l][known] = true
		})
	}
	return known
}

// eachAsked visits the labels that a selector asks for, without a value where it asks
// whether one is there.
func eachAsked(s *bocage.Selector, visit func(label)) {
	for key, value := range s.MatchLabels {
		visit(label{key, value})
	}
	for _, r := range s.MatchExpressions {
		for _, value := range r.Values {
			visit(label{r.Key, value})
		}
		if len(r.Values) == 0 {
			visit(label{r.Key, ""})
		}
	}
}

// enter notes which selector asked for what is kept.
func (k *picks) enter(of asking, known *pick) {
	if len(k.bySelector) > 4*len(k.byKey)+1<<12 {
		clear(k.bySelector) // most of these selectors are of objects that are gone
	}
	k.bySelector[of] = known
}

// forget drops what selectors picked that ask what was not asked, or no longer is: they
// are asked anew, or nobody asks them and what they pick is not kept up to date by what
// workloads answer.
func (k *picks) forget(o *otherwise) {
	for key, l := range o.labels {
		for value := range l.values {
			k.drop(label{key, value})
		}
		if l.exists {
			k.drop(label{key, ""})
		}
		if l.which {
			for asked := range k.byLabel {
				if asked.key == key {
					k.drop(asked)
				}
			}
		}
	}
}

// drop drops what selectors picked that ask for a label.
func (k *picks) drop(l label) {
	for pick := range k.byLabel[l] {
		pick.dropped = true
		k.size -= pick.size()
		delete(k.byKey, pick.key)
		delete(k.ordered, pick)
		eachAsked(pick.selector, func(l label) {
			if delete(k.byLabel[l], pick); len(k.byLabel[l]) == 0 {
				delete(k.byLabel, l)
			}
		})
	}
}

// follow brings up to date what selectors picked.
func (k *picks) follow(p *population, d *change) {
	if len(d.gone)+len(d.come)+len(d.altered) > 256 {
		*k = *newPicks()
		return
	}
	renamed := k.callAgain(p, d)
	if len(d.gone)+len(d.come)+len(renamed) == 0 {
		return
	}
	for _, pick := range k.byKey {
		k.size -= pick.size()
		for _, i := range d.gone {
			pick.list = withoutNumber(pick.list, i)
		}
		for _, i := range d.come {
			if p.subjects[i].isWorkloads() && p.subjects[i].picked(pick.namespaces, pick.selector) {
				pick.list = withNumber(pick.list, i)
			}
		}
		k.size += pick.size()
	}
	for pick := range k.ordered {
		for i, was := range renamed {
			if was != "" {
				if at, found := slices.BinarySearchFunc(pick.names, called{was, i}, compareCalled); found {
					pick.names = slices.Delete(pick.names, at, at+1)
				}
			}
			if s := &p.subjects[i]; !s.gone() && s.picked(pick.namespaces, pick.selector) {
				now := called{s.called, i}
				at, _ := slices.BinarySearchFunc(pick.names, now, compareCalled)
				pick.names = slices.Insert(pick.names, at, now)
			}
		}
	}
}

// callAgain brings up to date what groups of workloads are called which somebody has in
// order, and returns what those were called that are gone, came or are called
// otherwise.
func (k *picks) callAgain(p *population, d *change) map[int32]string {
	if len(k.ordered) == 0 {
		return nil
	}
	out := map[int32]string{}
	for _, list := range [3][]int32{d.gone, d.come, d.altered} {
		for _, i := range list {
			s := &p.subjects[i]
			if !s.isWorkloads() {
				continue
			}
			was := s.called
			if s.called = ""; !s.gone() {
				s.called = s.members[0].NamespacedName()
			}
			if was != s.called {
				out[i] = was
			}
		}
	}
	return out
}

// inOrder returns whom a selector picks in the order of what their first members are
// called. Nobody may change the list.
func (p *population) inOrder(namespaces []string, s *bocage.Selector) []called {
	pick := p.picks.of(p, namespaces, s)
	if !p.picks.ordered[pick] {
		pick.names = make([]called, len(pick.list))
		for n, i := range pick.list {
			s := &p.subjects[i]
			s.called = s.members[0].NamespacedName() // what it was called is kept only while that is in order somewhere
			pick.names[n] = called{s.called, i}
		}
		slices.SortFunc(pick.names, compareCalled)
		p.picks.ordered[pick] = true
	}
	return pick.names
}

func pickKey(namespaces []string, s *bocage.Selector) string {
	var b []byte
	for _, ns := range namespaces {
		b = append(append(b, ns...), 0)
	}
	b = append(b, 1)
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		b = append(append(append(append(b, key...), 0), s.MatchLabels[key]...), 0)
	}
	for _, r := range s.MatchExpressions {
		b = append(append(append(append(b, 1), r.Key...), 0), r.Operator...)
		for _, value := range r.Values {
			b = append(append(b, 0), value...)
		}
	}
	return string(b)
}
