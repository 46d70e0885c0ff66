package dataplane

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// content is what a ruleset says to the kernel, in a form in which a change costs
// what it changes. It is changed by edits; what an edit makes of the rows of the
// tables comes out, and the edit that takes it back.
type content struct {
	generation uint64
	fallback   bocage.DecisionID
	peers      sorted[peer]
	rules      sorted[bocage.Rule]
	reasons    sorted[bocage.Rule]
	groups     map[bocage.Group]groupInfo
	decisions  map[bocage.DecisionID]decision
	refused    map[bocage.Identity]bocage.Refusal
	names      map[nameID]bpf.KernelName
	depths     uint64  // of the names, as in the ruleset's row
	keys       nameKey // of ids

	uses     map[bocage.DecisionID]int // by rules and reasons
	cells    int                       // rows that rules and reasons take
	forms    formCounts
	prefixes prefixRows
	clock    clock // by which times were put into the kernel's
}

// peer is a bocage.Peer as far as the kernel knows it, and in its order.
type peer struct {
	high, low       uint64 // the address, as a number; IPv4 in its IPv6-mapped form
	identity, group uint32
	length          uint8 // of the prefix, as in a prefixKey
	enrolled        bool
}

func comparePeers(a, b peer) int {
	switch {
	case a.high != b.high:
		return cmp.Compare(a.high, b.high)
	case a.low != b.low:
		return cmp.Compare(a.low, b.low)
	}
	return cmp.Compare(a.length, b.length)
}

func peerOf(p bocage.Peer) peer {
	length := p.Prefix.Bits()
	if p.Prefix.Addr().Is4() {
		length += ipv4Length
	}
	raw := p.Prefix.Masked().Addr().As16()
	return peer{high: binary.BigEndian.Uint64(raw[:8]), low: binary.BigEndian.Uint64(raw[8:]),
		identity: uint32(p.Identity), group: uint32(p.Group), length: uint8(length), enrolled: p.Host != ""}
}

func (p peer) key() bpf.KernelPrefixKey { return prefixKey(p.high, p.low, p.length) }

func (p peer) isHost() bool { return p.length == hostLength }

func (p peer) version() bpf.KernelPeer {
	v := bpf.KernelPeer{Identity: p.identity, Group: p.group, Flags: peerHere}
	if p.enrolled {
		v.Flags |= peerEnrolled
	}
	return v
}

type groupInfo struct {
	listed, enforce  bool
	sender, receiver bocage.Group
}

// decision is a bocage.Decision as far as the kernel knows it.
type decision struct {
	row   bpf.KernelDecision
	limit bpf.KernelLimit
	ranks bpf.KernelRanks
	until time.Time
	then  bocage.DecisionID
}

// edit is how one content differs from another. Lists are in their order; what is
// to be replaced is in both.
type edit struct {
	generation              uint64
	fallback                bocage.DecisionID
	peersGone, peersCome    []peer
	rulesGone, rulesCome    []bocage.Rule
	reasonsGone, reasonCome []bocage.Rule
	groups                  map[bocage.Group]groupInfo
	decisions               map[bocage.DecisionID]*decision // nil: gone
	refused                 map[bocage.Identity]*bocage.Refusal
	names                   map[nameID]bpf.KernelName // zero: gone
	depths                  uint64                    // of all names
}

// changes are rows with the version that they are to have; zero is none.
type changes struct {
	peers, prefixes map[bpf.KernelPrefixKey]bpf.KernelPeer
	groups          map[uint32]bpf.KernelGroup
	cells           map[bpf.KernelRuleKey]bpf.KernelDecision
	refused         map[uint32]bpf.KernelRefused
	successions     map[uint32]bpf.KernelSuccession
	limits          map[uint32]bpf.KernelLimit
	ranks           map[uint32]bpf.KernelRanks
	names           map[nameID]bpf.KernelName
}

func newChanges() *changes {
	return &changes{
		peers: map[bpf.KernelPrefixKey]bpf.KernelPeer{}, prefixes: map[bpf.KernelPrefixKey]bpf.KernelPeer{},
		groups: map[uint32]bpf.KernelGroup{}, cells: map[bpf.KernelRuleKey]bpf.KernelDecision{},
		refused: map[uint32]bpf.KernelRefused{}, successions: map[uint32]bpf.KernelSuccession{},
		limits: map[uint32]bpf.KernelLimit{}, ranks: map[uint32]bpf.KernelRanks{},
		names: map[nameID]bpf.KernelName{},
	}
}

