package main

import (
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/host/hosttest"
)

// BenchmarkRootPath is the command in the form that `go test -bench` runs.
func BenchmarkRootPath(b *testing.B) {
	hosttest.Root(b)
	r, err := measure(5, 500*time.Millisecond, 1000, false)
	if err != nil {
		b.Fatal(err)
	}
	var table strings.Builder
	if err := r.print(&table); err != nil {
		b.Fatal(err)
	}
	b.Log("\n" + table.String())
	for _, v := range r.variants {
		b.Run(v, func(b *testing.B) {
			for _, t := range tests {
				unit := strings.ReplaceAll(t.name, " ", "-")
				b.ReportMetric(median(r.rates[v][t.name]), unit)
				b.ReportMetric(median(r.ratios(v, t.name)), unit+"-ratio")
			}
		})
	}
}

// TestRootPathShort sees that every variant carries every kind of traffic.
func TestRootPathShort(t *testing.T) {
	hosttest.Root(t)
	r, err := measure(1, 50*time.Millisecond, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range r.variants {
		for _, test := range tests {
			if rates := r.rates[v][test.name]; len(rates) != 1 || rates[0] <= 0 {
				t.Errorf("%s, %s: rates %v", v, test.name, rates)
			}
		}
	}
}
