package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"bocage.dev/bocage"
)

// packetBench runs programs over frames by BPF_PROG_RUN. Without a context it says
// that the packet is on the loopback, so one workload's port is there.
type packetBench struct {
	*plane
	from, to *workload
}

const loopback = 1

func newPacketBench(t testing.TB, options ...func(*Config)) *packetBench {
	p := newPlane(t, options...)
	k := &packetBench{plane: p, from: p.workload(1, 101, 21), to: p.workload(2, 102, 22)}
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, k.from, k.to)))
	p.attach(k.from, k.to)
	k.settle()
	return k
}

// settle puts the workload's port on the loopback.
func (k *packetBench) settle() {
	k.in(func() error { return k.writePort(Attachment{Ifindex: loopback, Port: k.from.port}) })
}

// out is a packet from the workload, and answerTo makes its answer.
func (k *packetBench) out(protocol bocage.Protocol) frame {
	return frame{from: [6]byte(k.from.mac), to: gatewayMAC(k.from), source: k.from.v4, dst: k.to.v4, protocol: protocol,
		sport: 1000, dport: 80, tcpFlags: syn, payload: 100}
}

func answerTo(f frame) frame {
	f.from, f.to, f.source, f.dst, f.sport, f.dport = f.to, f.from, f.dst, f.source, f.dport, f.sport
	return f
}

// six is the same over IPv6.
func (k *packetBench) six(f frame) frame {
	f.source, f.dst = k.from.v6, k.to.v6
	return f
}

// established makes the flow one and returns a packet of its middle.
func (k *packetBench) established(f frame) frame {
	reply := answerTo(f)
	reply.tcpFlags = syn | ack
	k.program(f, true, 1)
	k.program(reply, false, 1)
	f.tcpFlags = ack
	k.program(f, true, 1)
	k.program(f, true, 1)
	reply.tcpFlags = ack
	k.program(reply, false, 1)
	return f
}

// program runs a program over a frame again and again, and says how long it takes.
func (k *packetBench) program(f frame, from bool, repeat int) (took time.Duration) {
	program := k.objects.ToWorkload
	if from {
		program = k.objects.FromWorkload
	}
	k.in(func() error {
		verdict, ns, err := program.Benchmark(f.bytes(), repeat, nil)
		took = ns
		if err == nil && verdict != next && f.dport != 81 && f.sport != 81 {
			err = fmt.Errorf("%+v: program returned %d", f, int32(verdict))
		}
		return err
	})
	return took
}

// each runs a program over one frame after the other, and one that does nothing
// between: what a single run costs is the processor's waking from what else it did,
// as much as the program.
func (k *packetBench) each(n int, change func(i int) frame) (single singles) {
	floor := nothing(k.t)
	run := func(program *ebpf.Program, b []byte, to *[]time.Duration) error {
		_, d, err := program.Benchmark(b, 1, nil)
		*to = append(*to, d)
		return err
	}
	k.in(func() error {
		for i := range n {
			b := change(i).bytes()
			if err := errors.Join(run(floor, b, &single.floor), run(k.objects.FromWorkload, b, &single.took)); err != nil {
				return err
			}
		}
		return nil
	})
	slices.Sort(single.floor)
	slices.Sort(single.took)
	return single
}

