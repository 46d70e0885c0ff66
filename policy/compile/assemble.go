package compile

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// book is the ruleset that was assembled last, and what of it is in use. A
// ruleset is never changed: the next one shares the lists in which nothing is
// new, and has patched copies of the others.
type book struct {
	whole *whole

	patches   []int32          // how often each patch is in use
	decisions uses             // how often each decision is
	reasons   []int32          // the patches of the reasons
	shared    []int32          // those of the namings
	refusals  []int32          // the decisions of those that are cut off
	diverting map[uint16]int32 // patches in use that lead to a decoy at a port
	combined  map[string]int32 // decisions in use, by the profiles that inspect together
	ids       *numbering
	numbers   []uint32 // by decision, as ids has them; 0: not known
	profiles  map[string]uint16
	// recombined says that other profiles inspect together.
	recombined bool

	enforced           []bool         // by subject
	senders, receivers []bocage.Group // by subject
	// Room for what they are now.
	sendersNow, receiversNow []bocage.Group
}

// uses counts how often decisions are in use, successors included.
type uses struct {
	counts  []int32
	touched map[int32]bool // what may have come into use or gone out of it, and whether it was before
}

func (u *uses) count(list []decision, i, by int32) {
	for len(u.counts) < len(list) {
		u.counts = append(u.counts, 0)
	}
	for ; i != unset; i = list[i].then {
		before := u.counts[i] > 0
		u.counts[i] += by
		if before == (u.counts[i] > 0) {
			return // its successor is in use, or not, as it was
		}
		if _, known := u.touched[i]; !known {
			u.touched[i] = before
		}
	}
}

// uses reports whether a decision is in use.
func (u *uses) uses(i int32) bool { return int(i) < len(u.counts) && u.counts[i] > 0 }

func (u *uses) used() int {
	n := 0
	for _, count := range u.counts {
		if count > 0 {
			n++
		}
	}
	return n
}

// assemble writes the ruleset.
func (c *compiler) assemble(d *change) {
	if d.first {
		c.book = &book{diverting: map[uint16]int32{}, combined: map[string]int32{}, decisions: uses{touched: map[int32]bool{}}}
		c.book.decisions.count(c.decisions.list, 0, 1) // the default
		c.grid.eachEntry(func(e entry) { c.grid.come = append(c.grid.come, e) })
	}
	b, g := c.book, c.grid
	refusals := make([]int32, len(c.cutOff))
	for i, r := range c.cutOff {
		refusals[i] = c.decisions.intern(decision{verdict: bocage.VerdictDrop, code: bocage.ReasonQuarantine, log: true, by: r.by, then: unset})
	}

	var gone []bocage.Rule
	restated := g.restated(d.regrouped)
	share := c.hands.worth(len(g.gone) + len(g.come) + 2*len(restated))
	c.hands.together(share,
		func() { gone = c.rules(slices.Concat(g.gone, restated), c.groupBefore) }, // while their decisions have numbers
		func() { c.use(g.gone, -1); c.use(g.come, 1) })
	reasons := b.reasons
	if g.reclassified {
		reasons = slices.Sorted(maps.Values(g.reasons))
	}
	shared := b.shared
	sharing := g.reclassified || g.namings.altered || d.renumbered
	if sharing {
		g.share(d.renumbered || len(d.regrouped) > 0)
		shared = g.namings.patches()
	}
	for _, list := range [4]struct {
		decisions, patches []int32
		by                 int32
	}{{refusals, reasons, 1}, {nil, shared, 1}, {b.refusals, b.reasons, -1}, {nil, b.shared, -1}} {
		for _, i := range list.decisions {
			b.decisions.count(c.decisions.list, i, list.by)
		}
		for _, i := range list.patches {
			c.usePatch(i, list.by)
		}
	}
	b.refusals, b.reasons, b.shared = refusals, reasons, shared

	old := b.whole
	if old == nil {
		old = emptyWhole()
	}
	rs := old.next()
	b.whole = rs
	written, moved := c.numberDecisions(rs, d)
	moved = moved || d.renumbered
	if moved {
		// Numbers moved on since two hashes met: everything that carries one is written anew.
		var all []entry
		g.eachEntry(func(e entry) { all = append(all, e) })
		rs.rules = newList[bocage.Rule](nil).exchange(nil, c.rules(all, c.groupOf), bocage.CompareRules)
		rs.peers, rs.groups = newList[bocage.Peer](nil), newList[bocage.GroupInfo](nil)
		written.write(rs)
		c.describe(rs, nil)
		c.giveReasons(rs)
	} else {
		c.hands.together(share, func() {
			written.write(rs)
			c.describe(rs, d)
			if g.reclassified && !(g.stayed && len(d.regrouped) == 0) {
				c.giveReasons(rs)
			}
		}, func() {
			rs.rules = rs.rules.exchange(gone, c.rules(slices.Concat(g.come, restated), c.groupOf), bocage.CompareRules)
		})
	}
	rs.fallback = c.idOf(0)
	if sharing || moved {
		c.giveNamings(rs)
	}
	c.refuse(rs)
	c.place(rs)
	c.placeWires(rs)
	c.nameGroups(rs)
}

