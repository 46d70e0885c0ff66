package dataplane

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
)

// large is a ruleset of n rules and n peers, ten of these to a group: the group of the
// first workload may reach port 443 of every group, and groups each other at ports
// that differ from salt to salt. What workloads bring is in it too.
func large(generation uint64, n, salt int, ws ...*workload) *bocage.Ruleset {
	rs := ruleset(generation, nil, ws...)
	rs.Peers, rs.Groups = slices.Clone(rs.Peers), slices.Clone(rs.Groups)
	groups := max(n/10, 1)
	group := func(i int) bocage.Group { return bocage.Group(1000 + (i%groups+groups)%groups) }
	for i := range n {
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(largeAddress(i), 32),
			Identity: bocage.Identity(100_000 + i), Group: group(i), Host: "h2"})
	}
	for g := range groups {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: group(g), Enforce: true})
		rs.Rules = append(rs.Rules, allowTCP(ws[0].port.Group, group(g), 443))
	}
	for i := groups; i < n; i++ {
		rs.Rules = append(rs.Rules, allowTCP(group(i), group(i+1+i/groups), uint16(1000+i/groups+100*salt)))
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	slices.SortFunc(rs.Peers, func(a, b bocage.Peer) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	return rs
}

func largeAddress(i int) netip.Addr {
	var raw [4]byte
	binary.BigEndian.PutUint32(raw[:], 11<<24|uint32(i))
	return netip.AddrFrom4(raw)
}

func roomFor(n int) func(*Config) {
	return func(c *Config) { c.RuleEntries, c.PeerEntries = n+1000, n+1000 }
}

// smallChanges are what is measured of changes, each with its undoing.
func smallChanges(rs *bocage.Ruleset) map[string][2]Change {
	rule, peer := rs.Rules[len(rs.Rules)/2], rs.Peers[len(rs.Peers)/2]
	moved := peer
	moved.Group = rs.Rules[0].To
	refusal := bocage.Refusal{Identity: peer.Identity, Decision: decideQuarantine}
	other := rule
	other.Ports = bocage.PortRange{First: 20_000, Last: 20_000}
	return map[string][2]Change{
		"revoke-a-rule": {{RulesGone: []bocage.Rule{rule}}, {RulesCome: []bocage.Rule{rule}}},
		"add-a-rule":    {{RulesCome: []bocage.Rule{other}}, {RulesGone: []bocage.Rule{other}}},
		"move-a-peer": {{PeersGone: []bocage.Peer{peer}, PeersCome: []bocage.Peer{moved}},
			{PeersGone: []bocage.Peer{moved}, PeersCome: []bocage.Peer{peer}}},
		"quarantine": {{Refused: []bocage.Refusal{refusal}}, {Lifted: []bocage.Identity{peer.Identity}}},
	}
}

// A change costs what it changes: as many calls of the kernel and rows at ten
// thousand rules and peers as at a hundred.
func TestRootChangesCostWhatTheyChange(t *testing.T) {
	t.Parallel()
	type cost struct{ steps, rows int }
	costs := map[string][]cost{}
	for _, n := range []int{100, 10_000} {
		p := newPlane(t, roomFor(n))
		a := p.workload(1, 101, 21)
		rs := large(1, n, 0, a)
		must(t, p.Apply(rs))
		measure := func(name string, do func(generation uint64) error) {
			steps, rows := p.steps, p.ordered
			must(t, do(p.Generation()+1))
			costs[name] = append(costs[name], cost{p.steps - steps, p.ordered - rows})
		}
		changes := smallChanges(rs)
		for _, name := range slices.Sorted(maps.Keys(changes)) { // what is at hand depends on what was done last
			c := changes[name]
			for i, what := range []string{name, name + ", undone"} {
				measure(what, func(generation uint64) error {
					c[i].Generation = generation
					return p.Amend(c[i])
				})
			}
		}
		less := rs.Copy()
		less.Rules = slices.Delete(slices.Clone(rs.Rules), n/2, n/2+1)
		apply := func(rs *bocage.Ruleset) func(uint64) error {
			return func(generation uint64) error {
				rs := rs.Copy()
				rs.Generation = generation
				return p.Apply(rs)
			}
		}
		measure("the same again", apply(rs))
		must(t, p.Amend(Change{Generation: p.Generation() + 1}))
		measure("by comparison", apply(less))
	}
	for name, c := range costs {
		if c[0] != c[1] || c[0].rows > 20 {
			t.Errorf("%s: %d calls and %d rows at a hundred, %d and %d at ten thousand", name, c[0].steps, c[0].rows, c[1].steps, c[1].rows)
		}
	}
}

// BenchmarkRootSize measures what depends on the size of a ruleset, and what does not.
//
//	go test -run '^$' -bench RootSize -benchtime 1x ./dataplane/
func BenchmarkRootSize(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkSize(b, n) })
	}
}

