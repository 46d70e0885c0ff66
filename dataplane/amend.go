package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// Change is how a generation differs from the one in force, for who knows that
// without comparing the two. What is replaced is in both lists: gone as it was, come
// as it is to be. Groups, decisions and refusals are those that are new or other than
// before.
type Change struct {
	Generation               uint64
	PeersGone, PeersCome     []bocage.Peer
	RulesGone, RulesCome     []bocage.Rule
	ReasonsGone, ReasonsCome []bocage.Rule
	Groups                   []bocage.GroupInfo
	GroupsGone               []bocage.Group
	Decisions                []bocage.Decision
	DecisionsGone            []bocage.DecisionID
	Profiles                 []bocage.Profile // that these decisions name, but for those of the last whole ruleset
	Refused                  []bocage.Refusal
	Lifted                   []bocage.Identity // are refused no longer
	Names                    *[]bocage.Name    // all that there are to be; nil: those of before
	ConfirmBy                time.Time         // as in a Ruleset
}

// ChangeOf puts an amendment in terms of the dataplane. It is false for one that
// changes more than a Change can say: then the whole ruleset is to be applied.
func ChangeOf(a *bocage.Amendment) (c Change, ok bool) {
	if a.Rest != nil {
		return c, false
	}
	c = Change{Generation: a.Generation, ConfirmBy: a.ConfirmBy, PeersGone: a.Peers.Removed, PeersCome: a.Peers.Added,
		RulesGone: a.Rules.Removed, RulesCome: a.Rules.Added, ReasonsGone: a.Reasons.Removed, ReasonsCome: a.Reasons.Added,
		Groups: a.Groups.Added, Decisions: a.Decisions.Added, Refused: a.Refused.Added}
	c.GroupsGone = goneOf(a.Groups, func(g bocage.GroupInfo) bocage.Group { return g.Group })
	c.DecisionsGone = goneOf(a.Decisions, func(d bocage.Decision) bocage.DecisionID { return d.ID })
	c.Lifted = goneOf(a.Refused, func(r bocage.Refusal) bocage.Identity { return r.Identity })
	return c, true
}

// goneOf lists the names of rows that go and that none comes in the place of.
func goneOf[T any, N comparable](edits bocage.Edits[T], name func(T) N) (gone []N) {
	come := make(map[N]bool, len(edits.Added))
	for _, row := range edits.Added {
		come[name(row)] = true
	}
	for _, row := range edits.Removed {
		if !come[name(row)] {
			gone = append(gone, name(row))
		}
	}
	return gone
}

// Amend is Apply of the ruleset that a change makes of the one in force. It costs
// what the change says, whatever the size of the ruleset. A change that is not one of
// the generation in force is refused, and then, as on any error, nothing has changed.
func (d *Dataplane) Amend(c Change) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	start := time.Now()
	if err := d.amend(c); err != nil {
		return fmt.Errorf("apply the change to generation %d: %w", c.Generation, err)
	}
	d.log.Info("applied change", "generation", c.Generation, "took", time.Since(start))
	return nil
}

func (d *Dataplane) amend(c Change) error {
	f, err := d.readForce()
	if err != nil {
		return err
	}
	if f.header == nil || f.expired || d.content == nil {
		return errors.New("this process did not apply what is in force: apply the whole ruleset")
	}
	if c.Generation <= f.header.Generation {
		return fmt.Errorf("generation %d is in force: a change needs a higher one", f.header.Generation)
	}
	now := readClock()
	term, err := f.termFor(&bocage.Ruleset{Generation: c.Generation, ConfirmBy: c.ConfirmBy}, forward, now)
	if err != nil {
		return err
	}
	c.Profiles = slices.Concat(d.lists.profiles, c.Profiles)
	e, err := d.content.readChange(c)
	if err != nil {
		return err
	}
	// Of the lists that change, none is known to be that of what is in force.
	lists := d.lists
	if len(e.peersGone)+len(e.peersCome) > 0 {
		lists.peers = unknown[bocage.Peer]()
	}
	if len(e.rulesGone)+len(e.rulesCome) > 0 {
		lists.rules = unknown[bocage.Rule]()
	}
	if len(e.reasonsGone)+len(e.reasonCome) > 0 {
		lists.reasons = unknown[bocage.Rule]()
	}
	if len(e.groups) > 0 {
		lists.groups = unknown[bocage.GroupInfo]()
	}
	if len(e.decisions) > 0 {
		lists.decisions = unknown[bocage.Decision]()
	}
	if len(e.refused) > 0 {
		lists.refused = unknown[bocage.Refusal]()
	}
	if c.Names != nil {
		lists.names = *c.Names
	}
	next, err := d.edited(e, lists, now)
	if err != nil {
		return err
	}
	if err := errors.Join(overlapping(&d.content.rules, e.rulesCome), overlapping(&d.content.reasons, e.reasonCome)); err != nil {
		next.undo()
		return err
	}
	if err := d.bringIn(next, f, term); err != nil {
		return err
	}
	d.afterFlip(next)
	return nil
}

