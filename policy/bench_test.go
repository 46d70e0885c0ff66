package policy

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/mem"
)

// BenchmarkQuarantine measures from the write of a Quarantine to the signed
// rulesets of all hosts in the store.
func BenchmarkQuarantine(b *testing.B) {
	for _, engine := range []string{"mem", "etcd"} {
		for _, n := range []int{10, 1_000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				var s store.Store = mem.New()
				if engine == "etcd" {
					var err error
					if s, err = etcd.Open(etcd.Config{Dir: b.TempDir()}); err != nil {
						b.Fatal(err)
					}
				}
				defer s.Close()
				benchmarkQuarantine(b, s, policytest.Site(n))
			})
		}
	}
}

func benchmarkQuarantine(b *testing.B, s store.Store, in compile.Input) {
	q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}}
	benchmarkPublish(b, s, in, func(i int) bocage.Resource {
		q.Spec = bocage.QuarantineSpec{Workload: fmt.Sprintf("ns0/w%d", i%10)}
		return q
	})
}

// BenchmarkPublish10k measures from the write of one declaration to its generation
// in force, for 10,000 workloads on 400 hosts: what a host is sent is signed when
// it asks.
func BenchmarkPublish10k(b *testing.B) {
	in := policytest.Site(10_000)
	for _, bench := range []struct {
		name   string
		change func(i int) bocage.Resource
	}{
		{"application", func(i int) bocage.Resource {
			a := *in.Applications[i%len(in.Applications)]
			a.Spec.Provides = slices.Clone(a.Spec.Provides)
			a.Spec.Provides[0].Port = uint16(10_000 + i%50_000)
			a.Generation = int64(i)
			return &a
		}},
		{"quarantine", func(i int) bocage.Resource {
			return &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: fmt.Sprintf("ns0/w%d", i%10)}}
		}},
		{"workload", func(i int) bocage.Resource {
			w := *in.Workloads[i%len(in.Workloads)]
			w.Spec.Interface = fmt.Sprintf("n%d", i)
			return &w
		}},
	} {
		for _, engine := range []string{"mem", "etcd"} {
			b.Run(bench.name+"/"+engine, func(b *testing.B) {
				var s store.Store = mem.New()
				if engine == "etcd" {
					var err error
					if s, err = etcd.Open(etcd.Config{Dir: b.TempDir()}); err != nil {
						b.Fatal(err)
					}
				}
				defer s.Close()
				benchmarkPublish(b, s, in, bench.change)
			})
		}
	}
}

func benchmarkPublish(b *testing.B, s store.Store, in compile.Input, change func(i int) bocage.Resource) {
	authority, err := identity.OpenAuthority(b.TempDir(), "bench.example")
	if err != nil {
		b.Fatal(err)
	}
	svid, err := authority.IssueSVID("/controller/bench", time.Hour, identity.IssueOptions{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	put := func(objects ...bocage.Resource) {
		var ops []store.Op
		flush := func() {
			if _, err := s.Apply(ctx, ops...); err != nil {
				b.Fatal(err)
			}
			ops = nil
		}
		for _, o := range objects {
			kind := kindOfObject(o)
			value, err := store.EncodeObject(kind, o)
			if err != nil {
				b.Fatal(err)
			}
			ops = append(ops, store.Op{Key: kind.Key(o.Meta().Namespace, o.Meta().Name), Value: value, IfWas: store.AnyRevision})
			if len(ops) == 500 {
				flush()
			}
		}
		flush()
	}
	objects := []bocage.Resource{in.Guardrails[0], in.Profiles[0], in.Scopes[0], in.Decoys[0]}
	for _, w := range in.Workloads {
		objects = append(objects, w)
	}
	for _, a := range in.Applications {
		objects = append(objects, a)
	}
	put(objects...)
	notices := make(chan uint64, 64)
	p, err := New(Config{Store: s, Sign: svid.Sign, Notify: func(g uint64) { notices <- g }})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	<-notices
	var took []time.Duration
	before := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		begun := cpuTime(b)
		put(change(i))
		<-notices
		took = append(took, cpuTime(b)-begun)
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-cpu-ms")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
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

// BenchmarkParts measures the parts of what one change costs.
func BenchmarkParts(b *testing.B) {
	in := policytest.Site(10_000)
	rs := compile.Compile(in).Ruleset()
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			compile.Compile(in)
		}
	})
	b.Run("prove", func(b *testing.B) {
		for b.Loop() {
			prove.Prove(in, rs)
		}
	})
	b.Run("cut and encode all hosts", func(b *testing.B) {
		for b.Loop() {
			cutter := compile.NewCutter(rs, in)
			e, err := newEncoder(rs, cutter.Cut, nil)
			if err != nil {
				b.Fatal(err)
			}
			for _, host := range cutter.Hosts() {
				if _, err := e.encode(e.numbered(host, 1, time.Time{})); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
