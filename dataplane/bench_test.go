package dataplane

import (
	"slices"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// BenchmarkRootPacket measures a program's time per packet by BPF_PROG_RUN: the
// same packet again and again where the path allows it (hot), one by one where
// each must be new (the median of single runs, which the clock itself is part of).
//
//	go test -run '^$' -bench RootPacket ./dataplane/
func BenchmarkRootPacket(b *testing.B) {
	p := newPlane(b, func(c *Config) { c.FlowEntries, c.AnswersPerSecond = 1<<17, 1<<26 })
	from, to := p.workload(1, 101, 21), p.workload(2, 102, 22)
	must(b, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, from, to)))
	p.attach(from, to)
	// BPF_PROG_RUN without a context says that the packet is on the loopback.
	const loopback = 1
	port := from.port
	p.in(func() error { return p.writePort(Attachment{Ifindex: loopback, Port: port}) })

	f := frame{from: [6]byte(from.mac), to: gatewayMAC(from), source: from.v4, dst: to.v4, protocol: bocage.ProtocolTCP,
		sport: 1000, dport: 80, tcpFlags: syn, payload: 100}
	six := f
	six.source, six.dst = from.v6, to.v6
	run := func(f frame, repeat int) (ns time.Duration) {
		p.in(func() error {
			_, d, err := p.objects.FromWorkload.Benchmark(f.bytes(), repeat, nil)
			ns = d
			return err
		})
		return ns
	}
	hot := func(b *testing.B, f frame) {
		ns := run(f, max(b.N, 100_000))
		b.ReportMetric(float64(ns.Nanoseconds()), "ns/packet")
	}
	cold := func(b *testing.B, f frame) {
		var all []time.Duration
		n := min(max(b.N, 2000), 20_000)
		p.in(func() error {
			for range n {
				f.sport++
				_, d, err := p.objects.FromWorkload.Benchmark(f.bytes(), 1, nil)
				if err != nil {
					return err
				}
				all = append(all, d)
			}
			return nil
		})
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "ns/packet")
	}
	established := func(f frame) frame {
		run(f, 1)
		f.tcpFlags = ack
		return f
	}
	refused := f
	refused.dport = 81
	other := refused
	b.Run("established/IPv4", func(b *testing.B) { hot(b, established(f)) })
	b.Run("established/IPv6", func(b *testing.B) { hot(b, established(six)) })
	b.Run("refused/same", func(b *testing.B) { hot(b, refused) })
	b.Run("refused/each-from-another-port", func(b *testing.B) { cold(b, other) })
	b.Run("new/IPv4", func(b *testing.B) { cold(b, f) })
	b.Run("new/IPv6", func(b *testing.B) { cold(b, six) })
	must(b, p.Shadow(ruleset(2, nil, from, to)))
	b.Run("established/beside-a-candidate", func(b *testing.B) { hot(b, established(f)) })
	b.Run("new/beside-a-candidate", func(b *testing.B) { cold(b, f) })
	must(b, p.Shadow(nil))
	must(b, p.Apply(rejecting(3, nil, from, to)))
	p.in(func() error { return p.writePort(Attachment{Ifindex: loopback, Port: port}) })
	b.Run("rejected/TCP", func(b *testing.B) { cold(b, f) })
	datagram := f
	datagram.protocol = bocage.ProtocolUDP
	b.Run("rejected/UDP", func(b *testing.B) { cold(b, datagram) })
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
