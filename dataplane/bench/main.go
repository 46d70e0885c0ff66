// Command bench measures what enforcement costs on a path between two
// workloads: two network namespaces, each behind a veth, and a host that routes
// between them. The same path runs unfiltered, with nftables rulesets of the same
// policy (if nft is installed), and with Bocage enforcing at both veths.
//
//	go run ./dataplane/bench -repeats 7 -json figures.json
//
// The variants run in turn inside each repeat, in random order, so that what
// else the machine does falls on all of them; figures are medians, and ratios
// are medians of the ratios to the unfiltered path within a repeat. It needs
// root, makes its own namespaces, and leaves nothing behind.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// options are those of the command.
type options struct {
	repeats  int
	duration time.Duration
	realtime bool
	// Only variants whose name matches are measured, beside the unfiltered path.
	only *regexp.Regexp
	// Only tests are run of which a figure's name matches.
	tests *regexp.Regexp
	// sizes and linear are the numbers of entries of Bocage's policies and of the
	// rules of nftables' lists; mapped that of its verdict map.
	sizes, linear []int
	mapped        int
}

func main() {
	o := options{only: regexp.MustCompile(""), tests: regexp.MustCompile(""), sizes: []int{10, 1_000, 100_000, 1_000_000}, linear: []int{10, 1_000, 10_000}, mapped: 100_000}
	flag.IntVar(&o.repeats, "repeats", 7, "how often each test of each variant runs")
	flag.DurationVar(&o.duration, "duration", time.Second, "of one test")
	flag.BoolVar(&o.realtime, "realtime", false, "put the generators ahead of whatever else the machine does")
	flag.Func("only", "measure only variants whose name matches this regular expression", pattern(&o.only))
	flag.Func("tests", "run only tests of which a figure's name matches this regular expression", pattern(&o.tests))
	path := flag.String("json", "", "write every single figure to this file too")
	command := flag.String("add", "", "measure nothing: add the figures of go test's benchmarks, from standard input, to the file of -json, as made by this `command`")
	flag.Parse()
	work := func() error { return run(o, *path) }
	if *command != "" {
		work = func() error { return addBenchmarks(*path, *command, os.Stdin, os.Stdout) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// pattern is a flag that is a regular expression.
func pattern(to **regexp.Regexp) func(string) error {
	return func(s string) (err error) {
		*to, err = regexp.Compile(s)
		return err
	}
}

func run(o options, path string) error {
	start := time.Now()
	var all []results
	for _, s := range suites {
		s.tests = slices.DeleteFunc(slices.Clone(s.tests), func(t test) bool {
			return !slices.ContainsFunc(t.figures, func(f figure) bool { return o.tests.MatchString(f.name) })
		})
		if len(s.tests) == 0 {
			continue
		}
		r, err := measure(s, o)
		if err != nil {
			return err
		}
		if err := r.print(os.Stdout); err != nil {
			return err
		}
		all = append(all, r)
	}
	if path == "" {
		return nil
	}
	return save(path, all, time.Since(start))
}

// figure is one column of the results.
type figure struct {
	name string
	// less says that less of it is better: it is a time.
	less bool
}

// suite is a set of tests that a set of variants is put through.
type suite struct {
	title    string
	tests    []test
	variants func(*path, options) []variant // the first is the one that the others are compared to
	setUp    func(*path) error
}

var suites = []suite{
	{"a path between two workloads", tests, pathVariants, func(*path) error { return nil }},
	{"a wire between two links of one subnet", tests, wireVariants, (*path).loadWire},
	{"a flood of SYNs that policy refuses", floodTests, floodVariants, (*path).loadFlood},
}

// results are figures by variant, one for each repeat.
type results struct {
	title    string
	variants []string // the first is the one that the others are compared to
	figures  []figure
	values   map[string]map[string][]float64
	repeats  int
	duration time.Duration
}

func measure(s suite, o options) (r results, err error) {
	if os.Geteuid() != 0 {
		return r, errors.New("needs root, to make network namespaces: run it with sudo")
	}
	p, err := newPath()
	if err != nil {
		return r, errors.Join(err, p.remove())
	}
	defer func() { err = errors.Join(err, p.remove()) }()
	if err := s.setUp(p); err != nil {
		return r, err
	}
	if p.realtime = o.realtime; p.realtime {
		restore, failed := softirqsAhead()
		if failed != nil {
			return r, failed
		}
		defer func() { err = errors.Join(err, restore()) }()
	}

	variants := s.variants(p, o)
	defer func() {
		for _, v := range variants {
			err = errors.Join(err, v.remove())
		}
	}()
	r = results{title: s.title, repeats: o.repeats, duration: o.duration, values: make(map[string]map[string][]float64)}
	for _, v := range variants {
		if err := v.prepare(); err != nil {
			return r, fmt.Errorf("prepare %s: %w", v.name(), err)
		}
		r.variants = append(r.variants, v.name())
		r.values[v.name()] = make(map[string][]float64)
	}
	for _, t := range s.tests {
		r.figures = append(r.figures, t.figures...)
	}
	for range o.repeats {
		order := slices.Clone(variants)
		mathrand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, v := range order {
			if err := r.repeat(p, s.tests, v); err != nil {
				return r, fmt.Errorf("%s: %w", v.name(), err)
			}
		}
	}
	return r, nil
}

// repeat runs every test once with one variant on the path.
func (r *results) repeat(p *path, tests []test, v variant) error {
	if err := v.start(); err != nil {
		return errors.Join(err, v.stop())
	}
	for _, t := range tests {
		values, err := t.run(p, r.duration)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", t.figures[0].name, err), v.stop())
		}
		for i, f := range t.figures {
			r.values[v.name()][f.name] = append(r.values[v.name()][f.name], values[i])
		}
	}
	return v.stop()
}

// ratios are those of a variant to the first, sorted; of times too: above one is
// slower there.
func (r results) ratios(variant, figure string) []float64 {
	all, base := r.values[variant][figure], r.values[r.variants[0]][figure]
	var ratios []float64
	for i := range all {
		ratios = append(ratios, all[i]/base[i])
	}
	slices.Sort(ratios)
	return ratios
}

func (r results) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s: %d CPUs, %d repeats; ratio to %s: median (lowest to highest)\n", r.title, runtime.NumCPU(), r.repeats, r.variants[0])
	for _, f := range r.figures {
		sense := "more is better"
		if f.less {
			sense = "less is better"
		}
		fmt.Fprintf(w, "\n%s (%s)\t\tratio\n", f.name, sense)
		for _, v := range r.variants {
			ratios := r.ratios(v, f.name)
			fmt.Fprintf(w, "  %s\t%.4g\t%.2f (%.2f to %.2f)\n", v, median(r.values[v][f.name]), median(ratios), ratios[0], ratios[len(ratios)-1])
		}
	}
	fmt.Fprintln(w)
	return w.Flush()
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[len(sorted)/2]
}
