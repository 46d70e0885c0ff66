package simulate

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestAgreesWithDecide holds the index against the model: every flow of random
// policies gets the same verdict, reason and decision, at any moment.
func TestAgreesWithDecide(t *testing.T) {
	cells := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		rs := compile.Compile(in).Ruleset()
		s := New(in, rs)
		skip := rapid.IntRange(0, 4).Draw(t, "sample")
		later := time.Duration(rapid.IntRange(-10, 100).Draw(t, "minutes")) * time.Minute
		n := 0
		var together batched
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%5 != skip {
				return
			}
			cells++
			if n%3 == 0 {
				f.At = in.Now.Add(later)
			}
			verdict, reason := rs.Decide(f)
			if got, why := s.DecideFlow(f); got != verdict || why != reason {
				t.Fatalf("%s: the index says %s %+v, the ruleset %s %+v\n%s", f, got, why, verdict, reason, policytest.Describe(in))
			}
			together.add(f, verdict, reason)
		})
		together.check(t, s)
	})
	if cells < 100_000 {
		t.Errorf("only %d cells", cells)
	}
}

// TestAgreesWithRandomRulesets does the same for rulesets that no compiler would
// make: wildcards everywhere, overlapping prefixes, chains of decisions.
func TestAgreesWithRandomRulesets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 7))
		rs := randomRuleset(r)
		s := New(compile.Input{Now: policytest.Now}, rs)
		var together batched
		for i := range 2000 {
			f := randomFlow(r)
			if i%100 == 0 {
				f.Source = netip.Addr{} // of nobody
			}
			verdict, reason := rs.Decide(f)
			if got, why := s.DecideFlow(f); got != verdict || why != reason {
				t.Fatalf("%s: the index says %s %+v, the ruleset %s %+v", f, got, why, verdict, reason)
			}
			together.add(f, verdict, reason)
		}
		together.check(t, s)
	})
}

// batched are flows to be decided together, with what each is given by itself.
type batched struct {
	flows []bocage.Flow
	want  []Decided
}

func (b *batched) add(f bocage.Flow, verdict bocage.Verdict, reason bocage.Reason) {
	b.flows, b.want = append(b.flows, f), append(b.want, Decided{verdict, reason})
}

// check decides them in portions of several sizes.
func (b *batched) check(t *rapid.T, s *Simulator) {
	portion := rapid.IntRange(1, 3*batchSize).Draw(t, "portion")
	got := make([]Decided, portion+1)
	for first := 0; first < len(b.flows); first += portion {
		list, untouched := b.flows[first:min(first+portion, len(b.flows))], Decided{Verdict: 255}
		got[len(list)] = untouched
		s.DecideFlows(list, got)
		for i, f := range list {
			if got[i] != b.want[first+i] {
				t.Fatalf("%s: with %d others it gets %+v, by itself %+v", f, len(list)-1, got[i], b.want[first+i])
			}
		}
		if got[len(list)] != untouched {
			t.Fatalf("%d flows have more verdicts: %+v", len(list), got[len(list)])
		}
	}
}

