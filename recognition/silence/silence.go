// Package silence recognises tampering with the witnesses: batches that are
// missing, doubled, forged or never sent.
//
//	evidence    "fork" (decisive): one agent signed two histories; "gap": batches that
//	            never came; "unsigned": batches that nobody vouches for; "blind":
//	            records that the agent itself says it lost; "silent": an agent that
//	            still reports to its controller, but sent no batch for long; "foreign":
//	            events of workloads that are not on the agent's host
//	ATT&CK      T1562 Impair Defenses
//	roles       attacker: the host whose agent it is
//	state       about 5 kB for each of at most 4,096 agents, times at most four boots
//
// It also keeps the accounts: every batch is new or a duplicate, by source, boot
// and sequence, whichever way the log was read. A gap is evidence only after half
// a minute, since a late batch fills it. Weights: fork 3, unsigned and foreign 1, gap and
// silent 0.5, blind 0.2: all but the fork have innocent causes (a full disk, an
// expired certificate, a quiet host).
package silence

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/account"
	"bocage.dev/bocage/recognition/evidence"
)

// Kinds of evidence.
const (
	KindFork     = "fork"
	KindGap      = "gap"
	KindUnsigned = "unsigned"
	KindBlind    = "blind"
	KindSilent   = "silent"
	KindForeign  = "foreign"
)

const (
	maxSources = 4096
	maxBoots   = 4
	links      = 32 // batches whose hashes are remembered
	patience   = 30 * time.Second
	halfLife   = time.Hour
	// SilentAfter is how much longer than its last batch an agent must go on
	// reporting before its silence is evidence.
	SilentAfter = 15 * time.Minute
)

// Detector keeps the accounts of every agent. It is not safe for concurrent use.
type Detector struct {
	sources map[string]*source
	// Missing counts batches that are known to exist and have not come.
	Missing uint64
	// Unchained counts batches whose link to the one before could not be
	// confirmed for a source that never had a confirmed link.
	Unchained uint64
}

type source struct {
	host    string
	boots   []*boot // latest used last
	arrived time.Time
	lost    uint64
	chained bool // links of this source have been confirmed
	silent  bool
}

type boot struct {
	name   string
	window account.Window
	links  [links]link
	gaps   []gap
}

type link struct {
	sequence         uint64
	digest, previous [sha256.Size]byte
	known            bool // digest can be trusted
}

type gap struct {
	first, last uint64
	since       time.Time
	told        bool
}

// New makes a detector.
func New() *Detector { return &Detector{sources: map[string]*source{}} }

// Host returns the host in an agent's SPIFFE id, else the id.
func Host(spiffeID string) string {
	if _, host, ok := strings.Cut(spiffeID, "/agent/"); ok {
		return host
	}
	return spiffeID
}

// Batch accounts for one verified batch; arrived is when the log took it.
func (d *Detector) Batch(b *bocage.Batch, arrived time.Time, emit func(evidence.Item)) account.Outcome {
	s := d.source(b.Source, arrived)
	k := s.boot(b.Boot)
	outcome := k.account(b.Sequence, arrived)
	if outcome == account.Fresh {
		s.arrived = later(s.arrived, arrived)
		s.silent = false
	}
	if outcome != account.Stale {
		d.link(s, k, b, outcome, arrived, emit)
	}
	if outcome == account.Fresh && len(b.Lost) > 0 {
		s.blind(b, arrived, emit)
	}
	return outcome
}

func (d *Detector) source(id string, arrived time.Time) *source {
	if s := d.sources[id]; s != nil {
		return s
	}
	if len(d.sources) >= maxSources {
		oldest := ""
		for other, s := range d.sources {
			if oldest == "" || s.arrived.Before(d.sources[oldest].arrived) {
				oldest = other
			}
		}
		delete(d.sources, oldest)
	}
	s := &source{host: Host(id), arrived: arrived}
	d.sources[id] = s
	return s
}

func (s *source) boot(name string) *boot {
	if i := slices.IndexFunc(s.boots, func(k *boot) bool { return k.name == name }); i >= 0 {
		return s.boots[i]
	}
	if len(s.boots) == maxBoots {
		s.boots = slices.Delete(s.boots, 0, 1)
	}
	k := &boot{name: name}
	s.boots = append(s.boots, k)
	return k
}

// account marks a sequence as come, and opens or fills a gap. What came before
// the first batch that is seen here is not known to be missing.
func (k *boot) account(n uint64, arrived time.Time) account.Outcome {
	before := k.window.Highest()
	outcome := k.window.Add(n)
	switch {
	case outcome != account.Fresh || before == 0:
	case n > before+1:
		k.gaps = append(k.gaps, gap{first: before + 1, last: n - 1, since: arrived})
		if len(k.gaps) > links {
			k.gaps = slices.Delete(k.gaps, 0, 1)
		}
	case n < before:
		k.fill(n)
	}
	return outcome
}

// fill takes a late batch out of its gap.
func (k *boot) fill(n uint64) {
	i := slices.IndexFunc(k.gaps, func(g gap) bool { return g.first <= n && n <= g.last })
	if i < 0 {
		return
	}
	g := k.gaps[i]
	var rest []gap
	if g.first < n {
		rest = append(rest, gap{g.first, n - 1, g.since, g.told})
	}
	if n < g.last {
		rest = append(rest, gap{n + 1, g.last, g.since, g.told})
	}
	k.gaps = slices.Replace(k.gaps, i, i+1, rest...)
}

