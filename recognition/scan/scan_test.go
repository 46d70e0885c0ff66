package scan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// contacts makes refused contacts of workload 20, one a millisecond.
type contacts struct {
	events []bocage.FlowEvent
}

func (c *contacts) add(change func(*bocage.FlowEvent)) {
	e := bocage.FlowEvent{
		Time: start.Add(time.Duration(len(c.events)) * time.Millisecond), Kind: bocage.EventRefused,
		Direction: bocage.DirectionFrom, Source: 20, SourcePort: 40000 + uint16(len(c.events)%20000),
		Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictDrop, Would: bocage.VerdictDrop,
		Reason: bocage.ReasonDefaultDeny, Packets: 1,
	}
	change(&e)
	c.events = append(c.events, e)
}

// member is a contact with a port of a workload.
func (c *contacts) member(id bocage.Identity, port uint16) {
	c.add(func(e *bocage.FlowEvent) { e.Destination, e.DestinationPort = id, port })
}

// address is a contact with a port of an address without a workload.
func (c *contacts) address(a netip.Addr, port uint16) {
	c.add(func(e *bocage.FlowEvent) { e.Destination, e.Remote, e.DestinationPort = bocage.IdentityWorld, a, port })
}

func (c *contacts) run(d *Detector) (last evidence.Item, seen int, firstAt int) {
	for i := range c.events {
		d.Flow(&c.events[i], c.events[i].Time, evidence.Record{Source: "s", Boot: "b", Sequence: 1, Index: i}, func(item evidence.Item) {
			if seen == 0 {
				firstAt = i
			}
			seen++
			last = item
		})
	}
	return last, seen, firstAt
}

