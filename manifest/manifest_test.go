package manifest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bocage.dev/bocage"
)

const head = "apiVersion: bocage.dev/v1\n"

// TestFaults: what people get wrong, and what they are told.
func TestFaults(t *testing.T) {
	scope := func(rest string) string {
		return head + "kind: Scope\nmetadata: {name: all}\nspec: {mode: enforce}\n" + rest
	}
	guardrail := func(spec string) string {
		return head + "kind: Guardrail\nmetadata: {name: pci}\nspec:\n" + spec
	}
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"no fault", scope(""), nil},
		{"several documents", scope("") + "---\n" + strings.Replace(scope(""), "all", "other", 1), nil},
		{"Windows line ends and a byte order mark", "\xef\xbb\xbf" + strings.ReplaceAll(scope(""), "\n", "\r\n"), nil},
		{"a directive, comments and empty documents", "%YAML 1.2\n---\n# nothing\n---\n" + scope("") + "...\n# the end\n", nil},
		{"JSON", `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"all"},"spec":{"mode":"observe"}}`, nil},
		{"two JSON values", `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a"},"spec":{"mode":"observe"}}` + "\n" +
			`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"b"},"spec":{"mode":"observe"}}`, nil},
		{"flow style that is no JSON", "{apiVersion: bocage.dev/v1, kind: Scope, metadata: {name: a}, spec: {mode: observe}}", nil},
		{"a time without quotes", head + "kind: Quarantine\nmetadata: {name: q}\nspec: {workload: a/b, until: 2026-11-24T18:00:00Z}\n", nil},
		{"aliases and merge keys", head + "kind: Guardrail\nmetadata: {name: g}\nspec:\n  never:\n  - from: &dev {namespaces: [dev]}\n  - from:\n      <<: *dev\n  - to: *dev\n", nil},
		{"a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: bocage.dev/v1\n  kind: Scope\n  metadata: {name: a}\n  spec: {mode: observe}\n", nil},

		{"nothing", "# only a comment\n", []string{"f.yaml: holds no object"}},
		{"an empty list", "apiVersion: v1\nkind: List\nitems: []\n", []string{"f.yaml: holds no object"}},
		{"no apiVersion", "kind: Scope\nmetadata: {name: a}\nspec: {mode: observe}\n",
			[]string{"f.yaml:1: apiVersion: is missing: write apiVersion: bocage.dev/v1"}},
		{"another apiVersion", "apiVersion: apps/v1\nkind: Deployment\n",
			[]string{`f.yaml:1: apiVersion: "apps/v1" is not understood: this system knows bocage.dev/v1, networking.k8s.io/v1, policy.networking.k8s.io/v1alpha2, policy.networking.k8s.io/v1beta1, v1`}},
		{"the apiVersion of another kind", "apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n",
			[]string{`f.yaml:1: apiVersion: "v1" has no NetworkPolicy: write apiVersion: networking.k8s.io/v1`}},
		{"a port by number and by name", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: http}]}]}\n", nil},
		{"a port that is neither", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, ingress: [{ports: [{port: {}}, {port: 1.5}]}]}\n", []string{
			`f.yaml:4: spec.ingress[0].ports[0].port: {} is neither a port number nor the name of a port`,
			`f.yaml:4: spec.ingress[0].ports[1].port: 1.5 is neither a port number nor the name of a port`}},
		{"no kind", head + "metadata: {name: a}\n",
			[]string{"f.yaml:1: kind: is missing: name one of " + strings.Join(kindNames(), ", ")}},
		{"a misspelled kind", head + "kind: Aplication\n", []string{`f.yaml:2: kind: "Aplication" is unknown: did you mean Application?`}},
		{"no object", "- a\n", []string{"f.yaml:1: is a list where an object with apiVersion, kind, metadata and spec is needed"}},
		{"text", "hello\n", []string{"f.yaml:1: is text where an object with apiVersion, kind, metadata and spec is needed"}},

		{"unknown fields at every depth", scope("provides: []\nmode: observe\nmetdata: {}\n"), []string{
			"f.yaml:5: provides: is unknown: the fields here are apiVersion, kind, metadata, spec",
			"f.yaml:6: mode: is unknown here: did you mean spec.mode?",
			"f.yaml:7: metdata: is unknown: did you mean metadata?"}},
		{"a label in the wrong place", strings.Replace(scope(""), "name: all", "name: all, app: web", 1),
			[]string{"f.yaml:3: metadata.app: is unknown: labels belong under metadata.labels"}},
		{"keys given twice", scope("spec:\n  mode: observe\n"), []string{"f.yaml:5: spec: stands twice: first in line 4"}},
		{"wrong types, all of them", guardrail("  description: 7\n  never: {}\n  grant:\n  - from: x\n  - ports: [{port: \"80\"}, {port: 80.5}, {port: -1}, {port: 65536}, {port: [1]}]\n  require: []\n"), []string{
			`f.yaml:5: spec.description: is a number where text is needed: write "7"`,
			"f.yaml:6: spec.never: is a map where a list is needed",
			"f.yaml:8: spec.grant[0].from: is text where a map of fields is needed",
			"f.yaml:9: spec.grant[1].ports[0].port: is text where a number is needed: write 80 without quotes",
			"f.yaml:9: spec.grant[1].ports[1].port: 80.5 is not a whole number",
			"f.yaml:9: spec.grant[1].ports[2].port: -1 is out of range: 0 to 65535",
			"f.yaml:9: spec.grant[1].ports[3].port: 65536 is out of range: 0 to 65535",
			"f.yaml:9: spec.grant[1].ports[4].port: is a list where a whole number is needed",
			"f.yaml:10: spec.require: is a list where a map of fields is needed"}},
		{"wrong types beside wrong values", head + "kind: Application\nmetadata: {name: Web, labels: {version: 1.2, ok: true}}\nspec:\n  workload: {}\n  provides:\n  - {name: http, port: many}\n  - {name: HTTP, port: 80}\n", []string{
			`f.yaml:3: metadata.labels[version]: is a number where text is needed: write "1.2"`,
			`f.yaml:3: metadata.labels[ok]: is true or false where text is needed: write "true"`,
			`f.yaml:3: metadata.name: "Web" is not a lower-case DNS name of at most 253 characters`,
			"f.yaml:7: spec.provides[0].port: is text where a whole number is needed",
			`f.yaml:8: spec.provides[1].name: "HTTP" is not a lower-case DNS label`}},
		{"empty items", guardrail("  never:\n  -\n  - from:\n      namespaces: [~]\n"), []string{
			"f.yaml:6: spec.never[0]: is empty: give it a value or remove it",
			"f.yaml:8: spec.never[1].from.namespaces[0]: is empty: give it a value or remove it"}},
		{"empty items of a ClusterNetworkPolicy, which upstream's schema refuses", "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a, labels: null}\n" +
			"spec:\n  tier: Admin\n  priority: 1\n  subject: {pods: {namespaceSelector: , podSelector: {matchLabels: }}}\n  ingress:\n  egress:\n  -\n  - {action: Accept, to: [{networks: [null]}]}\n", []string{
			"f.yaml:10: spec.egress[0]: is empty: give it a value or remove it",
			"f.yaml:11: spec.egress[1].to[0].networks[0]: is empty: give it a value or remove it"}},
		{"addresses and times", head + "kind: Workload\nmetadata: {name: w}\nspec: {host: h, addresses: [10.0.0.300, 7]}\n---\n" +
			head + "kind: Quarantine\nmetadata: {name: q}\nspec: {workload: a/b, until: tomorrow}\n", []string{
			`f.yaml:4: spec.addresses[0]: "10.0.0.300" is not an IP address`,
			`f.yaml:4: spec.addresses[1]: is a number where text is needed: write "7"`,
			`f.yaml:9: spec.until: "tomorrow" is not a time such as 2026-11-24T18:00:00Z`}},
		{"prefixes", head + "kind: Application\nmetadata: {name: a}\nspec: {workload: {}, consumes: [{external: api_example, port: 443}]}\n",
			[]string{`f.yaml:4: spec.consumes[0].external: neither a CIDR such as 10.0.0.0/8 nor a name: "api_example" is not a domain name such as example.com or *.example.com: it needs two labels at least`}},
		{"the kind's own faults", head + "kind: Decoy\nmetadata: {name: d, namespace: shop}\nspec:\n  protocol: telnet\n", []string{
			`f.yaml:3: metadata.namespace: the kind is cluster-wide: remove "shop"`,
			"f.yaml:4: spec.port: needs a port from 1 to 65535",
			`f.yaml:5: spec.protocol: "telnet" is not a decoy that exists: ssh`}},
		{"declared twice", scope("") + "---\n" + strings.Replace(scope(""), "enforce", "observe", 1), []string{"f.yaml:8: metadata.name: Scope all is declared at f.yaml:1 already, and not just the same"}},

		{"tabs", head + "kind: Scope\nmetadata:\n\tname: a\n", []string{"f.yaml:4: is indented with a tab: YAML wants spaces"}},
		{"broken YAML hides nothing behind it", "a: [\n---\n" + head + "kind: Scop\n---\nb: }\n", []string{
			"f.yaml:1: is not YAML: did not find expected node content",
			`f.yaml:4: kind: "Scop" is unknown: did you mean Scope?`,
			"f.yaml:6: is not YAML: did not find expected node content"}},
		{"a tag of somebody's", scope("status: !!binary aGk=\n"), []string{"f.yaml:5: has the tag !!binary, which is not understood"}},
		{"a map as a key", scope("{a: b}: c\n"), []string{"f.yaml:5: has a map as a key: keys are text"}},
		{"a NUL byte", scope("a: \x00\n"), []string{"f.yaml:5: holds a NUL byte: it is no text file, or damaged"}},
		{"a NUL character", `{"apiVersion":"bocage.dev/v1","kind":"Guardrail","metadata":{"name":"a"},"spec":{"description":"\u0000","grant":[{}]}}`,
			[]string{"f.yaml:1: spec.description: holds a NUL character"}},
		{"no UTF-8", scope("a: \xff\n"), []string{"f.yaml:5: is not UTF-8: save it as UTF-8"}},
		{"UTF-16", "\xff\xfea\x00", []string{"f.yaml:1: is UTF-16: save it as UTF-8"}},
		{"too deep", scope("a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "\n"), []string{"f.yaml:5: is nested deeper than 64 levels"}},
		{"too deep in JSON", strings.Repeat("[", 100) + "\n" + strings.Repeat("]", 100), []string{"f.yaml:1: is nested deeper than 64 levels"}},
		{"aliases that explode", bomb(9), []string{"f.yaml:5: has aliases that expand to more than 100000 values"}},
		{"an alias of itself", "a: &a [*a]\n", []string{"f.yaml:1: has the alias *a within what it names"}},
		{"too many values", strings.Repeat("- a\n", maxValues+1), []string{"f.yaml:1: holds more than 1048576 values: split it"}},
		{"too many documents", strings.Repeat("---\n", maxDocuments+1), []string{"f.yaml:10000: is one document more than the 10000 that a file may hold: split it"}},
		{"too large", strings.Repeat("x", MaxBytes+1), []string{"f.yaml:1: is larger than 10 MiB: split it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			documents, faults := Read("f.yaml", []byte(test.text))
			var got []string
			for _, fault := range faults {
				got = append(got, fault.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			if len(faults) == 0 && len(documents) == 0 {
				t.Error("neither a document nor a fault")
			}
		})
	}
}

// bomb is the billion laughs.
func bomb(levels int) string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < levels; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	return b.String()
}

func TestDocumentsSayWhereTheyComeFrom(t *testing.T) {
	documents, faults := Read("shop.yaml", []byte("# shop\n---\n"+head+
		"kind: Application\nmetadata:\n  name: web\nspec:\n  workload:\n    matchLabels:\n      app.kubernetes.io/name: web\n  provides:\n  - name: http\n    port: 80\n"))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	d := documents[0]
	if d.Source != "shop.yaml:3" || d.Resource.Meta().Annotations[bocage.SourceAnnotation] != "shop.yaml:3" {
		t.Errorf("source %q, annotations %v", d.Source, d.Resource.Meta().Annotations)
	}
	if d.Resource.Meta().Namespace != "default" {
		t.Errorf("namespace %q", d.Resource.Meta().Namespace)
	}
	// Only what was declared is applied: no empty fields of the Go types.
	want := `{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"annotations":{"bocage.dev/source":"shop.yaml:3"},"name":"web","namespace":"default"},"spec":{"provides":[{"name":"http","port":80}],"workload":{"matchLabels":{"app.kubernetes.io/name":"web"}}}}`
	if string(d.JSON) != want {
		t.Errorf("declared:\n%s\nwant:\n%s", d.JSON, want)
	}
	for field, line := range map[string]string{
		"": "shop.yaml:3", "spec.provides[0].port": "shop.yaml:13", "spec.provides[7]": "shop.yaml:11",
		"spec.workload.matchLabels[app.kubernetes.io/name]": "shop.yaml:10", "spec.nothing": "shop.yaml:7", "metadata.name": "shop.yaml:6",
	} {
		if got := d.Place(bocage.Faults{{Field: field}})[0].Source; got != line {
			t.Errorf("%s is at %s, want %s", field, got, line)
		}
	}
}

func TestAnnotationStaysWithoutAName(t *testing.T) {
	documents, faults := Read("", []byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a","annotations":{"bocage.dev/source":"x.yaml:3"}},"spec":{"mode":"observe"}}`))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	if got := documents[0].Resource.Meta().Annotations[bocage.SourceAnnotation]; got != "x.yaml:3" || documents[0].Source != "line 1" {
		t.Errorf("annotation %q, source %q", got, documents[0].Source)
	}
}

func TestReadPath(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	scope := func(name string) string {
		return head + "kind: Scope\nmetadata: {name: " + name + "}\nspec: {mode: observe}\n"
	}
	write("b.yaml", scope("b"))
	write("a/a.yml", scope("a"))
	write("c.json", `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"c"},"spec":{"mode":"observe"}}`)
	write(".git/d.yaml", "broken: [")
	write("notes.txt", "broken: [")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "x.txt")); err != nil {
		t.Fatal(err)
	}
	documents, faults := ReadPath(dir)
	var names []string
	for _, d := range documents {
		names = append(names, d.Resource.Meta().Name)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, names); diff != "" || len(faults) > 0 {
		t.Errorf("%s%v", diff, faults)
	}

	write("a/again.yaml", strings.Replace(scope("b"), "observe", "enforce", 1))
	write("broken.json", `{"apiVersion":`)
	if err := os.Symlink("nowhere", filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	_, faults = ReadPath(dir)
	text := strings.ReplaceAll(faults.Error(), dir+"/", "")
	for _, want := range []string{
		"gone.yaml: no such file or directory",
		"b.yaml:3: metadata.name: Scope b is declared at a/again.yaml:1 already",
		"broken.json:1: is not JSON: it ends inside a value",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if _, faults := ReadPath(filepath.Join(dir, "none.yaml")); len(faults) != 1 {
		t.Errorf("a missing file: %v", faults)
	}
	if _, faults := ReadPath(t.TempDir()); len(faults) != 1 || faults[0].Message != "holds no .yaml, .yml or .json file" {
		t.Errorf("an empty folder: %v", faults)
	}
}

func TestWriteIsReadBack(t *testing.T) {
	text := `apiVersion: bocage.dev/v1
kind: InspectionProfile
metadata:
  name: web
  labels:
    number: "7"
    unquoted: "no"
    "yes": "true"
spec:
  signatures: |
    alert http any any -> any any (msg:"x"; sid:1;)
    drop http any any -> any any (msg:"y: z"; sid:2;)
  failMode: open
---
apiVersion: bocage.dev/v1
kind: Application
metadata:
  name: web
  namespace: shop
spec:
  workload: {}
  provides:
    - name: http
      port: 80
      toExternal:
        - 10.0.0.0/8
`
	documents, faults := Read("", []byte(text))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	var out strings.Builder
	if err := Write(&out, documents[0].Resource, documents[1].Resource); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzRead: nothing that people or attackers write makes the reader panic, and
// what it accepts means the same when it is written and read again.
func FuzzRead(f *testing.F) {
	f.Add([]byte(head + "kind: Scope\nmetadata: {name: all}\nspec: {mode: enforce}\n"))
	f.Add([]byte(head + "kind: Application\nmetadata: {name: web, labels: {a: b}}\nspec:\n  workload: {matchLabels: {app: web}}\n  provides: [{name: http, port: 80, toExternal: [10.0.0.0/8]}]\n---\n{}\n"))
	f.Add([]byte(head + "kind: Quarantine\nmetadata: {name: q}\nspec: {workload: a/b, until: 2026-11-24T18:00:00Z}\n"))
	f.Add([]byte(head + "kind: InspectionProfile\nmetadata: {name: q}\nspec: {signatures: \"a\\n  b\\n\\n\"}\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"bocage.dev/v1","kind":"Workload","metadata":{"name":"w"},"spec":{"host":"h","addresses":["fd00::1"]}}]}`))
	f.Add([]byte(bomb(4)))
	f.Add([]byte("a: &a\n  <<: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		began := time.Now()
		defer func() {
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("reading %d bytes took %s", len(data), took)
			}
		}()
		documents, faults := Read("f.yaml", data)
		if len(documents) == 0 && len(faults) == 0 {
			t.Fatal("neither a document nor a fault")
		}
		for _, fault := range faults {
			if fault.Message == "" || !strings.HasPrefix(fault.Source, "f.yaml") {
				t.Fatalf("a fault without message or source: %+v", fault)
			}
		}
		for _, d := range documents {
			var out strings.Builder
			if err := Write(&out, d.Resource); err != nil {
				t.Fatal(err)
			}
			again, faults := Read("f.yaml", []byte(out.String()))
			if len(faults) > 0 || len(again) != 1 {
				t.Fatalf("read back: %v\n%s", faults, out.String())
			}
			again[0].Resource.Meta().Annotations[bocage.SourceAnnotation] = d.Source
			want, _ := json.Marshal(d.Resource)
			got, _ := json.Marshal(again[0].Resource)
			if string(want) != string(got) {
				t.Fatalf("read back:\n%s\nwas\n%s\n%s", got, want, out.String())
			}
		}
	})
}

// TestDocumentsKeepTheirVersion: what is applied says the version in which it was
// written, and the object the one in which it is kept.
func TestDocumentsKeepTheirVersion(t *testing.T) {
	for _, version := range []string{bocage.ClusterNetworkPolicyAPIVersion, bocage.ClusterNetworkPolicyLaterVersion} {
		documents, faults := Read("f.yaml", []byte("apiVersion: "+version+"\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n"))
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		if d := documents[0]; !strings.HasPrefix(string(d.JSON), `{"apiVersion":"`+version+`"`) || d.Resource.Type().APIVersion != bocage.ClusterNetworkPolicyAPIVersion {
			t.Errorf("%s: %s, kept as %s", version, d.JSON, d.Resource.Type().APIVersion)
		}
	}
}