// row runs a program over one packet after the other from another source port each, in
// one go: what a packet costs where the programs are in the processor's caches, as
// where many connections are opened. It says how long one takes.
func (k *packetBench) row(f frame, n int) time.Duration {
	program := k.objects.FromWorkload
	targets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(k.t, err)
	defer targets.Close()
	number, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(k.t, err)
	defer number.Close()
	must(k.t, number.Put(uint32(0), uint32(f.sport)))
	const data, end, portAt = 76, 80, 14 + 20
	next, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMapValue(asm.R1, number.FD(), 0),
			asm.LoadMem(asm.R4, asm.R1, 0, asm.Word),
			asm.Add.Imm(asm.R4, 1),
			asm.StoreMem(asm.R1, 0, asm.R4, asm.Word),
			asm.HostTo(asm.BE, asm.R4, asm.Half),
			asm.LoadMem(asm.R2, asm.R6, data, asm.Word),
			asm.LoadMem(asm.R3, asm.R6, end, asm.Word),
			asm.Mov.Reg(asm.R5, asm.R2),
			asm.Add.Imm(asm.R5, portAt+2),
			asm.JGT.Reg(asm.R5, asm.R3, "out"),
			asm.StoreMem(asm.R2, portAt, asm.R4, asm.Half),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, targets.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		}})
	must(k.t, err)
	defer next.Close()
	must(k.t, targets.Put(uint32(0), program))
	var took time.Duration
	k.in(func() error {
		verdict, ns, err := next.Benchmark(f.bytes(), n, nil)
		took = ns
		if err == nil && verdict == 0 {
			err = errors.New("the program was not called")
		}
		return err
	})
	return took
}

// singles are how long single runs took, sorted.
type singles struct{ took, floor []time.Duration }

func (s singles) report(b *testing.B) {
	b.ReportMetric(float64(s.took[len(s.took)/2].Nanoseconds()), "ns/packet")
	b.ReportMetric(float64(s.took[len(s.took)/10].Nanoseconds()), "p10-ns/packet")
	b.ReportMetric(float64(s.floor[len(s.floor)/2].Nanoseconds()), "nothing-ns/packet")
	b.ReportMetric(float64(s.floor[len(s.floor)/10].Nanoseconds()), "p10-nothing-ns/packet")
}

// nothing is a program that passes everything: what is measured of it is what
// measuring costs.
func nothing(t testing.TB) *ebpf.Program {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	must(t, err)
	t.Cleanup(func() { program.Close() })
	return program
}

// BenchmarkRootPacket measures a program's time per packet by BPF_PROG_RUN: the
// same packet again and again where the path allows it (hot), one by one where
// each must be new (the median of single runs, which the clock itself is part of).
//
//	go test -run '^$' -bench RootPacket ./dataplane/
func BenchmarkRootPacket(b *testing.B) {
	k := newPacketBench(b, func(c *Config) { c.FlowEntries, c.AnswersPerSecond = 1<<17, 1<<26 })
	report := func(b *testing.B, took time.Duration) { b.ReportMetric(float64(took.Nanoseconds()), "ns/packet") }
	hot := func(name string, f frame, from bool) {
		b.Run(name, func(b *testing.B) { report(b, k.program(f, from, max(b.N, 100_000))) })
	}
	port := uint16(1000)
	cold := func(name string, f frame) {
		b.Run(name, func(b *testing.B) {
			k.each(min(max(b.N, 2000), 20_000), func(int) frame {
				port++
				f.sport = port
				return f
			}).report(b)
		})
	}
	b.Run("nothing", func(b *testing.B) {
		_, took, err := nothing(b).Benchmark(k.out(bocage.ProtocolTCP).bytes(), max(b.N, 100_000), nil)
		must(b, err)
		report(b, took)
	})
	tcp, udp := k.out(bocage.ProtocolTCP), k.out(bocage.ProtocolUDP)
	both := func(kind string) {
		for _, f := range []frame{tcp, k.six(tcp), udp, k.six(udp)} {
			name := fmt.Sprintf("%s/%s-%d", kind, f.protocol, f.source.BitLen())
			f = k.established(f)
			hot(name+"/sent", f, true)
			hot(name+"/answer", answerTo(f), false)
		}
	}
	both("established")
	refused := tcp
	refused.dport = 81
	hot("refused/same", refused, true)
	cold("refused/each-from-another-port", refused)
	cold("new/IPv4", tcp)
	b.Run("new/IPv4-in-a-row", func(b *testing.B) {
		const n = 4000
		f := tcp
		f.sport = port
		port += n
		report(b, k.row(f, n))
	})
	cold("new/IPv6", k.six(tcp))
	must(b, k.Shadow(ruleset(2, nil, k.from, k.to)))
	both("established-beside-a-candidate")
	cold("new/beside-a-candidate", tcp)
	must(b, k.Shadow(nil))
	must(b, k.Apply(rejecting(3, nil, k.from, k.to)))
	k.settle()
	cold("rejected/TCP", tcp)
	cold("rejected/UDP", udp)
}

