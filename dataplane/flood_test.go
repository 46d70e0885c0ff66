package dataplane

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// A flood of refusals from every processor at once, at several
// ports: every packet is in the counters and in the events of its port, and what is
// told is one event a second for each port, whatever the flood.
func TestRootFloodFromEveryProcessor(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, nil, a, b)))
	p.in(func() error { return p.writePort(Attachment{Ifindex: loopback, Port: a.port}) })
	p.run()
	const ports, each = 40, 10_000
	processors := max(2, runtime.GOMAXPROCS(0))
	began := time.Now()
	var flood sync.WaitGroup
	faults := make(chan error, processors)
	for range processors {
		flood.Go(func() {
			faults <- host.In(p.namespace, func() error {
				for port := range ports {
					f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP,
						sport: 1000, dport: uint16(2000 + port), tcpFlags: syn}
					if _, _, err := p.objects.FromWorkload.Benchmark(f.bytes(), each, nil); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	flood.Wait()
	for range processors {
		must(t, <-faults)
	}
	c, err := p.Counters()
	must(t, err)
	// A run of each packets that a signal interrupts is run again: what it had offered is
	// counted, too, and everything below is held against what was counted.
	offered := int(c.Refused[bocage.ReasonDefaultDeny].Packets)
	if least := processors * ports * each; offered < least || offered > 2*least || c.Lost != 0 || c.Folded != 0 {
		t.Errorf("%d packets: counters %+v", least, c)
	}
	told, all, events := map[uint16]int{}, 0, 0
	for ; all < offered; events++ {
		e := p.await("the flood", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused })
		told[e.DestinationPort] += int(e.Packets)
		all += int(e.Packets)
	}
	if all != offered || len(told) != ports {
		t.Errorf("%d refusals were told at %d ports, of %d at %d", all, len(told), offered, ports)
	}
	for port, n := range told {
		if n < processors*each {
			t.Errorf("%d refusals were told at port %d, of %d", n, port, processors*each)
		}
	}
	if most := ports * (int(time.Since(began)/time.Second) + 2); events > most {
		t.Errorf("%d events of %d ports in %s", events, ports, time.Since(began))
	}
}
