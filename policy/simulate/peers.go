package simulate

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"

	"bocage.dev/bocage"
)

// End is one end of flows, looked up once and good for the Simulator that gave it.
type End struct {
	Address netip.Addr
	who
	peer int32 // its place in Ruleset.Peers; none for the world
}

// who is what a verdict needs to know of an end.
type who struct {
	group   int32
	refusal int32 // one more than its place in index.refusals; 0 is none
}

// peers finds who has an address.
type peers struct {
	known  []who // by peer
	world  who
	places places
	// classes finds no more than a verdict needs, in as little memory as can be:
	// what verdicts by address take is the way to memory. Made when first asked.
	classes func() *classes
}

func newPeers(rs *bocage.Ruleset, ix *index) *peers {
	refused := make(map[bocage.Identity]int32, len(rs.Refused))
	for _, r := range rs.Refused {
		ix.refusals = append(ix.refusals, refusal{r.Decision, r.Until})
		refused[r.Identity] = int32(len(ix.refusals))
	}
	p := &peers{known: make([]who, len(rs.Peers)), world: who{ix.groups[bocage.GroupWorld], refused[bocage.IdentityWorld]}}
	for i, peer := range rs.Peers {
		p.known[i] = who{ix.groups[peer.Group], refused[peer.Identity]}
	}
	p.places = newPlaces(rs.Peers, func(i int) int32 { return int32(i) })
	p.classes = sync.OnceValue(func() *classes { return newClasses(rs.Peers, p, int32(len(ix.names))) })
	return p
}

// find looks an address up.
func (p *peers) find(address netip.Addr) End {
	address = address.Unmap()
	if peer := p.places.find(address); peer != none {
		return End{address, p.known[peer], peer}
	}
	return End{address, p.world, none}
}

// classes are whom a verdict tells apart: groups, and refused ends of groups.
type classes struct {
	world   who
	groups  int32 // of classes below, the class is the group and nobody is refused
	refused []who
	places  places
}

func newClasses(list []bocage.Peer, p *peers, groups int32) *classes {
	c := &classes{world: p.world, groups: groups}
	numbers := map[who]int32{}
	c.places = newPlaces(list, func(i int) int32 {
		who := p.known[i]
		if who.refusal == 0 {
			return who.group
		}
		number, known := numbers[who]
		if !known {
			number = groups + int32(len(c.refused))
			numbers[who], c.refused = number, append(c.refused, who)
		}
		return number
	})
	return c
}

func (c *classes) who(address netip.Addr) who {
	if class := c.places.find(address); class != none {
		return c.of(class)
	}
	return c.world
}

// of is whom a class stands for.
func (c *classes) of(class int32) who {
	if class < c.groups {
		return who{group: class}
	}
	return c.refused[class-c.groups]
}

// places maps prefixes to numbers from 0 on; the longest that has an address
// counts. Of two equal ones the last counts, as it does for Ruleset.Lookup.
//
// IPv4 goes through a trie: workloads are mostly neighbours, so that little memory
// holds all. IPv6 addresses may have nothing to do with one another, so they are
// hashed, one table for each length of prefix, the longest first.
type places struct {
	v4 trie
	v6 []table6
}

func newPlaces(list []bocage.Peer, number func(i int) int32) places {
	var p places
	var v4 []placed
	lengths := map[int][]int{}
	for i, peer := range list {
		if prefix := peer.Prefix.Masked(); prefix.Addr().Is4() {
			v4 = append(v4, placed{number4(prefix.Addr()), int32(prefix.Bits()), int32(i), step(number(i) + 1)})
		} else {
			lengths[prefix.Bits()] = append(lengths[prefix.Bits()], i)
		}
	}
	p.v4 = newTrie(v4)
	for bits, of := range lengths {
		t := newTable6(bits, len(of))
		for _, i := range of {
			t.put(number6(list[i].Prefix.Addr()), number(i))
		}
		p.v6 = append(p.v6, t)
	}
	slices.SortFunc(p.v6, func(a, b table6) int {
		return cmp.Or(cmp.Compare(b.mask.high, a.mask.high), cmp.Compare(b.mask.low, a.mask.low))
	})
	return p
}

