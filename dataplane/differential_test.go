package dataplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// skb is struct __sk_buff as far as BPF_PROG_RUN takes it.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	Cb                                                                          [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys                                                                    uint64
	Tstamp                                                                      uint64
	WireLen, GsoSegs                                                            uint32
	Sk                                                                          uint64
	GsoSize, TstampType                                                         uint32
	Hwtstamp                                                                    uint64
}

// What programs return.
const (
	next     = ^uint32(0) // on to the next program, or to the stack
	dropped  = 2
	redirect = 7
)

// judged runs a program over a frame as if it passed an interface.
func (p *plane) judged(from bool, ifindex uint32, b []byte) uint32 {
	p.t.Helper()
	program := p.objects.ToWorkload
	if from {
		program = p.objects.FromWorkload
	}
	verdict, err := program.Run(&ebpf.RunOptions{Data: b, Context: skb{Ifindex: ifindex}})
	must(p.t, err)
	return verdict
}

// forget empties what is remembered of packets.
func (p *plane) forget() {
	p.t.Helper()
	p.clearFlows()
	p.clearRefusals()
	must(p.t, clearRows(p.objects.Holdings, func(ifindex uint32) bool { return ifindex != 0 }))
	must(p.t, clearRows(p.objects.Fragments, func(bpf.KernelFragmentKey) bool { return true }))
	must(p.t, clearRows(p.objects.Questions, func(bpf.KernelQuestion) bool { return true }))
}

// universe is what random rulesets and packets are made of.
type universe struct {
	random    *rand.Rand
	addresses []netip.Addr
	beside    []netip.Addr // at the edges of prefixes
	groups    []bocage.Group
	protocols []bocage.Protocol
	edges     []uint16 // port numbers at the edges of ranges
}

func (u *universe) one4(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(n >> 4), byte(n&15) + 1})
}
func (u *universe) one6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 7: byte(n >> 4), 15: byte(n&15) + 1})
}

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

// ruleset makes a random, valid ruleset.
func (u *universe) ruleset(generation uint64) *bocage.Ruleset {
	r := u.random
	rs := &bocage.Ruleset{Generation: generation}
	u.groups = []bocage.Group{bocage.GroupWorld}
	for i := range 2 + r.IntN(8) {
		u.groups = append(u.groups, bocage.GroupFirst+bocage.Group(i)*7919)
	}
	for _, g := range u.groups {
		if r.IntN(4) > 0 {
			rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: g, Enforce: r.IntN(3) > 0,
				Sender: bocage.Group(r.IntN(4)), Receiver: bocage.Group(r.IntN(4))})
		}
	}
	u.decisions(rs)
	u.peers(rs)
	u.names(rs)
	u.rules(rs)
	if r.IntN(3) == 0 {
		u.reasons(rs)
	}
	u.refused(rs)
	return rs
}

// names gives some patterns groups that rules may lead to.
func (u *universe) names(rs *bocage.Ruleset) {
	r := u.random
	rs.Names = nil
	for i, pattern := range patterns {
		for k, tier := range namers {
			if r.IntN(2) > 0 {
				continue
			}
			group := bocage.GroupFirst + 1_000_000 + bocage.Group((3*i+k)*7+r.IntN(2))
			rs.Names = append(rs.Names, bocage.Name{Name: pattern, Tier: tier, Group: group})
			if !slices.Contains(u.groups, group) {
				u.groups = append(slices.Clip(u.groups), group)
			}
		}
	}
}

// patterns are those that a ruleset may have, in their order; those that are asked match some.
var (
	patterns   = []bocage.DomainName{"*.b.example.com", "*.example.com", "a.b.example.com", "a.example.com", "b.example.org"}
	askedNames = []bocage.DomainName{"a.example.com", "a.b.example.com", "b.example.org", "example.com", "nobody.test"}
)

