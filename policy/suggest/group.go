package suggest

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// group is the workloads of one application: a declared one, or one that labels define.
type group struct {
	namespace string
	declared  *bocage.Application
	labels    map[string]string // that name a new one
	selector  bocage.Selector
	name      string // of the object
	members   []*member

	provides map[service]*consumers
	uses     map[use]bool
	offers   []offer
	written  *bocage.Application
	changed  bool
}

func (g *group) key() string { return g.namespace + "/" + g.name }

// nameLabelKeys are the labels by which people name applications, the best first.
func nameLabelKeys() []string { return []string{"app.kubernetes.io/name", "app", "k8s-app"} }

// nameLabel returns the label that names a workload's application; the workload's own name
// if there is none.
func nameLabel(w *bocage.Workload) (key, value string) {
	for _, key := range nameLabelKeys() {
		if value := w.Labels[key]; value != "" {
			return key, value
		}
	}
	return bocage.LabelName, w.Name
}

// grouping is one way to divide the workloads of a namespace into groups: of returns the
// labels of a workload's group.
type grouping struct {
	penalty float64 // bits to add for selectors that are harder to read
	of      func(*member) map[string]string
}

// group divides the inventory into applications: the declared ones, and for the other
// workloads of each namespace the grouping with the shortest description.
func (s *suggestion) group(lines []*line) {
	byName := map[string]*group{}
	for _, a := range s.in.Applications {
		byName[a.NamespacedName()] = &group{namespace: a.Namespace, declared: a, name: a.Name, selector: a.Spec.Workload}
	}
	undeclared := map[string][]*member{}
	var namespaces []string
	for _, m := range s.members {
		if owners := s.ownersOf(m); len(owners) > 0 && byName[owners[0]] != nil {
			m.group = byName[owners[0]]
			for _, owner := range owners {
				byName[owner].members = append(byName[owner].members, m)
			}
			continue
		}
		if undeclared[m.workload.Namespace] == nil {
			namespaces = append(namespaces, m.workload.Namespace)
		}
		undeclared[m.workload.Namespace] = append(undeclared[m.workload.Namespace], m)
	}
	about := map[string][]*line{}
	for _, l := range lines {
		for _, m := range []*member{l.source, l.destination} {
			if m != nil && m.group == nil && !(m == l.destination && l.source != nil && l.source.group == nil && l.source.workload.Namespace == m.workload.Namespace) {
				about[m.workload.Namespace] = append(about[m.workload.Namespace], l)
			}
		}
	}
	slices.Sort(namespaces)
	for _, namespace := range namespaces {
		best := shortestDescription(undeclared[namespace], about[namespace])
		byKey := map[string]*group{}
		for _, m := range undeclared[namespace] {
			labels := best.of(m)
			key := labelText(labels)
			g := byKey[key]
			if g == nil {
				g = &group{namespace: namespace, labels: labels}
				byKey[key] = g
				s.groups = append(s.groups, g)
			}
			g.members = append(g.members, m)
			m.group = g
		}
	}
	for _, g := range byName {
		s.groups = append(s.groups, g)
	}
	s.nameGroups()
	s.selectGroups()
}

func (s *suggestion) ownersOf(m *member) []string {
	if len(s.in.Applications) == 0 || len(m.workload.Spec.Addresses) == 0 {
		return nil
	}
	return s.judge.Owners(m.workload.Spec.Addresses[0])
}

// byNameLabel groups by nameLabel.
func byNameLabel() grouping {
	return grouping{of: func(m *member) map[string]string {
		key, value := nameLabel(m.workload)
		return map[string]string{key: value}
	}}
}

// shortestDescription chooses the grouping with the minimum description length. The
// description consists of the applications and contracts, and of a list of which pairs that
// they allow were really seen. So it weighs few contracts against precise ones.
func shortestDescription(members []*member, lines []*line) grouping {
	ways := []grouping{byNameLabel()}
	for _, key := range distinguishingLabels(members) {
		ways = append(ways,
			grouping{penalty: 4, of: func(m *member) map[string]string {
				if value, has := m.workload.Labels[key]; has {
					return map[string]string{key: value}
				}
				return byNameLabel().of(m)
			}},
			grouping{penalty: 2, of: func(m *member) map[string]string {
				labels := byNameLabel().of(m)
				if value, has := m.workload.Labels[key]; has && labels[bocage.LabelName] == "" {
					labels[key] = value
				}
				return labels
			}})
	}
	best, least := ways[0], math.Inf(1)
	for _, way := range ways {
		if length := way.descriptionLength(members, lines); length < least {
			best, least = way, length
		}
	}
	return best
}

