package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// schema is what upstream says of one path of a ClusterNetworkPolicy.
type schema struct {
	kind                         string
	required, set                bool
	least, most, from, to, chars int // -1: no limit
	enum                         []string
	pattern                      *regexp.Regexp
	rule                         string
	fields                       map[string]*schema // of an object
	items, values                *schema            // of an array, of a map
}

// readSchema reads testdata/clusternetworkpolicy.schema.
func readSchema(t *testing.T) *schema {
	t.Helper()
	data, err := os.ReadFile("testdata/clusternetworkpolicy.schema")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]*schema{}
	for line := range strings.Lines(string(data)) {
		facts := strings.Fields(line)
		if strings.HasPrefix(line, "#") || len(facts) < 2 {
			continue
		}
		s := &schema{kind: facts[1], least: -1, most: -1, from: -1, to: -1, chars: -1, fields: map[string]*schema{}}
		for _, fact := range facts[2:] {
			word, value, _ := strings.Cut(fact, "=")
			n, _ := strconv.Atoi(value)
			switch word {
			case "required":
				s.required = true
			case "set":
				s.set = true
			case "least":
				s.least = n
			case "most":
				s.most = n
			case "from":
				s.from = n
			case "to":
				s.to = n
			case "longest":
				s.chars = n
			case "enum":
				s.enum = strings.Split(value, "|")
			case "pattern":
				s.pattern = regexp.MustCompile(value)
			case "rule":
				s.rule = value
			default:
				t.Fatalf("%q is no fact", fact)
			}
		}
		path := facts[0]
		known[path] = s
		switch {
		case path == "spec":
		case strings.HasSuffix(path, "[]"):
			known[strings.TrimSuffix(path, "[]")].items = s
		case strings.HasSuffix(path, "{}"):
			known[strings.TrimSuffix(path, "{}")].values = s
		default:
			i := strings.LastIndex(path, ".")
			known[path[:i]].fields[path[i+1:]] = s
		}
	}
	return known["spec"]
}

// TestFieldsAreUpstreams compares the Go types with the schema, both ways.
func TestFieldsAreUpstreams(t *testing.T) {
	compareFields(t, "spec", readSchema(t), reflect.TypeFor[bocage.ClusterNetworkPolicySpec]())
}

func compareFields(t *testing.T, path string, s *schema, is reflect.Type) {
	t.Helper()
	for is.Kind() == reflect.Pointer {
		is = is.Elem()
	}
	kinds := map[reflect.Kind]string{reflect.Struct: "object", reflect.Map: "object", reflect.Slice: "array", reflect.String: "string", reflect.Int32: "integer"}
	if kinds[is.Kind()] != s.kind {
		t.Errorf("%s: a %s holds %s", path, is, s.kind)
		return
	}
	if s.items != nil {
		compareFields(t, path+"[]", s.items, is.Elem())
	}
	if s.values != nil {
		compareFields(t, path+"{}", s.values, is.Elem())
	}
	if is.Kind() != reflect.Struct {
		return
	}
	ours := map[string]reflect.Type{}
	for field := range is.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		ours[name] = field.Type
	}
	for name, inner := range s.fields {
		if ours[name] == nil {
			t.Errorf("%s.%s is upstream's and not ours", path, name)
			continue
		}
		compareFields(t, path+"."+name, inner, ours[name])
		delete(ours, name)
	}
	for name := range ours {
		t.Errorf("%s.%s is ours and not upstream's", path, name)
	}
}

// faults checks a value as an API server does.
func (s *schema) faults(path string, value any) []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, path+": "+fmt.Sprintf(format, args...)) }
	size := 0
	switch v := value.(type) {
	case map[string]any:
		size = len(v)
		for name, inner := range s.fields {
			if part, there := v[name]; there {
				out = append(out, inner.faults(path+"."+name, part)...)
			} else if inner.required {
				fault("%s is missing", name)
			}
		}
		if s.rule == "start<end" && v["start"].(int) >= v["end"].(int) {
			fault("start is not less than end")
		}
		if s.rule == "named-ports" && namedPortsOfAddresses(v) {
			fault("addresses have no named ports")
		}
	case []any:
		size = len(v)
		for i, item := range v {
			out = append(out, s.items.faults(fmt.Sprintf("%s[%d]", path, i), item)...)
			if s.set && slices.Contains(v[:i], item) {
				fault("%v twice", item)
			}
		}
	case int:
		if s.from >= 0 && v < s.from || s.to >= 0 && v > s.to {
			fault("%d is out of range", v)
		}
	case string:
		if s.chars >= 0 && len([]rune(v)) > s.chars || s.enum != nil && !slices.Contains(s.enum, v) || s.pattern != nil && !s.pattern.MatchString(v) {
			fault("%q does not fit", v)
		}
		if s.rule == "cidr" {
			if prefix, err := netip.ParsePrefix(v); err != nil || prefix.Addr().Is4In6() {
				fault("%q is no CIDR", v)
			}
		}
	}
	if s.least >= 0 && size < s.least || s.most >= 0 && size > s.most {
		fault("has %d", size)
	}
	return out
}

