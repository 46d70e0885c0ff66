package dataplane

import (
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host/hosttest"
)

// later has every end come so much sooner, as if that time had passed: of decisions, of
// refused identities, of what nobody has confirmed, of names, of verdicts that flows
// carry, and of judgements that are kept. It needs no process that has the state open,
// only what is pinned.
func (p *plane) later(by time.Duration) {
	p.t.Helper()
	sooner := func(moment *uint64) {
		if *moment != 0 && *moment != forever {
			*moment = uint64(max(int64(*moment)-by.Nanoseconds(), 1))
		}
	}
	pinned := func(name string) *ebpf.Map {
		paths, err := filepath.Glob(filepath.Join(p.cfg.PinDir, "*", "map", name))
		must(p.t, err)
		if len(paths) != 1 {
			p.t.Fatalf("%d maps called %s under %s, want one", len(paths), name, p.cfg.PinDir)
		}
		m, err := ebpf.LoadPinnedMap(paths[0], nil)
		must(p.t, err)
		return m
	}
	refused, successions, learned, active, flows := pinned("refused_identities"), pinned("successions"), pinned("learned"), pinned("active"), pinned("flows")
	for _, m := range []*ebpf.Map{refused, successions, learned, active, flows} {
		defer m.Close()
	}
	changeRows(p.t, refused, func(_ uint32, row *bpf.KernelRefusedRow) bool {
		for i := range row.In {
			sooner(&row.In[i].Until)
		}
		return true
	})
	changeRows(p.t, successions, func(_ uint32, row *bpf.KernelSuccessionRow) bool {
		for i := range row.In {
			sooner(&row.In[i].Until)
		}
		return true
	})
	changeRows(p.t, learned, func(_ bpf.KernelSetKey, set *bpf.KernelLearnedSet) bool {
		for i := range set.Rows {
			sooner(&set.Rows[i].Until)
			sooner(&set.Rows[i].Used)
		}
		return true
	})
	p.ageJudgements(sooner) // before the flows, which are judged again by them
	eras := uint32(by.Nanoseconds() >> eraShift)
	changeRows(p.t, flows, func(_ uint32, bucket *bpf.KernelBucket) (changed bool) {
		for i := range bucket.Rows {
			if row := &bucket.Rows[i]; row.Word&flowLive != 0 && row.Until != 0 && row.Until != eraForever {
				row.Until, changed = max(row.Until, eras+2)-eras-1, true
			}
		}
		return changed
	})
	changeRows(p.t, active, func(_ uint32, row *bpf.KernelActive) bool {
		sooner(&row.Terms[0].Deadline)
		sooner(&row.Terms[1].Deadline)
		return true
	})
}

// ageJudgements changes the ends in what programs keep for themselves, whoever loaded
// them.
func (p *plane) ageJudgements(sooner func(*uint64)) {
	p.t.Helper()
	links, err := filepath.Glob(filepath.Join(p.cfg.PinDir, "*", "link", "*"))
	must(p.t, err)
	aged := map[ebpf.MapID]bool{} // programs that were loaded together share one
	for _, path := range links {
		l, err := link.LoadPinnedLink(path, nil)
		must(p.t, err)
		about, err := l.Info()
		must(p.t, err)
		l.Close()
		program, err := ebpf.NewProgramFromID(about.Program)
		must(p.t, err)
		info, err := program.Info()
		must(p.t, err)
		program.Close()
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if aged[id] {
				continue
			}
			aged[id] = true
			m, err := ebpf.NewMapFromID(id)
			must(p.t, err)
			about, err := m.Info()
			must(p.t, err)
			if about.Name == "judgements" {
				var perProcessor [][]byte // as bytes: rows have bits that Go has no names for
				must(p.t, m.Lookup(uint32(0), &perProcessor))
				for _, b := range perProcessor {
					all := (*bpf.KernelJudgements)(unsafe.Pointer(&b[0]))
					for i := range all.Rows {
						sooner(&all.Rows[i].Outcome.Until)
					}
				}
				must(p.t, m.Put(uint32(0), perProcessor))
			}
			m.Close()
		}
	}
}

// Eras of flows (see abi.h).
const (
	eraShift   = 26
	eraForever = ^uint32(0)
)

// changeRows goes through a map; rows that were changed are written back.
func changeRows[K comparable, V any](t testing.TB, m *ebpf.Map, change func(K, *V) bool) {
	t.Helper()
	var keys []K
	for key, err := range keysIn[K](m) { // a row that is written back moves in the order of the keys
		must(t, err)
		keys = append(keys, key)
	}
	for _, key := range keys {
		row := new(V)
		must(t, m.Lookup(key, row))
		if change(key, row) {
			must(t, m.Put(key, row))
		}
	}
}

// Ends come by the kernel's own clock, with nobody alive: not before their moment, and
// then by themselves. (Elsewhere tests have time pass by moving ends: see later.)
func TestRootEndsComeInTime(t *testing.T) {
	t.Parallel()
	// What is allowed until then and refused after, or the other way round.
	for name, rulesets := range map[string]func(end time.Time, ws ...*workload) (all []*bocage.Ruleset){
		"a decision's": func(end time.Time, ws ...*workload) []*bocage.Ruleset {
			return []*bocage.Ruleset{chained(1, []bocage.Verdict{bocage.VerdictDrop, bocage.VerdictAllow}, []time.Time{end}, ws...)}
		},
		"a quarantine's": func(end time.Time, ws ...*workload) []*bocage.Ruleset {
			rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, ws...)
			rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine, Until: end}}
			return []*bocage.Ruleset{rs}
		},
		"the time to confirm": func(end time.Time, ws ...*workload) []*bocage.Ruleset {
			unconfirmed := ruleset(2, nil, ws...)
			unconfirmed.ConfirmBy = end
			return []*bocage.Ruleset{ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, ws...), unconfirmed}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			p.attach(a, b)
			f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
			const soon = 700 * time.Millisecond
			now := readClock() // ends are told by the clock on the wall, and come by the kernel's
			for _, rs := range rulesets(now.wall.Add(soon), a, b) {
				must(t, p.Apply(rs))
			}
			before, tries := time.Duration(0), 0
			hosttest.Await(t, "the end to come", func() bool {
				f.sport++
				tries++
				passed := p.judgedHere(true, a.ifindex, f.bytes()) == next
				since := time.Duration(readClock().ns - now.ns)
				if !passed {
					before = since
				} else if since < soon-clockError {
					t.Fatalf("it came after %s instead of %s", since, soon)
				}
				return passed
			})
			t.Logf("last seen before it after %s, of %s; %d packets", before, soon, tries)
		})
	}
}