// distinguishingLabels lists the label keys that distinguish kinds of workloads, and not
// single instances of one kind.
func distinguishingLabels(members []*member) []string {
	const mostKeys = 12
	values := map[string]map[string]int{}
	for _, m := range members {
		for key, value := range m.workload.Labels {
			if slices.Contains(nameLabelKeys(), key) || strings.HasPrefix(key, "bocage.dev/") || perInstance.MatchString(key) {
				continue
			}
			if values[key] == nil {
				values[key] = map[string]int{}
			}
			if generated(value) {
				values[key][""]++ // an empty value marks the key as unreadable
			}
			values[key][value]++
		}
	}
	var keys []string
	for key, of := range values {
		carried := 0
		for _, n := range of {
			carried += n
		}
		if of[""] == 0 && len(of) >= 2 && carried >= 2*len(of) {
			keys = append(keys, key)
		}
	}
	// Keys with few values come first.
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(values[a]), len(values[b])), cmp.Compare(a, b))
	})
	return keys[:min(len(keys), mostKeys)]
}

var (
	// perInstance matches keys that controllers set for each instance or revision.
	perInstance = regexp.MustCompile(`(hash|revision|generation|pod-name|pod-index|completion-index|controller-uid|job-name|uid|instance-id)$`)
	// machineMade matches generated values.
	machineMade = regexp.MustCompile(`^([0-9a-f]{8,}|[0-9a-f]{8}-[0-9a-f]{4}-.*|.{41,})$`)
)

func generated(value string) bool {
	return machineMade.MatchString(value) && (len(value) > 40 || strings.ContainsAny(value, "0123456789"))
}

// descriptionLength estimates the length of the description in bits.
func (way grouping) descriptionLength(members []*member, lines []*line) float64 {
	const (
		perApplication = 16
		perContract    = 24
		perByName      = 8 // in addition, for a selector that names a single workload
		unseenWeight   = 2 // allowed pairs that were not seen weigh more than text
	)
	of := make(map[*member]string, len(members))
	size := map[string]int{}
	byName := map[string]bool{}
	for _, m := range members {
		labels := way.of(m)
		of[m] = labelText(labels)
		size[of[m]]++
		byName[of[m]] = labels[bocage.LabelName] != ""
	}
	end := func(m *member, name string) (string, int) {
		switch {
		case m == nil:
			return "outside", 1
		case of[m] != "":
			return of[m], size[of[m]]
		case m.group != nil:
			return m.group.key(), max(len(m.group.members), 1)
		default:
			key, value := nameLabel(m.workload)
			return m.workload.Namespace + " " + key + " " + value, 1
		}
	}
	type contract struct {
		from, to string
		service  service
	}
	type extent struct{ seen, allowed int }
	contracts := map[contract]*extent{}
	used := map[string]bool{}
	for _, l := range lines {
		from, n := end(l.source, l.sourceName)
		to, k := end(l.destination, l.destinationName)
		c := contract{from, to, l.service()}
		if contracts[c] == nil {
			contracts[c] = &extent{allowed: n * k}
		}
		contracts[c].seen++
		used[from], used[to] = true, true
	}
	total := 0.0
	for key := range size {
		if !used[key] {
			continue
		}
		total += perApplication + way.penalty
		if byName[key] {
			total += perByName
		}
	}
	// Sums of floating-point numbers depend on their order, so the order is fixed here.
	total += float64(perContract * len(contracts))
	bits := map[extent]int{}
	for _, x := range contracts {
		bits[*x]++
	}
	extents := make([]extent, 0, len(bits))
	for x := range bits {
		extents = append(extents, x)
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Or(cmp.Compare(a.seen, b.seen), cmp.Compare(a.allowed, b.allowed)) })
	for _, x := range extents {
		total += unseenWeight * float64(bits[x]) * selectionBits(x.seen, x.allowed)
	}
	return total
}

// selectionBits is how many bits it takes to say which of the allowed pairs were seen.
func selectionBits(seen, allowed int) float64 {
	if allowed <= seen {
		return 0
	}
	share := float64(seen) / float64(allowed)
	return float64(allowed) * (-share*math.Log2(share) - (1-share)*math.Log2(1-share))
}

