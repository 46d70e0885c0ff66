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

// group is a set of workloads that make an application: a declared one, or one
// that labels name.
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

// namingKeys are the labels by which people name applications, best first.
func namingKeys() []string { return []string{"app.kubernetes.io/name", "app", "k8s-app"} }

// naming is the label that names a workload: its own name if no label does.
func naming(w *bocage.Workload) (key, value string) {
	for _, key := range namingKeys() {
		if value := w.Labels[key]; value != "" {
			return key, value
		}
	}
	return bocage.LabelName, w.Name
}

// grouping is one way to make groups of the workloads of a namespace.
type grouping struct {
	worse float64 // how much worse than usual people read its selectors
	of    func(*member) map[string]string
}

// group divides the inventory into applications: the declared ones, and of the
// rest of each namespace those that describe what was seen in the fewest words.
func (s *suggestion) group(lines []*line) {
	byName := map[string]*group{}
	for _, a := range s.in.Applications {
		byName[a.NamespacedName()] = &group{namespace: a.Namespace, declared: a, name: a.Name, selector: a.Spec.Workload}
	}
	rest := map[string][]*member{}
	var namespaces []string
	for _, m := range s.members {
		if owners := s.ownersOf(m); len(owners) > 0 && byName[owners[0]] != nil {
			m.group = byName[owners[0]]
			for _, owner := range owners {
				byName[owner].members = append(byName[owner].members, m)
			}
			continue
		}
		if rest[m.workload.Namespace] == nil {
			namespaces = append(namespaces, m.workload.Namespace)
		}
		rest[m.workload.Namespace] = append(rest[m.workload.Namespace], m)
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
		best := shortest(rest[namespace], about[namespace])
		byKey := map[string]*group{}
		for _, m := range rest[namespace] {
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

// byNaming groups by the label that names each workload.
func byNaming() grouping {
	return grouping{of: func(m *member) map[string]string {
		key, value := naming(m.workload)
		return map[string]string{key: value}
	}}
}

// shortest chooses among the ways to group by the labels that are there: the one
// by which the least is to be written. What is to be written is the applications
// and contracts, and which of the pairs that they allow were really seen.
func shortest(members []*member, lines []*line) grouping {
	ways := []grouping{byNaming()}
	for _, key := range telling(members) {
		ways = append(ways,
			grouping{worse: 4, of: func(m *member) map[string]string {
				if value, has := m.workload.Labels[key]; has {
					return map[string]string{key: value}
				}
				return byNaming().of(m)
			}},
			grouping{worse: 2, of: func(m *member) map[string]string {
				labels := byNaming().of(m)
				if value, has := m.workload.Labels[key]; has && labels[bocage.LabelName] == "" {
					labels[key] = value
				}
				return labels
			}})
	}
	best, least := ways[0], math.Inf(1)
	for _, way := range ways {
		if length := way.length(members, lines); length < least {
			best, least = way, length
		}
	}
	return best
}

// telling lists the labels that tell kinds of workload apart, rather than one
// instance from the next.
func telling(members []*member) []string {
	const mostKeys = 12
	values := map[string]map[string]int{}
	for _, m := range members {
		for key, value := range m.workload.Labels {
			if slices.Contains(namingKeys(), key) || strings.HasPrefix(key, "bocage.dev/") || perInstance.MatchString(key) {
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
	// The labels that most workloads carry tell most.
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(values[a]), len(values[b])), cmp.Compare(a, b))
	})
	return keys[:min(len(keys), mostKeys)]
}

var (
	// perInstance are keys that controllers put onto each instance or revision.
	perInstance = regexp.MustCompile(`(hash|revision|generation|pod-name|pod-index|completion-index|controller-uid|job-name|uid|instance-id)$`)
	// machineMade are values that nobody chose.
	machineMade = regexp.MustCompile(`^([0-9a-f]{8,}|[0-9a-f]{8}-[0-9a-f]{4}-.*|.{41,})$`)
)

func generated(value string) bool {
	return machineMade.MatchString(value) && (len(value) > 40 || strings.ContainsAny(value, "0123456789"))
}

// length is how much is to be written, in bits or thereabouts.
func (way grouping) length(members []*member, lines []*line) float64 {
	const (
		perApplication = 16
		perContract    = 24
		perByName      = 8 // one more for a selector that names one workload
		doubt          = 2 // what is allowed and unseen weighs more than words
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
			key, value := naming(m.workload)
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
		total += perApplication + way.worse
		if byName[key] {
			total += perByName
		}
	}
	// Sums of floats depend on their order: add what is whole first.
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
		total += doubt * float64(bits[x]) * which(x.seen, x.allowed)
	}
	return total
}

// which is how many bits say which of the allowed pairs were seen.
func which(seen, allowed int) float64 {
	if allowed <= seen {
		return 0
	}
	share := float64(seen) / float64(allowed)
	return float64(allowed) * (-share*math.Log2(share) - (1-share)*math.Log2(1-share))
}

// labelText names labels in one canonical way.
func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for key, value := range labels {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, " ")
}

// nameGroups gives new applications the names that their labels say, made fit for
// objects, and ones that nobody has in the namespace.
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
		if i := slices.Index(namingKeys(), key); i >= 0 {
			return i
		}
		return len(namingKeys())
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
