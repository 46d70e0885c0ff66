package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// lists are those of a ruleset. Two that are the same slice say the same, since
// nobody changes a ruleset.
type lists struct {
	peers     []bocage.Peer
	rules     []bocage.Rule
	reasons   []bocage.Rule
	groups    []bocage.GroupInfo
	decisions []bocage.Decision
	profiles  []bocage.Profile
	refused   []bocage.Refusal
	names     []bocage.Name
}

func listsOf(rs *bocage.Ruleset) lists {
	return lists{rs.Peers, rs.Rules, rs.Reasons, rs.Groups, rs.Decisions, rs.Profiles, rs.Refused, rs.Names}
}

func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// read compares a ruleset with the content before, whose lists were last, and
// gives the edit between them, or says everything that is wrong with the ruleset.
// It is pure.
func (c *content) read(rs *bocage.Ruleset, last lists) (*edit, error) {
	var faults faults
	e := &edit{generation: rs.Generation, fallback: rs.Default, groups: map[bocage.Group]groupInfo{},
		decisions: map[bocage.DecisionID]*decision{}, refused: map[bocage.Identity]*bocage.Refusal{}, depths: c.depths}
	if len(rs.Namings) > 0 {
		faults.add("%d namings: what is said of many groups at once is for a controller, who makes rules of it for each host", len(rs.Namings))
	}
	if !sameSlice(rs.Peers, last.peers) {
		e.peersGone, e.peersCome, _ = c.peers.differences(readPeers(rs.Peers, &faults), func(a, b peer) bool { return a == b })
	}
	if !sameSlice(rs.Rules, last.rules) {
		e.rulesGone, e.rulesCome = readRules(&c.rules, rs.Rules, &faults)
	}
	if !sameSlice(rs.Reasons, last.reasons) {
		e.reasonsGone, e.reasonCome = readRules(&c.reasons, rs.Reasons, &faults)
	}
	if !sameSlice(rs.Groups, last.groups) {
		c.readGroups(rs, e)
	}
	if !sameSlice(rs.Decisions, last.decisions) || !sameSlice(rs.Profiles, last.profiles) {
		c.readDecisions(rs, e, &faults)
	}
	if !sameSlice(rs.Refused, last.refused) {
		c.readRefused(rs, e)
	}
	if !sameSlice(rs.Names, last.names) {
		c.readNames(rs.Names, e, &faults)
	}
	c.check(e, &faults)
	return e, faults.err()
}

// readPeers puts peers into the kernel's form and order. As in Decide, the last of
// several with one prefix stands.
func readPeers(peers []bocage.Peer, faults *faults) []peer {
	all := make([]peer, 0, len(peers))
	ordered := true
	for _, p := range peers {
		if !p.Prefix.IsValid() || p.Prefix.Addr().Is4In6() {
			faults.add("peer %s of identity %d: not a prefix of IPv4 or IPv6", p.Prefix, p.Identity)
			continue
		}
		all = append(all, peerOf(p))
		if n := len(all); n > 1 && ordered {
			ordered = comparePeers(all[n-2], all[n-1]) < 0
		}
	}
	if ordered {
		return all
	}
	slices.SortStableFunc(all, comparePeers)
	kept := all[:0]
	for i, p := range all {
		if i+1 == len(all) || comparePeers(p, all[i+1]) != 0 {
			kept = append(kept, p)
		}
	}
	return kept
}

