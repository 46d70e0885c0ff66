package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// runner passes frames to a program as BPF_PROG_RUN does, and nothing besides: a
// million frames are a few seconds.
type runner struct {
	attr struct { // the part of union bpf_attr that is named test
		program, returned, sizeIn, sizeOut uint32
		in, out                            uint64
		repeat, took, contextIn, contextTo uint32
		context, contextOut                uint64
		flags, cpu, batch, pad             uint32
	}
	context []byte
}

func newRunner(program *ebpf.Program, ifindex uint32) (*runner, error) {
	r := &runner{}
	context, err := binary.Append(nil, binary.NativeEndian, skb{Ifindex: ifindex})
	r.context = context
	r.attr.program, r.attr.contextIn, r.attr.context = uint32(program.FD()), uint32(len(context)), address(context)
	return r, err
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func (r *runner) run(b []byte) (uint32, error) {
	r.attr.sizeIn, r.attr.in = uint32(len(b)), address(b)
	r.attr.sizeOut = 0 // which the kernel wrote the last time
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&r.attr)), unsafe.Sizeof(r.attr))
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, fmt.Errorf("run program over %d bytes: %w", len(b), errno)
	}
	return r.attr.returned, nil
}

// passing is a frame at a point, and what the model says of it.
type passing struct {
	raw   []byte
	from  bool
	shape string
	flow  bocage.Flow
	want  expectation
	// silent frames are told of by no event of their own: they are pieces of what was
	// told, or one of many that are counted together, by reason if it is not 0.
	silent, heard bool
	reason        bocage.ReasonCode
}

// shaper gives flows frames of every shape.
type shaper struct {
	random    *rand.Rand
	w         *workload
	rs        *bocage.Ruleset
	candidate *bocage.Ruleset
	known     map[netip.Addr][]bocage.DomainName // what the workload was told
	id        uint16                             // of the last fragmented packet: even where there is a first piece
}

// frames opens a flow by one frame, and adds such as belong to it.
func (s *shaper) frames(f bocage.Flow, from bool) []passing {
	r := s.random
	b := frame{source: f.Source, dst: f.Destination, protocol: f.Protocol, sport: f.SourcePort, dport: f.DestinationPort,
		tcpFlags: syn, payload: r.IntN(64), from: [6]byte{2, 1, 1, 1, 1, 1}, to: [6]byte(s.w.mac)}
	if from {
		b.from, b.to = b.to, b.from
	}
	switch f.Protocol {
	case bocage.ProtocolICMP:
		b.icmpType = 8
	case bocage.ProtocolICMPv6:
		b.icmpType = 128
	}
	switch r.IntN(16) {
	case 0, 1, 2:
		return s.extended(b, f, from)
	case 3:
		return s.pieces(b, f, from)
	case 4:
		return s.strayPiece(b, f, from)
	case 5:
		return s.cut(b, f, from)
	case 6:
		return s.flagged(b, f, from)
	case 8:
		return []passing{s.tagged(b, f, from)}
	case 7: // as short frames are filled up on Ethernet
		return []passing{s.opening("padded", append(b.bytes(), make([]byte, 1+r.IntN(46))...), f, from, len(b.transport()) >= 8)}
	}
	return []passing{s.opening("plain", b.bytes(), f, from, len(b.transport()) >= 8)}
}

// opening is a frame that opens a flow.
func (s *shaper) opening(shape string, raw []byte, f bocage.Flow, from, answerable bool) passing {
	f.At = time.Now()
	var names []bocage.DomainName
	if from {
		names = s.known[f.Destination]
	}
	return passing{raw: raw, from: from, shape: shape, flow: f, want: expect(s.rs, s.candidate, f, names, from, answerable)}
}

// malformed is a frame that is refused where somebody enforces, or is cut off.
func (s *shaper) malformed(shape string, raw []byte, f bocage.Flow, from bool) passing {
	p := passing{raw: raw, from: from, shape: shape, flow: f, want: expectation{returned: next}, silent: true, reason: bocage.ReasonMalformed}
	f.At = time.Now()
	if isCutOff(s.rs, f) || isEnforced(s.rs, f) {
		p.want.returned = dropped
	}
	return p
}

// judgedByForm is whatever the second reading of frames takes it for.
func (s *shaper) judgedByForm(shape string, raw []byte, f bocage.Flow, from, answerable bool) passing {
	if !wellFormed(raw) {
		return s.malformed(shape, raw, f, from)
	}
	return s.opening(shape, raw, f, from, answerable)
}

