package lake

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage"
	streammem "bocage.dev/bocage/stream/mem"
)

// shopFlows makes a batch of 1,000 flows that differ as a shop's do.
func shopFlows(n uint64) *bocage.Batch {
	b := &bocage.Batch{Source: "spiffe://bocage.test/agent/h1", Boot: "boot1", Sequence: n, Sent: morning}
	for i := range 1000 {
		e := bocage.FlowEvent{Time: morning.Add(time.Duration(n)*time.Millisecond + time.Duration(i)*time.Microsecond),
			Kind: bocage.EventKind(1 + i%2), Source: bocage.Identity(100 + i*7%400), Destination: bocage.Identity(600 + i%37),
			SourcePort: uint16(30000 + (i*7919+int(n)*31)%30000), DestinationPort: [...]uint16{8080, 5432, 6379, 53}[i%4],
			Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow, Reason: bocage.ReasonRule,
			Decision: bocage.DecisionID(i % 20), Generation: 3, Interface: uint32(i % 50), Packets: uint32(4 + i%60),
			Bytes: uint64(600 + i*137%50000), Replied: i%2 == 1, Remote: netip.AddrFrom4([4]byte{10, 1, byte(i % 7), byte(i)})}
		b.Flows, _ = e.AppendBinary(b.Flows)
	}
	return b
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkLand writes segments of 100,000 records, synced.
func BenchmarkLand(b *testing.B) {
	l := newLake(b, nil)
	named := func(id bocage.Identity) string { return fmt.Sprintf("shop/w%d", id) }
	batches := make([]*bocage.Batch, 100)
	for i := range batches {
		batches[i] = shopFlows(uint64(i + 1))
	}
	began := cpuTime()
	for n := uint64(1); b.Loop(); n++ {
		r := newRows()
		for _, batch := range batches {
			r.add(batch, "h1", morning, named)
		}
		if err := l.land(r, n, n); err != nil {
			b.Fatal(err)
		}
	}
	records := float64(b.N) * 100_000
	b.ReportMetric(records/(cpuTime()-began).Seconds(), "records/cpu-s")
	b.ReportMetric(float64(l.Stats().Bytes)/records, "bytes/record")
}

// BenchmarkAsk asks of a million flows, each time in a new child.
func BenchmarkAsk(b *testing.B) {
	l := newLake(b, func(c *Config) { c.FlushEvery = time.Second })
	r := newRows()
	for n := range uint64(1000) {
		r.add(shopFlows(n+1), "h1", morning, func(id bocage.Identity) string { return fmt.Sprintf("shop/w%d", id) })
		if n%100 == 99 {
			if err := l.land(r, n-98, n+1); err != nil {
				b.Fatal(err)
			}
			r = newRows()
		}
	}
	for name, sql := range map[string]string{
		"one row":     "SELECT 1",
		"top talkers": "SELECT source, sum(bytes) AS b FROM flows GROUP BY source ORDER BY b DESC LIMIT 10",
		"edges":       "",
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if sql == "" {
					if edges, err := l.Edges(b.Context(), time.Time{}); err != nil || len(edges) == 0 {
						b.Fatal(len(edges), err)
					}
				} else if _, err := l.Query(b.Context(), sql, 10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLandLog is the whole way, from JSON in the log to a synced file.
func BenchmarkLandLog(b *testing.B) {
	l, log := newLake(b, func(c *Config) { c.FlushEvery = time.Second }), streammem.NewLog(1<<30)
	stop := land(b, l, log)
	n := uint64(0)
	began := cpuTime()
	for b.Loop() {
		for range 100 {
			n++
			envelope, err := json.Marshal(shopFlows(n))
			if err != nil {
				b.Fatal(err)
			}
			appendTo(b, log, "", envelope)
		}
		if err := l.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*1000/(cpuTime()-began).Seconds(), "records/cpu-s")
	stop()
}