// readRules compares rules with those before, and says which of them overlap.
func readRules(before *sorted[bocage.Rule], rules []bocage.Rule, faults *faults) (gone, come []bocage.Rule) {
	same := func(a, b bocage.Rule) bool { return a == b }
	gone, come, ordered := before.differences(rules, same)
	if !ordered {
		rules = slices.Clone(rules)
		slices.SortFunc(rules, bocage.CompareRules)
		gone, come, _ = before.differences(rules, same)
	}
	for _, r := range come {
		if r.Ports.First > r.Ports.Last {
			faults.add("rule from group %d to %d: ports %d-%d", r.From, r.To, r.Ports.First, r.Ports.Last)
		}
		// Only what comes can overlap with anything.
		at, _ := slices.BinarySearchFunc(rules, r, bocage.CompareRules)
		if at > 0 && overlap(rules[at-1], r) {
			faults.add("rules from group %d to %d %s: ports %s and %s overlap", r.From, r.To, r.Protocol, rules[at-1].Ports, r.Ports)
		}
		if at+1 < len(rules) && overlap(r, rules[at+1]) {
			faults.add("rules from group %d to %d %s: ports %s and %s overlap", r.From, r.To, r.Protocol, r.Ports, rules[at+1].Ports)
		}
	}
	return gone, come
}

// overlap says whether two rules, the first of which comes first, decide the same.
func overlap(a, b bocage.Rule) bool {
	return a.From == b.From && a.To == b.To && a.Protocol == b.Protocol && a.Ports.Last >= b.Ports.First
}

func (c *content) readGroups(rs *bocage.Ruleset, e *edit) {
	seen := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		info := groupInfo{listed: true, enforce: g.Enforce, sender: g.Sender, receiver: g.Receiver}
		seen[g.Group] = true
		if c.groups[g.Group] != info {
			e.groups[g.Group] = info
		} else {
			delete(e.groups, g.Group) // the last of several stands
		}
	}
	for g := range c.groups {
		if !seen[g] {
			e.groups[g] = groupInfo{}
		}
	}
}

func (c *content) readDecisions(rs *bocage.Ruleset, e *edit, faults *faults) {
	all := readDecisionRows(rs.Decisions, rs.Profiles, faults)
	checkChains(rs.Decisions, all, faults)
	for id, d := range all {
		if old, had := c.decisions[id]; !had || old.row != d.row || old.limit != d.limit || !old.until.Equal(d.until) || old.then != d.then {
			e.decisions[id] = &d
		}
	}
	for id := range c.decisions {
		if _, is := all[id]; !is {
			e.decisions[id] = nil
		}
	}
}

// readDecisionRows puts decisions into the kernel's form.
func readDecisionRows(decisions []bocage.Decision, list []bocage.Profile, faults *faults) map[bocage.DecisionID]decision {
	profiles := make(map[uint16]bocage.Profile, len(list))
	for _, p := range list {
		profiles[p.Number] = p
	}
	all := make(map[bocage.DecisionID]decision, len(decisions))
	for _, d := range decisions {
		if d.Verdict < bocage.VerdictAllow || d.Verdict > bocage.VerdictReject {
			faults.add("decision %s: verdict %s", d.ID, d.Verdict)
		}
		row := bpf.KernelDecision{Id: uint32(d.ID), Verdict: uint8(d.Verdict), Reason: uint8(d.Code), Expects: expects(d)}
		if d.Verdict == bocage.VerdictInspect {
			if d.Profile < 1 || d.Profile > 4094 {
				faults.add("decision %s: inspection profile %d is not between 1 and 4094", d.ID, d.Profile)
			}
			row.Profile, row.FailOpen = d.Profile, uint8(number(profiles[d.Profile].FailOpen))
		}
		if !d.Until.IsZero() {
			row.Flags |= decisionEnds
		}
		if d.MayYield() {
			row.Flags |= decisionYields
		}
		var ranks bpf.KernelRanks
		if d.Ranks != (bocage.Ranks{}) {
			row.Flags |= decisionRanked
			ranks = bpf.KernelRanks{Admin: d.Ranks.Admin, Baseline: d.Ranks.Baseline, Consumed: number(d.YieldsToNames())}
		}
		var limit bpf.KernelLimit
		if l, limited := d.Limit(); limited {
			row.Limited, limit = 1, bpf.KernelLimit{Number: l.Number, Every: uint32(l.Every)}
		}
		if d.Whole() {
			row.Limited, limit.Whole = 1, 1
		}
		all[d.ID] = decision{row: row, limit: limit, ranks: ranks, until: d.Until, then: d.Then}
	}
	return all
}

