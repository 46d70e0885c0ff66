package compile

import (
	"cmp"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

// ports is a set of (protocol, destination port). The empty list with all set is
// every protocol and port.
type ports struct {
	all    bool
	ranges []protocolRange // sorted, disjoint, never adjacent within a protocol
}

type protocolRange struct {
	protocol bocage.Protocol
	bocage.PortRange
}

var everything = ports{all: true}

func (p ports) empty() bool { return !p.all && len(p.ranges) == 0 }

// transport is the set of one declared port or range.
func transport(port, endPort uint16, protocol string) ports {
	proto, r, err := bocage.Transport(port, endPort, protocol)
	if err != nil {
		return ports{} // only valid objects come here; nothing is the safe reading
	}
	return ports{ranges: []protocolRange{{proto, r}}}
}

// portMatches is the set of a list of matches: none means everything.
func portMatches(list []bocage.PortMatch) ports {
	if len(list) == 0 {
		return everything
	}
	var out ports
	for _, m := range list {
		out.ranges = append(out.ranges, transport(m.Port, m.EndPort, m.Protocol).ranges...)
	}
	return out.normal()
}

func (p ports) join(o ports) ports {
	if p.all || o.all {
		return everything
	}
	return ports{ranges: slices.Concat(p.ranges, o.ranges)}.normal()
}

func (p ports) meet(o ports) ports {
	switch {
	case p.all:
		return o
	case o.all:
		return p
	}
	var out ports
	for _, a := range p.ranges {
		for _, b := range o.ranges {
			first, last := max(a.First, b.First), min(a.Last, b.Last)
			if a.protocol == b.protocol && first <= last {
				out.ranges = append(out.ranges, protocolRange{a.protocol, bocage.PortRange{First: first, Last: last}})
			}
		}
	}
	return out.normal()
}

// meets reports whether two sets share something.
func (p ports) meets(o ports) bool {
	if p.all || o.all {
		return !p.empty() && !o.empty()
	}
	return slices.ContainsFunc(p.ranges, func(a protocolRange) bool {
		return slices.ContainsFunc(o.ranges, func(b protocolRange) bool {
			return a.protocol == b.protocol && a.First <= b.Last && b.First <= a.Last
		})
	})
}

// normal sorts and merges.
func (p ports) normal() ports {
	slices.SortFunc(p.ranges, func(a, b protocolRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	out := p.ranges[:0]
	for _, r := range p.ranges {
		if n := len(out); n > 0 && out[n-1].protocol == r.protocol && uint32(r.First) <= uint32(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	p.ranges = out
	return p
}

// key is equal for equal sets.
func (p ports) key() string { return string(p.appendKey(nil)) }

func (p ports) appendKey(b []byte) []byte {
	if p.all {
		return append(b, "all"...)
	}
	for _, r := range p.ranges {
		b = strconv.AppendUint(b, uint64(r.protocol), 10)
		b = strconv.AppendUint(append(b, '/'), uint64(r.First), 10)
		b = strconv.AppendUint(append(b, '-'), uint64(r.Last), 10)
		b = append(b, ' ')
	}
	return b
}
