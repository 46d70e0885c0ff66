package manifest

import (
	"encoding"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"

	"bocage.dev/bocage"
)

// Check compares the document with the Go type of a kind. unknown holds fields
// that the kind does not have and keys that stand twice, which a lenient reader
// may drop; wrong holds values that the type cannot take. Both carry the fields'
// paths and sources. Afterwards the document reads as if wrong values
// were empty and unknown fields were not there.
//
// What is not there and what is null are told apart as Kubernetes does, kind by kind,
// and so are y, n and 80.0: see Notes.
//
// What kubectl and controllers write besides is left out without a word: fields
// of metadata and, of Kubernetes' own kinds, of the status; of a Namespace, all.
func (t *Tree) Check(kind bocage.Kind) (unknown, wrong bocage.Faults) {
	return newChecker().document(t, kind)
}

// checker compares documents with the types of their kinds.
type checker struct {
	fields map[reflect.Type]map[string]reflect.Type // of structs, by their JSON names

	tree           *Tree
	kind           bocage.Kind
	unknown, wrong bocage.Faults
}

func newChecker() *checker { return &checker{fields: map[reflect.Type]map[string]reflect.Type{}} }

func (c *checker) document(t *Tree, kind bocage.Kind) (unknown, wrong bocage.Faults) {
	c.tree, c.kind, c.unknown, c.wrong = t, kind, nil, nil
	t.notes = nil
	c.check(t.node, reflect.TypeOf(kind.New()).Elem(), "")
	return c.unknown, c.wrong
}

// leaves reports whether an unknown field is left out without a word.
func (c *checker) leaves(path string) bool {
	switch path {
	case "metadata.selfLink", "metadata.deletionGracePeriodSeconds":
		return true
	}
	return c.kind.APIVersion != bocage.APIVersion && (c.kind.Name == "Namespace" || strings.HasPrefix(path, "status."))
}

func (c *checker) fieldsOf(typ reflect.Type) map[string]reflect.Type {
	if fields, known := fieldsOfKinds()[typ]; known {
		return fields
	}
	fields, known := c.fields[typ]
	if !known {
		fields = structFields(typ)
		c.fields[typ] = fields
	}
	return fields
}

func (c *checker) fault(to *bocage.Faults, n *node, path, format string, args ...any) {
	if to == &c.wrong {
		n.wrong = true
	}
	if len(*to) > maxFaults {
		return
	}
	*to = append(*to, bocage.Fault{
		Field: path, Message: fmt.Sprintf(format, args...), Source: position(c.tree.name, n.Line),
	})
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	timeType        = reflect.TypeFor[time.Time]()
	rawType         = reflect.TypeFor[json.RawMessage]()
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
)

// check compares one value with one type.
func (c *checker) check(n *node, typ reflect.Type, path string) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if n.Kind == scalar && n.Tag == "!!null" && !c.filled(n, typ, path) {
		return
	}
	switch {
	case typ == rawType:
	case typ == timeType:
		c.checkTime(n, path)
	case reflect.PointerTo(typ).Implements(textUnmarshaler):
		c.checkText(n, typ, path)
	case reflect.PointerTo(typ).Implements(jsonUnmarshaler):
		c.checkJSON(n, typ, path)
	default:
		c.checkPlain(n, typ, path)
	}
}

// filled puts in place of a null what the kind's reader makes of it, and reports whether
// there is something now. A field that is null is one that is left out. An item of a list
// or a map that is null is a mistake in our own kinds, and in lists of a
// ClusterNetworkPolicy; Kubernetes reads its own kinds, and the metadata of all, by types
// in which it is an empty value.
func (c *checker) filled(n *node, typ reflect.Type, path string) bool {
	item := strings.HasSuffix(path, "]")
	if !item {
		return false
	}
	known := c.typed() || c.kind.Name == "ClusterNetworkPolicy" && strings.HasPrefix(path, "metadata.")
	kind := typ.Kind()
	switch {
	case !known || kind != reflect.String && kind != reflect.Struct:
		c.fault(&c.wrong, n, path, "is empty: give it a value or remove it")
		return false
	case kind == reflect.String:
		n.Tag, n.Value = "!!str", ""
		c.tree.note(n, path, `is null, which Kubernetes reads as "": write that if it is meant`)
	default:
		n.Kind, n.Tag, n.Value = mapping, "!!map", ""
		c.tree.note(n, path, "is null, which Kubernetes reads as {}: write that if it is meant, or remove it")
	}
	return true
}