func (c *changes) len() int {
	return len(c.peers) + len(c.prefixes) + len(c.groups) + len(c.cells) + len(c.refused) + len(c.successions) + len(c.limits) + len(c.ranks) + len(c.names)
}

// add joins the keys of others.
func (c *changes) add(other *changes) {
	maps.Copy(c.peers, other.peers)
	maps.Copy(c.prefixes, other.prefixes)
	maps.Copy(c.groups, other.groups)
	maps.Copy(c.cells, other.cells)
	maps.Copy(c.refused, other.refused)
	maps.Copy(c.successions, other.successions)
	maps.Copy(c.limits, other.limits)
	maps.Copy(c.ranks, other.ranks)
	maps.Copy(c.names, other.names)
}

func newContent(keys nameKey) *content {
	return &content{
		keys: keys, names: map[nameID]bpf.KernelName{},
		peers: sorted[peer]{compare: comparePeers}, rules: sorted[bocage.Rule]{compare: comparePlaces},
		reasons: sorted[bocage.Rule]{compare: comparePlaces}, groups: map[bocage.Group]groupInfo{},
		decisions: map[bocage.DecisionID]decision{}, refused: map[bocage.Identity]bocage.Refusal{},
		uses: map[bocage.DecisionID]int{}, forms: newFormCounts(), prefixes: newPrefixRows(),
	}
}

// comparePlaces orders rules by all but their decisions, and those that overlap
// next to each other.
func comparePlaces(a, b bocage.Rule) int {
	a.Decision, b.Decision = 0, 0
	return bocage.CompareRules(a, b)
}

// empty says whether no ruleset was ever put in.
func (c *content) empty() bool { return len(c.decisions) == 0 }

// change makes an edit, and says what becomes of the rows and how to take it back.
func (c *content) change(e *edit, now clock) (*changes, *edit) {
	out := newChanges()
	fresh := c.empty()
	back := &edit{generation: c.generation, fallback: c.fallback,
		peersGone: e.peersCome, peersCome: e.peersGone, rulesGone: e.rulesCome, rulesCome: e.rulesGone,
		reasonsGone: e.reasonCome, reasonCome: e.reasonsGone, groups: map[bocage.Group]groupInfo{},
		decisions: map[bocage.DecisionID]*decision{}, refused: map[bocage.Identity]*bocage.Refusal{},
		depths: c.depths, names: map[nameID]bpf.KernelName{}}
	c.generation, c.fallback = e.generation, e.fallback

	c.peers.exchange(e.peersGone, e.peersCome)
	c.changePeers(e, out)

	altered := c.changeDecisions(e, back, out)
	c.rules.exchange(e.rulesGone, e.rulesCome)
	c.reasons.exchange(e.reasonsGone, e.reasonCome)
	touched := map[bocage.Group]bool{}
	c.changeRules(e.rulesGone, e.rulesCome, 0, touched, out)
	c.changeRules(e.reasonsGone, e.reasonCome, ruleReason, touched, out)
	c.rewrite(&c.rules, 0, altered, out)
	c.rewrite(&c.reasons, ruleReason, altered, out)

	for g, info := range e.groups {
		back.groups[g] = c.groups[g]
		touched[g] = true
		if info.listed {
			c.groups[g] = info
		} else {
			delete(c.groups, g)
		}
	}
	if fresh {
		touched[bocage.GroupWorld] = true
	}
	for g := range touched {
		if g != bocage.GroupAny {
			out.groups[uint32(g)] = c.groupVersion(g)
		}
	}
	c.changeTimes(e, back, altered, now, out)
	c.changeNames(e, back, out)
	return out, back
}

func (c *content) changePeers(e *edit, out *changes) {
	var gone, come []peer
	for _, p := range e.peersGone {
		if p.isHost() {
			out.peers[p.key()] = bpf.KernelPeer{}
		} else {
			gone = append(gone, p)
		}
	}
	for _, p := range e.peersCome {
		if p.isHost() {
			out.peers[p.key()] = p.version()
		} else {
			come = append(come, p)
		}
	}
	c.prefixes.exchange(gone, come, out.prefixes)
}

