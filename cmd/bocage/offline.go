package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/gather"
	"bocage.dev/bocage/policy/simulate"
)

// offline is policy from files, with no controller at hand.
type offline struct {
	files     []string
	workloads []string
	options   gather.Options
	at        string
	quiet     bool
	bare      bool // whoever asks shows findings of its own
}

func (o *offline) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	pathsFlag(cmd, &o.files, "file", "f", "file or folder with resources, ours or Kubernetes', or - for standard input; may be repeated")
	pathsFlag(cmd, &o.workloads, "workloads", "", "file with more Workloads or Pods; may be repeated")
	flags.StringVar(&o.options.Default, "default", gather.DefaultAuto, "what happens to flows of which nobody says anything: kubernetes (all are accepted, as in a cluster), deny (all are refused, those of Pods and nodes too), declared (as a controller decides: Pods and nodes may open and be opened to, Workloads and what is no workload may not), or auto (as declared, but Workloads count as Pods where there are Kubernetes' policies and none of Bocage's)")
	flags.BoolVar(&o.options.Strict, "strict", false, "refuse files with kinds that are not read, instead of leaving those out")
	flags.StringVar(&o.at, "at", "", "the moment that is asked about, such as 2026-11-24T18:00:00Z (default: now)")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notes on standard error")
}

// moment reads --at.
func (o *offline) moment() (time.Time, error) {
	if o.at == "" {
		return time.Now().UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, o.at)
	if err != nil {
		return at, usage("--at %q is not a time such as 2026-11-24T18:00:00Z", o.at)
	}
	if at.IsZero() {
		return at, usage("--at %q stands for no moment: leave it out to ask about now", o.at)
	}
	return at, nil
}

// mostNotes is how many notes of one kind are shown.
const mostNotes = 20

// load reads the files and compiles them. Faults are all of them; what was left
// out or takes no effect is said on standard error.
func (o *offline) load(e *env) (*simulate.Simulator, *gather.Gathered, error) {
	if !o.given() {
		return nil, nil, usage("name the files with -f, or - for standard input")
	}
	if !slices.Contains([]string{gather.DefaultAuto, gather.DefaultKubernetes, gather.DefaultDeny, gather.DefaultDeclared}, o.options.Default) {
		return nil, nil, usage("--default %q is none of auto, kubernetes, deny and declared", o.options.Default)
	}
	now, err := o.moment()
	if err != nil {
		return nil, nil, err
	}
	g := gather.New(o.options)
	for _, file := range slices.Concat(o.files, o.workloads) {
		if file != "-" {
			g.Path(file)
			continue
		}
		data, err := io.ReadAll(io.LimitReader(e.in, gather.MaxBytes+1))
		if err != nil {
			return nil, nil, fmt.Errorf("read standard input: %w", err)
		}
		g.Read("standard input", data)
	}
	gathered, faults := g.Done()
	if len(faults) > 0 {
		return nil, nil, e.refuse(faults)
	}
	gathered.Input.Now = now
	simulator, output := simulate.Compile(gathered.Input)
	simulator.Locate(gathered.Place)
	simulator.Names(gathered.Names, gathered.Unusable)
	simulator.Bystanders(o.bystanders())
	if len(output.Faults) > 0 {
		return nil, nil, e.refuse(output.Faults)
	}
	if o.quiet {
		return simulator, gathered, nil
	}
	for _, note := range gathered.Notes {
		fmt.Fprintln(e.err, "note: "+note)
	}
	if !o.bare {
		e.tellFindings(output.Findings())
	}
	return simulator, gathered, nil
}

// tellFindings shows what takes no effect as it stands, and then what is odd. What two
// authors are told of one contradiction is said once; that no enforcement point
// stands before a workload matters to nobody who asks files.
func (e *env) tellFindings(findings []compile.Finding) {
	said := map[string]bool{}
	for _, kind := range []struct {
		rejected   bool
		mark, more string
	}{{true, "!", "that take no effect"}, {false, "note:", "such notes"}} {
		shown := 0
		for _, f := range findings {
			if f.Rejected != kind.rejected || said[f.Message] && !f.Rejected || f.Object.Kind == "Workload" && !f.Rejected {
				continue
			}
			said[f.Message] = true
			if shown++; shown <= mostNotes {
				fmt.Fprintf(e.err, "%s %s: %s\n", kind.mark, f.Object, strings.TrimPrefix(f.Message, f.Object.String()+" "))
			}
		}
		if more := shown - mostNotes; more > 0 {
			fmt.Fprintf(e.err, "%s and %d more %s\n", kind.mark, more, kind.more)
		}
	}
}

// bystanders is what becomes of flows between ends that are no workloads, by --default.
func (o *offline) bystanders() simulate.Bystanders {
	switch o.options.Default {
	case gather.DefaultKubernetes:
		return simulate.BystandersAccepted
	case gather.DefaultDeny:
		return simulate.BystandersRefused
	}
	return simulate.BystandersOfClusters
}

// refuse shows the faults of files of which nothing is decided then.
func (e *env) refuse(faults bocage.Faults) error {
	fmt.Fprintf(e.err, "bocage: %d %s; nothing was decided:\n", len(faults), plural(len(faults), "fault"))
	for _, fault := range faults {
		fmt.Fprintln(e.err, "  "+fault.String())
	}
	return &exitError{code: exitFailed}
}

// given reports whether policy is to come from files.
func (o *offline) given() bool { return len(o.files)+len(o.workloads) > 0 }

// stdin reports whether standard input is one of the files.
func (o *offline) stdin() bool {
	return slices.Contains(o.files, "-") || slices.Contains(o.workloads, "-")
}
