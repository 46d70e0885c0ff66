package dataplane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/speech/speechtest"
)

// BenchmarkRootVerify measures what verification costs by BPF_PROG_RUN, beside the
// same packets where nothing need be spoken: each packet of a connection until both
// directions are known, one by one (the medians of single runs, which the clock
// itself is part of), and hot, a packet of a flow that is known.
//
//	go test -run '^$' -bench RootVerify ./dataplane/
func BenchmarkRootVerify(b *testing.B) {
	for _, c := range captures(b) {
		if c.Program != "curl-GET-to-nginx" && c.Program != "openssl-s_client,-TLS-1.2" && c.Program != "mysql-to-MariaDB-10.11" {
			continue
		}
		for _, where := range []struct {
			name     string
			protocol bocage.AppProtocol // 0: port 999
		}{{"anything", 0}, {"itself", c.Protocol}} {
			b.Run(fmt.Sprintf("%s/where-it-must-be-%s", c.Protocol, where.name), func(b *testing.B) {
				benchmarkVerify(b, c, where.protocol)
			})
		}
	}
}

func benchmarkVerify(b *testing.B, c speechtest.Capture, protocol bocage.AppProtocol) {
	x := newTap(b, true)
	conversation := []struct {
		server bool
		segment
	}{
		{false, segment{at: -1, flags: syn}}, {true, segment{at: -1, flags: syn | ack}}, {false, segment{flags: ack}},
		{false, segment{flags: ack, bytes: c.Asks}}, {true, segment{known: len(c.Asks), flags: ack, bytes: c.Answers}},
		{false, segment{at: len(c.Asks), known: len(c.Answers), flags: ack}},
	}
	server := uint16(999)
	if protocol != 0 {
		server = portOf(protocol)
	}
	times := make([][]time.Duration, len(conversation))
	run := func(s *stream, i, repeat int) (took time.Duration) {
		step := conversation[i]
		program := x.p.objects.FromWorkload
		if step.server {
			program = x.p.objects.ToWorkload
		}
		var verdict uint32
		x.p.in(func() (err error) {
			verdict, took, err = program.Benchmark(s.frame(step.server, step.segment), repeat, nil)
			return err
		})
		if verdict != ^uint32(0) {
			b.Fatalf("packet %d is refused", i)
		}
		return took
	}
	s := &stream{tap: x, server: server}
	for range min(max(b.N, 500), 5000) {
		x.port++
		s.client = x.port
		for i := range conversation {
			times[i] = append(times[i], run(s, i, 1))
		}
	}
	if protocol != 0 && s.isWatched() {
		b.Fatal("not known after all")
	}
	total := time.Duration(0)
	for i := range times {
		slices.Sort(times[i])
		median := times[i][len(times[i])/2]
		total += median
		b.ReportMetric(float64(median.Nanoseconds()), []string{"syn", "syn-ack", "ack", "asks", "answers", "acknowledges"}[i]+"-ns")
	}
	b.ReportMetric(float64(total.Nanoseconds()), "connection-ns")
	b.ReportMetric(float64(run(s, len(conversation)-1, 1_000_000).Nanoseconds()), "known-ns")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRootReadings measures the readings alone: each capture's first bytes,
// named out of eighteen.
//
//	go test -run '^$' -bench RootReadings ./dataplane/
func BenchmarkRootReadings(b *testing.B) {
	l := newListener(b)
	for _, c := range captures(b) {
		data := encode(c.Sides()[0])
		b.Run(c.Protocol.String()+"/"+c.Program, func(b *testing.B) {
			_, took, err := l.classify.Benchmark(data, max(b.N, 100_000), nil)
			must(b, err)
			b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
		})
	}
}