// pruned reports whether the API server removes an entry of a map, since it is null.
func (c *checker) pruned(n *node, path string) bool {
	if !n.null() || c.kind.Name != "ClusterNetworkPolicy" || !strings.HasPrefix(path, "spec.") {
		return false
	}
	c.tree.note(n, path, "is null, which Kubernetes reads as if it were not there: remove it, or give it a value")
	return true
}

func (c *checker) checkPlain(n *node, typ reflect.Type, path string) {
	switch typ.Kind() {
	case reflect.Struct:
		c.checkStruct(n, typ, path)
	case reflect.Map:
		if c.is(n, mapping, path, "a map of names to values is needed") {
			c.keysOnce(n, path)
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i], n.Content[i+1]
				at := path + "[" + key.Value + "]"
				if key.boolean && len(key.Value) == 1 {
					c.tree.noteLetter(key, at, true)
				}
				switch {
				case key.boolean && len(key.Value) > 1:
					c.fault(&c.wrong, key, path, "%s %s", key.Value, mustQuote(key.Value))
				case c.pruned(value, at):
					key.wrong = true
				default:
					c.check(value, typ.Elem(), at)
				}
			}
		}
	case reflect.Slice:
		if c.is(n, sequence, path, "a list is needed") {
			for i, item := range n.Content {
				c.check(item, typ.Elem(), path+"["+strconv.Itoa(i)+"]")
			}
		}
	case reflect.String:
		c.checkString(n, path)
	case reflect.Bool:
		if n.boolean {
			n.Tag = "!!bool"
		}
		if n.Kind != scalar || n.Tag != "!!bool" {
			c.fault(&c.wrong, n, path, "is %s where true or false is needed", describe(n))
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		c.checkInteger(n, typ, path)
	case reflect.Float32, reflect.Float64:
		if n.Kind != scalar || n.Tag != "!!int" && n.Tag != "!!float" {
			c.fault(&c.wrong, n, path, "is %s where a number is needed", describe(n))
		} else if _, ok := n.plain().(json.Number); !ok {
			c.fault(&c.wrong, n, path, "%q is not a finite number", n.Value)
		}
	default:
		panic(fmt.Sprintf("manifest: a declaration cannot hold %s", typ))
	}
}

func (c *checker) is(n *node, kind yaml.Kind, path, needed string) bool {
	if n.Kind == kind {
		return true
	}
	c.fault(&c.wrong, n, path, "is %s where %s", describe(n), needed)
	return false
}

func (c *checker) checkStruct(n *node, typ reflect.Type, path string) {
	if !c.is(n, mapping, path, "a map of fields is needed") {
		return
	}
	c.keysOnce(n, path)
	fields := c.fieldsOf(typ)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		field, ok := fields[key.Value]
		if !ok {
			key.wrong = true
			if !c.leaves(at) {
				c.fault(&c.unknown, key, at, "%s", unknownField(key.Value, path, typ, fields))
			}
			continue
		}
		if value.null() && strings.HasPrefix(at, "spec.") && c.kind.Name == "ClusterNetworkPolicy" {
			key.wrong = true // the API server removes nulls before it looks at the rest
			continue
		}
		c.check(value, field, at)
	}
}

func (c *checker) keysOnce(n *node, path string) {
	if len(n.Content) <= 2 {
		return
	}
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if line, twice := first[key.Value]; twice {
			c.fault(&c.unknown, key, join(path, key.Value), "stands twice: first in line %d", line)
			continue
		}
		first[key.Value] = key.Line
	}
}