// changeDecisions notes the decisions that come and go, and tells those whose row
// is another than before. It writes their limits and ranks.
func (c *content) changeDecisions(e *edit, back *edit, out *changes) map[bocage.DecisionID]bool {
	altered := map[bocage.DecisionID]bool{}
	for id, to := range e.decisions {
		old, had := c.decisions[id]
		back.decisions[id] = nil
		if had {
			back.decisions[id] = &old
		}
		var next decision
		if to != nil {
			next = *to
		}
		if next.limit != old.limit {
			out.limits[uint32(id)] = next.limit
		}
		if next.ranks != old.ranks {
			out.ranks[uint32(id)] = next.ranks
		}
		if to == nil {
			delete(c.decisions, id)
			continue
		}
		c.decisions[id] = next
		if had && old.row != next.row {
			altered[id] = true
		}
	}
	return altered
}

// changeRules counts rules that go and come, and writes their rows.
func (c *content) changeRules(gone, come []bocage.Rule, kind uint8, touched map[bocage.Group]bool, out *changes) {
	for _, list := range [2]struct {
		rules []bocage.Rule
		by    int
	}{{gone, -1}, {come, 1}} {
		for _, r := range list.rules {
			if c.uses[r.Decision] += list.by; c.uses[r.Decision] == 0 {
				delete(c.uses, r.Decision)
			}
			version := bpf.KernelDecision{}
			if list.by > 0 {
				version = c.decisions[r.Decision].row
			}
			for key := range cellsOf(r, kind) {
				c.cells += list.by
				out.cells[key] = version
				c.forms.count(r, kind, key.Bits&^ruleReason, list.by, touched)
			}
		}
	}
}

// rewrite writes the rows of rules whose decision is another than before.
func (c *content) rewrite(rules *sorted[bocage.Rule], kind uint8, altered map[bocage.DecisionID]bool, out *changes) {
	used := false
	for id := range altered {
		used = used || c.uses[id] > 0
	}
	if !used {
		return
	}
	for r := range rules.all() {
		if altered[r.Decision] {
			for key := range cellsOf(r, kind) {
				out.cells[key] = c.decisions[r.Decision].row
			}
		}
	}
}

// changeTimes writes what is in terms of the kernel's clock: who is refused, and
// when decisions end. Where that clock has moved against the wall's since, all of
// it is written.
func (c *content) changeTimes(e *edit, back *edit, altered map[bocage.DecisionID]bool, now clock, out *changes) {
	moved := c.clock.drifted(now)
	if moved { // else many small moves between changes would add up
		c.clock = now
	}
	for identity, to := range e.refused {
		back.refused[identity] = nil
		if old, had := c.refused[identity]; had {
			back.refused[identity] = &old
		}
		if to != nil {
			c.refused[identity] = *to
		} else {
			delete(c.refused, identity)
		}
		out.refused[uint32(identity)] = c.refusedVersion(identity)
	}
	for id := range e.decisions {
		out.successions[uint32(id)] = c.successionVersion(id)
	}
	if len(altered) > 0 || moved {
		for id, d := range c.decisions {
			if !d.until.IsZero() && (moved || altered[d.then]) {
				out.successions[uint32(id)] = c.successionVersion(id)
			}
		}
	}
	if moved {
		for identity := range c.refused {
			out.refused[uint32(identity)] = c.refusedVersion(identity)
		}
	}
}

func (c *content) refusedVersion(identity bocage.Identity) bpf.KernelRefused {
	r, is := c.refused[identity]
	if !is {
		return bpf.KernelRefused{}
	}
	version := bpf.KernelRefused{Until: forever, Decision: uint32(r.Decision)}
	if !r.Until.IsZero() {
		version.Until = uint64(c.clock.monotonic(r.Until))
	}
	return version
}

func (c *content) successionVersion(id bocage.DecisionID) bpf.KernelSuccession {
	d, is := c.decisions[id]
	if !is || d.until.IsZero() {
		return bpf.KernelSuccession{}
	}
	return bpf.KernelSuccession{Until: uint64(c.clock.monotonic(d.until)), Then: c.decisions[d.then].row}
}

func (c *content) groupVersion(g bocage.Group) bpf.KernelGroup {
	info := c.groups[g]
	if g == bocage.GroupWorld && !info.listed {
		info = groupInfo{listed: true, sender: bocage.GroupWorld, receiver: bocage.GroupWorld}
	}
	masks := c.forms.masks[g]
	version := bpf.KernelGroup{ExactFrom: masks[exactFrom], ExactTo: masks[exactTo], AnyTo: masks[anyTo], AnyFrom: masks[anyFrom],
		Sender: uint32(info.sender), Receiver: uint32(info.receiver)}
	if info.listed {
		version.Flags = groupHere
	}
	if info.enforce {
		version.Flags |= groupEnforces
	}
	return version
}

