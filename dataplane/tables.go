package dataplane

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// tables is a ruleset as rows of kernel maps, but for the slots that they are
// written to. Making it is pure.
type tables struct {
	generation uint64
	peerKeys   []bpf.KernelPeerKey
	peers      []bpf.KernelPeer
	prefixKeys []bpf.KernelPrefixKey
	prefixes   []bpf.KernelPeer
	groupKeys  []bpf.KernelGroupKey
	groups     []uint32
	cellKeys   []bpf.KernelRuleKey
	cells      []bpf.KernelDecision
	shapes     []bpf.KernelShape
	fallback   bpf.KernelDecision
	refused    []bocage.Refusal
	endings    []ending

	worldEnforces        bool
	prefixes4, prefixes6 bool
	digest               [sha256.Size]byte // of everything but generation and refused
}

// ending is when a decision ends, and what takes its place.
type ending struct {
	decision uint32
	until    time.Time
	then     bpf.KernelDecision
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

// compile makes the rows of a ruleset, or says everything that is wrong with it.
func compile(rs *bocage.Ruleset) (*tables, error) {
	t := &tables{generation: rs.Generation, refused: rs.Refused}
	var faults faults
	decisions := compileDecisions(rs, &faults)
	t.compileEndings(rs, decisions, &faults)
	enforce := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		enforce[g.Group] = g.Enforce
	}
	for _, g := range slices.SortedFunc(keysOf(enforce), cmp.Compare[bocage.Group]) {
		if enforce[g] {
			t.groupKeys = append(t.groupKeys, bpf.KernelGroupKey{Group: uint32(g)})
			t.groups = append(t.groups, 1)
		}
	}
	t.worldEnforces = enforce[bocage.GroupWorld]
	t.compilePeers(rs, enforce, &faults)
	t.compileRules(rs, decisions, &faults)
	fallback, ok := decisions[rs.Default]
	if !ok {
		faults.add("the default decision %s is not among the decisions", rs.Default)
	}
	t.fallback = fallback
	for _, r := range rs.Refused {
		if _, ok := decisions[r.Decision]; !ok {
			faults.add("refusal of identity %d: decision %s is not among the decisions", r.Identity, r.Decision)
		}
	}
	if err := faults.err(); err != nil {
		return nil, err
	}
	t.digest = t.sum()
	return t, nil
}

func compileDecisions(rs *bocage.Ruleset, faults *faults) map[bocage.DecisionID]bpf.KernelDecision {
	profiles := make(map[uint16]bocage.Profile, len(rs.Profiles))
	for _, p := range rs.Profiles {
		profiles[p.Number] = p
	}
	decisions := make(map[bocage.DecisionID]bpf.KernelDecision, len(rs.Decisions))
	for _, d := range rs.Decisions {
		if d.Verdict < bocage.VerdictAllow || d.Verdict > bocage.VerdictReject {
			faults.add("decision %s: verdict %s", d.ID, d.Verdict)
		}
		row := bpf.KernelDecision{Id: uint32(d.ID), Verdict: uint8(d.Verdict), Reason: uint8(d.Code)}
		if d.Verdict == bocage.VerdictInspect {
			if d.Profile < 1 || d.Profile > 4094 {
				faults.add("decision %s: inspection profile %d is not between 1 and 4094", d.ID, d.Profile)
			}
			row.Profile = d.Profile
			if profiles[d.Profile].FailOpen {
				row.FailOpen = 1
			}
		}
		if !d.Until.IsZero() {
			row.Ends = 1
		}
		decisions[d.ID] = row
	}
	return decisions
}

// compileEndings lists the decisions that end, of which none may go on giving way
// for longer than the kernel follows.
func (t *tables) compileEndings(rs *bocage.Ruleset, decisions map[bocage.DecisionID]bpf.KernelDecision, faults *faults) {
	then := make(map[bocage.DecisionID]bocage.DecisionID)
	for _, d := range rs.Decisions {
		if d.Until.IsZero() {
			continue
		}
		next, ok := decisions[d.Then]
		if !ok {
			faults.add("decision %s gives way to %s, which is not among the decisions", d.ID, d.Then)
			continue
		}
		then[d.ID] = d.Then
		t.endings = append(t.endings, ending{uint32(d.ID), d.Until, next})
	}
	for _, d := range rs.Decisions {
		last, ends := d.ID, true
		for links := 0; ends && links <= bocage.MostSuccessors; links++ {
			last, ends = then[last]
		}
		if ends {
			faults.add("decision %s gives way to more than %d others in turn", d.ID, bocage.MostSuccessors)
		}
	}
}