// link checks the hash chain: between the batch and its neighbours, and against
// another batch under the same number.
func (d *Detector) link(s *source, k *boot, b *bocage.Batch, outcome account.Outcome, arrived time.Time, emit func(evidence.Item)) {
	this := link{sequence: b.Sequence}
	this.digest, this.known = digest(b)
	copy(this.previous[:], b.Previous)
	place := &k.links[b.Sequence%links]
	if outcome == account.Duplicate {
		if place.sequence == b.Sequence && place.known && this.known && place.digest != this.digest {
			s.fork(k, b.Sequence, arrived, emit)
		}
		return
	}
	*place = this
	before, after := k.links[(b.Sequence-1)%links], k.links[(b.Sequence+1)%links]
	if before.sequence == b.Sequence-1 && before.known && b.Sequence > 1 {
		d.confirm(s, k, before.digest == this.previous, b.Sequence, arrived, emit)
	}
	if after.sequence == b.Sequence+1 && this.known {
		d.confirm(s, k, this.digest == after.previous, b.Sequence+1, arrived, emit)
	}
}

// confirm takes a broken link for a fork only where the source is known to chain
// as this package expects.
func (d *Detector) confirm(s *source, k *boot, holds bool, sequence uint64, arrived time.Time, emit func(evidence.Item)) {
	switch {
	case holds:
		s.chained = true
	case s.chained:
		s.fork(k, sequence, arrived, emit)
	default:
		d.Unchained++
	}
}

// digest is the hash that the next batch names: of the batch's JSON. Text that
// was not UTF-8 when it was signed cannot be encoded again as it was, so such a
// batch has no digest here.
func digest(b *bocage.Batch) (sum [sha256.Size]byte, known bool) {
	encoded, err := json.Marshal(b)
	if err != nil || bytes.Contains(encoded, []byte("\uFFFD")) {
		return sum, false
	}
	return sha256.Sum256(encoded), true
}

func (s *source) item(kind string, weight float64, arrived time.Time, facts string) evidence.Item {
	return evidence.Item{
		Kind: kind, Stage: evidence.StageEvasion, Technique: "T1562", Severity: evidence.Low,
		Weight: weight, HalfLife: halfLife, Attacker: evidence.Party{Host: s.host},
		Time: arrived, First: arrived, Facts: evidence.Text(facts),
	}
}

func (s *source) fork(k *boot, sequence uint64, arrived time.Time, emit func(evidence.Item)) {
	item := s.item(KindFork, 3, arrived, fmt.Sprintf("has two histories from its batch %d of boot %s on: its key is used twice or its record was rewritten",
		sequence, evidence.Quote(k.name)))
	item.Key, item.Decisive, item.Severity = k.name, true, evidence.High
	emit(item)
}

func (s *source) blind(b *bocage.Batch, arrived time.Time, emit func(evidence.Item)) {
	for _, n := range b.Lost {
		s.lost += n
	}
	item := s.item(KindBlind, 0.2, arrived, fmt.Sprintf("lost %d records of events", s.lost))
	item.Total = int(min(s.lost, 1<<40))
	emit(item)
}

// Unsigned accounts for a message that nobody vouches for, on a host's subject.
func (d *Detector) Unsigned(subject string, arrived time.Time, emit func(evidence.Item)) {
	_, host, _ := strings.Cut(subject, ".")
	s := source{host: host}
	emit(s.item(KindUnsigned, 1, arrived, "sent events that its key did not sign"))
}

// Foreign accounts for an event between workloads that are both on other hosts.
func (d *Detector) Foreign(b *bocage.Batch, about []evidence.Party, arrived time.Time, emit func(evidence.Item)) {
	s := source{host: Host(b.Source)}
	item := s.item(KindForeign, 1, arrived, "told of flows of {victims}, which are not on it")
	item.Victims = about
	emit(item)
}

// Tick looks for gaps that nothing filled.
func (d *Detector) Tick(now time.Time, emit func(evidence.Item)) {
	d.Missing = 0
	for _, s := range d.sources {
		for _, k := range s.boots {
			news, missing := false, uint64(0)
			for i := range k.gaps {
				g := &k.gaps[i]
				missing += g.last - g.first + 1
				if !g.told && now.Sub(g.since) >= patience {
					g.told, news = true, true
				}
			}
			d.Missing += missing
			if !news {
				continue
			}
			item := s.item(KindGap, 0.5, now, fmt.Sprintf("kept back %d batches of events", missing))
			item.Key, item.Total = k.name, int(min(missing, 1<<40))
			emit(item)
		}
	}
}

// Seen tells that a host's agent reported to its controller. An agent that does,
// but has sent no batch for long after it once did, is silent.
func (d *Detector) Seen(host string, at time.Time, emit func(evidence.Item)) {
	for _, s := range d.sources {
		if s.host == host && !s.silent && at.Sub(s.arrived) > SilentAfter {
			s.silent = true
			emit(s.item(KindSilent, 0.5, at, "reports to its controller but sends no events"))
		}
	}
}

// Sources is the number of agents known.
func (d *Detector) Sources() int { return len(d.sources) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
