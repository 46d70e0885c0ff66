package compile

import (
	"cmp"
	"sync"

	"bocage.dev/bocage"
)

// whole is a compiled ruleset as compilations hand it on: lists that share what
// did not change. Nobody changes it.
type whole struct {
	generation uint64
	digest     string
	peers      *list[bocage.Peer]
	groups     *list[bocage.GroupInfo]
	rules      *list[bocage.Rule]
	decisions  *list[bocage.Decision]
	reasons    []bocage.Rule
	fallback   bocage.DecisionID
	refused    []bocage.Refusal
	profiles   []bocage.Profile
	wires      []bocage.Wire
	decoys     []bocage.DecoyPlacement
	names      []bocage.Name
	namings    []bocage.Naming
	apart      []bocage.GroupPair

	once    sync.Once
	ruleset *bocage.Ruleset
}

func emptyWhole() *whole {
	return &whole{peers: newList[bocage.Peer](nil), groups: newList[bocage.GroupInfo](nil), rules: newList[bocage.Rule](nil), decisions: newList[bocage.Decision](nil)}
}

// next returns another whole with the same lists.
func (w *whole) next() *whole {
	return &whole{generation: w.generation, digest: w.digest, peers: w.peers, groups: w.groups, rules: w.rules, decisions: w.decisions,
		reasons: w.reasons, fallback: w.fallback, refused: w.refused, profiles: w.profiles, wires: w.wires, decoys: w.decoys, names: w.names,
		namings: w.namings, apart: w.apart}
}

func comparePeers(a, b bocage.Peer) int { return comparePrefixes(a.Prefix, b.Prefix) }

func compareGroups(a, b bocage.GroupInfo) int { return cmp.Compare(a.Group, b.Group) }

func compareDecisions(a, b bocage.Decision) int { return cmp.Compare(a.ID, b.ID) }

// flat returns the ruleset, whose lists are made when somebody asks first. Those
// that two wholes share are made once.
func (w *whole) flat() *bocage.Ruleset {
	w.once.Do(func() {
		w.ruleset = &bocage.Ruleset{Generation: w.generation, Digest: w.digest, Peers: flat(w.peers), Groups: flat(w.groups), Rules: flat(w.rules),
			Reasons: w.reasons, Decisions: flat(w.decisions), Default: w.fallback, Refused: w.refused, Profiles: w.profiles, Wires: w.wires, Decoys: w.decoys, Names: w.names,
			Namings: w.namings, Apart: w.apart}
	})
	return w.ruleset
}

// flat is the elements of a list; none are an empty list, as people and programs
// that read JSON expect.
func flat[T any](l *list[T]) []T {
	if l.len() == 0 {
		return []T{}
	}
	return l.flat()
}

// wholeOf takes a ruleset apart that was not compiled here.
func wholeOf(rs *bocage.Ruleset) *whole {
	w := &whole{generation: rs.Generation, digest: rs.Digest, peers: newList(rs.Peers), groups: newList(rs.Groups), rules: newList(rs.Rules),
		decisions: newList(rs.Decisions), reasons: rs.Reasons, fallback: rs.Default, refused: rs.Refused, profiles: rs.Profiles, wires: rs.Wires, decoys: rs.Decoys, names: rs.Names,
		namings: rs.Namings, apart: rs.Apart}
	return w
}
