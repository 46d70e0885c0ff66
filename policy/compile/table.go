package compile

import (
	"cmp"
	"encoding/binary"
	"slices"

	"bocage.dev/bocage"
)

// cell is an interval of ports with its decision.
type cell struct {
	first, last uint16
	decision    int32
}

// table gives every protocol and port a decision. Cells of a protocol that is
// listed cover all ports, in order; neighbours differ.
type table struct {
	rest      int32 // protocols that are not listed
	protocols []protocolCells
}

type protocolCells struct {
	protocol bocage.Protocol
	cells    []cell
}

// patch is a table with holes: what the rules of one pair say.
type patch struct {
	rest      int32 // unset: nothing
	protocols []protocolCells
}

const unset = -1

// generalOf picks the statements that are about every port.
func (j *judge) generalOf(about []int32) []int32 {
	general := j.general[:0]
	for _, i := range about {
		if j.c.statements[i].ports.all {
			general = append(general, i)
		}
	}
	j.general = general
	return general
}

// table decides every protocol and port of a pair that the given statements (in
// order) are about. rest is the decision where only those of them cover a cell that
// are about every port.
func (j *judge) table(about []int32, rest int32) table {
	var protocols []bocage.Protocol
	for _, i := range about {
		for _, r := range j.c.statements[i].ports.ranges {
			if !slices.Contains(protocols, r.protocol) {
				protocols = append(protocols, r.protocol)
			}
		}
	}
	t := table{rest: rest}
	slices.Sort(protocols)
	for _, p := range protocols {
		if cells := j.cells(about, p, t.rest); len(cells) > 1 || cells[0].decision != t.rest {
			t.protocols = append(t.protocols, protocolCells{p, cells})
		}
	}
	return t
}

// edge is where a statement begins or ends to cover the ports of a protocol.
type edge struct {
	port      uint32
	begins    bool
	statement int32
}

// cells decides the ports of one protocol. It goes through them once and decides
// wherever a statement begins or ends, so that its work follows what covers a
// port and not what is declared for others. rest is the decision where only
// statements about every port cover one.
func (j *judge) cells(about []int32, protocol bocage.Protocol, rest int32) []cell {
	edges, covering := j.edges[:0], j.covering[:0] // covering is sorted
	for _, i := range about {
		if j.c.statements[i].ports.all {
			covering = append(covering, i)
			continue
		}
		for _, r := range j.c.statements[i].ports.ranges {
			if r.protocol == protocol {
				edges = append(edges, edge{uint32(r.First), true, i}, edge{uint32(r.Last) + 1, false, i})
			}
		}
	}
	j.edges = edges
	general := len(covering)
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.port, b.port) })
	var cells []cell
	for first := uint32(0); first <= 65535; {
		for len(edges) > 0 && edges[0].port == first {
			at, found := slices.BinarySearch(covering, edges[0].statement)
			switch {
			case edges[0].begins && !found:
				covering = slices.Insert(covering, at, edges[0].statement)
			case !edges[0].begins && found:
				covering = slices.Delete(covering, at, at+1)
			}
			edges = edges[1:]
		}
		next := uint32(65536)
		if len(edges) > 0 {
			next = min(next, edges[0].port)
		}
		decision := rest
		if len(covering) > general {
			decision = j.decide(covering)
		}
		cells = appendCell(cells, cell{uint16(first), uint16(next - 1), decision})
		first = next
	}
	j.covering = covering
	return cells
}

func (p ports) covers(protocol bocage.Protocol, port uint16) bool {
	return p.all || slices.ContainsFunc(p.ranges, func(r protocolRange) bool { return r.protocol == protocol && r.Contains(port) })
}

// appendCell merges neighbours of one decision.
func appendCell(cells []cell, next cell) []cell {
	if n := len(cells); n > 0 && cells[n-1].decision == next.decision && uint32(cells[n-1].last)+1 == uint32(next.first) {
		cells[n-1].last = next.last
		return cells
	}
	return append(cells, next)
}

// of returns the cells of a protocol.
func (t table) of(protocol bocage.Protocol) []cell {
	i, found := slices.BinarySearchFunc(t.protocols, protocol, func(p protocolCells, want bocage.Protocol) int { return cmp.Compare(p.protocol, want) })
	if found {
		return t.protocols[i].cells
	}
	return uniform(t.rest)
}

func uniform(decision int32) []cell { return []cell{{0, 65535, decision}} }

// over returns the least patch that makes the table out of what is below it.
func (t table) over(below table) patch {
	p := patch{rest: unset}
	protocols := make([]bocage.Protocol, 0, len(t.protocols)+len(below.protocols))
	for _, listed := range t.protocols {
		protocols = append(protocols, listed.protocol)
	}
	if t.rest != below.rest {
		p.rest = t.rest
		below = table{rest: t.rest} // the patch itself now lies below its own protocols
	}
	for _, listed := range below.protocols {
		protocols = append(protocols, listed.protocol)
	}
	slices.Sort(protocols)
	for _, protocol := range slices.Compact(protocols) {
		var differing []cell
		eachPiece(t.of(protocol), below.of(protocol), func(first, last uint16, want, have int32) {
			if want != have {
				differing = appendCell(differing, cell{first, last, want})
			}
		})
		if len(differing) > 0 {
			p.protocols = append(p.protocols, protocolCells{protocol, differing})
		}
	}
	return p
}