// extended has IPv4 options or IPv6 extension headers: harmless ones, source routes,
// some that do not fit, and more of them than anybody has a use for.
func (s *shaper) extended(b frame, f bocage.Flow, from bool) []passing {
	r := s.random
	if f.Source.Is4() {
		b.options = pick(r, [][]byte{
			{1, 1, 1, 1}, {148, 4, 0, 0}, {0, 0, 0, 0}, {1, 7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0}, {68, 8, 5, 0, 0, 0, 0, 0},
			{131, 7, 4, 10, 0, 0, 9, 0}, {1, 137, 7, 4, 10, 0, 0, 9}, {1, 1, 1, 148}, {148, 1, 0, 0}, {7, 9, 4, 0, 0, 0, 0, 0},
			append([]byte{148, 4, 0, 0}, make([]byte, 36)...), append([]byte{7, 39, 4}, make([]byte, 37)...), {0, 131, 7, 4}})
		return []passing{s.judgedByForm("options", b.bytes(), f, from, false)}
	}
	for range 1 + r.IntN(6) + r.IntN(2) {
		e := extension{kind: pick(r, []byte{0, 43, 60, 60, 60, 44}), data: make([]byte, 7)}
		switch e.kind {
		case 43:
			e.data[1] = pick(r, []byte{4, 4, 4, 2, 0})
			e.data[2] = byte(r.IntN(8) / 7)
		case 44: // atomic
			e.data = []byte{0, 0, 0, 0, 0, 0, 9}
		default:
			if r.IntN(3) == 0 {
				more := r.IntN(5)
				e.data = append([]byte{byte(more)}, make([]byte, 6+8*more)...)
			}
		}
		b.extensions = append(b.extensions, e)
	}
	return []passing{s.judgedByForm("extensions", b.bytes(), f, from, false)}
}

// pieces are the first of a fragmented packet, which has the header, and later ones,
// which go where the first went.
func (s *shaper) pieces(b frame, f bocage.Flow, from bool) []passing {
	s.id += 2
	for len(b.transport())%8 != 0 {
		b.payload++
	}
	size := len(b.transport())
	if size == 0 {
		b.payload, size = 8, 8
	}
	later := b
	later.body = make([]byte, 1+s.random.IntN(40))
	s.asPiece(&b, s.id, 0, true)
	s.asPiece(&later, s.id, max(size, 16), false)
	first := s.judgedByForm("first piece", b.bytes(), f, from, false)
	if first.silent || first.want.reason == bocage.ReasonQuarantine {
		return []passing{first}
	}
	if first.want.verdict == bocage.VerdictDecoy { // which takes whole packets only
		first.want.returned = dropped
	}
	next := s.stray("later piece", later.bytes(), f, from)
	if first.want.returned != dropped {
		next.want.returned, next.reason = first.want.returned, 0
		// A flow that is merely observed may be listened to, and nobody hears it in
		// pieces: then the piece passes as one that cannot be read.
		next.heard = f.Protocol == bocage.ProtocolTCP && !first.want.would.Allowed()
	}
	return []passing{first, next}
}

// strayPiece is one whose first was never seen. (What becomes of those of who is cut
// off is TestRootQuarantineCutsWhatHasNoFlow's.)
func (s *shaper) strayPiece(b frame, f bocage.Flow, from bool) []passing {
	if f.At = time.Now(); isCutOff(s.rs, f) {
		return nil
	}
	s.id += 2
	b.body = make([]byte, 8*(1+s.random.IntN(5)))
	s.asPiece(&b, s.id+1, 8*(2+s.random.IntN(100)), s.random.IntN(2) == 0)
	return []passing{s.stray("stray piece", b.bytes(), f, from)}
}

// asPiece makes a frame one piece of a packet.
func (s *shaper) asPiece(b *frame, id uint16, offset int, more bool) {
	flag := uint16(0)
	if more {
		flag = 1
	}
	if b.source.Is4() {
		b.id, b.fragment = id, uint16(offset/8)|flag<<13
		return
	}
	data := binary.BigEndian.AppendUint16([]byte{0}, uint16(offset)|flag)
	b.extensions = []extension{{44, append(data, 0, 0, byte(id>>8), byte(id))}}
}