func benchmarkSize(b *testing.B, n int) {
	p := newPlane(b, roomFor(n), func(c *Config) { c.FlowEntries = 1 << 17 })
	from := p.workload(1, 101, 21)
	none, one, other := large(1, 0, 0, from), large(1, n, 0, from), large(2, n, 1, from)
	// A benchmark may be repeated: it begins with another ruleset than it applies.
	took := func(b *testing.B, was, rs *bocage.Ruleset) {
		must(b, p.Apply(renumbered(was, p.Generation()+1)))
		rs = renumbered(rs, p.Generation()+1)
		start, cpu := time.Now(), processTime()
		must(b, p.Apply(rs))
		report(b, start, cpu)
	}
	b.Run("load", func(b *testing.B) { took(b, none, one) })
	p.attach(from)
	const loopback = 1 // what BPF_PROG_RUN says without a context
	p.in(func() error { return p.writePort(Attachment{Ifindex: loopback, Port: from.port}) })
	b.Run("new-flow", func(b *testing.B) {
		f := frame{from: [6]byte(from.mac), to: gatewayMAC(from), source: from.v4, protocol: bocage.ProtocolTCP,
			sport: 1000, dport: 443, tcpFlags: syn}
		random := newRandom(b)
		var all []time.Duration
		p.in(func() error {
			for range 20_000 {
				f.sport, f.dst = f.sport+1, largeAddress(random.IntN(n))
				returned, took, err := p.objects.FromWorkload.Benchmark(f.bytes(), 1, nil)
				if err != nil || returned != next {
					return fmt.Errorf("program returned %d: %w", int32(returned), err)
				}
				all = append(all, took)
			}
			return nil
		})
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "ns/flow")
	})
	b.Run("memory", func(b *testing.B) {
		for table, name := range map[uint32]string{tablePeers: "B/peer", tableCells: "B/rule", tableGroups: "B/group"} {
			b.ReportMetric(float64(memlock(b, p.mapOf(table)))/float64(p.count[table]), name)
		}
		b.ReportMetric(float64(memlock(b, p.objects.Flows))/float64(p.cfg.FlowEntries), "B/flow")
		b.ReportMetric(float64(memlock(b, p.objects.Cadences))/float64(p.cfg.FlowEntries), "B/flow-cadence")
		runtime.GC()
		var heap runtime.MemStats
		runtime.ReadMemStats(&heap)
		b.ReportMetric(float64(heap.HeapAlloc)/1e6, "agent-MB")
	})
	for name, c := range smallChanges(one) {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var all, cpu []time.Duration
			for i := range 1000 {
				change := c[i%2]
				change.Generation = p.Generation() + 1
				start, used := time.Now(), threadTime()
				must(b, p.Amend(change))
				all, cpu = append(all, time.Since(start)), append(cpu, threadTime()-used)
			}
			percentiles(b, "", all)
			percentiles(b, "cpu-", cpu)
		})
	}
	b.Run("revoke-a-rule-by-comparison", func(b *testing.B) {
		lists := [2]*bocage.Ruleset{one.Copy(), one.Copy()}
		lists[0].Rules = slices.Delete(slices.Clone(one.Rules), n/2, n/2+1)
		must(b, p.Apply(renumbered(one, p.Generation()+1)))
		var all []time.Duration
		for i := range 100 {
			rs := renumbered(lists[i%2], p.Generation()+1)
			start := time.Now()
			must(b, p.Apply(rs))
			all = append(all, time.Since(start))
		}
		percentiles(b, "", all)
	})
	b.Run("swap", func(b *testing.B) { took(b, one, other) })
	b.Run("first-of-a-new-process", func(b *testing.B) {
		must(b, p.Close())
		p.open()
		start, cpu := time.Now(), processTime()
		must(b, p.Apply(renumbered(other, p.Generation()+1)))
		report(b, start, cpu)
	})
}

// report says how long it is since a moment, and a time of the process.
func report(b *testing.B, start time.Time, cpu time.Duration) {
	b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms")
	b.ReportMetric(float64((processTime()-cpu).Microseconds())/1000, "cpu-ms")
}

func renumbered(rs *bocage.Ruleset, generation uint64) *bocage.Ruleset {
	rs = rs.Copy()
	rs.Generation = generation
	return rs
}

func percentiles(b *testing.B, of string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), of+"p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), of+"p99-µs")
}

// memlock is the memory that a map takes.
func memlock(t testing.TB, m *ebpf.Map) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	must(t, err)
	bytes := 0
	for line := range strings.Lines(string(raw)) {
		fmt.Sscanf(line, "memlock:\t%d", &bytes)
	}
	return bytes
}

// processTime is the time that this process had a processor.
func processTime() time.Duration {
	var usage unix.Rusage
	// It cannot fail for the process itself.
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// threadTime is that of this thread, which waiting for a busy machine is no part of.
func threadTime() time.Duration {
	var ts unix.Timespec
	// The clock always exists.
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}
