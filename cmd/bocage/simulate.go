package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/simulate"
)

func (e *env) simulateCommand() *cobra.Command {
	var from offline
	var probes string
	var matrix, advice bool
	var namespaces []string
	cmd := &cobra.Command{Use: "simulate -f FILE... --probes FILE | simulate -f FILE... --matrix",
		Short: "Say what policy in files decides, with no controller and no data center",
		Long: `Say what policy in files decides, with no controller, no data center and no
privileges. The files may hold our own kinds, and Namespaces, Pods, Nodes,
NetworkPolicies and ClusterNetworkPolicies as Kubernetes writes them.

A probe asks about one flow: {"from": "shop/web", "to": "shop/db", "port": 5432}.
Ends are namespace/name of a workload or Pod, a host or Node, or an address;
protocol (TCP unless said otherwise) and at (a time) are optional. "to" may be a DNS
name, for an address outside of which nothing narrower is declared; "name" says beside
an address which name the source was told that it has. Of ends with addresses of both
families the first that they have in common is decided, in the order of the source's
addresses, ICMP over IPv4 and ICMPv6 over IPv6; where the other gets something else,
"families" says what each gets. Probes are
JSON lines, a JSON array or a YAML list; they are answered in their order, one
after another. One that cannot be decided is answered with "error", and one that
cannot be read also with its "line" and, as it was written, "asked". Protocols without
ports, such as ICMP, are decided whatever the port.

The verdict is what policy says, whether or not a Scope enforces it yet. The exit
code is 1 if a probe could not be decided.`,
		Example: `  bocage simulate -f policy/ --probes probes.jsonl -o jsonl
  echo '{"from": "shop/web", "to": "192.0.2.7", "port": 443}' | bocage simulate -f policy/ --probes -
  kubectl get ns,pods,nodes,netpol -A -o yaml | bocage simulate -f - --matrix -o json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			from.files = append(from.files, args...)
			switch {
			case matrix && probes != "":
				return usage("--probes and --matrix ask for different things: use one of them")
			case !matrix && probes == "":
				return usage("say what to ask: --probes FILE (- for standard input) or --matrix")
			case !matrix && len(namespaces) > 0:
				return usage("--namespace narrows a --matrix; probes name their ends themselves")
			case probes == "-" && from.stdin():
				return usage("standard input cannot hold both the resources and the probes")
			}
			in, name := e.in, "standard input"
			if !matrix && probes != "-" {
				file, err := os.Open(probes)
				if err != nil {
					return fmt.Errorf("read the probes: %w", err)
				}
				defer file.Close()
				in, name = file, probes
			}
			simulator, _, err := from.load(e)
			if err != nil {
				return err
			}
			if matrix {
				return e.printMatrix(simulator, namespaces)
			}
			return e.answerProbes(simulator, in, name, advice)
		}}
	from.flags(cmd)
	cmd.Flags().StringVar(&probes, "probes", "", "file with the flows to decide, or - for standard input")
	cmd.Flags().BoolVar(&advice, "advice", true, "say of each answer what the smallest change would be; without, answers come many times as fast")
	cmd.Flags().BoolVar(&matrix, "matrix", false, "print who may open what to whom, among all workloads")
	cmd.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "only workloads of these namespaces in the matrix")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// answerProbes answers a stream of probes in bounded memory.
func (e *env) answerProbes(s *simulate.Simulator, in io.Reader, name string, advice bool) error {
	out := bufio.NewWriterSize(e.out, 64<<10)
	b := &batch{answer: s.Answer, writer: e.newAnswerWriter(out), out: out}
	if !advice {
		b.answer = s.Verdict
	}
	err := simulate.Probes(name, &beforeReading{in, b.flush}, b.add)
	if err == nil {
		err = b.run()
	}
	if err == nil {
		err = b.writer.end()
	}
	if flushed := out.Flush(); err == nil {
		err = flushed
	}
	if err == nil && b.failed > 0 {
		return &exitError{exitFailed, fmt.Sprintf("%d %s could not be decided: see the field error", b.failed, plural(b.failed, "probe"))}
	}
	return err
}

// beforeReading does what is to be done before more is waited for.
type beforeReading struct {
	in io.Reader
	do func() error
}

func (r *beforeReading) Read(p []byte) (int, error) {
	if err := r.do(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}

// mostBatched bounds how many probes are decided together.
const mostBatched = 4096

// batch collects the probes that are there, decides them side by side, and
// writes the answers in order, so that a program on the other side gets its
// answers before it is asked for more.
type batch struct {
	answer  func(bocage.SimulateProbe) bocage.SimulateAnswer
	writer  *answerWriter
	out     *bufio.Writer
	answers []bocage.SimulateAnswer // with the probe, and the error of those that are none
	places  []string                // where each stands, file:line
	failed  int
}

func (b *batch) add(p bocage.SimulateProbe, at string, broken error) error {
	b.places = append(b.places, at)
	answer := bocage.SimulateAnswer{SimulateProbe: p, Duties: []string{}}
	if broken != nil {
		answer.Error = broken.Error()
	}
	if unreadable := (*simulate.Unreadable)(nil); errors.As(broken, &unreadable) {
		answer.Line, answer.Asked = unreadable.Line, unreadable.Asked
	}
	if b.answers = append(b.answers, answer); len(b.answers) >= mostBatched {
		return b.run()
	}
	return nil
}

func (b *batch) flush() error {
	if err := b.run(); err != nil {
		return err
	}
	return b.out.Flush()
}

func (b *batch) run() error {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(b.answers)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(b.answers)); i = next.Add(1) - 1 {
				if b.answers[i].Error != "" {
					continue
				}
				b.answers[i] = b.answer(b.answers[i].SimulateProbe)
				if b.answers[i].Error != "" {
					b.answers[i].Error = b.places[i] + ": " + b.answers[i].Error
				}
			}
		})
	}
	workers.Wait()
	for _, answer := range b.answers {
		if answer.Error != "" {
			b.failed++
		}
		if err := b.writer.answer(answer); err != nil {
			return err
		}
	}
	b.answers, b.places = b.answers[:0], b.places[:0]
	return nil
}

// answerWriter writes answers in one of the forms of -o.
type answerWriter struct {
	form    string
	out     *bufio.Writer
	encoder *json.Encoder
	env     *env
	count   int
}

func (e *env) newAnswerWriter(out *bufio.Writer) *answerWriter {
	w := &answerWriter{form: e.output, out: out, encoder: json.NewEncoder(out), env: e}
	if w.form == "" && !e.terminal {
		w.form = "jsonl"
	}
	w.encoder.SetEscapeHTML(false)
	return w
}

func (w *answerWriter) answer(a bocage.SimulateAnswer) error {
	w.count++
	switch w.form {
	case "jsonl":
		return w.encoder.Encode(a)
	case "json":
		separator := ",\n "
		if w.count == 1 {
			separator = "[\n "
		}
		data, err := json.Marshal(a)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out, "%s%s", separator, data)
		return err
	case "yaml":
		sub := &env{out: w.out, output: "yaml"}
		return sub.printValue([]bocage.SimulateAnswer{a})
	}
	_, err := fmt.Fprintln(w.out, answerLine(a, w.form == "wide"))
	return err
}

func (w *answerWriter) end() error {
	if w.form != "json" {
		return nil
	}
	text := "\n]\n"
	if w.count == 0 {
		text = "[]\n"
	}
	_, err := w.out.WriteString(text)
	return err
}

// answerLine is one answer for people.
func answerLine(a bocage.SimulateAnswer, wide bool) string {
	if a.Error != "" {
		if a.From == "" && a.To == "" {
			return "? " + a.Error
		}
		return fmt.Sprintf("? %s → %s  %s", a.From, a.To, a.Error)
	}
	mark := "✗"
	if a.Verdict == "allow" {
		mark = "✓"
	}
	protocol := a.Protocol
	if protocol == "" {
		protocol = "TCP"
	}
	line := fmt.Sprintf("%s %s → %s %s", mark, a.From, a.To, protocol)
	if a.Port != 0 {
		line += fmt.Sprintf("/%d", a.Port)
	}
	line += fmt.Sprintf("  %s  %s", a.Disposition, a.Reason)
	if d := a.Decision; d.Kind != "" {
		line += fmt.Sprintf("  by %s", decisionText(d))
	}
	if len(a.Duties) > 0 {
		line += "  owes " + strings.Join(a.Duties, ", ")
	}
	line += familiesText(a.Families)
	if wide && a.Missing != "" {
		line += "\n    " + strings.ReplaceAll(strings.TrimRight(a.Missing, "\n"), "\n", "\n    ")
	}
	return line
}

// familiesText says what a flow gets in each family, where that is not the same.
func familiesText(families map[string]string) string {
	var texts []string
	for _, family := range slices.Sorted(maps.Keys(families)) {
		texts = append(texts, family+": "+families[family])
	}
	if len(texts) == 0 {
		return ""
	}
	return "  (" + strings.Join(texts, ", ") + ")"
}

func decisionText(d bocage.SimulateDecision) string {
	ref := bocage.Ref{Kind: d.Kind, Namespace: d.Namespace, Name: d.Name, Field: d.Field, Source: d.File}
	if d.Line > 0 {
		ref.Source = fmt.Sprintf("%s:%d", d.File, d.Line)
	}
	return ref.String()
}

// printMatrix writes who may open what to whom, one cell after another.
func (e *env) printMatrix(s *simulate.Simulator, namespaces []string) error {
	out := bufio.NewWriterSize(e.out, 64<<10)
	rows := s.Rows(namespaces)
	if len(rows) == 0 {
		fmt.Fprintf(e.err, "note: there is no workload to show: the files declare none%s\n", inNamespaces(namespaces))
	}
	var err error
	switch form := e.output; form {
	case "json":
		err = e.matrixJSON(out, s, rows, namespaces)
	case "jsonl":
		encoder := json.NewEncoder(out)
		err = s.EachCell(namespaces, func(cell bocage.ReachCell) error { return encoder.Encode(cell) })
	case "yaml":
		var m bocage.ReachMatrix
		if m, err = s.Matrix(namespaces); err == nil {
			err = (&env{out: out, output: "yaml"}).printValue(m)
		}
	default:
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		lines := 0
		err = s.EachCell(namespaces, func(cell bocage.ReachCell) error {
			if lines++; lines%1000 == 0 { // a table of everything would hold everything
				if err := table.Flush(); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintf(table, "%s\t→ %s\t%s\n", cell.From, cell.To, portsText(cell.Ports))
			return err
		})
		if err == nil {
			err = table.Flush()
		}
		if err == nil && lines == 0 && len(rows) > 0 {
			fmt.Fprintf(e.err, "none of %d workloads may open anything to another\n", len(rows))
		}
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

func inNamespaces(namespaces []string) string {
	if len(namespaces) == 0 {
		return ""
	}
	return " in " + strings.Join(namespaces, ", ")
}

// matrixJSON writes a bocage.ReachMatrix without holding it.
func (e *env) matrixJSON(out io.Writer, s *simulate.Simulator, rows, namespaces []string) error {
	head, err := json.Marshal(append([]string{}, rows...)) // an empty list, not null
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "{\n \"workloads\": %s,\n \"cells\": [", head)
	separator := "\n  "
	err = s.EachCell(namespaces, func(cell bocage.ReachCell) error {
		data, err := json.Marshal(cell)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s%s", separator, data)
		separator = ",\n  "
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(out, "\n ]\n}\n")
	return err
}

// portsText writes what a cell allows: TCP/80 TCP/443, or any.
func portsText(sets []bocage.ReachSet) string {
	texts := make([]string, len(sets))
	for i, set := range sets {
		texts[i] = set.Protocol.String()
		if set.Ports != bocage.AllPorts {
			texts[i] += "/" + set.Ports.String()
		}
		if set.Family != "" {
			texts[i] += " over " + set.Family
		}
		if len(set.Duties) > 0 {
			texts[i] += " (" + strings.Join(set.Duties, ", ") + ")"
		}
	}
	return strings.Join(texts, ", ")
}