func randomRuleset(r *rand.Rand) *bocage.Ruleset {
	rs := &bocage.Ruleset{Default: 1}
	for i := range 8 {
		d := bocage.Decision{ID: bocage.DecisionID(i + 1), Verdict: bocage.Verdict(1 + r.IntN(5)), Code: bocage.ReasonCode(1 + r.IntN(4))}
		if r.IntN(3) == 0 {
			d.Until, d.Then = policytest.Now.Add(time.Duration(r.IntN(20))*time.Minute), bocage.DecisionID(r.IntN(10))
		}
		rs.Decisions = append(rs.Decisions, d)
	}
	group := func(any bool) bocage.Group {
		if any && r.IntN(3) == 0 {
			return bocage.GroupAny
		}
		return bocage.GroupFirst + bocage.Group(r.IntN(6))
	}
	type at struct {
		from, to bocage.Group
		protocol bocage.Protocol
	}
	taken := map[at]bool{}
	for range 40 {
		from, to, protocol := group(true), group(true), []bocage.Protocol{0, 6, 17, 1}[r.IntN(4)]
		if taken[at{from, to, protocol}] {
			continue
		}
		taken[at{from, to, protocol}] = true
		next := 0
		for next < 65536 && r.IntN(12) > 0 {
			first := next + r.IntN(2)*r.IntN(40)
			last := first + r.IntN(40)
			if first > 65535 || !protocol.HasPorts() {
				first, last = 0, 65535
			}
			rs.Rules = append(rs.Rules, bocage.Rule{From: from, To: to, Protocol: protocol, Ports: bocage.PortRange{First: uint16(first), Last: uint16(min(last, 65535))}, Decision: bocage.DecisionID(r.IntN(10))})
			if next = last + 1; !protocol.HasPorts() {
				break
			}
		}
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	for i := range 40 {
		address := randomAddress(r)
		prefix, _ := address.Prefix(r.IntN(address.BitLen() + 1))
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: prefix, Identity: bocage.Identity(16 + i%12), Group: group(false)})
	}
	for i := range 6 {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: bocage.GroupFirst + bocage.Group(i), Enforce: r.IntN(2) == 0})
	}
	for range r.IntN(3) {
		refusal := bocage.Refusal{Identity: bocage.Identity(16 + r.IntN(12)), Decision: 2}
		if r.IntN(2) == 0 {
			refusal.Until = policytest.Now.Add(10 * time.Minute)
		}
		rs.Refused = append(rs.Refused, refusal)
	}
	return rs
}

func randomAddress(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2) * 128), byte(r.IntN(4))})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(r.IntN(2)), 0, 0, 0, byte(r.IntN(2)), byte(r.IntN(2)), 15: byte(r.IntN(4))})
}

func randomFlow(r *rand.Rand) bocage.Flow {
	f := bocage.Flow{Source: randomAddress(r), Destination: randomAddress(r), DestinationPort: uint16(r.IntN(120)), Protocol: []bocage.Protocol{0, 6, 17, 1, 132, 47}[r.IntN(6)]}
	if r.IntN(2) == 0 {
		f.At = policytest.Now.Add(time.Duration(r.IntN(30)) * time.Minute)
	}
	return f
}

func TestDecideAllocatesNothing(t *testing.T) {
	s, _ := Compile(policytest.Site(100))
	from, to := s.workloads[3].ends[0], s.workloads[40].ends[0]
	if n := testing.AllocsPerRun(100, func() { s.Decide(from, to, bocage.ProtocolTCP, 8080, s.in.Now) }); n != 0 {
		t.Errorf("%v allocations for a verdict", n)
	}
	flow := bocage.Flow{Source: from.Address, Destination: to.Address, DestinationPort: 8080, Protocol: bocage.ProtocolTCP, At: s.in.Now}
	if n := testing.AllocsPerRun(100, func() { s.DecideFlow(flow) }); n != 0 {
		t.Errorf("%v allocations for a flow", n)
	}
	flows, decided := make([]bocage.Flow, 100), make([]Decided, 100)
	for i := range flows {
		flows[i] = flow
	}
	if n := testing.AllocsPerRun(100, func() { s.DecideFlows(flows, decided) }); n != 0 {
		t.Errorf("%v allocations for many flows", n)
	}
}

