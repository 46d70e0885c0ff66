package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"bocage.dev/bocage"
)

// The node kinds that are left once documents are opened and aliases replaced.
const (
	mapping  = yaml.MappingNode
	sequence = yaml.SequenceNode
	scalar   = yaml.ScalarNode
)

// Tree is one parsed document: syntax without meaning.
type Tree struct {
	name string
	node *node
	// letters says that y or n stands in the file without quotes.
	letters bool
	// notes are about what is read otherwise than by Kubernetes, or means there what
	// few would think.
	notes bocage.Faults
}

// node is a YAML value whose lines count from the start of the file.
type node struct {
	Kind    yaml.Kind
	Tag     string // short form: !!str, !!int, ...
	Value   string
	Line    int
	Content []*node // of a mapping: key, value, key, value
	wrong   bool    // Check found a value of the wrong type, or an unknown key
	boolean bool    // a word that Kubernetes reads as true or false
	literal bool    // a number that was written in JSON, where 80.0 is not 80 to every reader
}

// null reports whether nothing is written, or null.
func (n *node) null() bool { return n.Kind == scalar && n.Tag == "!!null" }

// letter reports whether it is y or n without quotes: text, unless a boolean is needed.
func (n *node) letter() bool { return n.boolean && n.Tag == "!!str" }

// value returns the last value of a key in a mapping, or nil.
func (n *node) value(key string) *node {
	if n.Kind != mapping {
		return nil
	}
	var found *node
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			found = n.Content[i+1]
		}
	}
	return found
}

// bounds limit what is read.
type bounds struct{ bytes, values, documents int }

// Parse reads the documents of a file or body in YAML or JSON, without asking
// what they mean. Documents whose syntax is broken are left out and reported;
// empty ones are skipped.
func Parse(name string, data []byte) ([]*Tree, bocage.Faults) {
	var trees []*Tree
	faults := parse(name, data, Reader{}.bounds(), func(t *Tree) { trees = append(trees, t) })
	return trees, faults
}

// mark is the byte order mark with which some editors begin a file.
var mark = []byte("\xef\xbb\xbf")

// parse passes the documents on, one after another.
func parse(name string, data []byte, most bounds, each func(*Tree)) bocage.Faults {
	data = bytes.TrimPrefix(data, mark)
	if faults := acceptable(name, data, most); len(faults) > 0 {
		return faults
	}
	if looksLikeJSON(data) {
		var nodes []*node
		use := func(n *node) { nodes = append(nodes, n) }
		sure := isJSON(name)
		if sure {
			use = func(n *node) { each(&Tree{name: name, node: n}) }
		}
		if err := parseJSON(data, most.documents, use); err == nil {
			for i, n := range nodes {
				nodes[i] = nil
				each(&Tree{name: name, node: n})
			}
			return nil
		} else if sure {
			return bocage.Faults{fault(name, err)}
		}
	}
	var faults bocage.Faults
	parts := splitYAML(data)
	if len(parts) > most.documents {
		return bocage.Faults{fault(name, tooManyDocuments(parts[most.documents].line+1, most.documents))}
	}
	for _, part := range parts {
		n, letters, err := parseYAML(part.text, part.line)
		if err != nil {
			faults = append(faults, fault(name, err))
		} else if n != nil {
			each(&Tree{name: name, node: n, letters: letters})
		}
	}
	return faults
}

// lineError is a syntax error at a line.
type lineError struct {
	line    int
	message string
}

func (e *lineError) Error() string { return e.message }

func tooManyDocuments(line, most int) error {
	return &lineError{line, fmt.Sprintf("is one document more than the %d that a file may hold: split it", most)}
}

func fault(name string, err error) bocage.Fault {
	var at *lineError
	if errors.As(err, &at) {
		return bocage.Fault{Source: position(name, at.line), Message: at.message}
	}
	return bocage.Fault{Source: name, Message: err.Error()}
}

func position(name string, line int) string {
	if name == "" {
		return "line " + strconv.Itoa(line)
	}
	return name + ":" + strconv.Itoa(line)
}

