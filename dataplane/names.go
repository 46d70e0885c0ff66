package dataplane

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// nameID stands for a pattern of names (see abi_names.h). It is a keyed hash, so nobody who
// declares or asks for names can make two have the same.
type nameID uint64

// nameKey is of the hash of names, for as long as there is the state in the kernel,
// and of that of addresses.
type nameKey struct {
	name    [2]uint64
	address [3]uint64
}

const (
	addressSeed  = 9 // the first of those of addresses
	nameSeed     = 12
	learnedParts = 64
	nameBelow    = 1
	mostNameBits = 63
	mostNamed    = 24 * time.Hour
)

func readNameKey(seeds *ebpf.Map) (key nameKey, err error) {
	for i := range key.name {
		err = errors.Join(err, seeds.Lookup(uint32(nameSeed+i), &key.name[i]))
	}
	for i := range key.address {
		err = errors.Join(err, seeds.Lookup(uint32(addressSeed+i), &key.address[i]))
	}
	if err != nil {
		return key, fmt.Errorf("read the key of names: %w", err)
	}
	return key, nil
}

// id is that of a pattern.
func (k nameKey) id(pattern bocage.DomainName) nameID {
	if parent, below := pattern.Wildcard(); below {
		return nameID(k.hash(wireName(string(parent))) | nameBelow)
	}
	return nameID(k.hash(wireName(string(pattern))) &^ nameBelow)
}

// wireName is a name as messages have it: labels behind their lengths.
func wireName(name string) []byte {
	var wire []byte
	for label := range strings.SplitSeq(name, ".") {
		wire = append(append(wire, byte(len(label))), label...)
	}
	return append(wire, 0)
}

// hash is SipHash-2-4.
func (k nameKey) hash(b []byte) uint64 {
	a, x, c, d := k.name[0]^0x736f6d6570736575, k.name[1]^0x646f72616e646f6d, k.name[0]^0x6c7967656e657261, k.name[1]^0x7465646279746573
	round := func() {
		a += x
		x = bits.RotateLeft64(x, 13) ^ a
		a = bits.RotateLeft64(a, 32)
		c += d
		d = bits.RotateLeft64(d, 16) ^ c
		a += d
		d = bits.RotateLeft64(d, 21) ^ a
		c += x
		x = bits.RotateLeft64(x, 17) ^ c
		c = bits.RotateLeft64(c, 32)
	}
	take := func(word uint64) {
		d ^= word
		round()
		round()
		a ^= word
	}
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		take(binary.LittleEndian.Uint64(b))
	}
	for i, v := range b {
		last |= uint64(v) << (8 * i)
	}
	take(last)
	c ^= 0xff
	for range 4 {
		round()
	}
	return a ^ x ^ c ^ d
}

// part is learned_key of the kernel (named.h): which set an address is in.
func (k nameKey) part(a bpf.KernelAddress) uint32 {
	mixed := func(word, seed uint64) uint64 {
		return uint64(uint32(word)+uint32(seed)) * uint64(uint32(word>>32)+uint32(seed>>32))
	}
	return uint32((mixed(a.High, k.address[0])+mixed(a.Low, k.address[1]))*k.address[2]>>32) & (learnedParts - 1)
}

// namers are who may mean a name, in the order of a KernelName's groups: contracts, and
// the policies of each tier.
var namers = []string{"", bocage.TierAdmin, bocage.TierBaseline}

// readNames compares names with those before.
func (c *content) readNames(names []bocage.Name, e *edit, faults *faults) {
	e.names, e.depths = map[nameID]bpf.KernelName{}, 0
	versions := make(map[nameID]bpf.KernelName, len(names))
	seen := make(map[nameID]bocage.DomainName, len(names))
	for i, n := range names {
		id, namer := c.keys.id(n.Name), slices.Index(namers, n.Tier)
		ordered := i == 0 || bocage.CompareNames(names[i-1], n) < 0
		if parsed, err := bocage.ParseDomainName(string(n.Name)); err != nil || parsed != n.Name || n.Group == bocage.GroupAny || namer < 0 || !ordered {
			faults.add("the DNS name %q of group %d is not in canonical form, has no group, an unknown tier, or is not in its order", string(n.Name), n.Group)
			continue
		}
		if other, is := seen[id]; is && other != n.Name {
			faults.add("the DNS names %s and %s have the same id", other, n.Name)
			continue
		}
		seen[id] = n.Name
		e.depths |= depthOf(n.Name)
		version := versions[id]
		version.Groups[namer], version.Place = uint32(n.Group), cmp.Or(version.Place, uint32(i+1))
		versions[id] = version
	}
	for id, version := range versions {
		if c.names[id] != version {
			e.names[id] = version
		}
	}
	for id := range c.names {
		if _, is := seen[id]; !is {
			e.names[id] = bpf.KernelName{}
		}
	}
}

