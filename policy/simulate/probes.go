package simulate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// mostProbeBytes bounds one probe, with the lines that it spans.
const mostProbeBytes = 64 << 10

// Probes reads probes one after another: JSON lines, a JSON array, or a YAML
// list. each is called with every one in order and where it stands (file:line), or
// with why it could not be read; what follows is read all the same. It ends at the
// first error of each or of the stream itself. name is the stream's, for messages.
func Probes(name string, in io.Reader, each func(p bocage.SimulateProbe, at string, broken error) error) error {
	r := &probeReader{name: name, in: bufio.NewReaderSize(in, 256<<10), each: each}
	first, err := r.skip()
	for errors.Is(err, errTooLong) {
		if err = r.fail(r.line, "%v", errTooLong); err == nil {
			first, err = r.skip()
			if errors.Is(err, io.EOF) {
				return nil
			}
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s holds no probe: write one as JSON in a line", name)
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%s is a folder: name a file with probes", name)
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	case first == '{':
		err = r.lines()
	case first == '[':
		err = r.array()
	default:
		err = r.yaml()
	}
	return err
}

type probeReader struct {
	name    string
	in      *bufio.Reader
	each    func(bocage.SimulateProbe, string, error) error
	line    int    // lines read so far
	pending []byte // a line to be read again
}

// skip goes to the first line that says which form the stream has, and returns
// its first character. Empty lines, and comments and markers of YAML, say nothing.
func (r *probeReader) skip() (byte, error) {
	for {
		line, err := r.next()
		if err != nil {
			return 0, err
		}
		if r.line == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) == 0 || trimmed[0] == '#' || bytes.Equal(trimmed, []byte("---")) {
			continue
		}
		r.pending, r.line = bytes.Clone(line), r.line-1
		return trimmed[0], nil
	}
}

// next reads a line, with its end; too long a one is an error of its own.
func (r *probeReader) next() ([]byte, error) {
	if r.pending != nil {
		line := r.pending
		r.pending, r.line = nil, r.line+1
		return line, nil
	}
	line, err := r.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.in.ReadSlice('\n')
		}
		r.line++
		return nil, errTooLong
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil
	}
	if err == nil {
		r.line++
	}
	return line, err
}

var errTooLong = fmt.Errorf("is longer than a probe can be: %d KiB", mostProbeBytes>>10)

func (r *probeReader) fail(line int, format string, args ...any) error {
	return r.refuse(bocage.SimulateProbe{}, line, nil, fmt.Sprintf(format, args...))
}

// Unreadable is why a probe could not be read.
type Unreadable struct {
	// Line is where it begins.
	Line int
	// Asked is the probe as it was written, if it is JSON at all.
	Asked json.RawMessage

	message string
}

func (e *Unreadable) Error() string { return e.message }

// refuse tells what is wrong with a probe, with what could be read of it.
func (r *probeReader) refuse(p bocage.SimulateProbe, line int, raw []byte, message string) error {
	return r.each(p, r.at(line), &Unreadable{line, bytes.Clone(raw), r.at(line) + ": " + message})
}

func (r *probeReader) at(line int) string { return fmt.Sprintf("%s:%d", r.name, line) }

// lines reads JSON lines. An object may go over several lines.
func (r *probeReader) lines() error {
	var open []byte // of an object that has not ended
	began := 0
	for {
		line, err := r.next()
		switch {
		case errors.Is(err, io.EOF):
			if len(open) > 0 {
				return r.fail(began, "is not JSON: it ends inside a value")
			}
			return nil
		case errors.Is(err, errTooLong):
			if err := r.fail(r.line, "%v", err); err != nil {
				return err
			}
			open = open[:0]
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", r.name, err)
		}
		text := bytes.TrimSpace(line)
		if len(text) == 0 {
			continue
		}
		if len(open) > 0 {
			if len(open)+len(text) > mostProbeBytes {
				if err := r.fail(began, "%v", errTooLong); err != nil {
					return err
				}
				open = open[:0]
			} else {
				text = append(append(open, '\n'), text...)
			}
		}
		if len(open) == 0 {
			began = r.line
		}
		rest, err := r.values(text, began)
		if err != nil {
			return err
		}
		open = append(open[:0], rest...)
	}
}