// acceptable refuses what no parser should see.
func acceptable(name string, data []byte, most bounds) bocage.Faults {
	refuse := func(line int, format string, args ...any) bocage.Faults {
		return bocage.Faults{{Source: position(name, line), Message: fmt.Sprintf(format, args...)}}
	}
	switch {
	case len(data) > most.bytes:
		return refuse(1, "is larger than %d MiB: split it", most.bytes>>20)
	case bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")):
		return refuse(1, "is UTF-16: save it as UTF-8")
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return refuse(lineOf(data, i), "holds a NUL byte: it is no text file, or damaged")
	}
	if !utf8.Valid(data) {
		i := 0
		for i < len(data) {
			r, size := utf8.DecodeRune(data[i:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			i += size
		}
		return refuse(lineOf(data, i), "is not UTF-8: save it as UTF-8")
	}
	values := 0
	for _, c := range data {
		switch c {
		case ',', '[', '{', ':', '\n':
			values++
		}
	}
	if values > most.values {
		return refuse(1, "holds more than %d values: split it", most.values)
	}
	return nil
}

func lineOf(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }

func looksLikeJSON(data []byte) bool {
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	return len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[')
}

// JSON

// isJSON reports whether a file's name says that it holds JSON.
func isJSON(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json", ".jsonl", ".ndjson":
		return true
	}
	return false
}

// parseJSON reads a sequence of JSON values.
func parseJSON(data []byte, most int, each func(*node)) error {
	data = withoutMarks(data)
	p := &jsonParser{data: data, decoder: json.NewDecoder(bytes.NewReader(data)), line: 1}
	p.decoder.UseNumber()
	for count := 1; ; count++ {
		n, err := p.value(0)
		if errors.Is(err, io.EOF) && !p.inside {
			return nil
		}
		if err != nil {
			return p.failed(err)
		}
		if count > most {
			return tooManyDocuments(p.line, most)
		}
		each(n)
	}
}

// withoutMarks writes spaces over the byte order marks at the start of lines, where
// files were put together: within the texts of JSON no line begins.
func withoutMarks(data []byte) []byte {
	if !bytes.Contains(data, mark) {
		return data
	}
	data = bytes.Clone(data)
	for offset := 0; offset < len(data); {
		for bytes.HasPrefix(data[offset:], mark) {
			copy(data[offset:], "   ")
			offset += len(mark)
		}
		end := bytes.IndexByte(data[offset:], '\n')
		if end < 0 {
			break
		}
		offset += end + 1
	}
	return data
}

type jsonParser struct {
	data    []byte
	decoder *json.Decoder
	offset  int // up to which lines are counted
	line    int
	inside  bool // a value has begun
}

func (p *jsonParser) token() (json.Token, int, error) {
	token, err := p.decoder.Token()
	if err != nil {
		return nil, 0, err
	}
	end := int(p.decoder.InputOffset())
	p.line += bytes.Count(p.data[p.offset:end], []byte("\n"))
	p.offset = end
	return token, p.line, nil
}

func (p *jsonParser) value(depth int) (*node, error) {
	p.inside = depth > 0
	token, line, err := p.token()
	if err != nil {
		return nil, err
	}
	p.inside = true
	if depth > maxDepth {
		return nil, &lineError{line, fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	}
	switch t := token.(type) {
	case json.Delim:
		n := &node{Kind: sequence, Tag: "!!seq", Line: line}
		if t == '{' {
			n.Kind, n.Tag = mapping, "!!map"
		}
		for p.decoder.More() {
			if n.Kind == mapping {
				key, line, err := p.token()
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, &node{Kind: scalar, Tag: "!!str", Value: key.(string), Line: line})
			}
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
		}
		_, _, err := p.token()
		return n, err
	case string:
		return &node{Kind: scalar, Tag: "!!str", Value: t, Line: line}, nil
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(t.String(), ".eE") {
			tag = "!!float"
		}
		return &node{Kind: scalar, Tag: tag, Value: t.String(), Line: line, literal: true}, nil
	case bool:
		return &node{Kind: scalar, Tag: "!!bool", Value: strconv.FormatBool(t), Line: line}, nil
	default:
		return &node{Kind: scalar, Tag: "!!null", Value: "null", Line: line}, nil
	}
}

func (p *jsonParser) failed(err error) error {
	var at *lineError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &at):
		return err
	case errors.As(err, &syntax):
		return &lineError{lineOf(p.data, min(int(syntax.Offset), len(p.data))), "is not JSON: " + syntax.Error()}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return &lineError{lineOf(p.data, len(p.data)), "is not JSON: it ends inside a value"}
	default:
		return &lineError{p.line, "is not JSON: " + err.Error()}
	}
}

// YAML

type part struct {
	text []byte
	line int // number of the first line, less one
}

