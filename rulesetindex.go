package bocage

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// rulesetIndex holds an index and a digest of each list of a ruleset, made on first use.
// Rulesets that share a list share its index and digest.
type rulesetIndex struct {
	peers     *listPart[Peer, peerIndex]
	groups    *listPart[GroupInfo, map[Group]GroupInfo]
	rules     *listPart[Rule, map[pairKey][]Rule]
	reasons   *listPart[Rule, map[pairKey][]Rule]
	decisions *listPart[Decision, map[DecisionID]Decision]
	refused   *listPart[Refusal, map[Identity]Refusal]
	rest      func() [sha256.Size]byte // the digest of all other content (see besides)
	namings   func() namingIndex
}

// listPart is one list with its index and its digest. It is immutable.
type listPart[T, X any] struct {
	list []T
	find func() X
	sum  func() sum
}

func newListPart[T, X any](list []T, before *listPart[T, X], index func([]T) X, row func([]byte, *T) []byte) *listPart[T, X] {
	if before != nil && sameList(before.list, list) {
		return before
	}
	return &listPart[T, X]{list: list, find: sync.OnceValue(func() X { return index(list) }), sum: sync.OnceValue(func() sum { return sumOf(list, row) })}
}

// sameList reports whether two slices are the same memory.
func sameList[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

func (r *Ruleset) indexed() *rulesetIndex {
	r.indexOnce.Do(func() {
		before := r.like
		if before == nil {
			before = &rulesetIndex{}
		}
		r.index, r.like = &rulesetIndex{
			peers: newListPart(r.Peers, before.peers, indexPeers, appendPeer), groups: newListPart(r.Groups, before.groups, indexGroups, appendGroup),
			rules: newListPart(r.Rules, before.rules, indexRules, appendRule), reasons: newListPart(r.Reasons, before.reasons, indexRules, appendRule),
			decisions: newListPart(r.Decisions, before.decisions, indexDecisions, appendDecision),
			refused:   newListPart(r.Refused, before.refused, indexRefused, appendRefusal),
			rest:      sync.OnceValue(r.restDigest),
			namings:   namingsOnce(r.Namings),
		}, nil
	})
	return r.index
}

// Like reuses the indexes and digests of lists that the ruleset shares with another one.
// It must be called before the ruleset's first use. It returns the ruleset.
func (r *Ruleset) Like(other *Ruleset) *Ruleset {
	r.like = other.indexed()
	r.indexed() // and hold the other one no longer
	return r
}

// sum is a digest of a set of rows that can be updated incrementally: the sum of the rows'
// own digests. It finds accidental differences. It is no protection against somebody who
// makes two contents with one sum on purpose; signatures are.
type sum [sha256.Size / 8]uint64

func (s *sum) count(row []byte, sign uint64) {
	digest := sha256.Sum256(row)
	for i := range s {
		s[i] += sign * binary.BigEndian.Uint64(digest[8*i:])
	}
}

const (
	plus  = uint64(1)
	minus = ^uint64(0)
)

func sumOf[T any](list []T, row func([]byte, *T) []byte) (s sum) {
	var buffer []byte
	for i := range list {
		buffer = row(buffer[:0], &list[i])
		s.count(buffer, plus)
	}
	return s
}

// ContentDigest names the content of the ruleset, which is everything except Generation,
// Digest and ConfirmBy: the SHA-256, in hex, of the sums of its lists and of all other
// fields as JSON.
func (r *Ruleset) ContentDigest() string {
	ix := r.indexed()
	return contentDigest([...]sum{ix.peers.sum(), ix.groups.sum(), ix.rules.sum(), ix.reasons.sum(), ix.decisions.sum(), ix.refused.sum()}, ix.rest())
}

func contentDigest(sums [6]sum, rest [sha256.Size]byte) string {
	all := rest[:]
	for _, s := range sums {
		for _, lane := range s {
			all = binary.BigEndian.AppendUint64(all, lane)
		}
	}
	digest := sha256.Sum256(all)
	return hex.EncodeToString(digest[:])
}

// besides returns a ruleset with the content that is in none of the lists that amendments
// edit.
func (r *Ruleset) besides() *Ruleset {
	rest := r.Copy()
	rest.Peers, rest.Groups, rest.Rules, rest.Reasons, rest.Decisions, rest.Refused = nil, nil, nil, nil, nil, nil
	rest.Generation, rest.Digest, rest.ConfirmBy = 0, "", time.Time{}
	return rest
}

func (r *Ruleset) restDigest() [sha256.Size]byte {
	text, err := json.Marshal(r.besides())
	if err != nil {
		text = fmt.Append(nil, "not to be written: ", err) // equal to no valid JSON
	}
	return sha256.Sum256(text)
}

// Encodings of rows for sums: every field, in a fixed order and width.

func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
}

func appendPeer(b []byte, p *Peer) []byte {
	address := p.Prefix.Addr().As16()
	b = append(b, address[:]...)
	b = append(b, byte(p.Prefix.Addr().BitLen()), byte(p.Prefix.Bits()))
	b = binary.BigEndian.AppendUint32(b, uint32(p.Identity))
	b = binary.BigEndian.AppendUint32(b, uint32(p.Group))
	return appendText(appendText(b, p.Host), p.Workload)
}