// header is the row of the ruleset itself.
func (c *content) header(slot uint32) bpf.KernelRuleset {
	header := bpf.KernelRuleset{Generation: c.generation, Any: c.forms.masks[bocage.GroupAny][forAny],
		Reasons: c.forms.masks[bocage.GroupAny][forReasons], Refused: uint32(len(c.refused)), Slot: slot, Names: c.depths}
	header.Fallback = c.decisions[c.fallback].row
	header.Lengths4, header.Lengths6 = c.prefixes.lengths()
	return header
}

// cellsOf lists the keys of a rule's rows.
func cellsOf(r bocage.Rule, kind uint8) func(func(bpf.KernelRuleKey) bool) {
	key := bpf.KernelRuleKey{From: uint32(r.From), To: uint32(r.To), Protocol: uint8(r.Protocol)}
	return func(yield func(bpf.KernelRuleKey) bool) {
		for low, high := uint32(r.Ports.First), uint32(r.Ports.Last); low <= high; {
			size, bits := uint32(1), uint8(16)
			for bits > 0 && low%(size*2) == 0 && low+size*2-1 <= high {
				size, bits = size*2, bits-1
			}
			key.Port, key.Bits = uint16(low), bits|kind
			if !yield(key) {
				return
			}
			low += size
		}
	}
}

// What a group's masks are of (see abi.h), and what those of GroupAny are of.
const (
	exactFrom = iota
	exactTo
	anyTo
	anyFrom
	roles
	forAny     = exactFrom
	forReasons = exactTo
)

// formCounts counts the rows of each form by the groups that their rules name, so
// that masks of the forms in use are exact.
type formCounts struct {
	counts map[formKey]int32
	masks  map[bocage.Group][roles]uint64
}

type formKey struct {
	group      bocage.Group
	role, form uint8
}

func newFormCounts() formCounts {
	return formCounts{counts: map[formKey]int32{}, masks: map[bocage.Group][roles]uint64{}}
}

func (f *formCounts) count(r bocage.Rule, kind, bits uint8, by int, touched map[bocage.Group]bool) {
	form := 16 - bits
	if r.Protocol == bocage.ProtocolAny {
		form += formAnyProtocol
	}
	switch {
	case kind == ruleReason:
		f.add(formKey{bocage.GroupAny, forReasons, form}, by, touched)
	case r.From == bocage.GroupAny && r.To == bocage.GroupAny:
		f.add(formKey{bocage.GroupAny, forAny, form}, by, touched)
	case r.From == bocage.GroupAny:
		f.add(formKey{r.To, anyFrom, form}, by, touched)
	case r.To == bocage.GroupAny:
		f.add(formKey{r.From, anyTo, form}, by, touched)
	default:
		f.add(formKey{r.From, exactFrom, form}, by, touched)
		f.add(formKey{r.To, exactTo, form}, by, touched)
	}
}

func (f *formCounts) add(key formKey, by int, touched map[bocage.Group]bool) {
	was := f.counts[key]
	is := was + int32(by)
	if is == 0 {
		delete(f.counts, key)
	} else {
		f.counts[key] = is
	}
	if (was == 0) == (is == 0) {
		return
	}
	masks := f.masks[key.group]
	masks[key.role] ^= 1 << key.form
	if masks == [roles]uint64{} {
		delete(f.masks, key.group)
	} else {
		f.masks[key.group] = masks
	}
	touched[key.group] = true
}

func prefixKey(high, low uint64, length uint8) bpf.KernelPrefixKey {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], high)
	binary.BigEndian.PutUint64(raw[8:], low)
	key := bpf.KernelPrefixKey{Length: uint32(length)}
	for i := range key.Address {
		key.Address[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return key
}

// addressOf puts an address into the kernel's form.
func addressOf(a netip.Addr) bpf.KernelAddress {
	raw := a.As16()
	return bpf.KernelAddress{
		High: binary.NativeEndian.Uint64(raw[:8]),
		Low:  binary.NativeEndian.Uint64(raw[8:]),
	}
}

// addrOf is the reverse of addressOf; the zero address is invalid.
func addrOf(a bpf.KernelAddress) netip.Addr {
	if a.High == 0 && a.Low == 0 {
		return netip.Addr{}
	}
	var raw [16]byte
	binary.NativeEndian.PutUint64(raw[:8], a.High)
	binary.NativeEndian.PutUint64(raw[8:], a.Low)
	return netip.AddrFrom16(raw).Unmap()
}