// splitYAML cuts a stream at its document markers, so that one broken document
// does not hide the faults of the others. YAML allows the markers nowhere else
// at the start of a line (YAML 1.2 section 9.1.2).
func splitYAML(data []byte) []part {
	var parts []part
	start, startLine := 0, 0
	for line, offset := 0, 0; offset < len(data); line++ {
		end := bytes.IndexByte(data[offset:], '\n')
		if end < 0 {
			end = len(data) - offset
		}
		text := trimMarks(data[offset : offset+end])
		if isMarker(text, "---") || isMarker(text, "...") {
			parts = append(parts, part{data[start:offset], startLine})
			start, startLine = offset, line
			if isMarker(text, "...") {
				start, startLine = min(offset+end+1, len(data)), line+1
			}
		}
		offset += end + 1
	}
	return append(parts, part{data[start:], startLine})
}

// trimMarks leaves out the byte order marks at the start of a line.
func trimMarks(line []byte) []byte {
	for bytes.HasPrefix(line, mark) {
		line = line[len(mark):]
	}
	return line
}

// unmarked leaves out the byte order marks before the first value of a document,
// which files have that were put together. YAML allows them there (YAML 1.2 section
// 5.2), the parser only at the start of a stream.
func unmarked(text []byte) []byte {
	if !bytes.Contains(text, mark) {
		return text
	}
	var out []byte
	for offset := 0; offset < len(text); {
		end := bytes.IndexByte(text[offset:], '\n') + 1
		if end == 0 {
			end = len(text) - offset
		}
		line := trimMarks(text[offset : offset+end])
		out = append(out, line...)
		offset += end
		if rest := bytes.TrimSpace(line); len(rest) > 0 && rest[0] != '#' && rest[0] != '%' && !bytes.Equal(rest, []byte("---")) {
			return append(out, text[offset:]...)
		}
	}
	return out
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r')
}

// directive is a line such as %YAML 1.2, which stands before a document marker.
var directive = regexp.MustCompile(`(?m)^%(YAML|TAG)[^\n]*$`)

// parseYAML reads one document; nil if it is empty. letters says that y or n stands in
// it without quotes.
func parseYAML(text []byte, line int) (n *node, letters bool, err error) {
	text = unmarked(text)
	if blank(text) {
		return nil, false, nil
	}
	var root, more yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return nil, false, explainYAML(err, text, line)
	}
	if err := decoder.Decode(&more); err == nil {
		return nil, false, &lineError{line + more.Line, "is not YAML: a document begins without --- before it"}
	} else if !errors.Is(err, io.EOF) {
		return nil, false, explainYAML(err, text, line)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return nil, false, nil
	}
	o := opener{line: line}
	if n, err = o.open(root.Content[0], 0); err != nil {
		return nil, false, err
	}
	if n.Kind == scalar && n.Tag == "!!null" {
		return nil, false, nil
	}
	return n, o.letters, nil
}

// blank reports whether a part holds nothing but comments and directives.
func blank(text []byte) bool {
	for line := range bytes.Lines(directive.ReplaceAll(text, nil)) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// explainYAML turns the parser's message into one with the file's line and, for
// the commonest mistake, what to do.
func explainYAML(err error, text []byte, line int) error {
	message := strings.TrimSpace(err.Error())
	at := 1
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		message = m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			at = n
			if strings.HasPrefix(message, "did not find expected") {
				at++ // the parser, unlike its scanner, counts from zero
			}
		}
	}
	for i, l := range bytes.Split(text, []byte("\n")) {
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if bytes.IndexByte(indent, '\t') >= 0 && i+1 >= at-1 && i+1 <= at+1 {
			return &lineError{line + i + 1, "is indented with a tab: YAML wants spaces"}
		}
	}
	lines := bytes.Count(bytes.TrimRight(text, "\n"), []byte("\n")) + 1
	if depth, deep := strings.CutPrefix(message, "exceeded max depth of "); deep {
		return &lineError{line + min(at, lines), "is nested more than " + depth + " levels deep: no object is"}
	}
	return &lineError{line + min(at, lines), "is not YAML: " + message}
}

// opener copies a parsed document, replacing aliases and merge keys.
type opener struct {
	line      int
	opening   []*yaml.Node // what the aliases around the present value name
	aliasLine int          // of the outermost of them
	aliased   int          // values that aliases have added
	letters   bool         // y or n stood somewhere without quotes
}

