package manifest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// read reads a text as the files of a command and returns what is noted.
func read(t *testing.T, name, text string) ([]Document, bocage.Faults, []string) {
	t.Helper()
	var notes []string
	reader := Reader{Namespace: "default", Note: func(f bocage.Fault) { notes = append(notes, f.String()) }, Foreign: func(*Tree) bocage.Faults { return nil }}
	documents, faults := reader.Read(name, []byte(text))
	return documents, faults, notes
}

const (
	readAsTextY = "y without quotes is read as the text y; kubectl reads it as true and refuses it: quote it"
	readAsTextN = "n without quotes is read as the text n; kubectl reads it as false and refuses it: quote it"
)

// TestLetters: y and n without quotes are text where text is needed, in every place, and
// one note a file says so.
func TestLetters(t *testing.T) {
	policy := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
	for _, test := range []struct {
		name, text string
		notes      []string
	}{
		{"a namespace", policy + "metadata: {name: a, namespace: y}\nspec: {podSelector: {}}\n", []string{"f.yaml:3: " + readAsTextY}},
		{"a name and a label", policy + "metadata: {name: n, labels: {a: y}}\nspec: {podSelector: {}}\n", []string{"f.yaml:3: " + readAsTextN + " (and 1 more in this file)"}},
		{"a value of a selector", policy + "metadata: {name: a}\nspec: {podSelector: {matchExpressions: [{key: ns, operator: In, values: [x, y, z]}]}}\n", []string{"f.yaml:4: " + readAsTextY}},
		{"a key", policy + "metadata: {name: a}\nspec:\n  podSelector:\n    matchLabels:\n      N: a\n", []string{"f.yaml:7: N without quotes is read as the key N; kubectl reads it as the key false: quote it"}},
		{"the key of an expression", policy + "metadata: {name: a}\nspec: {podSelector: {matchExpressions: [{key: Y, operator: Exists}]}}\n", []string{"f.yaml:4: Y without quotes is read as the text Y; kubectl reads it as true and refuses it: quote it"}},
		{"the name of a port", policy + "metadata: {name: a}\nspec: {podSelector: {}, ingress: [{ports: [{port: n}]}]}\n", []string{"f.yaml:4: " + readAsTextN}},
		{"an anchor", policy + "metadata: {name: &a y, namespace: *a}\nspec: {podSelector: {}}\n", []string{"f.yaml:3: " + readAsTextY + " (and 1 more in this file)"}},
		{"an item of a list", "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(policy, "\n", "\n  ") + "metadata: {name: y}\n  spec: {}\n", []string{"f.yaml:6: " + readAsTextY}},
		{"our own kind", head + "kind: Application\nmetadata: {name: a, namespace: y}\nspec: {workload: {matchLabels: {app: n}}, provides: [{name: y, port: 80, toNamespaces: [n]}]}\n",
			[]string{"f.yaml:3: " + readAsTextY + " (and 3 more in this file)"}},
		{"a Pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: n, namespace: x, labels: {ns: y}}\nspec: {stdin: y, containers: [{name: c, tty: n}]}\n", []string{"f.yaml:3: " + readAsTextN + " (and 1 more in this file)"}},
		{"a Pod's key", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {y: a}}\n", []string{"f.yaml:3: y without quotes is read as the key y; kubectl reads it as the key true: quote it"}},
		{"quoted", policy + "metadata: {name: \"y\", labels: {'n': !!str n}}\nspec: {podSelector: {}}\n", nil},
		{"a bool", head + "kind: PolicyTest\nmetadata: {name: a}\nspec:\n  blocks: y\n  cases: [{from: a/b, to: c/d, port: 1, expect: {reach: allow}}]\n", nil},
		{"a Pod's bool", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: y}\n", nil},
		{"one file", policy + "metadata: {name: y}\nspec: {}\n---\n" + policy + "metadata: {name: n}\nspec: {}\n", []string{"f.yaml:3: " + readAsTextY + " (and 1 more in this file)"}},
	} {
		_, faults, notes := read(t, "f.yaml", test.text)
		if len(faults) > 0 || !slices.Equal(notes, test.notes) {
			t.Errorf("%s: %v\n%q\nwant %q", test.name, faults, notes, test.notes)
		}
	}
	documents, _, _ := read(t, "f.yaml", policy+"metadata: {name: y, namespace: n, labels: {y: n}}\nspec: {podSelector: {}, ingress: [{ports: [{port: y}]}]}\n")
	p := documents[0].Resource.(*bocage.NetworkPolicy)
	if p.NamespacedName() != "n/y" || p.Labels["y"] != "n" || p.Spec.Ingress[0].Ports[0].Port.Name != "y" {
		t.Errorf("%+v", p)
	}
	var pod map[string]any
	reader := Reader{Foreign: func(t *Tree) bocage.Faults { pod = t.Object(); return nil }}
	reader.Read("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: y}\nspec: {hostNetwork: Y, nodeName: n}\n"))
	if spec := pod["spec"].(map[string]any); spec["hostNetwork"] != true || spec["nodeName"] != "n" || pod["metadata"].(map[string]any)["name"] != "y" {
		t.Errorf("%v", pod)
	}
}

