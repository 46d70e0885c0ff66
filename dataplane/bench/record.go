package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// record is what a run leaves for machines: everything that was measured, and
// what on.
type record struct {
	Command  string    `json:"command"`            // its arguments
	Added    []string  `json:"added,omitempty"`    // commands whose figures were added
	Revision string    `json:"revision,omitempty"` // of the repository
	Time     time.Time `json:"time"`               // of the end
	Seconds  float64   `json:"seconds"`            // that the run took
	Kernel   string    `json:"kernel"`
	CPUs     int       `json:"cpus"`
	CPU      string    `json:"cpu,omitempty"`
	Figures  []figures `json:"figures"`
}

// figures are those of one variant in one test, in the order of the repeats.
type figures struct {
	Suite    string    `json:"suite"`
	Variant  string    `json:"variant"`
	Figure   string    `json:"figure"`
	Less     bool      `json:"lessIsBetter,omitempty"`
	Median   float64   `json:"median"`
	Baseline string    `json:"baseline,omitempty"` // the variant that ratios are to
	Ratio    float64   `json:"ratio,omitempty"`    // median of those within a repeat
	Values   []float64 `json:"values"`
}

func save(path string, all []results, took time.Duration) error {
	out := record{Command: strings.Join(os.Args[1:], " "), Time: time.Now().UTC().Truncate(time.Second), Seconds: took.Seconds(),
		CPUs: runtime.NumCPU(), Kernel: kernel(), CPU: cpu(), Revision: revision()}
	for _, r := range all {
		for _, f := range r.figures {
			for _, v := range r.variants {
				out.Figures = append(out.Figures, figures{Suite: r.title, Variant: v, Figure: f.name, Less: f.less, Baseline: r.variants[0],
					Median: median(r.values[v][f.name]), Ratio: median(r.ratios(v, f.name)), Values: r.values[v][f.name]})
			}
		}
	}
	return out.write(path)
}

func (r *record) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

// addBenchmarks adds what go test printed to the figures of a run, and says their medians.
func addBenchmarks(path, command string, printed io.Reader, to io.Writer) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("add figures: %w", err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("add figures to %s: %w", path, err)
	}
	more, err := readBenchmarks(printed)
	if err != nil {
		return err
	}
	r.Added, r.Figures = append(r.Added, command), append(r.Figures, more...)
	return errors.Join(r.write(path), printAdded(to, more))
}

func printAdded(to io.Writer, all []figures) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	suite := ""
	for _, f := range all {
		if f.Suite != suite {
			suite = f.Suite
			fmt.Fprintf(w, "\n%s\t\tmedian (lowest to highest)\n", suite)
		}
		fmt.Fprintf(w, "  %s\t%s\t%.4g (%.4g to %.4g)\n", f.Variant, f.Figure, f.Median, slices.Min(f.Values), slices.Max(f.Values))
	}
	return w.Flush()
}

// readBenchmarks reads lines of a name, how often it ran, and values with their units.
// The rounds of one benchmark become the values of one figure.
func readBenchmarks(printed io.Reader) ([]figures, error) {
	var all []figures
	at := map[[2]string]int{}
	lines := bufio.NewScanner(printed)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 4 || !strings.HasPrefix(words[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(words[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 { // the number of CPUs
			name = name[:i]
		}
		suite, variant, _ := strings.Cut(name, "/")
		for i := 2; i+1 < len(words); i += 2 {
			value, err := strconv.ParseFloat(words[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read benchmark %q: %w", lines.Text(), err)
			}
			if words[i+1] == "ns/op" && len(words) > 4 {
				continue // of what was set up as well
			}
			key := [2]string{name, words[i+1]}
			if _, known := at[key]; !known {
				at[key] = len(all)
				all = append(all, figures{Suite: suite, Variant: variant, Figure: words[i+1], Less: !strings.HasSuffix(words[i+1], "s/s")})
			}
			f := &all[at[key]]
			f.Values = append(f.Values, value)
			f.Median = median(f.Values)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmarks: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("read benchmarks: there are none")
	}
	return all, nil
}

func kernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func revision() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