func (t *tables) compilePeers(rs *bocage.Ruleset, enforce map[bocage.Group]bool, faults *faults) {
	seen := make(map[netip.Prefix]int, len(rs.Peers))
	for _, p := range rs.Peers {
		if !p.Prefix.IsValid() || p.Prefix.Addr().Is4In6() {
			faults.add("peer %s of identity %d: not a prefix of IPv4 or IPv6", p.Prefix, p.Identity)
			continue
		}
		prefix := p.Prefix.Masked()
		row := bpf.KernelPeer{Identity: uint32(p.Identity), Group: uint32(p.Group)}
		if enforce[p.Group] {
			row.Enforce = 1
		}
		if p.Host != "" {
			row.Enrolled = 1
		}
		// As in Decide, the last of several peers with one prefix stands.
		at, twice := seen[prefix]
		if prefix.IsSingleIP() {
			if twice {
				t.peers[at] = row
				continue
			}
			seen[prefix] = len(t.peers)
			t.peerKeys = append(t.peerKeys, bpf.KernelPeerKey{Address: addressOf(prefix.Addr())})
			t.peers = append(t.peers, row)
			continue
		}
		if twice {
			t.prefixes[at] = row
			continue
		}
		seen[prefix] = len(t.prefixes)
		t.prefixKeys = append(t.prefixKeys, prefixKey(prefix))
		t.prefixes = append(t.prefixes, row)
		if prefix.Addr().Is4() {
			t.prefixes4 = true
		} else {
			t.prefixes6 = true
		}
	}
}

// prefixFixedBits come before the address in a prefix's key: slot and family.
const prefixFixedBits = 64