func (c *checker) checkString(n *node, path string) {
	switch {
	case n.Kind != scalar:
		c.fault(&c.wrong, n, path, "is %s where text is needed", describe(n))
	case n.boolean && n.Tag == "!!bool":
		c.fault(&c.wrong, n, path, "%s", mustQuote(n.Value))
	case n.Tag != "!!str" && n.Tag != "!!timestamp":
		c.fault(&c.wrong, n, path, "is %s where text is needed: write %q", describe(n), n.Value)
	case strings.ContainsRune(n.Value, 0):
		c.fault(&c.wrong, n, path, "holds a NUL character")
	case n.letter():
		c.tree.noteLetter(n, path, false)
	}
}

func (c *checker) checkTime(n *node, path string) {
	if n.Kind != scalar {
		c.fault(&c.wrong, n, path, "is %s where a time is needed", describe(n))
	} else if at, err := time.Parse(time.RFC3339, n.Value); err != nil {
		c.fault(&c.wrong, n, path, "%q is not a time such as 2026-11-24T18:00:00Z", n.Value)
	} else if at.IsZero() && strings.HasPrefix(path, "spec.") {
		c.fault(&c.wrong, n, path, "%q stands for no time at all: leave it out, or name one", n.Value)
	}
}

func (c *checker) checkText(n *node, typ reflect.Type, path string) {
	if n.Kind != scalar || n.Tag != "!!str" {
		c.checkString(n, path)
		return
	}
	if err := reflect.New(typ).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		c.fault(&c.wrong, n, path, "%s", textMessage(typ, n.Value, err))
	} else if n.letter() {
		c.tree.noteLetter(n, path, false)
	}
}

// checkJSON asks a type that reads its own JSON.
func (c *checker) checkJSON(n *node, typ reflect.Type, path string) {
	data, err := json.Marshal(n.plain())
	if err == nil {
		err = json.Unmarshal(data, reflect.New(typ).Interface())
	}
	switch {
	case err != nil && n.boolean && n.Tag == "!!bool":
		c.fault(&c.wrong, n, path, "%s", mustQuote(n.Value))
	case err != nil:
		c.fault(&c.wrong, n, path, "%v", err)
	case c.fraction(n):
		c.fault(&c.wrong, n, path, "%s", wholeInJSON(n.Value))
	case n.letter():
		c.tree.noteLetter(n, path, false)
	}
}

// textMessage replaces the messages of the standard library by ones for people.
func textMessage(typ reflect.Type, value string, err error) string {
	switch typ.PkgPath() + "." + typ.Name() {
	case "net/netip.Prefix":
		return fmt.Sprintf("%q is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32", value)
	case "net/netip.Addr":
		return fmt.Sprintf("%q is not an IP address", value)
	}
	return err.Error()
}

func (c *checker) checkInteger(n *node, typ reflect.Type, path string) {
	value, ok := n.integer()
	if !ok || n.Kind != scalar {
		_, err := strconv.Atoi(n.Value)
		switch {
		case n.Kind == scalar && n.Tag == "!!float":
			c.fault(&c.wrong, n, path, "%s is not a whole number", n.Value)
		case n.Kind == scalar && n.Tag == "!!str" && err == nil:
			c.fault(&c.wrong, n, path, "is text where a number is needed: write %s without quotes", n.Value)
		default:
			c.fault(&c.wrong, n, path, "is %s where a whole number is needed", describe(n))
		}
		return
	}
	if c.fraction(n) {
		c.fault(&c.wrong, n, path, "%s", wholeInJSON(n.Value))
		return
	}
	low, high := limits(typ)
	if value.Cmp(low) < 0 || value.Cmp(high) > 0 {
		c.fault(&c.wrong, n, path, "%s is out of range: %s to %s", value, low, high)
	}
}

// fraction reports whether a number is written in a way that Kubernetes does not take
// for a whole one: its own kinds are read from JSON by their types, to which 80.0 and
// 8e1 are none. From YAML kubectl makes them 80, and of others' kinds only the value
// counts.
func (c *checker) fraction(n *node) bool { return n.literal && n.Tag == "!!float" && c.typed() }

func wholeInJSON(number string) string {
	return number + " is no whole number to Kubernetes, which reads JSON by the letter: write it without a point and an exponent"
}

