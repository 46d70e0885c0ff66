package lake

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counts is the lake's account: offered = landed + waiting + shed.
type counts struct {
	offered, landed, shed atomic.Uint64 // records
	duplicates, rejected  atomic.Uint64 // batches
	gone                  atomic.Uint64 // messages that left the log before they landed
	failed                atomic.Uint64 // attempts to write
	merged, removed       atomic.Uint64 // segments
	questions, stopped    atomic.Uint64
}

func hostOf(spiffeID string) string {
	if _, host, ok := strings.Cut(spiffeID, "/agent/"); ok {
		return host
	}
	return spiffeID
}

// Stats is a reading of the account.
type Stats struct {
	Offered, Landed, Shed, Duplicates, Rejected, Gone, Failed uint64
	Segments                                                  int
	Bytes                                                     int64
}

// Stats reads the account.
func (l *Lake) Stats() Stats {
	c := &l.counts
	out := Stats{
		Offered: c.offered.Load(), Landed: c.landed.Load(), Shed: c.shed.Load(), Duplicates: c.duplicates.Load(),
		Rejected: c.rejected.Load(), Gone: c.gone.Load(), Failed: c.failed.Load(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, all := range l.segments {
		out.Segments += len(all)
		for _, s := range all {
			out.Bytes += s.bytes
		}
	}
	return out
}

// Collector exports the account to Prometheus.
func (l *Lake) Collector() prometheus.Collector { return collector{l} }

type collector struct{ l *Lake }

var (
	descRecords  = prometheus.NewDesc("bocage_lake_records_total", "Records taken from the log, by outcome.", []string{"outcome"}, nil)
	descBatches  = prometheus.NewDesc("bocage_lake_batches_skipped_total", "Batches that did not land, by why.", []string{"why"}, nil)
	descGone     = prometheus.NewDesc("bocage_lake_messages_gone_total", "Messages that left the log before they landed.", nil, nil)
	descFailed   = prometheus.NewDesc("bocage_lake_write_failures_total", "Attempts to write that failed; they are repeated.", nil, nil)
	descWaiting  = prometheus.NewDesc("bocage_lake_waiting", "1 while landing waits, for room on disk above all.", nil, nil)
	descSegments = prometheus.NewDesc("bocage_lake_segments", "Files.", nil, nil)
	descBytes    = prometheus.NewDesc("bocage_lake_bytes", "Size of all files.", nil, nil)
	descTidied   = prometheus.NewDesc("bocage_lake_segments_tidied_total", "Files merged into larger ones or removed by age or size.", []string{"how"}, nil)
	descAsked    = prometheus.NewDesc("bocage_lake_questions_total", "Questions, by outcome.", []string{"outcome"}, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRecords, descBatches, descGone, descFailed, descWaiting, descSegments, descBytes, descTidied, descAsked} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	n, s := &c.l.counts, c.l.Stats()
	counter(descRecords, s.Offered, "offered")
	counter(descRecords, s.Landed, "landed")
	counter(descRecords, s.Shed, "shed")
	counter(descBatches, s.Duplicates, "duplicate")
	counter(descBatches, s.Rejected, "rejected")
	counter(descGone, s.Gone)
	counter(descFailed, s.Failed)
	waiting := 0.0
	if c.l.Fault() != nil {
		waiting = 1
	}
	gauge(descWaiting, waiting)
	gauge(descSegments, float64(s.Segments))
	gauge(descBytes, float64(s.Bytes))
	counter(descTidied, n.merged.Load(), "merged")
	counter(descTidied, n.removed.Load(), "removed")
	counter(descAsked, n.questions.Load()-n.stopped.Load(), "answered")
	counter(descAsked, n.stopped.Load(), "failed")
}
