package bocage

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Amendment is how the ruleset of a host differs from the one that the host has, so
// that what it costs to send, to check and to enforce is what differs. It leads to
// one content only, which its digest names: whoever has another one before, or gets
// another one out of it, asks for the whole.
type Amendment struct {
	// From and FromDigest are the ruleset before (Ruleset.Generation, Digest).
	From       uint64 `json:"from"`
	FromDigest string `json:"fromDigest"`
	// Generation, Digest, Host and ConfirmBy are as in the Ruleset that it leads to.
	Generation uint64    `json:"generation"`
	Digest     string    `json:"digest"`
	Host       string    `json:"host"`
	ConfirmBy  time.Time `json:"confirmBy,omitzero"`

	Peers     Edits[Peer]      `json:"peers,omitzero"`
	Groups    Edits[GroupInfo] `json:"groups,omitzero"`
	Rules     Edits[Rule]      `json:"rules,omitzero"`
	Reasons   Edits[Rule]      `json:"reasons,omitzero"`
	Decisions Edits[Decision]  `json:"decisions,omitzero"`
	Refused   Edits[Refusal]   `json:"refused,omitzero"`
	// Rest is everything else, where something of it differs; else nil.
	Rest *Ruleset `json:"rest,omitempty"`
}

// Edits take rows out of a list and put others in, both in the list's order. What is
// replaced is in both.
type Edits[T any] struct {
	Gone []T `json:"gone,omitempty"`
	Come []T `json:"come,omitempty"`
}

// IsZero reports whether nothing changes.
func (e Edits[T]) IsZero() bool { return len(e.Gone)+len(e.Come) == 0 }

// SignedAmendment is the kind of signed envelope around the JSON of an Amendment,
// compressed by gzip if it is large.
const SignedAmendment = "amendment"

// Size is how many rows an amendment names.
func (a *Amendment) Size() int {
	return len(a.Peers.Gone) + len(a.Peers.Come) + len(a.Groups.Gone) + len(a.Groups.Come) + len(a.Rules.Gone) + len(a.Rules.Come) +
		len(a.Reasons.Gone) + len(a.Reasons.Come) + len(a.Decisions.Gone) + len(a.Decisions.Come) + len(a.Refused.Gone) + len(a.Refused.Come)
}

// Places of rows in their lists.
func comparePeerPlaces(a, b Peer) int         { return a.Prefix.Compare(b.Prefix) }
func compareGroupPlaces(a, b GroupInfo) int   { return cmp.Compare(a.Group, b.Group) }
func compareDecisionPlaces(a, b Decision) int { return cmp.Compare(a.ID, b.ID) }
func compareRefusalPlaces(a, b Refusal) int   { return cmp.Compare(a.Identity, b.Identity) }

// Difference makes the amendment that leads from one ruleset to another, both with
// the Digest of their content. Lists that are one are passed over. It fails where a
// list is not in its order.
func Difference(from, to *Ruleset) (*Amendment, error) {
	a := &Amendment{From: from.Generation, FromDigest: from.Digest, Generation: to.Generation, Digest: to.Digest, Host: to.Host, ConfirmBy: to.ConfirmBy,
		Peers:     difference(from.Peers, to.Peers, comparePeerPlaces, appendPeer),
		Groups:    difference(from.Groups, to.Groups, compareGroupPlaces, appendGroup),
		Rules:     difference(from.Rules, to.Rules, CompareRules, appendRule),
		Reasons:   difference(from.Reasons, to.Reasons, CompareRules, appendRule),
		Decisions: difference(from.Decisions, to.Decisions, compareDecisionPlaces, appendDecision),
		Refused:   difference(from.Refused, to.Refused, compareRefusalPlaces, appendRefusal)}
	if from.indexed().rest() != to.indexed().rest() {
		a.Rest = to.besides()
	}
	if _, err := from.Amend(a); err != nil {
		return nil, err
	}
	return a, nil
}

func difference[T any](from, to []T, compare func(a, b T) int, row func([]byte, *T) []byte) (e Edits[T]) {
	if sameList(from, to) {
		return e
	}
	for len(from) > 0 || len(to) > 0 {
		order := 0
		switch {
		case len(from) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		default:
			order = compare(from[0], to[0])
		}
		if order == 0 && !bytes.Equal(row(nil, &from[0]), row(nil, &to[0])) {
			e.Gone, e.Come = append(e.Gone, from[0]), append(e.Come, to[0])
		}
		if order < 0 {
			e.Gone = append(e.Gone, from[0])
		}
		if order > 0 {
			e.Come = append(e.Come, to[0])
		}
		if order <= 0 {
			from = from[1:]
		}
		if order >= 0 {
			to = to[1:]
		}
	}
	return e
}