// values decides the objects of a text and returns what has no end yet.
func (r *probeReader) values(text []byte, line int) (rest []byte, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		var raw json.RawMessage
		before := decoder.InputOffset()
		switch err := decoder.Decode(&raw); {
		case errors.Is(err, io.EOF):
			return nil, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return text[before:], nil
		case err != nil:
			// The object before this line may have been cut short: the line itself
			// may be whole.
			if i := bytes.LastIndexByte(text, '\n'); i >= 0 && bytes.HasPrefix(text[i+1:], []byte("{")) {
				if err := r.fail(line, "is not JSON: it ends inside a value"); err != nil {
					return nil, err
				}
				return r.values(text[i+1:], r.line)
			}
			return nil, r.fail(line, "is not JSON: %v", err)
		}
		if err := r.probe(raw, line); err != nil {
			return nil, err
		}
	}
}

// probe decodes one JSON object strictly.
func (r *probeReader) probe(raw []byte, line int) error {
	var p bocage.SimulateProbe
	err := json.Unmarshal(raw, &p) // goes on behind a value of the wrong kind
	read := bocage.SimulateProbe{From: p.From, To: p.To}
	if wrong := keysMessage(raw); wrong != "" {
		return r.refuse(read, line, raw, wrong)
	}
	if err != nil {
		return r.refuse(read, line, raw, probeMessage(err, raw))
	}
	if bytes.Equal(raw, []byte("null")) {
		return r.refuse(read, line, raw, "is null where a probe is needed"+probeExample)
	}
	if p.At.IsZero() && namesTime(raw) {
		return r.refuse(p, line, raw, "at: that moment stands for none: leave it out to ask about now")
	}
	return r.each(p, r.at(line), nil)
}

// namesTime reports whether a probe has a moment.
func namesTime(raw []byte) bool {
	var has struct{ At *time.Time }
	return json.Unmarshal(raw, &has) == nil && has.At != nil
}

// keysMessage says which field of an object is none of a probe's, or is there
// twice. encoding/json takes the last, and reads From as from.
func keysMessage(raw []byte) string {
	var seen [6]bool
	fields := []string{"from", "to", "name", "port", "protocol", "at"}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return "" // it is said what it is when it is decoded
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return ""
		}
		name, _ := token.(string)
		i := slices.Index(fields, name)
		switch {
		case i < 0:
			return fmt.Sprintf("field %q is unknown: the fields are from, to, name, port, protocol and at", name)
		case seen[i]:
			return fmt.Sprintf("%s: is there twice", name)
		}
		seen[i] = true
		var value json.RawMessage
		if decoder.Decode(&value) != nil {
			return ""
		}
	}
	return ""
}

const probeExample = `, such as {"from": "shop/web", "to": "shop/db", "port": 5432}`

// probeMessage says what is wrong with a probe in the words of its fields.
func probeMessage(err error, raw []byte) string {
	var wrong *json.UnmarshalTypeError
	text := err.Error()
	switch {
	case errors.As(err, &wrong) && wrong.Field == "":
		return "is " + wrong.Value + " where a probe is needed" + probeExample
	case errors.As(err, &wrong) && wrong.Field == "port" && wrong.Value == "string":
		var quoted struct {
			Port string `json:"port"`
		}
		if json.Unmarshal(raw, &quoted) == nil {
			if _, err := strconv.Atoi(quoted.Port); err == nil {
				return fmt.Sprintf("port: is text where a number is needed: write %s without quotes", quoted.Port)
			}
		}
		return "port: is text where a number is needed"
	case errors.As(err, &wrong) && wrong.Field == "port":
		return fmt.Sprintf("port: %s is not a port from 1 to 65535", strings.TrimPrefix(wrong.Value, "number "))
	case errors.As(err, &wrong) && wrong.Value == "bool":
		return fmt.Sprintf("%s: is true or false where text is needed: quote it", wrong.Field)
	case errors.As(err, &wrong):
		return fmt.Sprintf("%s: is %s where text is needed", wrong.Field, wrong.Value)
	case strings.Contains(text, "parsing time"):
		return "at: is not a time such as 2026-11-24T18:00:00Z"
	}
	return strings.TrimPrefix(text, "json: ")
}

