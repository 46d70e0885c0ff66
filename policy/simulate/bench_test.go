package simulate

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// BenchmarkMissing measures how long the smallest change takes to find, for probes
// of which none was asked before.
func BenchmarkMissing(b *testing.B) {
	for _, site := range []struct {
		name string
		in   compile.Input
	}{
		{"Site", policytest.Site(100_000)},
		{"cluster", policytest.Cluster(100, 10, 100)},
	} {
		s, _ := Compile(site.in)
		r := rand.New(rand.NewPCG(1, 2))
		b.Run(fmt.Sprintf("%s of %d", site.name, len(s.workloads)), func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				from, to := r.IntN(len(s.workloads)), r.IntN(len(s.workloads))
				if i%2 == 0 {
					to = min(from+r.IntN(40), len(s.workloads)-1)
				}
				if from == to {
					continue // needs no change
				}
				a := s.Answer(bocage.SimulateProbe{From: s.workloads[from].name, To: s.workloads[to].name, Port: []uint16{8080, 9090, 5432, 22, 443}[i%5]})
				if a.Missing == "" {
					b.Fatalf("%+v", a)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N)/1000, "cpu-us/op")
		})
	}
}