// Amend checks an amendment of this ruleset, at the cost of what it changes: that it
// is one, and that what comes of it is what its digest names. The ruleset that comes
// of it is made when somebody asks for it, at the cost of copying the lists that
// change.
func (r *Ruleset) Amend(a *Amendment) (after func() *Ruleset, err error) {
	if a.From != r.Generation || a.FromDigest != r.Digest || a.Host != r.Host {
		return nil, fmt.Errorf("the amendment is of generation %d of host %q, and this is generation %d of %q, or other content", a.From, a.Host, r.Generation, r.Host)
	}
	if a.Generation <= r.Generation {
		return nil, fmt.Errorf("the amendment leads from generation %d back to %d", r.Generation, a.Generation)
	}
	ix := r.indexed()
	var faults [6]error
	peers := edit(ix.peers, a.Peers, comparePeerPlaces, indexPeers, appendPeer, &faults[0])
	groups := edit(ix.groups, a.Groups, compareGroupPlaces, indexGroups, appendGroup, &faults[1])
	rules := edit(ix.rules, a.Rules, CompareRules, indexRules, appendRule, &faults[2])
	reasons := edit(ix.reasons, a.Reasons, CompareRules, indexRules, appendRule, &faults[3])
	decisions := edit(ix.decisions, a.Decisions, compareDecisionPlaces, indexDecisions, appendDecision, &faults[4])
	refused := edit(ix.refused, a.Refused, compareRefusalPlaces, indexRefused, appendRefusal, &faults[5])
	for i, what := range [...]string{"peers", "groups", "rules", "reasons", "decisions", "refusals"} {
		if faults[i] != nil {
			return nil, fmt.Errorf("amend the %s of generation %d: %w", what, r.Generation, faults[i])
		}
	}
	rest, others := ix.rest, r
	if a.Rest != nil {
		rest, others = sync.OnceValue(a.Rest.restDigest), a.Rest
	}
	digest := contentDigest([...]sum{peers.sum, groups.sum, rules.sum, reasons.sum, decisions.sum, refused.sum}, rest())
	if digest != a.Digest {
		return nil, fmt.Errorf("generation %d does not come of generation %d by this amendment: its digest is another", a.Generation, r.Generation)
	}
	generation, confirmBy, host := a.Generation, a.ConfirmBy, r.Host
	return sync.OnceValue(func() *Ruleset {
		out := others.Copy()
		out.Generation, out.Digest, out.ConfirmBy, out.Host = generation, digest, confirmBy, host
		next := &rulesetIndex{peers: peers.made(), groups: groups.made(), rules: rules.made(), reasons: reasons.made(),
			decisions: decisions.made(), refused: refused.made(), rest: rest, namings: namingsOnce(others.Namings)}
		out.Peers, out.Groups, out.Rules, out.Reasons = next.peers.list, next.groups.list, next.rules.list, next.reasons.list
		out.Decisions, out.Refused = next.decisions.list, next.refused.list
		out.indexOnce.Do(func() { out.index, out.like = next, nil })
		return out
	}), nil
}

// edited is a part after edits: its sum, and the part itself once it is made.
type edited[T, X any] struct {
	sum  sum
	made func() *listPart[T, X]
}

var errNotThere = errors.New("what is to go is not there as it is said to be")

// edit checks edits of a part, and says what comes of them.
func edit[T, X any](before *listPart[T, X], e Edits[T], compare func(a, b T) int, index func([]T) X, row func([]byte, *T) []byte, fault *error) edited[T, X] {
	out := edited[T, X]{before.sum(), func() *listPart[T, X] { return before }}
	if e.IsZero() {
		return out
	}
	gone, come := make([]int, len(e.Gone)), make([]int, len(e.Come)) // places in the list before
	for i := range e.Gone {
		at, found := slices.BinarySearchFunc(before.list, e.Gone[i], compare)
		if !found || i > 0 && at <= gone[i-1] || !bytes.Equal(row(nil, &before.list[at]), row(nil, &e.Gone[i])) {
			*fault = errNotThere
			return out
		}
		gone[i] = at
		out.sum.count(row(nil, &e.Gone[i]), minus)
	}
	for i := range e.Come {
		at, found := slices.BinarySearchFunc(before.list, e.Come[i], compare)
		if _, goes := slices.BinarySearch(gone, at); found && !goes || i > 0 && compare(e.Come[i-1], e.Come[i]) >= 0 {
			*fault = errors.New("what is to come is there, or out of order")
			return out
		}
		come[i] = at
		out.sum.count(row(nil, &e.Come[i]), plus)
	}
	total := out.sum
	out.made = func() *listPart[T, X] {
		next := newListPart(splice(before.list, gone, e.Come, come), nil, index, row)
		next.sum = func() sum { return total }
		return next
	}
	return out
}

// splice makes a list without the rows at some places and with others before places.
func splice[T any](list []T, gone []int, come []T, at []int) []T {
	out := make([]T, 0, len(list)-len(gone)+len(come))
	from := 0
	for len(gone) > 0 || len(come) > 0 {
		if len(come) > 0 && (len(gone) == 0 || at[0] <= gone[0]) {
			out = append(append(out, list[from:at[0]]...), come[0])
			from, come, at = at[0], come[1:], at[1:]
			continue
		}
		out = append(out, list[from:gone[0]]...)
		from, gone = gone[0]+1, gone[1:]
	}
	return append(out, list[from:]...)
}