func host(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

func TestScan(t *testing.T) {
	tests := map[string]struct {
		make   func(*contacts)
		text   string // empty: no evidence
		within int    // contacts until evidence
	}{
		"the ports of one workload": {func(c *contacts) {
			for port := range uint16(1000) {
				c.member(30, port+1)
			}
		}, "scanned 1000 ports of {victims}", 8},
		"a scan with flags that no stack sends": {func(c *contacts) {
			for port := range uint16(100) {
				c.member(30, port+1)
				c.events[len(c.events)-1].Reason = bocage.ReasonMalformed
			}
		}, "scanned 100 ports of {victims}", 8},
		"every address of a network on one port": {func(c *contacts) {
			for n := range 254 {
				c.address(host(n+1), 22)
			}
		}, "asked 254 addresses of {victims} for port TCP/22", 26},
		"dark addresses": {func(c *contacts) {
			for n := range 254 {
				c.address(host(n+1), 22)
				e := &c.events[len(c.events)-1]
				e.Reason, e.Verdict, e.Would, e.Protocol = bocage.ReasonDarkAddress, bocage.VerdictAllow, bocage.VerdictAllow, 0
			}
		}, "looked for 254 addresses around {victims} (254 unused)", 11},
		"many addresses and ports": {func(c *contacts) {
			for n := range 254 {
				for port := range uint16(100) {
					c.address(host(n+1), 1+port)
				}
			}
		}, "scanned 254 addresses and 100 ports of {victims}", 9},
		"six ports of five workloads": {func(c *contacts) {
			for id := range bocage.Identity(5) {
				for _, port := range []uint16{22, 80, 443, 5432, 6379, 8080} {
					c.member(30+id, port)
				}
			}
		}, "scanned 5 addresses and 6 ports of {victims}", 12},
		"ping of a network": {func(c *contacts) {
			for n := range 254 {
				c.address(host(n+1), 8<<8)
				c.events[len(c.events)-1].Protocol = bocage.ProtocolICMP
			}
		}, "asked 254 addresses of {victims} for an answer by ICMP", 26},
		"a slow scan, one port every twenty minutes": {func(c *contacts) {
			for port := range uint16(24) {
				c.member(30, 1000+port)
				c.events[len(c.events)-1].Time = start.Add(time.Duration(port) * 20 * time.Minute)
			}
		}, "scanned 24 ports of {victims}", 8},
		"a scan that is merely observed": {func(c *contacts) {
			for port := range uint16(100) {
				c.member(30, port+1)
				e := &c.events[len(c.events)-1]
				e.Verdict, e.Would = bocage.VerdictAllow, bocage.VerdictDrop
			}
		}, "scanned 100 ports of {victims}, which is observed and not refused", 15},

		"one refused service, for ever": {func(c *contacts) {
			for range 100_000 {
				c.member(30, 5432)
			}
		}, "", 0},
		"a new policy: six services of three replicas each, retried": {func(c *contacts) {
			for range 50 {
				for service, port := range []uint16{8080, 5432, 6379, 53, 4317, 514} {
					for replica := range 3 {
						c.member(bocage.Identity(30+service*3+replica), port)
					}
				}
			}
		}, "", 0},
		"a monitor that scrapes forty workloads": {func(c *contacts) {
			for range 100 {
				for n := range 40 {
					c.member(bocage.Identity(100+n), 9100)
				}
			}
		}, "", 0},
		"a client of hundreds of public web servers": {func(c *contacts) {
			for n := range 500 {
				c.address(netip.AddrFrom4([4]byte{93, 184, byte(n >> 8), byte(n)}), 443)
			}
		}, "", 0},
		"a stale list of ten addresses": {func(c *contacts) {
			for n := range 10 {
				c.address(host(n+1), 0)
				e := &c.events[len(c.events)-1]
				e.Reason, e.Verdict, e.Would, e.Protocol = bocage.ReasonDarkAddress, bocage.VerdictAllow, bocage.VerdictAllow, 0
			}
		}, "", 0},
		"passive FTP": {func(c *contacts) {
			for port := range uint16(25) {
				c.member(30, 40000+port*37)
			}
		}, "", 0},
		"late answers of a name server": {func(c *contacts) {
			for n := range 5000 {
				c.member(bocage.Identity(30+n%50), 32768+uint16(n*7%28000))
				e := &c.events[len(c.events)-1]
				e.SourcePort, e.Protocol = 53, bocage.ProtocolUDP
			}
		}, "", 0},
		"what a quarantined workload tries": {func(c *contacts) {
			for port := range uint16(1000) {
				c.member(30, port+1)
				c.events[len(c.events)-1].Reason = bocage.ReasonQuarantine
			}
		}, "", 0},
		"allowed flows": {func(c *contacts) {
			for n := range 1000 {
				c.member(bocage.Identity(30+n), 80)
				e := &c.events[len(c.events)-1]
				e.Kind, e.Verdict, e.Would, e.Reason = bocage.EventStart, bocage.VerdictAllow, bocage.VerdictAllow, bocage.ReasonRule
			}
		}, "", 0},
		"multicast": {func(c *contacts) {
			for n := range 254 {
				c.address(netip.AddrFrom4([4]byte{224, 0, 0, byte(n)}), 5353)
			}
		}, "", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var c contacts
			test.make(&c)
			last, seen, first := c.run(New(Config{}))
			if test.text == "" {
				if seen > 0 {
					t.Fatalf("evidence: %s (weight %.2f)", last.Facts, last.Weight)
				}
				return
			}
			if seen == 0 {
				t.Fatal("no evidence")
			}
			if got := last.Facts.String(); got != test.text {
				t.Errorf("got %q, want %q", got, test.text)
			}
			if !last.Decisive || first >= test.within {
				t.Errorf("decisive %v, after %d contacts and not %d", last.Decisive, first+1, test.within)
			}
			if len(last.Records) != evidence.MaxRecords || len(last.Victims) == 0 {
				t.Errorf("%d records, %d victims", len(last.Records), len(last.Victims))
			}
		})
	}
}