func appendGroup(b []byte, g *GroupInfo) []byte {
	for _, n := range [...]Group{g.Group, g.Sender, g.Receiver} {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	if g.Enforce {
		b = append(b, 1)
	}
	return appendText(b, g.Name)
}

func appendRule(b []byte, r *Rule) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(r.From))
	b = binary.BigEndian.AppendUint32(b, uint32(r.To))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Protocol))
	b = binary.BigEndian.AppendUint16(b, r.Ports.First)
	b = binary.BigEndian.AppendUint16(b, r.Ports.Last)
	return binary.BigEndian.AppendUint32(b, uint32(r.Decision))
}

func appendDecision(b []byte, d *Decision) []byte {
	plain := *d
	plain.Until = plain.Until.UTC()
	text, err := json.Marshal(plain)
	if err != nil {
		return fmt.Append(b, "not to be written: ", d.ID, err)
	}
	return append(b, text...)
}

func appendRefusal(b []byte, r *Refusal) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(r.Identity))
	b = binary.BigEndian.AppendUint32(b, uint32(r.Decision))
	if !r.Until.IsZero() {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Until.UnixNano()))
	}
	return b
}

type pairKey struct {
	from, to Group
	protocol Protocol
}

type peerIndex struct {
	peers    map[netip.Prefix]Peer
	lengths4 []int // prefix lengths in use, longest first
	lengths6 []int
}

func indexPeers(list []Peer) peerIndex {
	ix := peerIndex{peers: make(map[netip.Prefix]Peer, len(list))}
	seen4, seen6 := map[int]bool{}, map[int]bool{}
	for _, p := range list {
		ix.peers[p.Prefix.Masked()] = p
		if p.Prefix.Addr().Is4() {
			seen4[p.Prefix.Bits()] = true
		} else {
			seen6[p.Prefix.Bits()] = true
		}
	}
	ix.lengths4, ix.lengths6 = longestFirst(seen4), longestFirst(seen6)
	return ix
}

func indexGroups(list []GroupInfo) map[Group]GroupInfo {
	groups := make(map[Group]GroupInfo, len(list)+1)
	groups[GroupWorld] = GroupInfo{Sender: GroupWorld, Receiver: GroupWorld}
	for _, g := range list {
		groups[g.Group] = g
	}
	return groups
}

func indexRules(list []Rule) map[pairKey][]Rule {
	rules := make(map[pairKey][]Rule)
	for _, rule := range list {
		key := pairKey{rule.From, rule.To, rule.Protocol}
		rules[key] = append(rules[key], rule)
	}
	return rules
}

func indexDecisions(list []Decision) map[DecisionID]Decision {
	decisions := make(map[DecisionID]Decision, len(list))
	for _, d := range list {
		decisions[d.ID] = d
	}
	return decisions
}

func indexRefused(list []Refusal) map[Identity]Refusal {
	refused := make(map[Identity]Refusal, len(list))
	for _, refusal := range list {
		refused[refusal.Identity] = refusal
	}
	return refused
}

func longestFirst(seen map[int]bool) []int {
	var lengths []int
	for bits := range seen {
		lengths = append(lengths, bits)
	}
	slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	return lengths
}

func (ix peerIndex) lengths(address netip.Addr) []int {
	if address.Is4() {
		return ix.lengths4
	}
	return ix.lengths6
}

// cell returns the decision of the most specific rule, in the order of CompareRules, with
// Reasons after the exact pairs.
func (ix *rulesetIndex) cell(from, to Group, protocol Protocol, port uint16, fallback DecisionID) DecisionID {
	if !protocol.HasPorts() {
		port = 0
	}
	rules := ix.rules.find()
	if id, found := find(rules, from, to, protocol, port); found {
		return id
	}
	if len(ix.reasons.list) > 0 {
		groups := ix.groups.find()
		if id, found := find(ix.reasons.find(), groups[from].Sender, groups[to].Receiver, protocol, port); found {
			return id
		}
	}
	for _, pair := range [3][2]Group{{GroupAny, to}, {from, GroupAny}, {GroupAny, GroupAny}} {
		if id, found := find(rules, pair[0], pair[1], protocol, port); found {
			return id
		}
	}
	return fallback
}

// find looks a cell up among the rules of one pair, the exact protocol first.
func find(rules map[pairKey][]Rule, from, to Group, protocol Protocol, port uint16) (DecisionID, bool) {
	for _, p := range [2]Protocol{protocol, ProtocolAny} {
		list := rules[pairKey{from, to, p}]
		i, _ := slices.BinarySearchFunc(list, port, func(rule Rule, port uint16) int {
			return cmp.Compare(rule.Ports.Last, port)
		})
		if i < len(list) && list[i].Ports.Contains(port) {
			return list[i].Decision, true
		}
	}
	return 0, false
}