// TestNulls: what the API server makes of nulls. Its own kinds it reads by types, in which
// a null item is an empty one; from others' it removes fields and entries that are null
// before it validates (apiextensions-apiserver, customresource_handler.go:
// PruneNonNullableNullsWithoutDefaults), and refuses null items of lists. What stands
// here was asked of that code.
func TestNulls(t *testing.T) {
	cluster := func(spec string) string {
		return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, " + spec + "}\n"
	}
	from := func(peer string) string { return cluster("ingress: [{action: Accept, from: [" + peer + "]}]") }
	policy := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: " + spec + "\n"
	}
	for text, want := range map[string]string{
		cluster("ingress: , egress: null"): "",
		cluster("ingress: [{action: Accept, name: null, protocols: null, from: [{namespaces: {}, pods: null}]}]"): "",
		from("{namespaces: {matchLabels: null, matchExpressions: null}}"):                                         "",
		from("{namespaces: {matchExpressions: [{key: a, operator: Exists, values: null}]}}"):                      "",
		from("{pods: {podSelector: {}, namespaceSelector: null}}"):                                                "",
		from("{namespaces: {matchLabels: {a: null}}}"):                                                            "note",
		cluster("egress: [{action: Accept, to: [{networks: null, namespaces: {}}]}]"):                             "",
		cluster("ingress: [null]"):                       "spec.ingress[0]",
		from("null"):                                     "spec.ingress[0].from[0]",
		from("{namespaces: null}"):                       "spec.ingress[0].from[0]",
		from("{pods: {podSelector: null}}"):              "spec.ingress[0].from[0].pods.podSelector",
		from("{namespaces: {matchExpressions: [null]}}"): "spec.ingress[0].from[0].namespaces.matchExpressions[0]",
		from("{namespaces: {matchExpressions: [{key: a, operator: In, values: [null]}]}}"): "spec.ingress[0].from[0].namespaces.matchExpressions[0].values[0]",
		cluster("ingress: [{action: Accept, from: null}]"):                                 "spec.ingress[0].from",
		cluster("ingress: [{action: null, from: [{namespaces: {}}]}]"):                     "spec.ingress[0].action",
		strings.Replace(cluster("egress: null"), "tier: Admin", "tier: null", 1):           "spec.tier",
		strings.Replace(cluster("egress: null"), "priority: 1", "priority: null", 1):       "spec.priority",
		strings.Replace(cluster("egress: null"), "{namespaces: {}}", "null", 1):            "spec.subject",
		policy("null"): "",
		policy("{podSelector: null, ingress: null}"): "",
		policy("{podSelector: {}, ingress: [{ports: [{port: null, protocol: null, endPort: null}], from: [{podSelector: {}, ipBlock: null}]}]}"): "",
		policy("{podSelector: {}, ingress: [null]}"):                                                     "note",
		policy("{podSelector: {}, ingress: [{ports: [null]}]}"):                                          "note",
		policy("{podSelector: {matchLabels: {a: null}}}"):                                                "note",
		policy("{podSelector: {matchExpressions: [{key: a, operator: In, values: [null]}]}}"):            "note",
		policy("{podSelector: {}, ingress: [{from: [null]}]}"):                                           "spec.ingress[0].from[0]",
		policy("{podSelector: {}, policyTypes: [null]}"):                                                 "spec.policyTypes[0]",
		policy("{podSelector: {matchExpressions: [null]}}"):                                              "spec.podSelector.matchExpressions[0]",
		policy("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [null]}}]}]}"):  "spec.ingress[0].from[0].ipBlock.except[0]",
		policy("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: null}}]}]}"):                        "spec.ingress[0].from[0].ipBlock.cidr",
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {a: null}}\n":                      "note",
		head + "kind: Scope\nmetadata: {name: a, labels: {a: null}}\nspec: {mode: observe}\n":            "metadata.labels[a]",
		head + "kind: Scope\nmetadata: {name: a, labels: null}\nspec: {mode: observe, workload: null}\n": "",
	} {
		documents, faults, notes := read(t, "f.yaml", text)
		switch {
		case (want == "" || want == "note") && (len(faults) > 0 || len(documents) != 1 || (len(notes) > 0) != (want == "note")):
			t.Errorf("%s gave %v, notes %q", text, faults, notes)
		case want != "" && want != "note" && (len(faults) == 0 || !strings.HasPrefix(faults[0].Field, want)):
			t.Errorf("%s gave %v, want a fault of %s", text, faults, want)
		}
	}
	documents, _, _ := read(t, "f.yaml", policy("{podSelector: {matchLabels: {a: null}}, ingress: [null]}"))
	if spec := documents[0].Resource.(*bocage.NetworkPolicy).Spec; len(spec.Ingress) != 1 || spec.PodSelector.Matches(map[string]string{}) || !spec.PodSelector.Matches(map[string]string{"a": ""}) {
		t.Errorf("%+v", spec)
	}
	documents, _, _ = read(t, "f.yaml", from("{namespaces: {matchLabels: {a: null}}}"))
	if peer := documents[0].Resource.(*bocage.ClusterNetworkPolicy).Spec.Ingress[0].From[0]; len(peer.Namespaces.MatchLabels) != 0 || strings.Contains(string(documents[0].JSON), "null") {
		t.Errorf("%+v, %s", peer, documents[0].JSON)
	}
}