func namedPortsOfAddresses(rule map[string]any) bool {
	has := func(list, field string) bool {
		items, _ := rule[list].([]any)
		return slices.ContainsFunc(items, func(item any) bool { return item.(map[string]any)[field] != nil })
	}
	return has("protocols", "destinationNamedPort") && (has("to", "networks") || has("to", "nodes") || has("to", "domainNames"))
}

// draw makes a value that mostly fits the schema.
func (s *schema) draw(t *rapid.T, path string) any {
	odd := func(what string) bool { return rapid.IntRange(0, 60).Draw(t, what) == 0 }
	switch s.kind {
	case "array":
		n := rapid.IntRange(max(s.least, 0), 2).Draw(t, "items")
		if odd("items") {
			n = rapid.SampledFrom([]int{0, 25, 26}).Draw(t, "odd items")
		}
		out := make([]any, 0, n)
		for range n {
			out = append(out, s.items.draw(t, path+"[]"))
		}
		return out
	case "object":
		if strings.HasSuffix(strings.ToLower(path), "selector") || strings.HasSuffix(path, "namespaces") || strings.HasSuffix(path, "nodes") {
			return rapid.SampledFrom([]any{map[string]any{}, map[string]any{"matchLabels": map[string]any{"a": "b"}}}).Draw(t, "selector")
		}
		out := map[string]any{}
		var names []string
		for name := range s.fields {
			names = append(names, name)
		}
		slices.Sort(names)
		if s.most == 1 && !odd("properties") {
			names = []string{rapid.SampledFrom(names).Draw(t, "property")}
		}
		for _, name := range names {
			inner := s.fields[name]
			there := inner.required && !odd("missing") || s.most == 1 || s.least == 1 && !odd("missing") || rapid.Bool().Draw(t, "there")
			if s.rule == "start<end" {
				there = true // the rule reads both
			}
			if there {
				out[name] = inner.draw(t, path+"."+name)
			}
		}
		return out
	case "integer":
		return rapid.SampledFrom([]int{max(s.from, 0), max(s.from, 0) + 1, 80, s.to - 1, s.to, s.to + 1, -1, 0}).Draw(t, "integer")
	}
	switch {
	case s.enum != nil:
		if odd("enum") {
			return rapid.SampledFrom([]string{"", "Allow", "admin", "accept"}).Draw(t, "odd word")
		}
		return rapid.SampledFrom(s.enum).Draw(t, "word")
	case s.rule == "cidr":
		return rapid.SampledFrom([]string{"10.0.0.0/8", "fd00::/8", "10.0.0.1/8", "0.0.0.0/0", "::/0", "10.0.0.0", "010.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.0.0/33", "",
			"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "2001:0db8:0000:0000:0000:0000:0000:0000/128"}).Draw(t, "CIDR")
	case s.pattern != nil:
		return rapid.SampledFrom([]string{"example.org", "*.example.org", "a.b_c.d.", "*", "*.*.org", "org", "ex*mple.org", "EXAMPLE.org", ""}).Draw(t, "domain name")
	}
	return rapid.SampledFrom([]string{"web", "dns", strings.Repeat("é", 100), strings.Repeat("x", 101)}).Draw(t, "text")
}

// TestRefusesWhatUpstreamRefuses draws policies that fit the schema and that do
// not, and compares. Where Validate refuses more, it says so: domain names in
// rules that do not accept.
func TestRefusesWhatUpstreamRefuses(t *testing.T) {
	s := readSchema(t)
	refused, taken := 0, 0
	check := func(t *rapid.T) {
		spec := s.draw(t, "spec")
		upstream := s.faults("spec", spec)
		data, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "p"}, "spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		var p bocage.ClusterNetworkPolicy
		if err := json.Unmarshal(data, &p); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		ours := slices.DeleteFunc(p.Validate(), func(f bocage.Fault) bool { return strings.Contains(f.Message, "for Accept rules only") })
		if len(upstream) > 0 != (len(ours) > 0) {
			t.Fatalf("upstream finds %q, we find %q: %s", upstream, ours, data)
		}
		if len(ours) > 0 {
			refused++
		} else {
			taken++
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			check(t)
		}
	})
	t.Logf("%d refused, %d taken", refused, taken)
	if refused == 0 || taken == 0 {
		t.Errorf("%d refused and %d taken say little", refused, taken)
	}
}