// find is the number of the longest prefix that has the address, or none.
func (p *places) find(address netip.Addr) int32 {
	switch {
	case address.Is4():
		return p.v4.find(number4(address))
	case address.Is4In6():
		return p.v4.find(number4(address.Unmap()))
	case address.IsValid():
		n := number6(address)
		for i := range p.v6 {
			if number := p.v6[i].get(n); number != none {
				return number
			}
		}
	}
	return none
}

// trie finds the longest prefix of IPv4, taking four bits of an address at a time.
// What stands alone below a fork is not spread out over further forks, so that
// addresses far from all others take no more room than their neighbours.
type trie struct {
	root  step
	forks []fork
	tails []tail
}

// fork has what comes next for each of the values of four bits: a cache line.
type fork [16]step

// step is where to go on: one more than a number, at the end (0 is none); or, with
// a bit set above, a fork or a tail.
type step uint32

const (
	toFork step = 1 << 31
	toTail step = 1 << 30
	place  step = toTail - 1
)

// tail is the only prefix that is left: it matches or it does not.
type tail struct {
	address, mask   uint32
	inside, outside step
}

// placed is a prefix and where it leads.
type placed struct {
	address     uint32
	bits, order int32
	to          step
}

func newTrie(prefixes []placed) trie {
	byAddress := func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.address, b.address), cmp.Compare(a.bits, b.bits), cmp.Compare(a.order, b.order))
	}
	if !slices.IsSortedFunc(prefixes, byAddress) {
		slices.SortFunc(prefixes, byAddress)
	}
	var t trie
	t.root = t.grow(prefixes, 0, 0)
	return t
}

// grow makes the step for the prefixes below a point of so many bits, all of which
// share these bits; outer is what the point itself is within.
func (t *trie) grow(prefixes []placed, depth int32, outer step) step {
	// Those that end here stand first, and the last of them counts.
	for len(prefixes) > 0 && prefixes[0].bits <= depth {
		outer, prefixes = prefixes[0].to, prefixes[1:]
	}
	switch len(prefixes) {
	case 0:
		return outer
	case 1:
		p := prefixes[0]
		t.tails = append(t.tails, tail{p.address, ^(uint32(1)<<(32-p.bits) - 1), p.to, outer})
		return toTail | step(len(t.tails)-1)
	}
	at := len(t.forks)
	t.forks = append(t.forks, fork{})
	var covers []cover
	for v := range uint32(16) {
		for len(prefixes) > 0 && prefixes[0].bits < depth+4 && prefixes[0].value(depth) == v {
			covers = append(covers, cover{v | 0xf>>(prefixes[0].bits-depth), prefixes[0].to})
			prefixes = prefixes[1:]
		}
		inner := outer
		for _, c := range covers { // the longer, the later
			if v <= c.last {
				inner = c.to
			}
		}
		n := 0
		for n < len(prefixes) && prefixes[n].value(depth) == v {
			n++
		}
		t.forks[at][v] = t.grow(prefixes[:n], depth+4, inner)
		prefixes = prefixes[n:]
	}
	return toFork | step(at)
}

// value is that of the four bits from a point on.
func (p placed) value(depth int32) uint32 { return p.address << depth >> 28 }

// cover is a prefix that ends within the four bits of a fork: it has their values
// up to the last.
type cover struct {
	last uint32
	to   step
}

func (t *trie) find(address uint32) int32 {
	at := t.root
	for rest := address; at&toFork != 0; rest <<= 4 {
		at = t.forks[at&place][rest>>28]
	}
	if at&toTail != 0 {
		if tail := &t.tails[at&place]; address&tail.mask == tail.address {
			at = tail.inside
		} else {
			at = tail.outside
		}
	}
	return int32(at) - 1 // none is one less than nothing
}

func number4(a netip.Addr) uint32 {
	raw := a.As4()
	return binary.BigEndian.Uint32(raw[:])
}