// TestWholeNumbers: 80.0 is 80 where the API server has it so. From YAML kubectl makes 80;
// from JSON its own kinds take no point and no exponent, while of others' kinds the value
// counts.
func TestWholeNumbers(t *testing.T) {
	policy := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"},"spec":{"podSelector":{},"ingress":[{"ports":[NUMBER]}]}}`
	cluster := `{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy","metadata":{"name":"a"},"spec":{"tier":"Admin","priority":NUMBER,"subject":{"namespaces":{}}}}`
	for _, test := range []struct{ name, text, number, want string }{
		{"f.yaml", "# YAML\n" + policy, `{"port": 80.0}`, ""},
		{"f.yaml", "# YAML\n" + policy, `{"port": 8e1, "endPort": 9.0e1}`, ""},
		{"f.yaml", "# YAML\n" + policy, `{"port": 80.5}`, "port"},
		{"f.json", policy, `{"port": 80.0}`, "port"},
		{"f.json", policy, `{"port": 8e1}`, "port"},
		{"f.json", policy, `{"port": 80, "endPort": 90.0}`, "endPort"},
		{"f.json", policy, `{"port": 80, "endPort": 90}`, ""},
		{"f.json", cluster, "10.0", ""}, {"f.json", cluster, "1E1", ""}, {"f.json", cluster, "-0.0", ""}, {"f.json", cluster, "10.5", "priority"}, {"f.json", cluster, "1e300", "priority"},
		{"f.yaml", "# YAML\n" + cluster, "10.0", ""}, {"f.yaml", "# YAML\n" + cluster, ".inf", "priority"},
	} {
		_, faults, _ := read(t, test.name, strings.Replace(test.text, "NUMBER", test.number, 1))
		if test.want == "" && len(faults) > 0 || test.want != "" && (len(faults) != 1 || !strings.HasSuffix(faults[0].Field, test.want)) {
			t.Errorf("%s with %s gave %v, want a fault of %q", test.name, test.number, faults, test.want)
		}
	}
}

