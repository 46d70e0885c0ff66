package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// record is what a run leaves for machines: everything that was measured, and
// what on.
type record struct {
	Command  string    `json:"command"`            // its arguments
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
	Baseline string    `json:"baseline"` // the variant that ratios are to
	Ratio    float64   `json:"ratio"`    // median of those within a repeat
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
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
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