// stray is a frame that belongs to nothing: refused where somebody enforces.
func (s *shaper) stray(shape string, raw []byte, f bocage.Flow, from bool) passing {
	if !wellFormed(raw) {
		return s.malformed(shape, raw, f, from)
	}
	p := passing{raw: raw, from: from, shape: shape, flow: f, want: expectation{returned: next}, silent: true, reason: bocage.ReasonFragment}
	if isEnforced(s.rs, f) {
		p.want.returned = dropped
	}
	return p
}

// isCutOff says whether an end of a flow is refused whatever it says.
func isCutOff(rs *bocage.Ruleset, f bocage.Flow) bool {
	_, reason := rs.Decide(f)
	return reason.Code == bocage.ReasonQuarantine
}

// isEnforced says whether an end of a flow is of a group that enforces.
func isEnforced(rs *bocage.Ruleset, f bocage.Flow) bool {
	return slices.ContainsFunc(rs.Groups, func(g bocage.GroupInfo) bool {
		return g.Enforce && (g.Group == rs.Lookup(f.Source).Group || g.Group == rs.Lookup(f.Destination).Group)
	})
}

// cut is a frame that ends too early, anywhere. (Below the IP header a program of the
// traffic's classifiers is not run; TestRootParserTruncated meets those.)
func (s *shaper) cut(b frame, f bocage.Flow, from bool) []passing {
	whole, least := b.bytes(), 34
	if f.Source.Is6() {
		least = 54
	}
	if len(whole) == least {
		return []passing{s.opening("plain", whole, f, from, false)}
	}
	return []passing{s.malformed("cut", whole[:least+s.random.IntN(len(whole)-least)], f, from)}
}

// flagged is TCP with flags that scanners set and nobody else.
func (s *shaper) flagged(b frame, f bocage.Flow, from bool) []passing {
	if f.Protocol == bocage.ProtocolTCP {
		const psh, urg = 0x08, 0x20
		b.tcpFlags = pick(s.random, []byte{0, fin, fin | psh | urg, syn | fin, syn | rst, syn | psh, syn | urg, 0xc0 | syn, 0xff})
	}
	return []passing{s.judgedByForm("flags", b.bytes(), f, from, len(b.transport()) >= 8)}
}

// tagged is in a VLAN, where workloads have none: nothing says what is inside, so it
// gets the default decision.
func (s *shaper) tagged(b frame, f bocage.Flow, from bool) passing {
	p := passing{raw: tagged(b.bytes(), 1+uint16(s.random.IntN(4094))), from: from, shape: "tagged", flow: f,
		want: expectation{returned: next}, silent: true}
	now, nobody := time.Now(), netip.IPv6Unspecified()
	d, _ := s.rs.Decision(s.rs.Default)
	for !d.Until.IsZero() && !now.Before(d.Until) {
		d, _ = s.rs.Decision(d.Then)
	}
	f = bocage.Flow{Source: nobody, Destination: nobody, At: now}
	if isCutOff(s.rs, f) || !d.Verdict.Allowed() && isEnforced(s.rs, f) {
		p.want.returned = dropped
	}
	return p
}

// prefixEdges are the addresses at both ends of every prefix, and those beside them.
func prefixEdges(rs *bocage.Ruleset) []netip.Addr {
	var all []netip.Addr
	for _, p := range rs.Peers {
		if p.Prefix.IsSingleIP() {
			continue
		}
		first := p.Prefix.Masked().Addr()
		raw := first.AsSlice()
		for bit := p.Prefix.Bits(); bit < first.BitLen(); bit++ {
			raw[bit/8] |= 0x80 >> (bit % 8)
		}
		last, _ := netip.AddrFromSlice(raw)
		for _, a := range []netip.Addr{first.Prev(), first, last, last.Next()} {
			if a.IsValid() && a.IsGlobalUnicast() && !a.Is4In6() {
				all = append(all, a)
			}
		}
	}
	return all
}

// clearFlows forgets all flows by writing where the kernel reads.
func (p *plane) clearFlows() {
	p.t.Helper()
	memory, err := unix.Mmap(p.objects.Flows.FD(), 0, len(p.flows.memory), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(p.t, err)
	clear(memory)
	must(p.t, unix.Munmap(memory))
}

// clearRefusals takes all rows of refusals at once.
func (p *plane) clearRefusals() {
	p.t.Helper()
	keys, values := make([]bpf.KernelRefusalKey, 4096), make([]bpf.KernelRefusal, 4096)
	var cursor ebpf.MapBatchCursor
	for {
		if _, err := p.objects.Refusals.BatchLookupAndDelete(&cursor, keys, values, nil); errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		} else {
			must(p.t, err)
		}
	}
}