func prefixKey(p netip.Prefix) bpf.KernelPrefixKey {
	key := bpf.KernelPrefixKey{Family: 6, Length: prefixFixedBits + uint32(p.Bits())}
	if p.Addr().Is4() {
		key.Family, key.Length = 4, prefixFixedBits+96+uint32(p.Bits())
	}
	raw := p.Addr().As16()
	for i := range key.Address {
		key.Address[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return key
}

func (t *tables) compileRules(rs *bocage.Ruleset, decisions map[bocage.DecisionID]bpf.KernelDecision, faults *faults) {
	shapes := make(map[bpf.KernelShape]bool)
	rules := slices.Clone(rs.Rules)
	slices.SortStableFunc(rules, bocage.CompareRules)
	for i, r := range rules {
		if r.Ports.First > r.Ports.Last {
			faults.add("rule from group %d to %d: ports %d-%d", r.From, r.To, r.Ports.First, r.Ports.Last)
			continue
		}
		if i > 0 {
			if p := rules[i-1]; p.From == r.From && p.To == r.To && p.Protocol == r.Protocol && p.Ports.Last >= r.Ports.First {
				faults.add("rules from group %d to %d %s: ports %s and %s overlap", r.From, r.To, r.Protocol, p.Ports, r.Ports)
			}
		}
		decision, ok := decisions[r.Decision]
		if !ok {
			faults.add("rule from group %d to %d: decision %s is not among the decisions", r.From, r.To, r.Decision)
			continue
		}
		for _, block := range r.Ports.Prefixes() {
			t.cellKeys = append(t.cellKeys, bpf.KernelRuleKey{From: uint32(r.From), To: uint32(r.To),
				Protocol: uint8(r.Protocol), Port: block.Port, Bits: block.Bits})
			t.cells = append(t.cells, decision)
			shapes[shapeOf(r, block.Bits)] = true
		}
	}
	t.shapes = slices.SortedFunc(keysOf(shapes), compareShapes)
}

// shapeOf is the form of a rule's keys: what of a packet they look at.
func shapeOf(r bocage.Rule, bits uint8) bpf.KernelShape {
	s := bpf.KernelShape{From: ^uint32(0), To: ^uint32(0), Protocol: 0xff, Port: ^uint16(uint32(0xffff) >> bits), Bits: bits}
	if r.From == bocage.GroupAny {
		s.From = 0
	}
	if r.To == bocage.GroupAny {
		s.To = 0
	}
	if r.Protocol == bocage.ProtocolAny {
		s.Protocol = 0
	}
	return s
}

// compareShapes orders forms as CompareRules orders rules: exact pairs, any
// source, any destination, any pair; the exact protocol before any.
func compareShapes(a, b bpf.KernelShape) int {
	return cmp.Or(
		-cmp.Compare(a.To, b.To),
		-cmp.Compare(a.From, b.From),
		-cmp.Compare(a.Protocol, b.Protocol),
		-cmp.Compare(a.Bits, b.Bits),
	)
}

func (t *tables) sum() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintln(h, len(t.peerKeys), len(t.prefixKeys), len(t.groupKeys), len(t.cellKeys), len(t.shapes))
	for _, rows := range [][]byte{bytesOf(t.peerKeys), bytesOf(t.peers), bytesOf(t.prefixKeys), bytesOf(t.prefixes),
		bytesOf(t.groupKeys), bytesOf(t.cellKeys), bytesOf(t.cells), bytesOf(t.shapes),
		bytesOf([]bpf.KernelDecision{t.fallback})} {
		h.Write(rows)
	}
	for _, e := range t.endings {
		fmt.Fprintln(h, e.decision, e.until.UnixNano(), e.then)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// header is the row of the ruleset itself.
func (t *tables) header(slot, refusedSlot uint32, refused int) *bpf.KernelRuleset {
	header := &bpf.KernelRuleset{
		Generation: t.generation, Digest: binary.BigEndian.Uint64(t.digest[:8]), Fallback: t.fallback,
		Slot: slot, RefusedSlot: refusedSlot, Refused: uint32(refused), ShapeCount: uint32(len(t.shapes)),
		Prefixes4: number(t.prefixes4), Prefixes6: number(t.prefixes6), WorldEnforces: number(t.worldEnforces),
	}
	copy(header.Shapes[:], t.shapes)
	return header
}

// refusedRows puts refusals that still hold into kernel time.
func refusedRows(refusals []bocage.Refusal, slot uint32, clock clock) ([]bpf.KernelRefusedKey, []bpf.KernelRefused) {
	var keys []bpf.KernelRefusedKey
	var rows []bpf.KernelRefused
	for _, r := range refusals {
		row := bpf.KernelRefused{Decision: uint32(r.Decision)}
		if !r.Until.IsZero() {
			until := clock.monotonic(r.Until)
			if until <= clock.monotonic(clock.wall) {
				continue
			}
			row.Until = uint64(until)
		}
		keys = append(keys, bpf.KernelRefusedKey{Slot: slot, Identity: uint32(r.Identity)})
		rows = append(rows, row)
	}
	return keys, rows
}

// successionRows puts the ends of decisions into kernel time.
func successionRows(endings []ending, slot uint32, clock clock) ([]bpf.KernelSuccessionKey, []bpf.KernelSuccession) {
	keys := make([]bpf.KernelSuccessionKey, len(endings))
	rows := make([]bpf.KernelSuccession, len(endings))
	for i, e := range endings {
		keys[i] = bpf.KernelSuccessionKey{Slot: slot, Decision: e.decision}
		rows[i] = bpf.KernelSuccession{Until: uint64(clock.monotonic(e.until)), Then: e.then}
	}
	return keys, rows
}

// clock ties wall time to the kernel's monotonic time at one moment.
type clock struct {
	wall time.Time
	ns   int64
}

// monotonic is at least 1, which is long ago, and at most what fits, which never
// comes: years of wall time may lie outside of the kernel's.
func (c clock) monotonic(t time.Time) int64 {
	d := int64(t.Sub(c.wall))
	if d > math.MaxInt64-c.ns {
		return math.MaxInt64
	}
	return max(c.ns+d, 1)
}

func (c clock) time(ns uint64) time.Time {
	return c.wall.Add(time.Duration(int64(ns) - c.ns)).UTC()
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
	if f.more > 0 {
		return errors.Join(append(f.errs, fmt.Errorf("and %d more", f.more))...)
	}
	return errors.Join(f.errs...)
}