func TestOutsideScanProvesLittle(t *testing.T) {
	var c contacts
	for port := range uint16(1000) {
		c.add(func(e *bocage.FlowEvent) {
			e.Source, e.Direction, e.Remote = bocage.IdentityWorld, bocage.DirectionTo, netip.MustParseAddr("203.0.113.9")
			e.Destination, e.DestinationPort = 30, port+1
		})
	}
	last, seen, _ := c.run(New(Config{}))
	if seen == 0 || last.Decisive || last.Weight > maxOutsideWeight {
		t.Fatalf("%d items, decisive %v, weight %.1f", seen, last.Decisive, last.Weight)
	}
}

// The order of events changes nothing about the final evidence.
func TestOrderDoesNotMatter(t *testing.T) {
	var c contacts
	for n := range 40 {
		for port := range uint16(30) {
			c.address(host(n+1), 1+port*port)
		}
		c.member(bocage.Identity(100+n), 22)
	}
	want, _, _ := c.run(New(Config{}))
	wanted := fmt.Sprintf("%v %v %v %v", want.Facts, want.Victims, want.Records, want.Weight)
	for seed := range uint64(20) {
		shuffled := contacts{events: append([]bocage.FlowEvent(nil), c.events...)}
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(shuffled.events), func(i, j int) {
			shuffled.events[i], shuffled.events[j] = shuffled.events[j], shuffled.events[i]
		})
		d := New(Config{})
		var got evidence.Item
		for i := range shuffled.events {
			e := &shuffled.events[i]
			index := int(e.Time.Sub(start) / time.Millisecond)
			d.Flow(e, start, evidence.Record{Source: "s", Boot: "b", Sequence: 1, Index: index}, func(item evidence.Item) { got = item })
		}
		if s := fmt.Sprintf("%v %v %v %v", got.Facts, got.Victims, got.Records, got.Weight); s != wanted {
			t.Fatalf("seed %d:\n got %s\nwant %s", seed, s, wanted)
		}
	}
}

// A flood of sources costs old entries, never memory, and is counted.
func TestFloodIsBounded(t *testing.T) {
	d := New(Config{Sources: 256, Pairs: 1024})
	var c contacts
	for n := range 20_000 {
		c.add(func(e *bocage.FlowEvent) { e.Source, e.Destination, e.DestinationPort = bocage.Identity(100+n), 30, 22 })
	}
	if _, seen, _ := c.run(d); seen > 0 {
		t.Errorf("%d pieces of evidence from single contacts", seen)
	}
	sources, pairs := d.Evicted()
	if sources < 19_000 || pairs < 18_000 {
		t.Errorf("evicted %d sources and %d pairs", sources, pairs)
	}
}

func BenchmarkRefused(b *testing.B) {
	var c contacts
	for n := range 100_000 {
		c.add(func(e *bocage.FlowEvent) {
			e.Source, e.Destination = bocage.Identity(100+n%5000), bocage.Identity(6000+n%37)
			e.DestinationPort = uint16(n % 3)
		})
	}
	d := New(Config{})
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		e := &c.events[n%len(c.events)]
		d.Flow(e, e.Time, evidence.Record{}, func(evidence.Item) {})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkAllowed(b *testing.B) {
	d := New(Config{})
	e := bocage.FlowEvent{Kind: bocage.EventStart, Source: 20, Destination: 30, Verdict: bocage.VerdictAllow, SourcePort: 40000, DestinationPort: 80, Protocol: bocage.ProtocolTCP}
	for b.Loop() {
		d.Flow(&e, start, evidence.Record{}, func(evidence.Item) {})
	}
}

func BenchmarkScanner(b *testing.B) {
	var c contacts
	for n := range 100_000 {
		c.add(func(e *bocage.FlowEvent) { e.Destination, e.DestinationPort = bocage.Identity(30+n%50), uint16(n) })
	}
	d := New(Config{})
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		e := &c.events[n%len(c.events)]
		d.Flow(e, e.Time, evidence.Record{}, func(evidence.Item) {})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