// refuse lists those who are cut off.
func (c *compiler) refuse(rs *whole) {
	var refused []bocage.Refusal
	for i, r := range c.cutOff {
		refused = append(refused, bocage.Refusal{Identity: r.identity, Decision: c.idOf(c.book.refusals[i]), Until: r.until.UTC()})
	}
	if !slices.Equal(refused, rs.refused) {
		rs.refused = refused
	}
}

// rules writes entries as rules, in the order of bocage.CompareRules: by how much
// they leave open, then by pair. Sorting entries costs less than sorting rules.
func (c *compiler) rules(entries []entry, groupOf func(int32) bocage.Group) []bocage.Rule {
	type placed struct {
		place uint64
		patch int32
		to    bocage.Group
		from  bocage.Group
	}
	var wide [4][]placed // by which sides are anyone
	n := 0
	for _, e := range entries {
		p := placed{patch: e.patch, from: groupOf(e.from), to: groupOf(e.to)}
		p.place = uint64(p.from)<<32 | uint64(p.to)
		rank := 0
		if e.from == anyone {
			rank++
		}
		if e.to == anyone {
			rank += 2
		}
		if wide[rank] == nil && rank == 0 {
			wide[rank] = make([]placed, 0, len(entries))
		}
		wide[rank] = append(wide[rank], p)
		n += c.grid.tables.patches[e.patch].rules()
	}
	out := make([]bocage.Rule, 0, n)
	for _, list := range wide {
		slices.SortFunc(list, func(a, b placed) int { return cmp.Compare(a.place, b.place) })
		for i := range list {
			out = c.appendPorts(out, list[i].patch, list[i].from, list[i].to)
		}
		for i := range list {
			out = c.appendRest(out, list[i].patch, list[i].from, list[i].to)
		}
	}
	return out
}

// rules counts those of a patch.
func (p patch) rules() int {
	n := 0
	each(p.rest, p.protocols, func(int32) { n++ })
	return n
}

// appendRest writes what a patch says of protocols that it does not list.
func (c *compiler) appendRest(rules []bocage.Rule, patch int32, from, to bocage.Group) []bocage.Rule {
	if p := &c.grid.tables.patches[patch]; p.rest != unset {
		rules = append(rules, bocage.Rule{From: from, To: to, Protocol: bocage.ProtocolAny, Ports: bocage.AllPorts, Decision: c.idOf(p.rest)})
	}
	return rules
}

// appendPorts writes what a patch says of single protocols, in order.
func (c *compiler) appendPorts(rules []bocage.Rule, patch int32, from, to bocage.Group) []bocage.Rule {
	for _, listed := range c.grid.tables.patches[patch].protocols {
		for _, cell := range listed.cells {
			rules = append(rules, bocage.Rule{From: from, To: to, Protocol: listed.protocol,
				Ports: bocage.PortRange{First: cell.first, Last: cell.last}, Decision: c.idOf(cell.decision)})
		}
	}
	return rules
}

// idOf is the number of a decision that is or was in use.
func (c *compiler) idOf(decision int32) bocage.DecisionID {
	b := c.book
	for len(b.numbers) <= int(decision) {
		b.numbers = append(b.numbers, 0)
	}
	if b.numbers[decision] == 0 { // not asked for yet: numbers begin at one
		b.numbers[decision] = b.ids.of(c.decisions.keys[decision])
	}
	return bocage.DecisionID(b.numbers[decision])
}

func (c *compiler) groupOf(i int32) bocage.Group {
	if i == anyone {
		return bocage.GroupAny
	}
	return c.pop.subjects[i].group
}