// apply lays the patch over what is below it.
func (p patch) apply(below table) table {
	t := table{rest: below.rest}
	if p.rest != unset {
		t.rest = p.rest
		below = table{rest: p.rest}
	}
	protocols := make([]bocage.Protocol, 0, len(p.protocols)+len(below.protocols))
	byProtocol := make(map[bocage.Protocol][]cell, len(p.protocols))
	for _, listed := range p.protocols {
		protocols = append(protocols, listed.protocol)
		byProtocol[listed.protocol] = listed.cells
	}
	for _, listed := range below.protocols {
		protocols = append(protocols, listed.protocol)
	}
	slices.Sort(protocols)
	for _, protocol := range slices.Compact(protocols) {
		var cells []cell
		eachPiece(withHoles(byProtocol[protocol]), below.of(protocol), func(first, last uint16, top, under int32) {
			if top == unset {
				top = under
			}
			cells = appendCell(cells, cell{first, last, top})
		})
		if len(cells) > 1 || cells[0].decision != t.rest {
			t.protocols = append(t.protocols, protocolCells{protocol, cells})
		}
	}
	return t
}

// withHoles makes cells cover every port.
func withHoles(cells []cell) []cell {
	out := make([]cell, 0, 2*len(cells)+1)
	next := uint32(0)
	for _, c := range cells {
		if uint32(c.first) > next {
			out = append(out, cell{uint16(next), c.first - 1, unset})
		}
		out = append(out, c)
		next = uint32(c.last) + 1
	}
	if next <= 65535 {
		out = append(out, cell{uint16(next), 65535, unset})
	}
	return out
}

// eachPiece walks two coverings of all ports together.
func eachPiece(a, b []cell, visit func(first, last uint16, x, y int32)) {
	first := uint32(0)
	for i, j := 0, 0; first <= 65535; {
		last := min(a[i].last, b[j].last)
		visit(uint16(first), last, a[i].decision, b[j].decision)
		if a[i].last == last {
			i++
		}
		if b[j].last == last {
			j++
		}
		first = uint32(last) + 1
	}
}

// choose makes a table of two: of each piece, what pick says.
func choose(a, b table, pick func(x, y int32) int32) table {
	t := table{rest: pick(a.rest, b.rest)}
	protocols := make([]bocage.Protocol, 0, len(a.protocols)+len(b.protocols))
	for _, of := range [2]table{a, b} {
		for _, listed := range of.protocols {
			protocols = append(protocols, listed.protocol)
		}
	}
	slices.Sort(protocols)
	for _, protocol := range slices.Compact(protocols) {
		var cells []cell
		eachPiece(a.of(protocol), b.of(protocol), func(first, last uint16, x, y int32) {
			cells = appendCell(cells, cell{first, last, pick(x, y)})
		})
		if len(cells) > 1 || cells[0].decision != t.rest {
			t.protocols = append(t.protocols, protocolCells{protocol, cells})
		}
	}
	return t
}

// each visits every decision of a table or a patch.
func each(rest int32, protocols []protocolCells, visit func(decision int32)) {
	if rest != unset {
		visit(rest)
	}
	for _, listed := range protocols {
		for _, cell := range listed.cells {
			visit(cell.decision)
		}
	}
}

// tables holds every distinct table and patch once, so that equal ones compare as
// numbers. Patch 0 says nothing.
type tables struct {
	list      []table
	patches   []patch
	byContent map[string]int32
	byPatch   map[string]int32
	byCause   map[string]int32 // by the numbers of the statements that the pair is about
	laid      map[[2]int32]int32
	patched   map[patching]int32
	refined   map[[3]int32]int32
	scratch   []byte
}

type patching struct {
	want, below int32
	relaxed     bool
}

func newTables() *tables {
	t := &tables{byContent: map[string]int32{}, byPatch: map[string]int32{}, byCause: map[string]int32{},
		laid: map[[2]int32]int32{}, patched: map[patching]int32{}, refined: map[[3]int32]int32{}}
	t.patch(patch{rest: unset})
	return t
}

func (t *tables) content(rest int32, protocols []protocolCells) []byte {
	b := binary.LittleEndian.AppendUint32(t.scratch[:0], uint32(rest))
	for _, listed := range protocols {
		b = append(b, byte(listed.protocol))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(listed.cells)))
		for _, cell := range listed.cells {
			b = binary.LittleEndian.AppendUint16(b, cell.first)
			b = binary.LittleEndian.AppendUint16(b, cell.last)
			b = binary.LittleEndian.AppendUint32(b, uint32(cell.decision))
		}
	}
	t.scratch = b
	return b
}

func (t *tables) intern(x table) int32 {
	key := t.content(x.rest, x.protocols)
	i, known := t.byContent[string(key)]
	if !known {
		i = int32(len(t.list))
		t.list = append(t.list, x)
		t.byContent[string(key)] = i
	}
	return i
}

func (t *tables) patch(x patch) int32 {
	key := t.content(x.rest, x.protocols)
	i, known := t.byPatch[string(key)]
	if !known {
		i = int32(len(t.patches))
		t.patches = append(t.patches, x)
		t.byPatch[string(key)] = i
	}
	return i
}

// lay puts a patch over a table.
func (t *tables) lay(patch, below int32) int32 {
	if patch == 0 {
		return below
	}
	key := [2]int32{patch, below}
	i, known := t.laid[key]
	if !known {
		i = t.intern(t.patches[patch].apply(t.list[below]))
		t.laid[key] = i
	}
	return i
}

// over returns the least patch that makes one table out of another.
func (t *tables) over(want, below int32) int32 {
	if want == below {
		return 0
	}
	key := patching{want: want, below: below}
	i, known := t.patched[key]
	if !known {
		i = t.patch(t.list[want].over(t.list[below]))
		t.patched[key] = i
	}
	return i
}