// array reads a JSON array.
func (r *probeReader) array() error {
	counted := &lineCounter{in: io.MultiReader(bytes.NewReader(r.pending), r.in), line: r.line + 1}
	decoder := json.NewDecoder(counted)
	broken := func(err error) error {
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &syntax):
			return r.fail(counted.at(syntax.Offset), "is not JSON: %v", err)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return r.fail(counted.at(decoder.InputOffset()), "is not JSON: the list has no end")
		default:
			return fmt.Errorf("read %s: %w", r.name, err)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return broken(err)
	}
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return broken(err)
		}
		line := counted.at(decoder.InputOffset() - int64(len(raw)))
		if len(raw) > mostProbeBytes {
			if err := r.fail(line, "%v", errTooLong); err != nil {
				return err
			}
			continue
		}
		if err := r.probe(raw, line); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil {
		return broken(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return r.fail(counted.at(decoder.InputOffset()), "something follows the list: only one is read")
	}
	return nil
}

// lineCounter knows in which line an offset of what passed through it is, for
// offsets that only grow.
type lineCounter struct {
	in   io.Reader
	read int64
	ends []int64 // offsets of line ends that were not asked about yet
	line int
}

func (c *lineCounter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	for i, b := range p[:n] {
		if b == '\n' {
			c.ends = append(c.ends, c.read+int64(i))
		}
	}
	c.read += int64(n)
	return n, err
}

func (c *lineCounter) at(offset int64) int {
	passed := 0
	for passed < len(c.ends) && c.ends[passed] < offset {
		passed++
	}
	c.line += passed
	c.ends = append(c.ends[:0], c.ends[passed:]...)
	return c.line
}

// yaml reads a YAML list, one item after another.
func (r *probeReader) yaml() error {
	var item bytes.Buffer
	indent, began := -1, 0
	flush := func() error {
		defer item.Reset()
		if len(bytes.TrimSpace(item.Bytes())) == 0 {
			return nil
		}
		return r.item(item.Bytes(), began)
	}
	for {
		line, err := r.next()
		switch {
		case errors.Is(err, io.EOF):
			return flush()
		case err != nil && !errors.Is(err, errTooLong):
			return fmt.Errorf("read %s: %w", r.name, err)
		case err != nil || item.Len()+len(line) > mostProbeBytes:
			return r.fail(r.line, "%v", errTooLong)
		}
		trimmed := bytes.TrimLeft(line, " ")
		at := len(line) - len(trimmed)
		starts := bytes.HasPrefix(trimmed, []byte("- ")) || bytes.Equal(bytes.TrimSpace(trimmed), []byte("-"))
		if indent < 0 && starts {
			indent = at
		}
		if bytes.Equal(bytes.TrimSpace(line), []byte("---")) {
			continue
		}
		if starts && at == indent || item.Len() == 0 {
			if err := flush(); err != nil {
				return err
			}
			began = r.line
		}
		item.Write(line)
	}
}

// item decides the probes of one item of a YAML list.
func (r *probeReader) item(text []byte, began int) error {
	trees, faults := manifest.Parse("", text)
	if len(faults) > 0 {
		message := faults[0].Message
		if i := strings.Index(message, "is not YAML"); i > 0 {
			message = message[i:]
		}
		return r.fail(began, "%s", message)
	}
	if len(trees) == 0 && !onlyComments(text) {
		return r.refuse(bocage.SimulateProbe{}, began, []byte("null"), "is null where a probe is needed"+probeExample)
	}
	for _, tree := range trees {
		list, ok := tree.Value().([]any)
		if !ok {
			return r.fail(began, "is no list of probes: write JSON lines, a JSON array, or a YAML list")
		}
		for _, value := range list {
			raw, err := json.Marshal(value)
			if err != nil {
				return r.fail(began, "%v", err)
			}
			if err := r.probe(raw, began); err != nil {
				return err
			}
		}
	}
	return nil
}

// onlyComments reports whether a text of YAML says nothing.
func onlyComments(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}
