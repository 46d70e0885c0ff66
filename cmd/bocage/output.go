package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/manifest"
)

// Forms of output: of objects, of answers that are no objects, and of streams of
// records, which have no end that YAML could be written at.
var (
	objectForms = []string{"table", "wide", "json", "yaml", "jsonl", "name"}
	answerForms = []string{"table", "wide", "json", "yaml", "jsonl"}
	streamForms = []string{"table", "wide", "json", "jsonl"}
)

// outputFlag adds -o with the forms that the command has. Unset it is a table for a
// terminal and for a pipe alike, but for flows, which are JSON lines when piped.
func (e *env) outputFlag(cmd *cobra.Command, outputs []string) {
	cmd.Flags().StringVarP(&e.output, "output", "o", "", strings.Join(outputs, "|"))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if e.output != "" && !slices.Contains(outputs, e.output) {
			return usage("-o %q is not one of %s", e.output, strings.Join(outputs, ", "))
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
}

// printObjects writes objects of one kind.
func (e *env) printObjects(kind bocage.Kind, objects []bocage.Resource) error {
	switch e.output {
	case "json":
		return e.printValue(list{kind.APIVersion, kind.Name + "List", objects})
	case "yaml":
		return manifest.Write(e.out, objects...)
	}
	printer := e.newPrinter(kind)
	slices.SortStableFunc(objects, func(a, b bocage.Resource) int { return compareNames(a.Meta(), b.Meta()) })
	for _, object := range objects {
		if err := printer.object(object); err != nil {
			return err
		}
	}
	if len(objects) == 0 && (e.output == "" || e.output == "table" || e.output == "wide") {
		fmt.Fprintf(e.err, "no %s\n", kind.Plural)
	}
	return printer.flush()
}

// compareNames orders as people count: g2 before g10.
func compareNames(a, b *bocage.ObjectMeta) int {
	digits := func(name string) int { return len(name) - len(strings.TrimRight(name, "0123456789")) }
	x, y := a.NamespacedName(), b.NamespacedName()
	if dx, dy := digits(x), digits(y); x[:len(x)-dx] == y[:len(y)-dy] && dx != dy {
		return cmp.Compare(dx, dy)
	}
	return cmp.Compare(x, y)
}

// printObject writes one object: by itself as JSON and YAML.
func (e *env) printObject(kind bocage.Kind, object bocage.Resource) error {
	if e.output == "json" {
		return e.printValue(object)
	}
	return e.printObjects(kind, []bocage.Resource{object})
}

type list struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Items      []bocage.Resource `json:"items"`
}

// printer writes objects one after another, as a table or as lines.
type printer struct {
	env   *env
	kind  bocage.Kind
	table *tabwriter.Writer
	begun bool
	// widths are those of the columns of a table whose rows come one by one: each is as
	// wide as its widest cell so far.
	widths []int
}

func (e *env) newPrinter(kind bocage.Kind) *printer {
	return &printer{env: e, kind: kind, table: tabwriter.NewWriter(e.out, 0, 0, 3, ' ', 0)}
}

func (p *printer) object(object bocage.Resource) error {
	switch p.env.output {
	case "jsonl", "json":
		return json.NewEncoder(p.env.out).Encode(object)
	case "yaml":
		return manifest.Write(p.env.out, object)
	case "name":
		_, err := fmt.Fprintf(p.env.out, "%s/%s\n", p.kind.Plural, object.Meta().NamespacedName())
		return err
	}
	return p.row("", object)
}

func (p *printer) row(event string, object bocage.Resource) error {
	fields, err := bocage.Fields(object)
	if err != nil {
		return err
	}
	header, row := []string{"NAME"}, []string{object.Meta().NamespacedName()}
	if event != "" {
		header, row = append([]string{"EVENT"}, header...), append([]string{event}, row...)
	}
	for _, column := range p.kind.Columns {
		if column.Wide && p.env.output != "wide" {
			continue
		}
		value := oneLine(column.Value(fields))
		if value == "" {
			value = "-"
		}
		if at, err := time.Parse(time.RFC3339, value); err == nil && (column.Name == "UNTIL" || column.Name == "EXPIRES") && time.Now().After(at) {
			value += " (over)"
		}
		header, row = append(header, column.Name), append(row, value)
	}
	write := func(cells []string) error {
		if event != "" {
			return p.aligned(cells)
		}
		_, err := fmt.Fprintln(p.table, strings.Join(cells, "\t"))
		return err
	}
	if !p.begun {
		p.begun = true
		if err := write(header); err != nil {
			return err
		}
	}
	return write(row)
}

// aligned writes a row at once, below those that were written. A cell that is wider
// than all before it widens its column from then on.
func (p *printer) aligned(cells []string) error {
	if p.widths == nil {
		p.widths = make([]int, len(cells))
		p.widths[0] = len(client.Modified)
		p.widths[1] = 24 // names: what comes first need not be the longest
	}
	var b strings.Builder
	for i, cell := range cells {
		width := utf8.RuneCountInString(cell)
		p.widths[i] = max(p.widths[i], width)
		b.WriteString(cell)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", p.widths[i]-width+3))
		}
	}
	_, err := fmt.Fprintln(p.env.out, b.String())
	return err
}

// event writes one change of a watch.
func (p *printer) event(event string, object bocage.Resource) error {
	switch p.env.output {
	case "", "table", "wide":
		return p.row(event, object)
	case "json", "jsonl":
		return json.NewEncoder(p.env.out).Encode(struct {
			Type   string          `json:"type"`
			Object bocage.Resource `json:"object"`
		}{event, object})
	default:
		return p.object(object)
	}
}

func (p *printer) flush() error { return p.table.Flush() }

// printValue writes anything as JSON or YAML.
func (e *env) printValue(value any) error {
	switch e.output {
	case "yaml":
		data, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = e.out.Write(data)
		return err
	case "jsonl":
		return json.NewEncoder(e.out).Encode(value)
	default:
		encoder := json.NewEncoder(e.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	}
}

// printEach writes a list: as JSON lines one of it a line, and as JSON or YAML a list
// also where it is empty.
func printEach[T any](e *env, values []T) error {
	if e.output != "jsonl" {
		return e.printValue(append([]T{}, values...))
	}
	for _, value := range values {
		if err := e.printValue(value); err != nil {
			return err
		}
	}
	return nil
}

// printRows writes the answer of a hunt.
func (e *env) printRows(result bocage.HuntResult) error {
	switch e.output {
	case "json", "yaml":
		return e.printValue(result)
	case "jsonl":
		for _, row := range result.Rows {
			record := make(map[string]any, len(row))
			for i, column := range result.Columns {
				record[column] = row[i]
			}
			if err := e.printValue(record); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(e.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, strings.ToUpper(strings.Join(result.Columns, "\t")))
	for _, row := range result.Rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = cellText(cell)
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if result.Truncated {
		fmt.Fprintf(e.err, "only the first %d rows: raise --limit or narrow the question\n", len(result.Rows))
	}
	return nil
}

func cellText(cell any) string {
	switch v := cell.(type) {
	case nil:
		return "-"
	case float64:
		if v == float64(int64(v)) {
			return fmt.Sprintf("%d", int64(v))
		}
		return fmt.Sprintf("%g", v)
	default:
		return oneLine(fmt.Sprint(v))
	}
}

// moment is a time as every screen writes it: the form in which objects carry it too.
func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// fewOf lists the first of many names, and how many there are besides.
func fewOf(names []string, most int) string {
	text := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