// groupBefore is the group that a subject had before the last change.
func (c *compiler) groupBefore(i int32) bocage.Group {
	if group, regrouped := c.groupsBefore[i]; regrouped {
		return group
	}
	return c.groupOf(i)
}

// use counts the patches of entries in or out of use.
func (c *compiler) use(entries []entry, by int32) {
	for _, e := range entries {
		c.usePatch(e.patch, by)
	}
}

func (c *compiler) usePatch(i, by int32) {
	b := c.book
	for len(b.patches) < len(c.grid.tables.patches) {
		b.patches = append(b.patches, 0)
	}
	before := b.patches[i] > 0
	b.patches[i] += by
	if before == (b.patches[i] > 0) {
		return
	}
	p := c.grid.tables.patches[i]
	each(p.rest, p.protocols, func(decision int32) { b.decisions.count(c.decisions.list, decision, by) })
	for _, listed := range p.protocols {
		for _, cell := range listed.cells {
			if c.diverts(cell.decision) {
				b.diverting[cell.first] += by // a decoy's rule covers its one port
			}
		}
	}
}

// diverts reports whether a decision leads to a decoy, now or later.
func (c *compiler) diverts(i int32) bool {
	for ; i != unset; i = c.decisions.list[i].then {
		if c.decisions.list[i].verdict == bocage.VerdictDecoy {
			return true
		}
	}
	return false
}

// edition is which decisions are to be written and which to be taken out.
type edition struct {
	c             *compiler
	anew          bool // all of them
	come, renewed []int32
	removed       []bocage.Decision
}

// numberDecisions gives decisions that came into use their numbers, so that afterwards
// numbers of decisions in use are only read. It reports whether others moved on.
func (c *compiler) numberDecisions(rs *whole, d *change) (edition, bool) {
	b, list := c.book, c.decisions.list
	var gone, come []int32
	for i, before := range b.decisions.touched {
		now := b.decisions.counts[i] > 0
		switch {
		case before && !now:
			gone = append(gone, i)
		case now && !before:
			come = append(come, i)
		default:
			continue
		}
		by := int32(1)
		if !now {
			by = -1
		}
		b.combine(list[i].profiles, by)
	}
	clear(b.decisions.touched)
	removed := make([]bocage.Decision, len(gone))
	goneKeys, comeKeys := make([]string, len(gone)), make([]string, len(come))
	for n, i := range gone {
		removed[n], goneKeys[n] = bocage.Decision{ID: c.idOf(i)}, c.decisions.keys[i]
	}
	for n, i := range come {
		comeKeys[n] = c.decisions.keys[i]
	}
	moved := false
	if d.first {
		b.ids = newNumbering(1, comeKeys)
	} else {
		moved = len(b.ids.change(goneKeys, comeKeys)) > 0
	}
	if moved {
		b.numbers = nil
	}
	for _, i := range gone {
		if int(i) < len(b.numbers) {
			b.numbers[i] = 0
		}
	}
	rewrite := moved
	if d.of(kindProfile) || b.recombined {
		b.recombined = false
		before := b.profiles
		c.hear(&c.units.profiles, func() { rs.profiles, b.profiles = c.numberProfiles(b.combined) })
		for name, number := range b.profiles {
			if was, known := before[name]; known && was != number {
				rewrite = true
			}
		}
	}
	if rewrite {
		come, removed = nil, nil
		for i, count := range b.decisions.counts {
			if count > 0 {
				come = append(come, int32(i))
			}
		}
		c.decisions.renewed = c.decisions.renewed[:0]
	}
	for _, i := range come {
		c.idOf(i)
	}
	return edition{c, rewrite, come, c.renewedInUse(come), removed}, moved && !d.first
}

// write writes the decisions.
func (e *edition) write(rs *whole) {
	if e.anew {
		rs.decisions = newList[bocage.Decision](nil)
	}
	rs.decisions = rs.decisions.exchange(e.removed, e.c.writeAll(e.come), compareDecisions)
	if len(e.renewed) > 0 {
		again := e.c.writeAll(e.renewed)
		rs.decisions = rs.decisions.exchange(slices.Clone(again), again, compareDecisions)
	}
}

// renewedInUse lists the decisions that stay in use and were written anew.
func (c *compiler) renewedInUse(come []int32) []int32 {
	renewed := c.decisions.renewed
	c.decisions.renewed = nil
	if len(renewed) == 0 {
		return nil
	}
	come = slices.Sorted(slices.Values(come))
	slices.Sort(renewed)
	return slices.DeleteFunc(slices.Compact(renewed), func(i int32) bool {
		_, came := slices.BinarySearch(come, i)
		return came || !c.book.decisions.uses(i)
	})
}