// BenchmarkRootCrowded measures new flows beside many that live, and a table that
// has no room left.
//
//	go test -run '^$' -bench RootCrowded ./dataplane/
func BenchmarkRootCrowded(b *testing.B) {
	const live = 1_000_000
	k := newPacketBench(b, func(c *Config) { c.FlowEntries, c.FlowsPerPort = 1<<21, 1<<21 })
	other := func(i int) frame {
		f := k.out(bocage.ProtocolUDP)
		f.sport, f.dport = uint16(i), uint16(i>>16)+1
		return f
	}
	open := func(b *testing.B, n int) {
		k.in(func() error {
			for i := range n {
				f := other(i)
				if _, _, err := k.objects.FromWorkload.Benchmark(f.bytes(), 1, nil); err != nil {
					return err
				}
				if _, _, err := k.objects.ToWorkload.Benchmark(answerTo(f).bytes(), 1, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	open(b, live)
	at := live
	b.Run("new", func(b *testing.B) {
		k.each(min(max(b.N, 2000), 20_000), func(int) frame { at++; return other(at) }).report(b)
	})
	b.Run("established", func(b *testing.B) {
		k.each(min(max(b.N, 2000), 20_000), func(i int) frame { return other(i * 7919 % live) }).report(b)
	})
}

// BenchmarkRootScan measures how fast live flows are read out of the table.
//
//	go test -run '^$' -bench RootScan ./dataplane/
func BenchmarkRootScan(b *testing.B) {
	k := newPacketBench(b, func(c *Config) { c.FlowEntries, c.FlowsPerPort = 1<<20, 1<<20 })
	k.in(func() error {
		for i := range 700_000 {
			f := k.out(bocage.ProtocolUDP)
			f.sport, f.dport = uint16(i), uint16(i>>16)+1
			if _, _, err := k.objects.FromWorkload.Benchmark(f.bytes(), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	b.ResetTimer()
	flows, bytes := 0, uint64(0)
	for range b.N {
		for _, row := range k.flows.live {
			flows++
			bytes += row.Bytes
		}
	}
	if flows < 600_000*b.N || bytes == 0 {
		b.Fatalf("%d flows seen", flows/b.N)
	}
	b.ReportMetric(float64(flows)/b.Elapsed().Seconds()/1e6, "Mflows/s")
}

// BenchmarkRootApply measures a change of generation.
//
//	go test -run '^$' -bench RootApply ./dataplane/
func BenchmarkRootApply(b *testing.B) {
	p := newPlane(b)
	from, to := p.workload(1, 101, 21), p.workload(2, 102, 22)
	generation := uint64(0)
	apply := func(b *testing.B, change func(*bocage.Ruleset)) {
		var all []time.Duration
		for range b.N {
			generation++
			rs := ruleset(generation, []bocage.Rule{allowTCP(21, 22, 80)}, from, to)
			change(rs)
			start := time.Now()
			must(b, p.Apply(rs))
			all = append(all, time.Since(start))
		}
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
	b.Run("rules", func(b *testing.B) {
		apply(b, func(rs *bocage.Ruleset) { rs.Rules[0].Ports.Last += uint16(generation % 1000) })
	})
	b.Run("quarantine", func(b *testing.B) {
		apply(b, func(rs *bocage.Ruleset) {
			rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
		})
	})
}
