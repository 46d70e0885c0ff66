// Package suggest writes Applications that cover recorded flows: as few as possible, with
// selectors by label, and with the names that people use.
//
// It promises that the suggestion, compiled together with what is declared, allows every
// answered edge that it does not put on the list for review. It says why an edge is on
// that list, and how many pairs of workloads the suggestion would allow without a recorded
// flow. The same edges in any order give the same suggestion. Declared Applications are
// extended, not suggested again. The package never applies anything, and never suggests
// flows that were not answered.
package suggest

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/simulate"
)

// Suggest makes Applications of the namespaces (none: all) from edges, for workloads about
// which nothing is declared yet.
func Suggest(edges []bocage.Edge, workloads []*bocage.Workload, namespaces []string) bocage.SuggestResult {
	return Extend(edges, compile.Input{Workloads: workloads}, namespaces)
}

// Extend makes the Applications, new ones and extended ones, that are missing to allow the
// edges. Edges that a person should look at first are in Review. The steps, in the order of
// the files that hold them:
//
//  1. resolve the ends of each edge (ends.go)
//  2. leave out what policy allows already, and put doubtful edges on the list for review
//     (review.go)
//  3. group the workloads into applications, by labels (group.go)
//  4. gather what each application offers and uses, external addresses as prefixes
//     (gather.go, outside.go)
//  5. write the contracts, and verify that they allow every edge (write.go)
func Extend(edges []bocage.Edge, in compile.Input, namespaces []string) bocage.SuggestResult {
	s := &suggestion{in: in}
	s.findEnds()
	usual := s.selectUsual(s.resolve(edges))
	s.group(usual)
	usual = s.reviewRare(usual)
	s.gather(usual)
	s.write()
	usual = s.verify(usual)

	result := bocage.SuggestResult{Applications: []*bocage.Application{}, Declared: s.declared, Covered: len(usual), Unseen: s.unseen(usual)}
	for _, g := range s.groups {
		if g.changed && (len(namespaces) == 0 || slices.Contains(namespaces, g.namespace)) {
			result.Applications = append(result.Applications, g.written)
		}
	}
	slices.SortStableFunc(s.review, func(a, b reviewed) int { return compareLines(a.line, b.line) })
	for _, r := range s.review {
		if r.line.concerns(namespaces) {
			result.Review, result.Why = append(result.Review, r.line.edge), append(result.Why, r.why)
		}
	}
	return result
}

// suggestion is the state that the steps share.
type suggestion struct {
	in       compile.Input
	judge    *explain.Judge
	ends     map[string]*member // of workloads, by namespace/name
	byAddr   map[string]*member // by address
	members  []*member          // by namespace and name
	groups   []*group           // by namespace and name
	declared int
	review   []reviewed
}

// reviewed is an edge on the list for review.
type reviewed struct {
	line *line
	why  string
}

func (s *suggestion) addReview(l *line, why string) { s.review = append(s.review, reviewed{l, why}) }

// verify replays the edges on the suggestion. Those that it does not allow go to review.
func (s *suggestion) verify(usual []*line) []*line {
	var changes []explain.Change
	for _, g := range s.groups {
		if g.changed {
			changes = append(changes, explain.Change{Object: g.written})
		}
	}
	simulator, _ := simulate.Compile(explain.Apply(s.in, changes))
	var covered []*line
	for _, l := range usual {
		from, errFrom := simulator.Resolve(l.sourceName)
		to, errTo := simulator.Resolve(l.destinationName)
		source, destination, ok := simulate.Ends(from, to)
		if errFrom != nil || errTo != nil || !ok {
			s.addReview(l, "an end takes no effect in policy, so that no contract can be about it")
			continue
		}
		if _, reason := simulator.Decide(source, destination, l.edge.Protocol, l.service().port, s.in.Now); !reason.Would.Allowed() {
			s.addReview(l, "no contract of applications allows it: see bocage explain")
			continue
		}
		covered = append(covered, l)
	}
	return covered
}

// unseen counts the pairs of members that the contracts allow without a recorded edge.
func (s *suggestion) unseen(usual []*line) int64 {
	type contract struct {
		from, to *group
		service  service
	}
	type pair struct{ from, to string }
	seen := map[contract]map[pair]bool{}
	for _, l := range usual {
		if l.source == nil || l.destination == nil {
			continue
		}
		c := contract{l.source.group, l.destination.group, l.service()}
		if seen[c] == nil {
			seen[c] = map[pair]bool{}
		}
		seen[c][pair{l.sourceName, l.destinationName}] = true
	}
	var total int64
	for c, pairs := range seen {
		allowed := int64(len(c.from.members)) * int64(len(c.to.members))
		if c.from == c.to {
			allowed -= int64(len(c.from.members)) // nobody needs leave to reach itself
			for p := range pairs {
				if p.from == p.to {
					allowed++
				}
			}
		}
		total += allowed - int64(len(pairs))
	}
	return total
}

// service is one port of an application.
type service struct {
	protocol bocage.Protocol
	port     uint16
}

func compareServices(a, b service) int {
	return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
}
