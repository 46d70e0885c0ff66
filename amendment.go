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

// Amendment is the difference between two rulesets of a host: the one that the host has,
// and the next one. So a change costs, to send, to check and to enforce, as much as it
// changes. Digests name the content before and after. A host that has another content
// before, or gets another one after, asks for the whole ruleset.
type Amendment struct {
	// From and FromDigest name the ruleset before (Ruleset.Generation, Digest).
	From       uint64 `json:"from"`
	FromDigest string `json:"fromDigest"`
	// Generation, Digest, Host and ConfirmBy are those of the ruleset after.
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
	// Rest has all other fields of the ruleset after, if one of them differs; else nil.
	Rest *Ruleset `json:"rest,omitempty"`
}

// Edits are the rows that are removed from a list, and those that are added, each in the
// list's order. A row that is replaced is in both.
type Edits[T any] struct {
	Removed []T `json:"gone,omitempty"`
	Added   []T `json:"come,omitempty"`
}

// IsZero reports whether nothing changes.
func (e Edits[T]) IsZero() bool { return len(e.Removed)+len(e.Added) == 0 }

// SignedAmendment is the kind of signed envelope around the JSON of an Amendment,
// compressed by gzip if it is large.
const SignedAmendment = "amendment"

// Size is the number of rows in the amendment.
func (a *Amendment) Size() int {
	return len(a.Peers.Removed) + len(a.Peers.Added) + len(a.Groups.Removed) + len(a.Groups.Added) + len(a.Rules.Removed) + len(a.Rules.Added) +
		len(a.Reasons.Removed) + len(a.Reasons.Added) + len(a.Decisions.Removed) + len(a.Decisions.Added) + len(a.Refused.Removed) + len(a.Refused.Added)
}

// The order of rows in their lists.
func comparePeerPlaces(a, b Peer) int         { return a.Prefix.Compare(b.Prefix) }
func compareGroupPlaces(a, b GroupInfo) int   { return cmp.Compare(a.Group, b.Group) }
func compareDecisionPlaces(a, b Decision) int { return cmp.Compare(a.ID, b.ID) }
func compareRefusalPlaces(a, b Refusal) int   { return cmp.Compare(a.Identity, b.Identity) }

// Difference makes the amendment that leads from one ruleset to another. Both must have
// their Digest set. Lists that share their memory are not compared. It fails if a list is
// not in its order.
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
	eachMerged(from, to, compare, func(old, fresh *T) {
		if old != nil && fresh != nil && bytes.Equal(row(nil, old), row(nil, fresh)) {
			return
		}
		if old != nil {
			e.Removed = append(e.Removed, *old)
		}
		if fresh != nil {
			e.Added = append(e.Added, *fresh)
		}
	})
	return e
}

// Amend checks that an amendment applies to this ruleset and that the result has the
// digest that the amendment names. The cost of the check is that of the changed rows. The
// resulting ruleset is made when after is called, which copies the lists that change.
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

// edited is a list after edits: its sum, and a function that makes the list itself.
type edited[T, X any] struct {
	sum  sum
	made func() *listPart[T, X]
}

var errRowMismatch = errors.New("what is to go is not there as it is said to be")

// edit checks the edits of a list, and returns the list after them. It sets fault if they
// do not apply.
func edit[T, X any](before *listPart[T, X], e Edits[T], compare func(a, b T) int, index func([]T) X, row func([]byte, *T) []byte, fault *error) edited[T, X] {
	out := edited[T, X]{before.sum(), func() *listPart[T, X] { return before }}
	if e.IsZero() {
		return out
	}
	removed, added := make([]int, len(e.Removed)), make([]int, len(e.Added)) // places in the list before
	for i := range e.Removed {
		at, found := slices.BinarySearchFunc(before.list, e.Removed[i], compare)
		if !found || i > 0 && at <= removed[i-1] || !bytes.Equal(row(nil, &before.list[at]), row(nil, &e.Removed[i])) {
			*fault = errRowMismatch
			return out
		}
		removed[i] = at
		out.sum.count(row(nil, &e.Removed[i]), minus)
	}
	for i := range e.Added {
		at, found := slices.BinarySearchFunc(before.list, e.Added[i], compare)
		if _, goes := slices.BinarySearch(removed, at); found && !goes || i > 0 && compare(e.Added[i-1], e.Added[i]) >= 0 {
			*fault = errors.New("what is to come is there, or out of order")
			return out
		}
		added[i] = at
		out.sum.count(row(nil, &e.Added[i]), plus)
	}
	total := out.sum
	out.made = func() *listPart[T, X] {
		next := newListPart(splice(before.list, removed, e.Added, added), nil, index, row)
		next.sum = func() sum { return total }
		return next
	}
	return out
}

// splice copies a list without the rows at the indices in removed, and with each row of
// added before the index in at.
func splice[T any](list []T, removed []int, added []T, at []int) []T {
	out := make([]T, 0, len(list)-len(removed)+len(added))
	from := 0
	for len(removed) > 0 || len(added) > 0 {
		if len(added) > 0 && (len(removed) == 0 || at[0] <= removed[0]) {
			out = append(append(out, list[from:at[0]]...), added[0])
			from, added, at = at[0], added[1:], at[1:]
			continue
		}
		out = append(out, list[from:removed[0]]...)
		from, removed = removed[0]+1, removed[1:]
	}
	return append(out, list[from:]...)
}