// teach has the enforcement points know some addresses by names, for one identity.
func (u *universe) teach(p *plane, identity bocage.Identity) map[netip.Addr][]bocage.DomainName {
	must(p.t, clearRows(p.objects.Learned, func(bpf.KernelSetKey) bool { return true }))
	known := map[netip.Addr][]bocage.DomainName{}
	now, sets := readClock(), map[bpf.KernelSetKey]*bpf.KernelLearnedSet{}
	addresses := slices.Clone(u.addresses)
	for i := range 256 {
		addresses = append(addresses, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	for _, a := range addresses {
		for range 1 + u.random.IntN(3) {
			name, over := pick(u.random, askedNames), u.random.IntN(4) == 0
			until := now.ns + int64(time.Hour)
			if over {
				until = now.ns - int64(time.Second)
			}
			if p.learn(sets, identity, a, name, uint64(until)) && !over {
				known[a] = append(known[a], name)
			}
		}
	}
	for key, set := range sets {
		must(p.t, p.objects.Learned.Put(key, set))
	}
	return known
}

// learn puts into sets what the kernel would have learned of all patterns, if there
// is room.
func (p *plane) learn(sets map[bpf.KernelSetKey]*bpf.KernelLearnedSet, identity bocage.Identity, a netip.Addr, name bocage.DomainName, until uint64) bool {
	address := addressOf(a)
	key := bpf.KernelSetKey{Identity: uint32(identity), Part: p.nameKey.part(address)}
	if sets[key] == nil {
		sets[key] = &bpf.KernelLearnedSet{}
	}
	if rows := sets[key].Rows; rows[len(rows)-len(patterns)].Name != 0 {
		return false
	}
	for _, pattern := range patterns {
		if !pattern.Matches(name) {
			continue
		}
		for i := range sets[key].Rows {
			row := &sets[key].Rows[i]
			if same := row.Name == uint64(p.nameKey.id(pattern)) && row.Address == address; row.Name == 0 || same {
				row.Name, row.Address, row.Until = uint64(p.nameKey.id(pattern)), address, max(row.Until, until)
				break
			}
		}
	}
	return true
}

// refused cuts some identities off.
func (u *universe) refused(rs *bocage.Ruleset) {
	r := u.random
	rs.Refused = nil
	for range r.IntN(4) {
		refusal := bocage.Refusal{Identity: bocage.IdentityFirst + bocage.Identity(r.IntN(40)), Decision: pick(r, rs.Decisions).ID}
		if r.IntN(12) == 0 {
			refusal.Identity = bocage.IdentityWorld
		}
		switch r.IntN(3) {
		case 0:
			refusal.Until = time.Now().Add(time.Hour)
		case 1:
			refusal.Until = time.Now().Add(-time.Hour)
		}
		if !slices.ContainsFunc(rs.Refused, func(o bocage.Refusal) bool { return o.Identity == refusal.Identity }) {
			rs.Refused = append(rs.Refused, refusal)
		}
	}
}

// edited makes the next ruleset of one by a few small changes. It shares the lists
// in which nothing is new.
func (u *universe) edited(generation uint64, before *bocage.Ruleset) *bocage.Ruleset {
	r, rs := u.random, before.Copy()
	rs.Generation = generation
	for range 1 + r.IntN(4) {
		switch r.IntN(8) {
		case 7:
			u.names(rs)
		case 0:
			if n := len(rs.Rules); n > 0 {
				i := r.IntN(n)
				rs.Rules = slices.Delete(slices.Clone(rs.Rules), i, i+1)
			}
		case 1:
			if n := len(rs.Rules); n > 0 {
				rs.Rules = slices.Clone(rs.Rules)
				rs.Rules[r.IntN(n)].Decision = pick(r, rs.Decisions).ID
			}
		case 2:
			u.rules(rs)
		case 3:
			rs.Peers = slices.Clone(rs.Peers)
			rs.Peers[r.IntN(len(rs.Peers))].Group = pick(r, u.groups)
		case 4:
			i := r.IntN(len(rs.Peers))
			rs.Peers = slices.Delete(slices.Clone(rs.Peers), i, i+1)
			u.prefix(rs, bocage.IdentityFirst+bocage.Identity(500+r.IntN(100)))
		case 5:
			if n := len(rs.Groups); n > 0 {
				rs.Groups = slices.Clone(rs.Groups)
				rs.Groups[r.IntN(n)].Enforce = r.IntN(2) == 0
			}
		case 6:
			u.refused(rs)
		}
	}
	return rs
}

// between is the change from one ruleset to another with the same decisions, reasons
// and groups.
func between(a, b *bocage.Ruleset) Change {
	c := Change{Generation: b.Generation, RulesGone: without(a.Rules, b.Rules), RulesCome: without(b.Rules, a.Rules),
		Groups: without(b.Groups, a.Groups), Refused: without(b.Refused, a.Refused)}
	if !slices.Equal(a.Names, b.Names) {
		c.Names = &b.Names
	}
	standing := func(peers []bocage.Peer) []bocage.Peer { // the last with a prefix
		last := map[netip.Prefix]bocage.Peer{}
		for _, p := range peers {
			last[p.Prefix.Masked()] = p
		}
		return slices.Collect(maps.Values(last))
	}
	was, is := standing(a.Peers), standing(b.Peers)
	c.PeersGone, c.PeersCome = without(was, is), without(is, was)
	for _, r := range a.Refused {
		if !slices.ContainsFunc(b.Refused, func(o bocage.Refusal) bool { return o.Identity == r.Identity }) {
			c.Lifted = append(c.Lifted, r.Identity)
		}
	}
	return c
}

// without lists what is in the first list only.
func without[T comparable](list, others []T) []T {
	in := map[T]bool{}
	for _, x := range others {
		in[x] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(x T) bool { return in[x] })
}

// reasons adds rules between classes of groups.
func (u *universe) reasons(rs *bocage.Ruleset) {
	rules := rs.Rules
	groups := u.groups
	u.groups = []bocage.Group{0, 1, 2, 3}
	u.rules(rs)
	u.groups = groups
	rs.Reasons, rs.Rules = rs.Rules, rules
}

func (u *universe) decisions(rs *bocage.Ruleset) {
	r := u.random
	for i := range 2 + r.IntN(bocage.MostSuccessors) {
		d := bocage.Decision{ID: bocage.DecisionID(r.Uint32()), Code: pick(r, []bocage.ReasonCode{bocage.ReasonRule, bocage.ReasonKubernetes}),
			Verdict: bocage.Verdict(1 + r.IntN(5))}
		if i == 0 {
			d.Verdict = []bocage.Verdict{bocage.VerdictDrop, bocage.VerdictReject, bocage.VerdictDecoy, bocage.VerdictAllow}[r.IntN(4)]
		}
		if !d.Verdict.Allowed() {
			d.Code = pick(r, []bocage.ReasonCode{bocage.ReasonDefaultDeny, bocage.ReasonGuardrail, bocage.ReasonThreat, bocage.ReasonKubernetes})
			d.Final = r.IntN(2) == 0
		}
		if r.IntN(3) > 0 {
			d.Ranks = u.ranks(d.Verdict.Allowed())
		}
		if d.Verdict == bocage.VerdictInspect {
			d.Profile = 1 + uint16(r.IntN(4094))
		}
		if d.Verdict.Allowed() && r.IntN(3) == 0 { // so fast that it is never too fast here
			d.Duties = &bocage.Duties{Rate: pick(r, []string{"900000/s", "999999/s"})}
		}
		rs.Decisions = append(rs.Decisions, d)
	}
	rs.Default = rs.Decisions[0].ID
	u.endings(rs)
}

// ranks are so few that many are equal or next to each other. One author allows a name.
func (u *universe) ranks(allowed bool) bocage.Ranks {
	one := func() uint32 {
		return pick(u.random, []uint32{0, 1, 2, 3, 1 << 31, bocage.EveryRank - 1, bocage.EveryRank})
	}
	if ranks := (bocage.Ranks{Admin: one(), Baseline: one()}); !allowed || u.random.IntN(8) == 0 {
		return ranks
	}
	if u.random.IntN(2) == 0 {
		return bocage.Ranks{Admin: one()}
	}
	return bocage.Ranks{Baseline: one()}
}

// endings makes some decisions give way to later ones: at times that are over, or
// to come, or farther away than the kernel can count. Chains are as long as may be.
func (u *universe) endings(rs *bocage.Ruleset) {
	r, now := u.random, time.Now()
	many := r.IntN(2) == 0
	for i := range rs.Decisions[:len(rs.Decisions)-1] {
		if !many && r.IntN(3) > 0 {
			continue
		}
		d := &rs.Decisions[i]
		d.Until = pick(r, []time.Time{now.Add(-time.Hour), now.Add(-time.Hour), now.Add(-10 * time.Millisecond), now.Add(time.Hour),
			time.Unix(1, 0), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
		d.Then = rs.Decisions[i+1].ID
		if !many {
			d.Then = pick(r, rs.Decisions[i+1:]).ID
		}
	}
}

func (u *universe) peers(rs *bocage.Ruleset) {
	r := u.random
	u.addresses = nil
	identity := bocage.IdentityFirst
	add := func(p netip.Prefix) {
		identity++
		peer := bocage.Peer{Prefix: p, Identity: identity, Group: pick(r, u.groups)}
		if r.IntN(2) == 0 {
			peer.Host = "h1"
		}
		if r.IntN(10) == 0 {
			peer.Identity = bocage.IdentityWorld
		}
		rs.Peers = append(rs.Peers, peer)
	}
	for n := range 40 {
		for _, a := range []netip.Addr{u.one4(n), u.one6(n)} {
			u.addresses = append(u.addresses, a)
			if r.IntN(3) > 0 {
				add(netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	for range pick(r, []int{0, 1, 6, 6, 80}) {
		identity++
		u.prefix(rs, identity)
	}
}

// prefix adds a peer with some of the bits of an address.
func (u *universe) prefix(rs *bocage.Ruleset, identity bocage.Identity) {
	a := pick(u.random, u.addresses)
	p, _ := a.Prefix(u.random.IntN(a.BitLen()))
	rs.Peers = append(slices.Clip(rs.Peers), bocage.Peer{Prefix: p, Identity: identity, Group: pick(u.random, u.groups)})
}

func (u *universe) rules(rs *bocage.Ruleset) {
	r := u.random
	rs.Rules = nil
	u.edges = []uint16{0, 1, 65534, 65535}
	u.protocols = []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP, bocage.ProtocolICMP, 47, 132, 255}
	type place struct {
		from, to bocage.Group
		protocol bocage.Protocol
	}
	taken := map[place]bool{}
	var named []bocage.Group
	for _, n := range rs.Names {
		named = append(named, n.Group)
	}
	for _, name := range named { // broad ones, else hardly any packet meets any
		for _, from := range u.groups {
			if at := (place{from, name, bocage.ProtocolAny}); r.IntN(2) == 0 {
				taken[at] = true
				rs.Rules = append(rs.Rules, bocage.Rule{From: from, To: name, Ports: bocage.AllPorts, Decision: pick(r, rs.Decisions).ID})
			}
		}
	}
	for range r.IntN(60) {
		at := place{pick(r, u.groups), pick(r, u.groups), pick(r, append(u.protocols, bocage.ProtocolAny, bocage.ProtocolICMPv6))}
		if r.IntN(4) == 0 {
			at.from = bocage.GroupAny
		}
		if r.IntN(4) == 0 {
			at.to = bocage.GroupAny
		}
		if len(named) > 0 && r.IntN(4) == 0 {
			at.to = pick(r, named)
		}
		if taken[at] {
			continue
		}
		taken[at] = true
		if r.IntN(3) == 0 {
			rs.Rules = append(rs.Rules, bocage.Rule{From: at.from, To: at.to, Protocol: at.protocol, Ports: bocage.AllPorts, Decision: pick(r, rs.Decisions).ID})
			continue
		}
		low := 0
		for range 1 + r.IntN(3) {
			first := low + r.IntN(1+(65535-low)/2)
			last := min(65535, first+[]int{0, 1, 2, 100, 1023, r.IntN(20000)}[r.IntN(6)])
			rs.Rules = append(rs.Rules, bocage.Rule{From: at.from, To: at.to, Protocol: at.protocol,
				Ports: bocage.PortRange{First: uint16(first), Last: uint16(last)}, Decision: pick(r, rs.Decisions).ID})
			for _, edge := range []int{first - 1, first, last, last + 1} {
				if edge >= 0 && edge <= 65535 {
					u.edges = append(u.edges, uint16(edge))
				}
			}
			if low = last + 1; low > 65000 {
				break
			}
		}
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
}

// expectation is what the model says of a packet at a point.
type expectation struct {
	returned            uint32
	kind                bocage.EventKind
	verdict, would      bocage.Verdict
	reason              bocage.ReasonCode
	decision            bocage.DecisionID
	source, destination bocage.Identity
	direction           bocage.Direction
	differs             bool
	remote              netip.Addr
	protocol            bocage.Protocol
	sport, dport        uint16
}

// told is what an event says, beside what the program returned.
func toldBy(returned uint32, e *bocage.FlowEvent) expectation {
	return expectation{returned: returned, kind: e.Kind, verdict: e.Verdict, would: e.Would, reason: e.Reason, decision: e.Decision,
		source: e.Source, destination: e.Destination, direction: e.Direction, differs: e.Differs,
		remote: e.Remote, protocol: e.Protocol, sport: e.SourcePort, dport: e.DestinationPort}
}

// expect asks the model. Only what lies around Decide is written out here: the
// kind of event, where inspection happens, that only TCP meets decoys, and that
// not every packet may be answered.
func expect(rs, candidate *bocage.Ruleset, f bocage.Flow, names []bocage.DomainName, from, answerable bool) expectation {
	verdict, reason := rs.DecideNamed(f, names...)
	source, destination := rs.Lookup(f.Source), rs.Lookup(f.Destination)
	e := expectation{returned: next, kind: bocage.EventStart, verdict: verdict, would: reason.Would, reason: reason.Code,
		decision: reason.Decision, source: source.Identity, destination: destination.Identity,
		remote: f.Destination, protocol: f.Protocol, sport: f.SourcePort, dport: f.DestinationPort}
	if !from {
		e.direction, e.remote = bocage.DirectionTo, f.Source
	}
	switch f.Protocol { // the type and code of an echo request stand for a port
	case bocage.ProtocolICMP:
		e.dport = 8 << 8
	case bocage.ProtocolICMPv6:
		e.dport = 128 << 8
	}
	if !reason.Would.Allowed() {
		e.kind = bocage.EventRefused
	}
	if candidate != nil {
		_, other := candidate.DecideNamed(f, names...)
		e.differs = other.Would.Allowed() != reason.Would.Allowed()
	}
	switch verdict {
	case bocage.VerdictDrop:
		e.returned = dropped
	case bocage.VerdictDecoy:
		e.returned = redirect
		if f.Protocol != bocage.ProtocolTCP {
			e.verdict, e.returned = bocage.VerdictDrop, dropped
		}
	case bocage.VerdictReject:
		e.returned = redirect
		if !answerable {
			e.verdict, e.returned = bocage.VerdictDrop, dropped
		}
	case bocage.VerdictInspect:
		if (destination.Host != "") == !from {
			e.returned = redirect
		}
	}
	return e
}

// The kernel agrees with Ruleset.Decide on every packet of a million, of every
// shape, and about every candidate.
func TestRootDifferential(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.AnswersPerSecond = 1 << 26 })
	u := &universe{random: newRandom(t)}
	w := p.workload(200, 1000, 1000)
	exits := p.exits()
	p.in(func() error { return p.SetInspection(Inspection{Outside: exits[0], Inside: exits[1], Up: true}) })
	p.in(func() error { return p.SetDecoy(DecoyPort{Ifindex: exits[2], MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9}}) })
	reader, err := ringbuf.NewReader(p.objects.Events)
	must(t, err)
	defer reader.Close()
	d := &differential{plane: p, universe: u, workload: w, reader: reader, seen: map[string]int{}, silent: map[bocage.ReasonCode]uint64{}}
	d.runners[0], err = newRunner(p.objects.ToWorkload, w.ifindex)
	must(t, err)
	d.runners[1], err = newRunner(p.objects.FromWorkload, w.ifindex)
	must(t, err)

	var rs *bocage.Ruleset
	generation := uint64(1)
	for ; d.packets < 1_000_000; generation++ {
		var candidate *bocage.Ruleset
		if u.random.IntN(2) == 0 {
			candidate = u.ruleset(1e6 + generation)
		}
		switch before := rs; {
		case rs == nil || u.random.IntN(3) == 0:
			rs = u.ruleset(generation)
			must(t, p.Apply(rs))
		case u.random.IntN(2) == 0:
			rs = u.edited(generation, rs)
			must(t, p.Apply(rs))
		default:
			rs = u.edited(generation, rs)
			must(t, p.Amend(between(before, rs)))
		}
		must(t, p.Shadow(candidate))
		if n := p.differing(rs); candidate == nil && n != 0 {
			t.Fatalf("generation %d: %d rows are not those of the ruleset", generation, n)
		}
		p.forget()
		local := u.local(rs)
		if candidate != nil { // a port vouches for addresses that a ruleset does not know
			local = slices.DeleteFunc(local, func(a netip.Addr) bool { return !covers(candidate, a) })
		}
		u.beside = prefixEdges(rs)
		w.port.Addresses = local
		p.attach(w)
		d.known = u.teach(p, w.port.Identity)
		p.in(func() error { return d.pass(rs, candidate, local) })
		if got, err := p.Candidate(); err != nil || got != d.compared {
			t.Fatalf("generation %d: compared %+v, want %+v (%v)", generation, got, d.compared, err)
		}
	}
	c := d.counters()
	for reason, most := range map[bocage.ReasonCode]uint64{bocage.ReasonMalformed: 0, bocage.ReasonFragment: d.heard} {
		want := d.silent[reason]
		if got := c.Refused[reason].Packets + c.Passed[reason].Packets; got < want || got > want+most || want == 0 {
			t.Errorf("%d packets are counted as %s, want %d and up to %d more", got, reason, want, most)
		}
	}
	for _, what := range []string{"by name", "by name, over what Kubernetes forbids"} {
		if d.seen[what] < 100 {
			t.Errorf("%d packets were decided %s: this tests little of that", d.seen[what], what)
		}
	}
	t.Logf("%d packets, %d rulesets: %v", d.packets, generation-1, d.seen)
}

// differential compares what the programs do and tell with what the model says.
type differential struct {
	*plane
	*universe
	workload *workload
	runners  [2]*runner // to the workload, from it
	reader   *ringbuf.Reader
	id       uint16
	packets  int
	seen     map[string]int
	silent   map[bocage.ReasonCode]uint64 // packets that no event of their own tells of
	heard    uint64                       // pieces that may be refused to be heard
	compared Candidate
	known    map[netip.Addr][]bocage.DomainName
}

func (d *differential) counters() Counters {
	d.t.Helper()
	c, err := d.Counters()
	must(d.t, err)
	return c
}

// pass sends some thousand packets past the point under one ruleset.
func (d *differential) pass(rs, candidate *bocage.Ruleset, local []netip.Addr) error {
	const each, batch = 2000, 250
	d.compared = Candidate{}
	if candidate != nil {
		d.compared.Generation = candidate.Generation
	}
	s := &shaper{random: d.random, w: d.workload, rs: rs, candidate: candidate, id: d.id, known: d.known}
	sent, waiting := map[bocage.Flow]bool{}, []passing{}
	for i := range each {
		f, from, ok := d.packet(rs, local)
		// Refusals that differ in their source port only are reported as
		// one, and a flow's answers do not open another.
		once, back := f, f
		once.SourcePort, back.SourcePort = 0, 0
		back.Source, back.Destination = f.Destination, f.Source
		if ok && !sent[once] && (!sent[back] || f.Protocol.HasPorts()) {
			sent[once] = true
			waiting = append(waiting, s.frames(f, from)...)
		}
		if len(waiting) < batch && i < each-1 {
			continue
		}
		if err := d.compare(rs, waiting); err != nil {
			return err
		}
		d.packets, waiting = d.packets+len(waiting), waiting[:0]
	}
	d.id = s.id
	return nil
}

// compare runs the programs over frames, and reads what they tell.
func (d *differential) compare(rs *bocage.Ruleset, frames []passing) error {
	returned := make([]uint32, len(frames))
	for i := range frames {
		var err error
		if returned[i], err = d.runners[number(frames[i].from)].run(frames[i].raw); err != nil {
			return err
		}
	}
	d.reader.SetDeadline(time.Now().Add(long))
	for i := range frames {
		p := &frames[i]
		d.seen[p.shape]++
		got := expectation{returned: returned[i]}
		if p.silent {
			d.silent[p.reason]++
			d.heard += uint64(number(p.heard))
			p.want = expectation{returned: p.want.returned}
		} else {
			event, err := d.event()
			if err != nil {
				return fmt.Errorf("no event of %s, %s (from %v, returned %d): %w", p.shape, p.flow, p.from, returned[i], err)
			}
			got = toldBy(returned[i], &event)
			if _, plain := rs.Decide(p.flow); plain.Decision != p.want.decision && p.want.would.Allowed() {
				d.seen["by name"]++
				if was, _ := rs.Decision(plain.Decision); was.Final {
					d.seen["by name, over what Kubernetes forbids"]++
				}
			}
			d.seen[fmt.Sprint(p.want.verdict, " would ", p.want.would, " ", p.want.reason)]++
			d.compared.Evaluated += uint64(number(d.compared.Generation != 0))
			d.compared.Differs += uint64(number(p.want.differs))
		}
		if got != p.want {
			return fmt.Errorf("generation %d: %s, %s (from the workload: %v)\nkernel %+v\nmodel  %+v\nsource %+v\ndestination %+v\nframe % x",
				rs.Generation, p.shape, p.flow, p.from, got, p.want, rs.Lookup(p.flow.Source), rs.Lookup(p.flow.Destination), p.raw)
		}
	}
	return nil
}

// event reads the next one that is not of packets that are counted together.
func (d *differential) event() (e bocage.FlowEvent, err error) {
	var record ringbuf.Record
	for {
		if err := d.reader.ReadInto(&record); err != nil {
			return e, err
		}
		if err := e.UnmarshalBinary(record.RawSample); err != nil {
			return e, err
		}
		if e.Reason != bocage.ReasonMalformed && e.Reason != bocage.ReasonFragment && e.Protocol != 0 {
			return e, nil
		}
	}
}

// covers says whether some peer of a ruleset has an address.
func covers(rs *bocage.Ruleset, a netip.Addr) bool {
	return slices.ContainsFunc(rs.Peers, func(p bocage.Peer) bool { return p.Prefix.Contains(a) })
}

// local chooses addresses for the workload that the model knows by themselves.
func (u *universe) local(rs *bocage.Ruleset) []netip.Addr {
	var all []netip.Addr
	for _, a := range u.addresses {
		if rs.Lookup(a).Identity >= bocage.IdentityFirst || u.random.IntN(2) == 0 && rs.Lookup(a).Group != bocage.GroupWorld {
			all = append(all, a)
		}
	}
	u.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var four, six []netip.Addr
	for _, a := range all {
		if a.Is4() && len(four) < 4 {
			four = append(four, a)
		}
		if a.Is6() && len(six) < 4 {
			six = append(six, a)
		}
	}
	return append(four, six...)
}

// packet chooses a flow to or from the workload.
func (u *universe) packet(rs *bocage.Ruleset, local []netip.Addr) (f bocage.Flow, from, ok bool) {
	r := u.random
	if len(local) == 0 {
		return f, false, false
	}
	from = r.IntN(2) == 0
	here, there := pick(r, local), pick(r, u.addresses)
	switch r.IntN(12) {
	case 0, 3, 4:
		there = netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(256))})
	case 1, 2:
		if len(u.beside) > 0 {
			there = pick(r, u.beside)
		}
	}
	if here.Is4() != there.Is4() || here == there {
		return f, false, false
	}
	f = bocage.Flow{Source: here, Destination: there, Protocol: pick(r, u.protocols), At: time.Time{}}
	if !from {
		f.Source, f.Destination = there, here
	}
	if f.Protocol == bocage.ProtocolICMP && here.Is6() {
		f.Protocol = bocage.ProtocolICMPv6
	}
	if f.Protocol.HasPorts() {
		f.SourcePort, f.DestinationPort = uint16(r.Uint32()), pick(r, u.edges)
		if r.IntN(4) == 0 {
			f.DestinationPort = uint16(r.Uint32())
		}
	} else if f.Protocol == bocage.ProtocolICMP || f.Protocol == bocage.ProtocolICMPv6 {
		f.SourcePort = uint16(r.Uint32())
	}
	return f, from, true
}

// exits makes three links that stand for the engine's and the decoys'.
func (p *plane) exits() (indexes [3]uint32) {
	for i, name := range []string{"outside", "inside", "decoy"} {
		must(p.t, host.CreateVeth(host.Veth{Name: name, Namespace: p.namespace, Peer: name + "x", PeerNamespace: p.namespace}))
		l, err := host.LinkNamed(p.namespace, name)
		must(p.t, err)
		indexes[i] = l.Index
	}
	return indexes
}