// depthOf is what a ruleset's row says of a name.
func depthOf(name bocage.DomainName) uint64 {
	parent, below := name.Wildcard()
	if !below {
		return 1
	}
	return 1 | 1<<min(strings.Count(string(parent), ".")+1, mostNameBits)
}

func (c *content) changeNames(e, back *edit, out *changes) {
	c.depths = e.depths
	for id, to := range e.names {
		back.names[id] = c.names[id]
		if to == (bpf.KernelName{}) {
			delete(c.names, id)
		} else {
			c.names[id] = to
		}
		out.names[id] = to
	}
}

// Learned is an address that a workload was told a name has.
type Learned struct {
	Identity bocage.Identity
	Address  netip.Addr
	Name     bocage.DomainName
	// Until new flows may go there; flows that are there go on.
	Until time.Time
}

// Learned lists what the DNS told workloads of the names of a ruleset, that in force;
// sorted. What is over is left out.
func (d *Dataplane) Learned(rs *bocage.Ruleset) ([]Learned, error) {
	names, now := d.namesByID(rs), readClock()
	var all []Learned
	var key bpf.KernelSetKey
	var set bpf.KernelLearnedSet
	entries := d.objects.Learned.Iterate()
	for entries.Next(&key, &set) {
		for _, row := range set.Rows {
			if name, known := names[nameID(row.Name)]; known && row.Until > uint64(now.ns) {
				all = append(all, Learned{Identity: bocage.Identity(key.Identity), Address: addrOf(row.Address), Name: name, Until: now.time(row.Until)})
			}
		}
	}
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("list what was learned of names: %w", err)
	}
	slices.SortFunc(all, func(a, b Learned) int {
		return cmp.Or(cmp.Compare(a.Identity, b.Identity), a.Address.Compare(b.Address), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// NamesOf lists by which names of a ruleset a workload knows an address, sorted by
// name; also those that are over, by which flows may go on.
func (d *Dataplane) NamesOf(rs *bocage.Ruleset, identity bocage.Identity, address netip.Addr) ([]Learned, error) {
	names, now := d.namesByID(rs), readClock()
	key := bpf.KernelSetKey{Identity: uint32(identity), Part: d.nameKey.part(addressOf(address))}
	var set bpf.KernelLearnedSet
	if err := d.objects.Learned.Lookup(key, &set); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read what was learned of %s: %w", address, err)
	}
	var all []Learned
	for _, row := range set.Rows {
		if name, known := names[nameID(row.Name)]; known && row.Address == addressOf(address) {
			all = append(all, Learned{Identity: identity, Address: address, Name: name, Until: now.time(row.Until)})
		}
	}
	slices.SortFunc(all, func(a, b Learned) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func (d *Dataplane) namesByID(rs *bocage.Ruleset) map[nameID]bocage.DomainName {
	names := make(map[nameID]bocage.DomainName, len(rs.Names))
	for _, n := range rs.Names {
		names[d.nameKey.id(n.Name)] = n.Name
	}
	return names
}

// forgetNames frees what was learned and asked by workloads that are no longer here,
// once no packet of theirs can be on its way; mu is held.
func (d *Dataplane) forgetNames() error {
	if !d.departed || len(d.moves) > 0 { // who is behind links that wait is not known yet
		return nil
	}
	here := map[uint32]bool{}
	for _, a := range d.ports {
		here[uint32(a.Port.Identity)] = true
	}
	for _, w := range d.wires {
		for _, p := range w.Residents {
			here[uint32(p.Identity)] = true
		}
	}
	if err := d.await(); err != nil {
		return err
	}
	gone := func(k bpf.KernelSetKey) bool { return !here[k.Identity] }
	if err := errors.Join(clearRows(d.objects.Learned, gone), clearRows(d.objects.Inquiries, gone)); err != nil {
		return fmt.Errorf("forget names: %w", err)
	}
	d.departed = false
	return nil
}