// labelText writes labels in canonical form.
func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for key, value := range labels {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, " ")
}

// nameGroups gives new applications names that are made of their labels' values, valid as
// names of objects and unique in the namespace.
func (s *suggestion) nameGroups() {
	taken := map[string]bool{}
	for _, g := range s.groups {
		if g.declared != nil {
			taken[g.key()] = true
		}
	}
	slices.SortFunc(s.groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(labelValues(a.labels), labelValues(b.labels)), cmp.Compare(labelText(a.labels), labelText(b.labels)))
	})
	for _, g := range s.groups {
		if g.declared != nil {
			continue
		}
		base := objectName(labelValues(g.labels))
		g.name = base
		for n := 2; taken[g.key()]; n++ {
			g.name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[g.key()] = true
	}
	slices.SortFunc(s.groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}

// labelValues are those of the labels, the one that names an application first.
func labelValues(labels map[string]string) string {
	keys := make([]string, 0, len(labels))
	for key := range labels {
		keys = append(keys, key)
	}
	rank := func(key string) int {
		if i := slices.Index(nameLabelKeys(), key); i >= 0 {
			return i
		}
		return len(nameLabelKeys())
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	values := make([]string, len(keys))
	for i, key := range keys {
		values[i] = labels[key]
	}
	return strings.Join(values, "-")
}

// objectName makes a label's value an object's name.
func objectName(value string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '-'
		}
	}, value)
	parts := strings.Split(name, ".")
	parts = slices.DeleteFunc(parts, func(part string) bool { return strings.Trim(part, "-") == "" })
	for i, part := range parts {
		parts[i] = strings.Trim(part, "-")
	}
	if name = strings.Join(parts, "."); name == "" {
		return "application"
	}
	return name
}

// selectGroups writes selectors that pick the members of each new group and
// nobody else of the namespace.
func (s *suggestion) selectGroups() {
	byNamespace := map[string][]*member{}
	for _, m := range s.members {
		byNamespace[m.workload.Namespace] = append(byNamespace[m.workload.Namespace], m)
	}
	for _, g := range s.groups {
		if g.declared == nil {
			g.selector = selectorOf(g, byNamespace[g.namespace])
		}
	}
}

func selectorOf(g *group, neighbours []*member) bocage.Selector {
	var selector bocage.Selector
	for key, value := range g.labels {
		// A workload's name may be longer than a label's value: only an
		// expression takes it.
		if len(value) > 63 {
			selector.MatchExpressions = append(selector.MatchExpressions, bocage.Requirement{Key: key, Operator: "In", Values: []string{value}})
			continue
		}
		if selector.MatchLabels == nil {
			selector.MatchLabels = map[string]string{}
		}
		selector.MatchLabels[key] = value
	}
	var strangers []*member
	for _, m := range neighbours {
		if m.group != g && selector.Matches(m.labels) {
			strangers = append(strangers, m)
		}
	}
	// A label that strangers carry and no member does tells them apart.
	for len(strangers) > 0 {
		key, left := bestWithout(g, strangers)
		if key == "" {
			names := make([]string, len(strangers))
			for i, m := range strangers {
				names[i] = m.workload.Name
			}
			slices.Sort(names)
			selector.MatchExpressions = append(selector.MatchExpressions, bocage.Requirement{Key: bocage.LabelName, Operator: "NotIn", Values: names})
			break
		}
		selector.MatchExpressions = append(selector.MatchExpressions, bocage.Requirement{Key: key, Operator: "DoesNotExist"})
		strangers = left
	}
	slices.SortFunc(selector.MatchExpressions, func(a, b bocage.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator))
	})
	return selector
}

// bestWithout finds the label that most strangers carry and no member does, and
// the strangers that do not carry it.
func bestWithout(g *group, strangers []*member) (best string, left []*member) {
	carried := map[string]int{}
	for _, m := range strangers {
		for key := range m.workload.Labels {
			carried[key]++
		}
	}
	for _, m := range g.members {
		for key := range m.workload.Labels {
			delete(carried, key)
		}
	}
	for key, n := range carried {
		if n > carried[best] || n == carried[best] && (best == "" || key < best) {
			best = key
		}
	}
	if best == "" {
		return "", strangers
	}
	for _, m := range strangers {
		if _, has := m.workload.Labels[best]; !has {
			left = append(left, m)
		}
	}
	return best, left
}
