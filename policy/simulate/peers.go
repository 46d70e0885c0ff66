package simulate

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// End is one end of flows, looked up once and good for the Simulator that gave it.
type End struct {
	Address netip.Addr
	who
}

// who is what policy knows of an end.
type who struct {
	group   int32
	refusal int32 // one more than its place in index.refusals; 0 is none
	peer    int32 // its place in Ruleset.Peers; none for the world
}

// peers finds who has an address: one table per length of prefix, the longest
// first.
type peers struct {
	known []who // by peer
	world who
	v4    []table4
	v6    []table6
}

func newPeers(rs *bocage.Ruleset, ix *index) *peers {
	refused := make(map[bocage.Identity]int32, len(rs.Refused))
	for _, r := range rs.Refused {
		ix.refusals = append(ix.refusals, refusal{r.Decision, r.Until})
		refused[r.Identity] = int32(len(ix.refusals))
	}
	p := &peers{known: make([]who, len(rs.Peers)), world: who{ix.groups[bocage.GroupWorld], refused[bocage.IdentityWorld], none}}
	lengths4, lengths6 := map[int][]int32{}, map[int][]int32{}
	for i, peer := range rs.Peers {
		p.known[i] = who{ix.groups[peer.Group], refused[peer.Identity], int32(i)}
		lengths := lengths6
		if peer.Prefix.Addr().Is4() {
			lengths = lengths4
		}
		lengths[peer.Prefix.Bits()] = append(lengths[peer.Prefix.Bits()], int32(i))
	}
	for bits, list := range lengths4 {
		t := table4{mask: ^(uint32(1)<<(32-bits) - 1), probing: newProbing(len(list))}
		t.slots = make([]slot4, t.size())
		for _, i := range list {
			t.put(number4(rs.Peers[i].Prefix.Addr()), i)
		}
		p.v4 = append(p.v4, t)
	}
	for bits, list := range lengths6 {
		t := table6{mask: mask6(bits), probing: newProbing(len(list))}
		t.slots = make([]slot6, t.size())
		for _, i := range list {
			t.put(number6(rs.Peers[i].Prefix.Addr()), i)
		}
		p.v6 = append(p.v6, t)
	}
	slices.SortFunc(p.v4, func(a, b table4) int { return cmp.Compare(b.mask, a.mask) })
	slices.SortFunc(p.v6, func(a, b table6) int {
		return cmp.Or(cmp.Compare(b.mask.high, a.mask.high), cmp.Compare(b.mask.low, a.mask.low))
	})
	return p
}

// find looks an address up.
func (p *peers) find(address netip.Addr) End {
	address = address.Unmap()
	return End{address, p.who(address)}
}

func (p *peers) who(address netip.Addr) who {
	switch {
	case address.Is4():
		n := number4(address)
		for i := range p.v4 {
			if peer := p.v4[i].get(n); peer != none {
				return p.known[peer]
			}
		}
	case address.IsValid():
		n := number6(address)
		for i := range p.v6 {
			if peer := p.v6[i].get(n); peer != none {
				return p.known[peer]
			}
		}
	}
	return p.world
}

// probing is where open addressing looks in a table that is at most half full.
type probing struct{ bits uint }

func newProbing(n int) probing {
	p := probing{4}
	for p.size() < 2*n {
		p.bits++
	}
	return p
}

func (p probing) size() int { return 1 << p.bits }

func (p probing) first(hash uint64) uint64 { return hash >> (64 - p.bits) }

func (p probing) next(i uint64) uint64 { return (i + 1) & (1<<p.bits - 1) }

// table4 maps the prefixes of one length to peers.
type table4 struct {
	probing
	mask  uint32
	slots []slot4
}

type slot4 struct {
	address uint32
	peer    int32 // one more than the peer; 0 is empty
}

func number4(a netip.Addr) uint32 {
	raw := a.As4()
	return binary.BigEndian.Uint32(raw[:])
}

func (t *table4) put(address uint32, peer int32) {
	address &= t.mask
	i := t.first(mix(uint64(address)))
	for t.slots[i].peer != 0 && t.slots[i].address != address {
		i = t.next(i)
	}
	// Of two peers with one prefix the last counts, as it does for Ruleset.Lookup.
	t.slots[i] = slot4{address, peer + 1}
}

func (t *table4) get(address uint32) int32 {
	address &= t.mask
	for i := t.first(mix(uint64(address))); ; i = t.next(i) {
		if slot := t.slots[i]; slot.peer == 0 || slot.address == address {
			return slot.peer - 1 // none is one less than empty
		}
	}
}

// wide is an IPv6 address.
type wide struct{ high, low uint64 }

func (w wide) and(o wide) wide { return wide{w.high & o.high, w.low & o.low} }

func (w wide) hash() uint64 { return mix(w.high ^ mix(w.low)) }

func number6(a netip.Addr) wide {
	raw := a.As16()
	return wide{binary.BigEndian.Uint64(raw[:8]), binary.BigEndian.Uint64(raw[8:])}
}

func mask6(bits int) wide {
	return wide{^(uint64(1)<<(64-min(bits, 64)) - 1), ^(uint64(1)<<(64-max(bits-64, 0)) - 1)}
}

type table6 struct {
	probing
	mask  wide
	slots []slot6
}

type slot6 struct {
	address wide
	peer    int32
}

func (t *table6) put(address wide, peer int32) {
	address = address.and(t.mask)
	i := t.first(address.hash())
	for t.slots[i].peer != 0 && t.slots[i].address != address {
		i = t.next(i)
	}
	t.slots[i] = slot6{address, peer + 1}
}

func (t *table6) get(address wide) int32 {
	address = address.and(t.mask)
	for i := t.first(address.hash()); ; i = t.next(i) {
		if slot := &t.slots[i]; slot.peer == 0 || slot.address == address {
			return slot.peer - 1
		}
	}
}
