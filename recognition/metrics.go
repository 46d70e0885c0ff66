package recognition

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// maxAccounts bounds the sources and causes that are counted apart; the rest go
// under "other".
const maxAccounts = 4096

// counts is everything that a bound cost and everything that came. For each
// source, records offered = processed + shed + lost.
type counts struct {
	rejected   atomic.Uint64 // messages that nobody vouches for
	duplicates atomic.Uint64 // batches that were folded before
	stale      atomic.Uint64 // batches too old to tell
	gone       atomic.Uint64 // messages that left the log unread
	missing    atomic.Uint64 // batches that are known to exist and have not come
	unchained  atomic.Uint64
	foreign    atomic.Uint64 // records about workloads of other hosts
	cases      atomic.Int64
	incidents  atomic.Uint64

	mu        sync.Mutex // guards the maps
	sources   map[string]*books
	kinds     map[string]uint64
	evictions map[string]uint64
}

// books are one source's.
type books struct {
	processed, shed atomic.Uint64

	mu   sync.Mutex // guards lost
	lost map[string]uint64
}

func newCounts() counts {
	return counts{sources: map[string]*books{}, kinds: map[string]uint64{}, evictions: map[string]uint64{}}
}

func (c *counts) source(host string) *books {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.sources[host]; a != nil {
		return a
	}
	if len(c.sources) >= maxAccounts {
		host = "other"
	}
	a := c.sources[host]
	if a == nil {
		a = &books{lost: map[string]uint64{}}
		c.sources[host] = a
	}
	return a
}

func (a *books) lose(cause string, n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.lost[cause]; !known && len(a.lost) >= 16 {
		cause = "other"
	}
	a.lost[cause] += n
}

func (c *counts) evidence(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds[kind]++
}

func (c *counts) evicted(table string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evictions[table] = n
}

// Stats is a reading of the accounts, for people and tests.
type Stats struct {
	Processed, Shed, Lost, Rejected, Duplicates, Stale, Gone uint64
	Sequence                                                 uint64
	Evidence                                                 map[string]uint64
	Evicted                                                  map[string]uint64
	Waiting                                                  int
}

// Stats reads the accounts, summed over sources.
func (r *Recognizer) Stats() Stats {
	c := &r.counts
	out := Stats{
		Rejected: c.rejected.Load(), Duplicates: c.duplicates.Load(), Stale: c.stale.Load(), Gone: c.gone.Load(),
		Sequence: r.sequence.Load(), Waiting: r.writer.waiting(),
		Evidence: map[string]uint64{}, Evicted: map[string]uint64{},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.sources {
		out.Processed += a.processed.Load()
		out.Shed += a.shed.Load()
		a.mu.Lock()
		for _, n := range a.lost {
			out.Lost += n
		}
		a.mu.Unlock()
	}
	for kind, n := range c.kinds {
		out.Evidence[kind] = n
	}
	for table, n := range c.evictions {
		out.Evicted[table] = n
	}
	return out
}

// Collector exports the accounts to Prometheus.
func (r *Recognizer) Collector() prometheus.Collector { return collector{r} }

type collector struct{ r *Recognizer }

var (
	descOffered   = desc("records_offered_total", "Records that a source made: processed, shed and lost.", "source")
	descProcessed = desc("records_processed_total", "Records that detectors have folded.", "source")
	descShed      = desc("records_shed_total", "Records of batches that arrived damaged.", "source")
	descLost      = desc("records_lost_total", "Records that the source says it lost, by cause.", "source", "cause")
	descBatches   = desc("batches_total", "Batches that were not folded, by why.", "why")
	descMissing   = desc("batches_missing", "Batches that are known to exist and have not come.")
	descForeign   = desc("records_foreign_total", "Records, of those processed, that were refused because neither end is on the source's host.")
	descEvidence  = desc("evidence_total", "Pieces of evidence, by kind.", "kind")
	descEvicted   = desc("evictions_total", "Entries that bounded tables had to forget, by table.", "table")
	descCases     = desc("cases", "Attackers with evidence against them, incident or not.")
	descIncidents = desc("incidents_total", "Incidents opened by this process.")
	descSequence  = desc("log_sequence", "Last message of the log that was folded.")
	descBehind    = desc("behind_seconds", "Age of the last message when it was folded.")
	descWaiting   = desc("writes_waiting", "Incidents that are not in the store yet.")
	descWrites    = desc("writes_total", "Writes of incidents to the store, by outcome.", "outcome")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("bocage_recognition_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descOffered, descProcessed, descShed, descLost, descBatches, descMissing, descForeign,
		descEvidence, descEvicted, descCases, descIncidents, descSequence, descBehind, descWaiting, descWrites} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	n, w := &c.r.counts, c.r.writer
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	counter(descBatches, n.rejected.Load(), "rejected")
	counter(descBatches, n.duplicates.Load(), "duplicate")
	counter(descBatches, n.stale.Load(), "stale")
	counter(descBatches, n.gone.Load(), "gone")
	counter(descBatches, n.unchained.Load(), "unchained")
	gauge(descMissing, float64(n.missing.Load()))
	counter(descForeign, n.foreign.Load())
	gauge(descCases, float64(n.cases.Load()))
	counter(descIncidents, n.incidents.Load())
	gauge(descSequence, float64(c.r.sequence.Load()))
	gauge(descBehind, float64(c.r.behind.Load())/1e9)
	gauge(descWaiting, float64(w.waiting()))
	counter(descWrites, w.written.Load(), "written")
	counter(descWrites, w.refused.Load(), "failed")
	counter(descWrites, w.shed.Load(), "shed")

	n.mu.Lock()
	defer n.mu.Unlock()
	for kind, v := range n.kinds {
		counter(descEvidence, v, kind)
	}
	for table, v := range n.evictions {
		counter(descEvicted, v, table)
	}
	for host, a := range n.sources {
		processed, shed := a.processed.Load(), a.shed.Load()
		offered := processed + shed
		a.mu.Lock()
		for cause, v := range a.lost {
			counter(descLost, v, host, cause)
			offered += v
		}
		a.mu.Unlock()
		counter(descProcessed, processed, host)
		counter(descShed, shed, host)
		counter(descOffered, offered, host)
	}
}
