package dataplane

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// Several processors open, answer, close and evict flows of a table that is much
// too small, and open the same ones at the same time, while sweeps go on: no flow
// has two rows, what is held adds up, and no packet gets another flow's verdict.
func TestRootFlowTableUnderStress(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, 512)
	k.run()
	const workers, packets = 4, 6000
	seed := newRandom(t).Uint64()
	var group errgroup.Group
	for worker := range uint64(workers) {
		group.Go(func() error {
			// All draw the same flows, in nearly the same order.
			r := rand.New(rand.NewPCG(seed, 1))
			own := rand.New(rand.NewPCG(seed, worker+2))
			return host.In(k.namespace, func() error {
				for range packets {
					from := k.a
					if r.IntN(2) == 0 {
						from = k.c
					}
					sport, protocol := 1000+uint16(r.IntN(900)), bocage.ProtocolTCP
					if r.IntN(3) == 0 {
						protocol = bocage.ProtocolUDP
					}
					flags := []byte{syn, ack, fin | ack, rst | ack}[own.IntN(4)]
					k.send(from, k.b, protocol, sport, 80, flags)
					k.send(k.b, from, protocol, 80, sport, flags|ack)
					// Policy allows no flow to this port, whatever lies in the rows around.
					if got := k.send(from, k.b, bocage.ProtocolTCP, sport, 81, flags); got != dropped {
						return fmt.Errorf("a refused packet: program returned %d", int32(got))
					}
				}
				return nil
			})
		})
	}
	must(t, group.Wait())
	seen := make(map[any]bool)
	held := make(map[uint32]uint64)
	k.eachRow(func(_ uint32, row *bpf.KernelFlow) bool {
		if seen[row.Key] {
			t.Errorf("two rows for one flow: %+v", row.Key)
		}
		seen[row.Key] = true
		held[holderOf(row)]++
		if row.Word&flowWriting != 0 {
			t.Errorf("a row that nobody gave back: %+v", row)
		}
		return false
	})
	c := k.counters()
	if live := c.FlowsOpened - c.FlowsEnded; live != uint64(len(seen)) || c.FlowsEvicted == 0 {
		t.Errorf("%d rows live, %d by the counters %+v", len(seen), live, c)
	}
	for _, w := range []*workload{k.a, k.b, k.c} {
		var holding bpf.KernelHolding
		_ = k.objects.Holdings.Lookup(w.ifindex, &holding)
		if holding.Rows != held[w.ifindex] {
			t.Errorf("%s holds %d rows, and is said to hold %d", w.link, held[w.ifindex], holding.Rows)
		}
	}
}

// A flood from spoofed ports, by a real tool, leaves an established connection
// alone, and its neighbours' new ones.
func TestRootRealFloodCutsNobody(t *testing.T) {
	t.Parallel()
	hping, err := exec.LookPath("hping3")
	if err != nil {
		t.Fatal("hping3 is not installed: run scripts/setup")
	}
	p := newPlane(t, func(c *Config) { c.FlowEntries = 1024 })
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowTCP(23, 22, 80), allowUDP(21, 22)}, a, b, c)))
	p.run()
	echo(t, b, b.v4, 80)
	live := mustDial(t, a, b.v4, 80)
	must(t, ping(live, long))
	for _, kind := range [][]string{{"--syn", "-p", "80"}, {"--udp", "-p", "53"}} {
		flood := exec.Command(hping, append(kind, "--flood", "--quiet", b.v4.String())...)
		must(t, host.Start(a.namespace, flood))
		var once sync.Once
		stop := func() { once.Do(func() { _ = flood.Process.Kill(); _ = flood.Wait() }) }
		t.Cleanup(stop)
		before, err := p.Counters()
		must(t, err)
		opened := uint64(0)
		for begun := time.Now(); opened < 8*1024 && time.Since(begun) < long; {
			for range 100 {
				if err := ping(live, long); err != nil {
					t.Fatalf("the connection that was there, beside %v: %v", kind, err)
				}
			}
			now, err := p.Counters()
			must(t, err)
			opened = now.FlowsOpened - before.FlowsOpened
		}
		if err := ping(mustDial(t, c, b.v4, 80), long); err != nil {
			t.Errorf("a new connection of another, beside %v: %v", kind, err)
		}
		stop()
		if opened < 8*1024 {
			t.Errorf("%v opened %d flows only: no flood", kind, opened)
		}
	}
}

// Who opens flows in a bucket in which another processor does too takes another row: a
// table that is mostly free ends nobody's.
func TestRootFlowsOpenedAtOnceEndNobody(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.FlowEntries, c.FlowsPerPort = 8, 1<<20 })
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22), allowUDP(23, 22)}, a, b, c)))
	k := &crowd{plane: p, a: a, b: b, c: c}
	const rounds, each = 1000, 3
	random := newRandom(t)
	for range rounds {
		first := 1000 + uint16(random.IntN(50_000))
		var ready, group errgroup.Group
		start := make(chan struct{})
		for _, from := range []*workload{a, c} {
			atIt := make(chan struct{})
			ready.Go(func() error { <-atIt; return nil })
			group.Go(func() error {
				return host.In(p.namespace, func() error {
					close(atIt)
					<-start
					for i := range uint16(each) {
						if got := k.send(from, b, bocage.ProtocolUDP, first+i, 53, 0); got != next {
							return fmt.Errorf("a new flow: program returned %d", int32(got))
						}
					}
					return nil
				})
			})
		}
		must(t, ready.Wait())
		close(start)
		must(t, group.Wait())
		p.clearFlows()
		for bucket := range bucketsOf(p.cfg) {
			must(t, p.objects.Guides.Put(bucket, bpf.KernelGuide{}))
		}
	}
	if got := k.counters(); got.FlowsEvicted != 0 || got.FlowsOpened != rounds*each*2 {
		t.Errorf("%d flows opened, and %d of them ended before their time; want %d and none", got.FlowsOpened, got.FlowsEvicted, rounds*each*2)
	}
}