// typed reports whether Kubernetes reads objects of the kind by types, as it does its own.
func (c *checker) typed() bool {
	return c.kind.APIVersion == "v1" || c.kind.APIVersion == bocage.NetworkPolicyAPIVersion
}

func limits(typ reflect.Type) (low, high *big.Int) {
	one := big.NewInt(1)
	bits := uint(typ.Bits())
	switch typ.Kind() {
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return new(big.Int), new(big.Int).Sub(new(big.Int).Lsh(one, bits), one)
	}
	half := new(big.Int).Lsh(one, bits-1)
	return new(big.Int).Neg(half), new(big.Int).Sub(half, one)
}

// Field is a field of a struct as encoding/json sees it.
type Field struct {
	reflect.StructField
	// JSON is its name.
	JSON string
	// Optional says that it is left out where it is empty.
	Optional bool
}

// Fields lists the fields of a struct in their order, inlined ones included.
func Fields(typ reflect.Type) []Field {
	var fields []Field
	for _, field := range reflect.VisibleFields(typ) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case !field.IsExported() || name == "-" || (field.Anonymous && name == ""):
			continue
		case name == "":
			name = field.Name
		}
		if atTop(typ, field) {
			fields = append(fields, Field{field, name, strings.Contains(options, "omit")})
		}
	}
	return fields
}

// atTop reports whether a visible field is reached through fields that are
// inlined, and not through one that has a JSON name of its own.
func atTop(typ reflect.Type, field reflect.StructField) bool {
	for i := 1; i < len(field.Index); i++ {
		parent := typ.FieldByIndex(field.Index[:i])
		if name, _, _ := strings.Cut(parent.Tag.Get("json"), ","); name != "" {
			return false
		}
	}
	return true
}

// fieldsOfKinds are the fields of every struct within every kind, found once:
// looking for them takes longer than to check an object.
var fieldsOfKinds = sync.OnceValue(func() map[reflect.Type]map[string]reflect.Type {
	all := map[reflect.Type]map[string]reflect.Type{}
	var within func(typ reflect.Type)
	within = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			within(typ.Elem())
		case reflect.Struct:
			if _, known := all[typ]; known {
				return
			}
			all[typ] = structFields(typ)
			for _, field := range all[typ] {
				within(field)
			}
		}
	}
	for _, kind := range bocage.Kinds() {
		within(reflect.TypeOf(kind.New()))
	}
	return all
})

// structFields maps the JSON names of a struct's fields to their types.
func structFields(typ reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type, typ.NumField())
	for _, field := range Fields(typ) {
		fields[field.JSON] = field.Type
	}
	return fields
}

func unknownField(name, path string, typ reflect.Type, fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for f := range fields {
		names = append(names, f)
	}
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("is unknown: did you mean %s?", near)
	}
	for _, part := range []string{"spec", "metadata"} {
		if inner, ok := fields[part]; ok && path == "" {
			if _, ok := structFields(inner)[name]; ok {
				return fmt.Sprintf("is unknown here: did you mean %s.%s?", part, name)
			}
		}
	}
	if strings.HasPrefix(path, "metadata") {
		return "is unknown: labels belong under metadata.labels"
	}
	return fmt.Sprintf("is unknown: %s", fieldList(typ))
}

// fieldList names the fields that a struct has, in their order.
func fieldList(typ reflect.Type) string {
	var names []string
	for _, field := range Fields(typ) {
		if field.JSON != "status" {
			names = append(names, field.JSON)
		}
	}
	return "the fields here are " + strings.Join(names, ", ")
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// nearest returns the one of the names that a misspelling most likely meant, or
// nothing.
func nearest(name string, names []string) string {
	best, distance := "", 3
	for _, candidate := range names {
		if strings.EqualFold(name, candidate) {
			return candidate
		}
		d := editDistance(strings.ToLower(name), strings.ToLower(candidate))
		if d < distance && d*2 < len(candidate) || d == distance && best != "" && candidate < best {
			best, distance = candidate, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, replacements and swaps of
// neighbours. Long names are far from everything.
func editDistance(one, other string) int {
	if len(one) > 64 || len(other) > 64 {
		return 64
	}
	a, b := []rune(one), []rune(other)
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