// BenchmarkDecide asks for random pairs of a site of 100,000 workloads.
func BenchmarkDecide(b *testing.B) {
	s, _ := Compile(policytest.Site(100_000))
	r := rand.New(rand.NewPCG(1, 2))
	type probe struct {
		from, to End
		port     uint16
	}
	probes := make([]probe, 1<<20)
	draw := func() {
		for i := range probes {
			from := r.IntN(len(s.workloads))
			to := r.IntN(len(s.workloads))
			if i%2 == 0 {
				to = min(from+r.IntN(40), len(s.workloads)-1) // a neighbour: some are allowed
			}
			probes[i] = probe{s.workloads[from].ends[0], s.workloads[to].ends[0], []uint16{8080, 9090, 5432, 22, 443}[i%5]}
		}
		s.peers.classes()
		runtime.GC() // what preparing left behind is not to be swept meanwhile
	}
	measure := func(name string, decide func(*probe) bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			allowed, before := 0, cpuTime(b)
			for i := 0; b.Loop(); i++ {
				if decide(&probes[i&(len(probes)-1)]) {
					allowed++
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(allowed)/float64(b.N), "allowed/op")
		})
	}
	byAddress := func(p *probe) bool {
		_, reason := s.DecideFlow(bocage.Flow{Source: p.from.Address, Destination: p.to.Address, DestinationPort: p.port, Protocol: bocage.ProtocolTCP, At: s.in.Now})
		return reason.Would.Allowed()
	}
	draw()
	measure("ends", func(p *probe) bool {
		_, reason := s.Decide(p.from, p.to, bocage.ProtocolTCP, p.port, s.in.Now)
		return reason.Would.Allowed()
	})
	measure("addresses", byAddress)
	// The same workloads under IPv6 addresses that have nothing in common but 64 bits.
	in := policytest.Site(100_000)
	for i, w := range in.Workloads {
		var raw [16]byte
		binary.BigEndian.PutUint64(raw[:8], 0x2001_0db8_0000_0001)
		binary.BigEndian.PutUint64(raw[8:], r.Uint64())
		changed := *w
		changed.Spec.Addresses = []netip.Addr{netip.AddrFrom16(raw)}
		in.Workloads[i] = &changed
	}
	s, _ = Compile(in)
	draw()
	measure("scattered IPv6 addresses", byAddress)
	flows := make([]bocage.Flow, len(probes))
	for i, p := range probes {
		flows[i] = bocage.Flow{Source: p.from.Address, Destination: p.to.Address, DestinationPort: p.port, Protocol: bocage.ProtocolTCP, At: s.in.Now}
	}
	b.Run("scattered IPv6 addresses together", func(b *testing.B) {
		b.ReportAllocs()
		decided := make([]Decided, 256)
		allowed, asked, before := 0, 0, cpuTime(b)
		for b.Loop() {
			if asked%len(decided) == 0 {
				s.DecideFlows(flows[asked&(len(flows)-1):][:len(decided)], decided)
				for i := range decided {
					if decided[i].Reason.Would.Allowed() {
						allowed++
					}
				}
			}
			asked++ // an operation is one flow, as above
		}
		b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		b.ReportMetric(float64(allowed)/float64(b.N), "allowed/op")
	})
	// In turn, so that what others do on the machine falls on both alike.
	b.Run("scattered IPv6 addresses, by itself and together in turn", func(b *testing.B) {
		const turn = 1 << 14
		decided := make([]Decided, turn)
		var alone, together []float64
		for n := 0; b.Loop(); n++ {
			list := flows[n*turn%len(flows):][:turn]
			before := cpuTime(b)
			for i := range list {
				s.DecideFlow(list[i])
			}
			between := cpuTime(b)
			list = flows[(n*turn+len(flows)/2)%len(flows):][:turn]
			s.DecideFlows(list, decided)
			alone = append(alone, float64((between-before).Nanoseconds())/turn)
			together = append(together, float64((cpuTime(b)-between).Nanoseconds())/turn)
		}
		slices.Sort(alone)
		slices.Sort(together)
		b.ReportMetric(alone[len(alone)/2], "alone-cpu-ns")
		b.ReportMetric(together[len(together)/2], "together-cpu-ns")
		b.ReportMetric(together[0], "best-together-cpu-ns")
	})
}

// cpuTime is what the process has used so far: on a busy machine it says more
// than the clock.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