// TestReadTwice: a file counts once however it is named, and so does an object.
func TestReadTwice(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	scope := head + "kind: Scope\nmetadata: {name: a}\nspec: {mode: observe}\n"
	write("a.yaml", scope)
	if err := os.Symlink("a.yaml", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		paths []string
		more  string
		notes int
		fault string
	}{
		{"a file twice", []string{"a.yaml", "./a.yaml"}, "", 0, ""},
		{"a folder and a file in it", []string{".", "a.yaml"}, "", 0, ""},
		{"the same in another file", []string{"a.yaml", "b.yaml"}, head + "kind: Scope\nspec: {mode: observe}\nmetadata: {name: a}\n", 1, ""},
		{"another of that name", []string{"a.yaml", "b.yaml"}, strings.Replace(scope, "observe", "enforce", 1), 0, "Scope a is declared at "},
	} {
		if test.more != "" {
			write("b.yaml", test.more)
		}
		var notes []string
		count := 0
		var faults bocage.Faults
		reader := Reader{Seen: NewSeen(), Note: func(f bocage.Fault) { notes = append(notes, f.String()) }}
		for _, path := range test.paths {
			faults = append(faults, reader.EachPath(filepath.Join(dir, path), func(Document) { count++ })...)
		}
		if count != 1 || len(notes) != test.notes || (test.fault == "") != (len(faults) == 0) || test.fault != "" && !strings.Contains(faults.Error(), test.fault) {
			t.Errorf("%s: %d objects, notes %q, %v", test.name, count, notes, faults)
		}
	}
}

// TestGenerateName: Kubernetes looks at it beside a name, too
// (k8s.io/apimachinery/pkg/api/validation, ValidateObjectMeta).
func TestGenerateName(t *testing.T) {
	for name, valid := range map[string]bool{"a": true, "a-": true, "a.b-": true, "--": true, "A_": false, "-": false, "a b": false, strings.Repeat("a", 254): false} {
		_, faults, _ := read(t, "f.yaml", head+"kind: Scope\nmetadata: {name: a, generateName: \""+name+"\"}\nspec: {mode: observe}\n")
		if (len(faults) == 0) != valid {
			t.Errorf("%q gave %v", name, faults)
		}
	}
}

// TestAmbiguousCIDRs: what Kubernetes warns of, in its words
// (k8s.io/apimachinery/pkg/util/validation, GetWarningsForCIDR).
func TestAmbiguousCIDRs(t *testing.T) {
	_, faults, notes := read(t, "f.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.1/8, except: [10.1.0.0/16]}\n"+
		"  egress:\n  - to:\n    - ipBlock: {cidr: \"FD00::/8\", except: [\"fd00::1/16\"]}\n")
	want := []string{
		`f.yaml:8: spec.ingress[0].from[0].ipBlock.cidr: CIDR value "10.0.0.1/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.0.0.1/32"?)`,
		`f.yaml:11: spec.egress[0].to[0].ipBlock.cidr: IPv6 CIDR value "FD00::/8" should be in RFC 5952 canonical format ("fd00::/8")`,
		`f.yaml:11: spec.egress[0].to[0].ipBlock.except[0]: CIDR value "fd00::1/16" is ambiguous in this context (should be "fd00::/16" or "fd00::1/128"?)`,
	}
	if len(faults) > 0 || !slices.Equal(notes, want) {
		t.Errorf("%v\n%q\nwant %q", faults, notes, want)
	}
}
