package policy

import "github.com/prometheus/client_golang/prometheus"

// collector tells the counters of one room to whoever scrapes them.
type collector struct{ p *Policy }

// Collector returns the room's metrics.
func (p *Policy) Collector() prometheus.Collector { return collector{p} }

// metric is one counter with its description.
type metric struct {
	name, help string
	value      func(Counters) uint64
}

func metrics() []metric {
	return []metric{
		{"bocage_policy_compilations_total", "Compilations of policy.", func(c Counters) uint64 { return c.Compiled }},
		{"bocage_policy_generations_total", "Generations that came into force.", func(c Counters) uint64 { return c.Published }},
		{"bocage_policy_ahead_total", "Generations that came into force before their proofs, since they only tighten.", func(c Counters) uint64 { return c.Ahead }},
		{"bocage_policy_refuted_total", "Generations of which a proof failed when they were in force already.", func(c Counters) uint64 { return c.Refuted }},
		{"bocage_policy_blocked_total", "Generations that a proof or a test held back.", func(c Counters) uint64 { return c.Blocked }},
		{"bocage_policy_rollouts_ended_total", "Rollouts that came to nothing.", func(c Counters) uint64 { return c.Ended }},
		{"bocage_policy_rollbacks_total", "Times that an older policy came back into force.", func(c Counters) uint64 { return c.RolledBack }},
		{"bocage_policy_confirmations_total", "Generations that a person confirmed here.", func(c Counters) uint64 { return c.Confirmed }},
		{"bocage_policy_failures_total", "Attempts to publish that were repeated.", func(c Counters) uint64 { return c.Failures }},
		{"bocage_policy_relists_total", "Watches that broke.", func(c Counters) uint64 { return c.Relists }},
		{"bocage_policy_statuses_total", "Status writes.", func(c Counters) uint64 { return c.Statuses }},
		{"bocage_policy_signed_total", "Envelopes signed for hosts.", func(c Counters) uint64 { return c.Signed }},
		{"bocage_policy_pieces_total", "Pieces of large envelopes that hosts fetched.", func(c Counters) uint64 { return c.Pieces }},
		{"bocage_policy_replayed_total", "Recorded edges that were run on a candidate.", func(c Counters) uint64 { return c.Replayed }},
		{"bocage_policy_events_total", "Events written.", func(c Counters) uint64 { return c.Noticed }},
		{"bocage_policy_events_shed_total", "Events that found no place.", func(c Counters) uint64 { return c.Unnoticed }},
	}
}

func (m metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.name, m.help, nil, nil) }

func stageDesc() *prometheus.Desc {
	return prometheus.NewDesc("bocage_policy_stage", "1 for the stage that the newest policy is in.", []string{"stage"}, nil)
}

func generationDesc() *prometheus.Desc {
	return prometheus.NewDesc("bocage_policy_generation", "Number of the generation in force.", nil, nil)
}

func unreadableDesc() *prometheus.Desc {
	return prometheus.NewDesc("bocage_policy_unreadable_objects", "Objects that cannot be read: what was known of them last counts.", nil, nil)
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range metrics() {
		out <- m.desc()
	}
	out <- stageDesc()
	out <- generationDesc()
	out <- unreadableDesc()
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	counters := c.p.Counters()
	for _, m := range metrics() {
		out <- prometheus.MustNewConstMetric(m.desc(), prometheus.CounterValue, float64(m.value(counters)))
	}
	out <- prometheus.MustNewConstMetric(unreadableDesc(), prometheus.GaugeValue, float64(c.p.mirror.countUnreadable()))
	s := c.p.served.Load()
	if s == nil || s.record.Base.Number == 0 {
		return
	}
	out <- prometheus.MustNewConstMetric(stageDesc(), prometheus.GaugeValue, 1, rolloutStatus(s, nil).Stage)
	out <- prometheus.MustNewConstMetric(generationDesc(), prometheus.GaugeValue, float64(s.record.Base.Number))
}
