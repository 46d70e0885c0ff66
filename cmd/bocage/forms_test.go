package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// formed is a cluster of two Pods of which one hears only itself, in many forms.
const formed = `# comments
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}} # behind a value
status: {podIP: 10.0.0.1}
---
# a document of comments
---
apiVersion: v1
kind: Pod
metadata:
  name: b
  namespace: x
status: {podIP: 10.0.0.2}
...
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: x}
spec:
  podSelector: &s {matchLabels: {app: a}}
  ingress:
  - from:
    - podSelector: *s
`

// TestSimulateReadsFilesAsTheyComeIn asks the same of one cluster in every form in
// which files come.
func TestSimulateReadsFilesAsTheyComeIn(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	documents := strings.Split(formed, "---\n")
	asJSON := `{"apiVersion":"v1","kind":"List","items":[` +
		`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a","namespace":"x","labels":{"app":"a"}},"status":{"podIP":"10.0.0.1"}},{"metadata":{"name":"b","namespace":"x"},"status":{"podIP":"10.0.0.2"}}]},` +
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"x"},"spec":{"podSelector":{"matchLabels":{"app":"a"}},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"a"}}}]}]}}]}`
	plain := write("one.yaml", formed)
	write("tree/pods.yml", documents[0]+"---\n"+documents[2])
	write("tree/deep/er/policy.yaml", documents[3])
	write("tree/README.md", "not: [read")
	for name, c := range map[string]struct {
		stdin string
		files []string
	}{
		"plain":                   {"", []string{plain}},
		"standard input":          {formed, []string{"-"}},
		"a byte order mark":       {"\ufeff" + formed, []string{"-"}},
		"CRLF":                    {strings.ReplaceAll(formed, "\n", "\r\n"), []string{"-"}},
		"no end of line":          {strings.TrimRight(formed, "\n"), []string{"-"}},
		"JSON":                    {asJSON, []string{"-"}},
		"JSON with a byte order":  {"\ufeff" + asJSON, []string{"-"}},
		"a comma in the name":     {"", []string{write("a,b.yaml", formed)}},
		"names and a comma":       {"", []string{filepath.Join(dir, "tree/pods.yml") + "," + filepath.Join(dir, "tree/deep")}},
		"a tree":                  {"", []string{filepath.Join(dir, "tree")}},
		"several":                 {"", []string{filepath.Join(dir, "tree/pods.yml"), filepath.Join(dir, "tree/deep/er/policy.yaml")}},
		"an empty list among all": {`{"apiVersion":"v1","kind":"List","items":[]}`, []string{plain, "-"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"simulate", "-q", "--advice=false", "-o", "jsonl", "--probes", write("probes.jsonl", `{"from":"x/b","to":"x/a","port":80}
{"from":"x/a","to":"x/b","port":80,"protocol":"tcp"}
`)}
			for _, file := range c.files {
				args = append(args, "-f", file)
			}
			out, errs, code := invoke(t, c.stdin, args...)
			if code != exitOK {
				t.Fatalf("exit %d: %s", code, errs)
			}
			var verdicts []string
			for line := range strings.Lines(out) {
				var a bocage.SimulateAnswer
				if err := json.Unmarshal([]byte(line), &a); err != nil {
					t.Fatal(err)
				}
				verdicts = append(verdicts, a.Verdict)
			}
			if strings.Join(verdicts, " ") != "deny allow" {
				t.Errorf("%s", out)
			}
		})
	}
}

// TestSimulateSaysWhatIsWrong: what nobody can be, and who contradicts whom.
func TestSimulateSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: y}\nspec: {podSelector: {}}\n":                                                                        "note: standard input:3: y without quotes is read as the text y; kubectl reads it as true and refuses it: quote it\n",
		"apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a, namespace: x}\nspec: {workload: {matchLabels: {app: a}, matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}\n": "note: Application x/a spec.workload (standard input:1): it can never match, whoever joins",
		"apiVersion: bocage.dev/v1\nkind: Guardrail\nmetadata: {name: never}\nspec: {never: [{to: {namespaces: [\"y\"]}}]}\n---\n" +
			"apiVersion: bocage.dev/v1\nkind: Guardrail\nmetadata: {name: grant}\nspec: {grant: [{from: {namespaces: [x]}, to: {namespaces: [\"y\"]}, ports: [{port: 443}]}]}\n": "! Guardrail grant spec.grant[0] (standard input:6): allows nothing: Guardrail never spec.never[0] (standard input:1) refuses all of it, whoever joins",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {podSelector: {}, \"\\e[2J\": 1}\n": `standard input:4: spec.\x1b[2J: is unknown`,
	} {
		_, errs, _ := invoke(t, text, "simulate", "-f", "-", "--matrix")
		if !strings.Contains(errs, want) || strings.ContainsRune(errs, '\x1b') {
			t.Errorf("%s\ngave %q\nwant %q", text, errs, want)
		}
	}
}