// writeAll writes decisions in the order of their numbers.
func (c *compiler) writeAll(list []int32) []bocage.Decision {
	type numbered struct {
		id bocage.DecisionID
		i  int32
	}
	order := make([]numbered, len(list))
	for n, i := range list {
		order[n] = numbered{c.idOf(i), i}
	}
	slices.SortFunc(order, func(a, b numbered) int { return cmp.Compare(a.id, b.id) })
	out := make([]bocage.Decision, len(order))
	for n, d := range order {
		out[n] = c.written(d.i, d.id)
	}
	return out
}

// written is a decision with its number.
func (c *compiler) written(i int32, id bocage.DecisionID) bocage.Decision {
	d := &c.decisions.list[i]
	out := bocage.Decision{ID: id, Verdict: d.verdict, Code: d.code, Profile: c.book.profiles[profileName(d.profiles)], Final: d.final, Ranks: d.ranks, Log: d.log, By: d.by}
	if !d.duties.Empty() {
		duties := d.duties // of this output alone
		out.Duties = &duties
	}
	if !d.until.IsZero() {
		out.Until, out.Then = d.until.UTC(), c.idOf(d.then)
	}
	return out
}

// describe lists who has which address and group: of all, or of those that the
// change is about.
func (c *compiler) describe(rs *whole, d *change) {
	b := c.book
	var groups, groupsGone []bocage.GroupInfo
	var peers, peersGone []bocage.Peer
	whole := d == nil || d.first
	look := whole || c.grid.reclassified || d.subjects || d.of(kindThreatCondition, kindScope, kindZone)
	if !look && len(d.moved)+len(d.left) == 0 {
		return
	}
	senders, receivers := c.standIns()
	for len(b.enforced) < len(c.pop.subjects) {
		b.enforced = append(b.enforced, false)
		b.senders, b.receivers = append(b.senders, 0), append(b.receivers, 0)
	}
	altered := func(i int32) bool {
		enforced := c.pop.subjects[i].enforce || len(c.held) > 0 && c.held[i]
		same := b.enforced[i] == enforced && b.senders[i] == senders[i] && b.receivers[i] == receivers[i]
		b.enforced[i], b.senders[i], b.receivers[i] = enforced, senders[i], receivers[i]
		return !same
	}
	came, regrouped := map[int32]bool{}, map[int32]bocage.Group{}
	if !whole {
		for _, i := range d.gone {
			s := &c.pop.subjects[i]
			groupsGone = append(groupsGone, bocage.GroupInfo{Group: s.group})
			if s.prefix.IsValid() {
				peersGone = append(peersGone, bocage.Peer{Prefix: s.prefix})
			}
		}
		for _, group := range d.regrouped {
			groupsGone = append(groupsGone, bocage.GroupInfo{Group: group})
		}
		came, regrouped = c.came, d.regrouped
	}
	isNew := func(i int32) bool {
		if _, is := regrouped[i]; is {
			return true
		}
		return len(came) > 0 && came[i]
	}
	if look {
		var entering []uint64 // groups and their subjects: sorting these costs less than sorting what is said of them
		parts := make([][]uint64, c.hands.count)
		c.hands.divide(len(c.pop.subjects), func(hand, first, last int) {
			for i := first; i < last; i++ {
				if s := &c.pop.subjects[i]; i != worldSubject && !s.gone() && (altered(int32(i)) || whole || isNew(int32(i))) {
					parts[hand] = append(parts[hand], uint64(s.group)<<32|uint64(i))
				}
			}
		})
		entering = slices.Concat(parts...)
		slices.Sort(entering)
		for _, at := range entering {
			i := int32(uint32(at))
			s := &c.pop.subjects[i]
			groups = append(groups, bocage.GroupInfo{Group: s.group, Enforce: b.enforced[i], Name: s.name, Sender: b.senders[i], Receiver: b.receivers[i]})
			switch {
			case !whole && !isNew(i):
				groupsGone = append(groupsGone, bocage.GroupInfo{Group: s.group})
			case s.prefix.IsValid():
				peers = append(peers, bocage.Peer{Prefix: s.prefix, Identity: bocage.IdentityWorld, Group: s.group})
			}
		}
	}
	if whole {
		peers = slices.Grow(peers, len(c.in.workloads))
		for at, w := range c.in.workloads {
			if w != nil {
				peers = c.appendPeers(peers, int32(at))
			}
		}
	} else {
		for _, w := range d.left {
			for _, addr := range w.Spec.Addresses {
				peersGone = append(peersGone, bocage.Peer{Prefix: netip.PrefixFrom(addr, addr.BitLen())})
			}
		}
		for _, at := range d.moved {
			peers = c.appendPeers(peers, at)
		}
	}
	rs.peers = rs.peers.exchange(peersGone, peers, comparePeers)
	rs.groups = rs.groups.exchange(groupsGone, groups, compareGroups)
}