// unknown is a list that is the same as none.
func unknown[T any]() []T { return make([]T, 1) }

// readChange puts a change into the form of the content, or says what in it is not
// of the content.
func (c *content) readChange(change Change) (*edit, error) {
	var faults faults
	e := &edit{generation: change.Generation, fallback: c.fallback, groups: map[bocage.Group]groupInfo{},
		decisions: map[bocage.DecisionID]*decision{}, refused: map[bocage.Identity]*bocage.Refusal{}, depths: c.depths}
	e.peersGone, e.peersCome = readPeers(change.PeersGone, &faults), readPeers(change.PeersCome, &faults)
	for _, p := range e.peersGone {
		if is, found := c.peers.find(p); !found || is != p {
			faults.add("a peer of identity %d that is to go is not there as it is said to be", p.identity)
		}
	}
	for _, p := range e.peersCome {
		_, found := c.peers.find(p)
		if _, goes := slices.BinarySearchFunc(e.peersGone, p, comparePeers); found && !goes {
			faults.add("a peer of identity %d comes where another one is that stays", p.identity)
		}
	}
	e.rulesGone, e.rulesCome = readRuleChanges(&c.rules, change.RulesGone, change.RulesCome, &faults)
	e.reasonsGone, e.reasonCome = readRuleChanges(&c.reasons, change.ReasonsGone, change.ReasonsCome, &faults)
	for _, g := range change.GroupsGone {
		e.groups[g] = groupInfo{}
	}
	for _, g := range change.Groups {
		e.groups[g.Group] = groupInfo{listed: true, enforce: g.Enforce, sender: g.Sender, receiver: g.Receiver}
	}
	for _, id := range change.DecisionsGone {
		e.decisions[id] = nil
	}
	c.readNewDecisions(change, e, &faults)
	c.checkSuccessors(e, &faults)
	for _, r := range change.Refused {
		e.refused[r.Identity] = &r
	}
	for _, identity := range change.Lifted {
		e.refused[identity] = nil
	}
	if change.Names != nil {
		c.readNames(*change.Names, e, &faults)
	}
	c.check(e, &faults)
	return e, faults.err()
}

// readRuleChanges puts the rules that go and come in order, and checks both.
func readRuleChanges(list *sorted[bocage.Rule], gone, come []bocage.Rule, faults *faults) (sortedGone, sortedCome []bocage.Rule) {
	gone, come = slices.Clone(gone), slices.Clone(come)
	slices.SortFunc(gone, comparePlaces)
	slices.SortFunc(come, comparePlaces)
	for _, r := range gone {
		if is, found := list.find(r); !found || is != r {
			faults.add("the rule from group %d to %d that is to go is not there as it is said to be", r.From, r.To)
		}
	}
	for i, r := range come {
		_, found := list.find(r)
		_, goes := slices.BinarySearchFunc(gone, r, comparePlaces)
		if r.Ports.First > r.Ports.Last || found && !goes || i > 0 && comparePlaces(come[i-1], r) == 0 {
			faults.add("the rule from group %d to %d that comes is there, or has no ports", r.From, r.To)
		}
	}
	return gone, come
}

// checkSuccessors says which decisions that stay would give way to one that goes.
func (c *content) checkSuccessors(e *edit, faults *faults) {
	if !slices.Contains(slices.Collect(maps.Values(e.decisions)), nil) {
		return
	}
	for id, d := range c.decisions {
		if to, changes := e.decisions[d.then]; !d.until.IsZero() && changes && to == nil {
			if own, changes := e.decisions[id]; !changes || own != nil && own.then == d.then {
				faults.add("decision %s gives way to %s, which is not among the decisions", id, d.then)
			}
		}
	}
}

func (c *content) readNewDecisions(change Change, e *edit, faults *faults) {
	if len(change.Decisions) == 0 {
		return
	}
	all := readDecisionRows(change.Decisions, change.Profiles, faults)
	for _, d := range change.Decisions { // what they give way to
		for id := d.Then; ; {
			then, known := c.decisions[id]
			if _, is := all[id]; is || !known {
				break
			}
			all[id] = then
			id = then.then
		}
	}
	checkChains(change.Decisions, all, faults)
	for _, d := range change.Decisions {
		is := all[d.ID]
		e.decisions[d.ID] = &is
	}
}

// overlapping says which of some rules that are in a list overlap with others there.
func overlapping(list *sorted[bocage.Rule], rules []bocage.Rule) error {
	var faults faults
	for _, r := range rules {
		before, after := list.around(r)
		if before != nil && overlap(*before, r) {
			faults.add("rules from group %d to %d %s: ports %s and %s overlap", r.From, r.To, r.Protocol, before.Ports, r.Ports)
		}
		if after != nil && overlap(r, *after) {
			faults.add("rules from group %d to %d %s: ports %s and %s overlap", r.From, r.To, r.Protocol, r.Ports, after.Ports)
		}
	}
	return faults.err()
}
