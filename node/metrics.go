package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newRegistry is the one registry of a process.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// agentCollector exports what an agent's kernel and queues count. Labels are
// bounded: reasons and causes, never flows or names.
type agentCollector struct {
	agent *agentProcess
}

var (
	packetsDesc    = prometheus.NewDesc("bocage_dataplane_packets_total", "Packets at enforcement points, by what was done and why.", []string{"verdict", "reason"}, nil)
	bytesDesc      = prometheus.NewDesc("bocage_dataplane_bytes_total", "Bytes at enforcement points, IP headers included.", []string{"verdict", "reason"}, nil)
	eventsDesc     = prometheus.NewDesc("bocage_dataplane_events_total", "Flow events: offered by the kernel, and of these lost for want of room.", []string{"outcome"}, nil)
	flowsDesc      = prometheus.NewDesc("bocage_dataplane_flows", "Flows that are remembered, at the last sweep.", nil, nil)
	recordsDesc    = prometheus.NewDesc("bocage_agent_event_records_total", "Event records: offered to the agent's publisher, and of these lost.", []string{"outcome"}, nil)
	lostDesc       = prometheus.NewDesc("bocage_agent_event_records_lost_total", "Event records that are lost for good, by what lost them.", []string{"cause"}, nil)
	batchesDesc    = prometheus.NewDesc("bocage_agent_event_batches_waiting", "Sealed batches that wait to be sent, in memory and on disk.", nil, nil)
	unpacedDesc    = prometheus.NewDesc("bocage_dataplane_cadences_crowded_total", "Bursts of flows that found no room in the table of cadences, or made it at the cost of another flow.", nil, nil)
	ungreetedDesc  = prometheus.NewDesc("bocage_dataplane_greetings_lost_total", "Pieces of what clients of TLS said first that found no room in their ring buffer.", nil, nil)
	namesDesc      = prometheus.NewDesc("bocage_dataplane_names_total", "DNS questions for names of rulesets (asked), answers to them that were learned (answered), that fit no question (unasked), that could not be read whole (unread), and addresses and questions without room (unlearned).", []string{"outcome"}, nil)
	unansweredDesc = prometheus.NewDesc("bocage_dataplane_unanswered_total", "Packets that were to be rejected and were dropped in silence: too many at once.", nil, nil)
	candidateDesc  = prometheus.NewDesc("bocage_dataplane_candidate_generation", "Generation that is evaluated beside the one in force; 0 is none.", nil, nil)
	comparedDesc   = prometheus.NewDesc("bocage_dataplane_candidate_decisions", "Decisions that the candidate was asked for, and of these those whose reach differs, since it came.", []string{"outcome"}, nil)
	repairedDesc   = prometheus.NewDesc("bocage_dataplane_repaired_total", "Programs and pins that were not in their place any more and were put back.", nil, nil)
	genDesc        = prometheus.NewDesc("bocage_dataplane_generation", "Generation in force in the kernel.", nil, nil)
)

func (c *agentCollector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{packetsDesc, bytesDesc, eventsDesc, flowsDesc, recordsDesc, lostDesc, batchesDesc, genDesc,
		unansweredDesc, unpacedDesc, ungreetedDesc, namesDesc, candidateDesc, comparedDesc, repairedDesc} {
		out <- desc
	}
}

func (c *agentCollector) Collect(out chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(desc *prometheus.Desc, value uint64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value))
	}
	counters, err := c.agent.dataplane.Counters()
	if err != nil {
		out <- prometheus.NewInvalidMetric(packetsDesc, err)
	}
	for reason, count := range counters.Passed {
		counter(packetsDesc, count.Packets, "passed", reason.String())
		counter(bytesDesc, count.Bytes, "passed", reason.String())
	}
	for reason, count := range counters.Refused {
		counter(packetsDesc, count.Packets, "refused", reason.String())
		counter(bytesDesc, count.Bytes, "refused", reason.String())
	}
	counter(eventsDesc, counters.Offered, "offered")
	counter(eventsDesc, counters.Lost, "lost")
	gauge(flowsDesc, counters.FlowsLive)
	counter(unansweredDesc, counters.Unanswered)
	counter(unpacedDesc, counters.Unpaced)
	counter(ungreetedDesc, counters.Ungreeted)
	counter(namesDesc, counters.NamesAsked, "asked")
	counter(namesDesc, counters.NamesAnswered, "answered")
	counter(namesDesc, counters.NamesUnasked, "unasked")
	counter(namesDesc, counters.NamesUnread, "unread")
	counter(namesDesc, counters.NamesUnlearned, "unlearned")
	candidate := c.agent.candidate()
	gauge(candidateDesc, candidate.Generation)
	out <- prometheus.MustNewConstMetric(comparedDesc, prometheus.GaugeValue, float64(candidate.Evaluated), "evaluated")
	out <- prometheus.MustNewConstMetric(comparedDesc, prometheus.GaugeValue, float64(candidate.Differs), "differs")
	counter(repairedDesc, c.agent.loop.Status().Repaired)
	gauge(genDesc, c.agent.dataplane.Generation())
	offered, lost := c.agent.events.Counts()
	counter(recordsDesc, offered, "offered")
	counter(recordsDesc, lost, "lost")
	for cause, n := range c.agent.events.Losses() {
		counter(lostDesc, n, cause)
	}
	gauge(batchesDesc, uint64(c.agent.events.waiting()))
}

// serveHealth answers on a socket of the agent's own: /metrics for Prometheus,
// /readyz with what is wrong, /report with all that it knows of itself, /trace for
// what would become of a packet.
func (a *agentProcess) serveHealth(ctx context.Context) error {
	path := a.cfg.AgentSocket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve the agent's metrics: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serve the agent's metrics: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if faults := a.faultText(); faults != "" {
			http.Error(w, faults, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /report", a.serveReport)
	mux.HandleFunc("POST /trace", a.serveTrace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}