// checkChains finds decisions that give way to none that there is, or go on giving
// way for longer than the kernel follows.
func checkChains(list []bocage.Decision, all map[bocage.DecisionID]decision, faults *faults) {
	for _, d := range list {
		if d.Until.IsZero() {
			continue
		}
		if _, is := all[d.Then]; !is {
			faults.add("decision %s gives way to %s, which is not among the decisions", d.ID, d.Then)
			continue
		}
		last, ends := all[d.ID], true
		for links := 0; ends && links <= bocage.MostSuccessors; links++ {
			ends = !last.until.IsZero()
			last = all[last.then]
		}
		if ends {
			faults.add("decision %s gives way to more than %d others in turn", d.ID, bocage.MostSuccessors)
		}
	}
}

func (c *content) readRefused(rs *bocage.Ruleset, e *edit) {
	seen := make(map[bocage.Identity]bool, len(rs.Refused))
	for _, r := range rs.Refused {
		seen[r.Identity] = true
		delete(e.refused, r.Identity) // the last of several stands
		if old, had := c.refused[r.Identity]; !had || old.Decision != r.Decision || !old.Until.Equal(r.Until) {
			e.refused[r.Identity] = &r
		}
	}
	for identity := range c.refused {
		if !seen[identity] {
			e.refused[identity] = nil
		}
	}
}

// check says whether what comes names decisions that there will be, and whether
// what stays still has its own. It looks at no more than changes.
func (c *content) check(e *edit, faults *faults) {
	is := func(id bocage.DecisionID) bool {
		if d, changes := e.decisions[id]; changes {
			return d != nil
		}
		_, known := c.decisions[id]
		return known
	}
	if !is(e.fallback) {
		faults.add("the default decision %s is not among the decisions", e.fallback)
	}
	gone := map[bocage.DecisionID]int{}
	for _, list := range [][]bocage.Rule{e.rulesGone, e.reasonsGone} {
		for _, r := range list {
			gone[r.Decision]++
		}
	}
	for _, list := range [][]bocage.Rule{e.rulesCome, e.reasonCome} {
		for _, r := range list {
			if !is(r.Decision) {
				faults.add("rule from group %d to %d: decision %s is not among the decisions", r.From, r.To, r.Decision)
			}
		}
	}
	less := false
	for id, d := range e.decisions {
		less = less || d == nil
		if d == nil && c.uses[id] > gone[id] {
			faults.add("decision %s is not among the decisions and %d rules have it", id, c.uses[id]-gone[id])
		}
	}
	for identity, r := range e.refused {
		if r != nil && !is(r.Decision) {
			faults.add("refusal of identity %d: decision %s is not among the decisions", identity, r.Decision)
		}
	}
	for identity, r := range c.refused {
		if !less {
			break
		}
		if _, changes := e.refused[identity]; !changes && !is(r.Decision) {
			faults.add("refusal of identity %d: decision %s is not among the decisions", identity, r.Decision)
		}
	}
}

// faults collects what is wrong, up to a limit that a person can read.
type faults struct {
	errs []error
	more int
}

func (f *faults) add(format string, args ...any) {
	if len(f.errs) == 20 {
		f.more++
		return
	}
	f.errs = append(f.errs, fmt.Errorf(format, args...))
}

func (f *faults) err() error {
	slices.SortStableFunc(f.errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	if f.more > 0 {
		return errors.Join(append(f.errs, fmt.Errorf("and %d more", f.more))...)
	}
	return errors.Join(f.errs...)
}

// expects is what a flow must speak that a decision allows.
func expects(d bocage.Decision) uint8 {
	if d.Duties == nil || !d.Verdict.Allowed() {
		return 0
	}
	return uint8(d.Duties.Expects())
}
