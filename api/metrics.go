package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the room does. Labels are bounded: verbs, plurals, codes.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	watches  prometheus.Gauge
	events   prometheus.Counter
	refused  *prometheus.CounterVec
	cutOff   prometheus.Counter
}

func newMetrics(registry *prometheus.Registry) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bocage_api_requests_total", Help: "Requests that were answered.",
		}, []string{"verb", "resource", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bocage_api_request_duration_seconds", Help: "Time to answer, watches apart.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
		}, []string{"verb", "resource"}),
		watches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bocage_api_watches", Help: "Open watches.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bocage_api_watch_events_total", Help: "Events sent to watches.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bocage_api_refused_total", Help: "Requests refused because a limit was reached.",
		}, []string{"limit"}),
		cutOff: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bocage_api_watches_cut_off_total", Help: "Watches ended because the client was too slow.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.watches, m.events, m.refused, m.cutOff} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) answered(verb, resource string, code int, took time.Duration) {
	m.requests.WithLabelValues(verb, resource, strconv.Itoa(code)).Inc()
	if verb != verbWatch {
		m.duration.WithLabelValues(verb, resource).Observe(took.Seconds())
	}
}