// appendPeers appends the addresses of a workload.
func (c *compiler) appendPeers(peers []bocage.Peer, at int32) []bocage.Peer {
	w := c.in.workloads[at]
	host := w.Spec.Host
	if w.Spec.Interface == "" {
		host = "" // nothing stands in front of it
	}
	for _, i := range c.pop.subjectsOf(at) {
		s := &c.pop.subjects[i]
		for _, addr := range c.pop.addressesOf(s, w) {
			peers = append(peers, bocage.Peer{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Identity: w.Status.Identity,
				Group: s.group, Host: host, Workload: w.NamespacedName()})
		}
	}
	return peers
}

// standIns tells for every subject which group stands for it in reasons.
func (c *compiler) standIns() (senders, receivers []bocage.Group) {
	g, n := c.grid, len(c.pop.subjects)
	b := c.book
	b.sendersNow, b.receiversNow = cleared(b.sendersNow, n), cleared(b.receiversNow, n)
	senders, receivers = b.sendersNow, b.receiversNow
	if len(g.reasons) == 0 {
		return senders, receivers
	}
	sending, receiving := make([]bool, len(g.sources.coarse)), make([]bool, len(g.targets.coarse))
	for at := range g.reasons {
		sending[at.from], receiving[at.to] = true, true
	}
	for i := range n {
		if g.sources.of[i] == unset {
			continue
		}
		if coarse := g.sources.list[g.sources.of[i]].coarse; sending[coarse] {
			senders[i] = c.groupOf(g.sources.coarse[coarse].leader)
		}
		if coarse := g.targets.list[g.targets.of[i]].coarse; receiving[coarse] {
			receivers[i] = c.groupOf(g.targets.coarse[coarse].leader)
		}
	}
	return senders, receivers
}

// giveReasons writes the reasons.
func (c *compiler) giveReasons(rs *whole) {
	g := c.grid
	entries := make([]entry, 0, len(g.reasons))
	for at, patch := range g.reasons {
		entries = append(entries, entry{pair{g.sources.coarse[at.from].leader, g.targets.coarse[at.to].leader}, patch})
	}
	if reasons := c.rules(entries, c.groupOf); !slices.Equal(reasons, rs.reasons) {
		rs.reasons = reasons
	}
}

// place lists the decoys that some rule leads to.
func (c *compiler) place(rs *whole) {
	var out []bocage.DecoyPlacement
	for _, p := range c.placements {
		if c.book.diverting[p.Port] > 0 {
			out = append(out, p)
		}
	}
	same := slices.EqualFunc(out, rs.decoys, func(a, b bocage.DecoyPlacement) bool {
		return a.Name == b.Name && a.Protocol == b.Protocol && a.Port == b.Port && a.Banner == b.Banner && slices.Equal(a.For, b.For)
	})
	if !same {
		rs.decoys = out
	}
}

// placeWires lists the wires of all hosts.
func (c *compiler) placeWires(rs *whole) {
	var wires []bocage.Wire
	for _, h := range c.in.hosts {
		for _, w := range h.Spec.Wires {
			w.Host = h.Name
			wires = append(wires, w)
		}
	}
	slices.SortFunc(wires, func(a, b bocage.Wire) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Name, b.Name))
	})
	if !slices.Equal(wires, rs.wires) {
		rs.wires = wires
	}
}

func hash32(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

func quoteList(names []string) string {
	var b []byte
	for i, n := range names {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendQuote(b, n)
	}
	return string(b)
}

// cleared returns a slice of zeros, in the room of another one if it has enough.
func cleared[T any](room []T, n int) []T {
	if cap(room) < n {
		return make([]T, n, n+n/8)
	}
	room = room[:n]
	clear(room)
	return room
}