func (o *opener) open(y *yaml.Node, depth int) (*node, error) {
	at := o.line + y.Line
	if depth > maxDepth {
		return nil, &lineError{at, fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	}
	if len(o.opening) > 0 {
		if o.aliased++; o.aliased > maxAliased {
			return nil, &lineError{o.aliasLine, fmt.Sprintf("has aliases that expand to more than %d values", maxAliased)}
		}
	}
	switch y.Kind {
	case yaml.AliasNode:
		if slices.Contains(o.opening, y.Alias) {
			return nil, &lineError{at, fmt.Sprintf("has the alias *%s within what it names", y.Value)}
		}
		if len(o.opening) == 0 {
			o.aliasLine = at
		}
		o.opening = append(o.opening, y.Alias)
		defer func() { o.opening = o.opening[:len(o.opening)-1] }()
		return o.open(y.Alias, depth+1)
	case yaml.MappingNode:
		n := &node{Kind: mapping, Tag: "!!map", Line: at}
		return n, o.openMapping(n, y, depth)
	case yaml.SequenceNode:
		n := &node{Kind: sequence, Tag: "!!seq", Line: at}
		for _, c := range y.Content {
			v, err := o.open(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
		}
		return n, nil
	case yaml.ScalarNode:
		tag := y.ShortTag()
		boolean := tag == "!!str" && y.Style == 0 && isBoolean(y.Value)
		switch {
		case boolean && len(y.Value) == 1:
			o.letters = true // a name as often as not: its place tells
		case boolean:
			tag = "!!bool"
		}
		switch tag {
		case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge":
			return &node{Kind: scalar, Tag: tag, Value: y.Value, Line: at, boolean: boolean}, nil
		}
		return nil, &lineError{at, fmt.Sprintf("has the tag %s, which is not understood", y.Tag)}
	default:
		return nil, &lineError{at, "holds a value that is not understood"}
	}
}

func (o *opener) openMapping(n *node, y *yaml.Node, depth int) error {
	var merges []*node
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, err := o.open(y.Content[i], depth+1)
		if err != nil {
			return err
		}
		value, err := o.open(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		switch {
		case key.Tag == "!!merge":
			merges = append(merges, value)
		case key.Kind != scalar:
			return &lineError{key.Line, fmt.Sprintf("has %s as a key: keys are text", describe(key))}
		default:
			// A key is text whatever it looks like, as in JSON.
			key.Tag = "!!str"
			n.Content = append(n.Content, key, value)
		}
	}
	for _, m := range merges {
		sources := []*node{m}
		if m.Kind == sequence {
			sources = m.Content
		}
		for _, source := range sources {
			if source.Kind != mapping {
				return &lineError{source.Line, "merges (<<) something that is no map"}
			}
			for i := 0; i+1 < len(source.Content); i += 2 {
				if n.value(source.Content[i].Value) == nil {
					n.Content = append(n.Content, source.Content[i], source.Content[i+1])
				}
			}
		}
	}
	return nil
}

// plain returns the value in the form of encoding/json, numbers as json.Number.
// What Check found wrong is left out, so that the rest can be read.
func (n *node) plain() any {
	if n.wrong {
		return nil
	}
	switch n.Kind {
	case mapping:
		object := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !n.Content[i].wrong {
				object[n.Content[i].Value] = n.Content[i+1].plain()
			}
		}
		return object
	case sequence:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			list[i] = c.plain()
		}
		return list
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		switch strings.ToLower(n.Value) {
		case "true", "yes", "on", "y":
			return true
		}
		return false
	case "!!int":
		if i, ok := n.integer(); ok {
			return json.Number(i.String())
		}
	case "!!float":
		if f, err := strconv.ParseFloat(n.Value, 64); err == nil {
			if text, err := json.Marshal(f); err == nil {
				return json.Number(text)
			}
		}
	}
	return n.Value
}

// isBoolean reports whether a word without quotes is true or false in YAML 1.1, which
// Kubernetes and kubectl read, and text in YAML 1.2.
func isBoolean(word string) bool {
	switch word {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF":
		return true
	}
	return false
}

// exact bounds the whole numbers that a float holds exactly.
const exact = 1 << 53

// integer reads a whole number in any of YAML's bases, or as 80.0.
func (n *node) integer() (*big.Int, bool) {
	if n.Tag == "!!float" {
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > exact {
			return nil, false
		}
		return big.NewInt(int64(f)), true
	}
	if n.Tag != "!!int" || len(n.Value) > 100 {
		return nil, false
	}
	text := strings.TrimPrefix(strings.ReplaceAll(n.Value, "_", ""), "+")
	return new(big.Int).SetString(text, 0)
}

func describe(n *node) string {
	switch {
	case n.Kind == mapping:
		return "a map"
	case n.Kind == sequence:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		return "empty"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	default:
		return "text"
	}
}
