//go:build cgo

package lake

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"time"

	duckdb "github.com/duckdb/duckdb-go/v2"
)

// ServeQuery is the child: it reads one question, answers it and returns. Its
// process confines itself first and starts again, so that it must be called
// before anything is read, by a process that has nothing else to do. When the
// input ends, so does the process.
func ServeQuery(in io.Reader, out io.Writer) error {
	if err := confine(); err != nil {
		return err
	}
	input := bufio.NewReader(in)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the question: %w", err)
	}
	var q question
	if err := json.Unmarshal(line, &q); err != nil {
		return fmt.Errorf("read the question: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, input)
		os.Exit(1) // who asked is gone
	}()
	lines := bufio.NewWriterSize(out, 256<<10)
	if err := answerTo(&q, json.NewEncoder(lines)); err != nil {
		if err := json.NewEncoder(lines).Encode(answer{Error: err.Error()}); err != nil {
			return err
		}
	}
	return lines.Flush()
}

func answerTo(q *question, out *json.Encoder) error {
	ctx := context.Background()
	connector, err := duckdb.NewConnector("", nil)
	if err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	defer conn.Close()
	if err := prepare(ctx, conn, q); err != nil {
		return fmt.Errorf("prepare the history: %w", err)
	}
	if err := checkSelect(ctx, conn, q.SQL); err != nil {
		return err
	}
	rows, err := conn.QueryContext(ctx, q.SQL)
	if err != nil {
		return err
	}
	defer rows.Close()
	return write(rows, q.Limit, out)
}

// prepare makes the views, then closes every door and locks it: no file but the
// lake's, no extension, no change of settings. Order matters: what comes later
// forbids what came before.
func prepare(ctx context.Context, conn *sql.Conn, q *question) error {
	statements := []string{
		"SET temp_directory = ''",
		fmt.Sprintf("SET memory_limit = '%dKiB'", q.Memory>>10),
		fmt.Sprintf("SET threads = %d", q.Threads),
		"SET TimeZone = 'UTC'",
		"SET autoinstall_known_extensions = false",
		"SET autoload_known_extensions = false",
		"SET allow_community_extensions = false",
		"SET allow_unredacted_secrets = false",
		"SET max_expression_depth = 250",
	}
	for _, view := range Views() {
		statements = append(statements, view.sql(q.Files[view.class]))
	}
	statements = append(statements,
		fmt.Sprintf("SET allowed_directories = [%s]", quote(q.Dir+"/")),
		"SET enable_external_access = false",
		"SET lock_configuration = true",
	)
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// checkSelect lets one SELECT through and nothing else, as the engine's own parser
// reads it: only a SELECT can be serialised. It also refuses several statements in
// one text, of which the driver would run all but the last at once.
func checkSelect(ctx context.Context, conn *sql.Conn, text string) error {
	var serialised string
	if err := conn.QueryRowContext(ctx, "SELECT CAST(json_serialize_sql(CAST(? AS VARCHAR)) AS VARCHAR)", text).Scan(&serialised); err != nil {
		return fmt.Errorf("read the question: %w", err)
	}
	var parsed struct {
		Error      bool              `json:"error"`
		Message    string            `json:"error_message"`
		Kind       string            `json:"error_type"`
		Statements []json.RawMessage `json:"statements"`
	}
	if err := json.Unmarshal([]byte(serialised), &parsed); err != nil {
		return fmt.Errorf("read the question: %w", err)
	}
	switch {
	case parsed.Error && parsed.Kind == "not implemented":
		return errors.New("only SELECT is answered: the history is read-only")
	case parsed.Error:
		return errors.New(parsed.Message)
	case len(parsed.Statements) == 0:
		return errors.New("the question is empty: ask one SELECT of flows, cadences, greetings, detections or engagements")
	case len(parsed.Statements) > 1:
		return fmt.Errorf("%d statements: ask one SELECT at a time", len(parsed.Statements))
	}
	return nil
}

func write(rows *sql.Rows, limit int, out *json.Encoder) error {
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	if err := out.Encode(answer{Columns: columns}); err != nil {
		return err
	}
	values := make([]any, len(columns))
	places := make([]any, len(columns))
	for i := range values {
		places[i] = &values[i]
	}
	for n := 0; rows.Next(); n++ {
		if n == limit {
			return out.Encode(answer{Done: true, Truncated: true})
		}
		if err := rows.Scan(places...); err != nil {
			return err
		}
		row := make([]any, len(values))
		for i, v := range values {
			row[i] = plain(v, 0)
		}
		if err := out.Encode(answer{Row: row}); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return out.Encode(answer{Done: true})
}

// plain makes a value of the engine one of JSON.
func plain(v any, depth int) any {
	if depth > 16 {
		return "…"
	}
	switch v := v.(type) {
	case string:
		return cut(v)
	case []byte:
		return cut(fmt.Sprintf("%x", v[:min(len(v), maxCell)]))
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Sprint(v)
		}
		return v
	case float32:
		return plain(float64(v), depth)
	case *big.Int:
		return json.Number(v.String())
	case duckdb.Decimal:
		return json.Number(v.String())
	case []any:
		out := make([]any, min(len(v), 1000))
		for i := range out {
			out[i] = plain(v[i], depth+1)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			out[key] = plain(value, depth+1)
		}
		return out
	case duckdb.OrderedMap:
		out := make(map[string]any, v.Len())
		keys, values := v.Keys(), v.Values()
		for i, key := range keys {
			out[fmt.Sprint(plain(key, depth+1))] = plain(values[i], depth+1)
		}
		return out
	case nil, bool, int8, int16, int32, int64, int, uint8, uint16, uint32, uint64:
		return v
	default: // intervals, unions and what is to come
		return cut(fmt.Sprint(v))
	}
}

func cut(s string) string {
	if len(s) <= maxCell {
		return s
	}
	return s[:maxCell] + "…"
}
