package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"bocage.dev/bocage/store"
)

// TestWritesSayThatPolicyIsHeld: who writes policy is told that it will not be in force, by
// the header that kubectl shows; who writes something else is not.
func TestWritesSayThatPolicyIsHeld(t *testing.T) {
	what := ""
	var asked []store.Revision
	b := start(t, func(c *Config) {
		c.Held = func(_ context.Context, inputs store.Revision) (string, string) {
			asked = append(asked, inputs)
			return what, "a proof failed: \"x\"\nyet: y"
		}
		c.Advice = map[string]func() string{"policy": func() string { return what }}
	})
	scope := func(name string) string {
		return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":%q},"spec":{"namespaces":["shop"],"mode":"observe"}}`, name)
	}
	write := func(method, path, body string) []string {
		t.Helper()
		code, text, header := b.raw(t, method, path, "application/json", body)
		if code/100 != 2 {
			t.Fatalf("%s %s: %d %s", method, path, code, text)
		}
		return header.Values("Warning")
	}
	const scopes = "/apis/bocage.dev/v1/scopes"
	if said := write("POST", scopes, scope("a")); len(said) > 0 || len(asked) != 1 || asked[0] == 0 {
		t.Errorf("nothing is held: %q, asked of %v", said, asked)
	}
	what = "generation 7 is kept back"
	for _, test := range []struct{ method, path, body string }{
		{"POST", scopes, scope("b")}, {"DELETE", scopes + "/a", ""}, {"DELETE", scopes, ""},
		{"POST", "/apis/functions.bocage.dev/v1/apply?fieldManager=x", scope("c")},
	} {
		said := write(test.method, test.path, test.body)
		if len(said) != 1 || !strings.HasPrefix(said[0], `299 policy "policy is held: `) || !strings.Contains(said[0], what) || !strings.Contains(said[0], "yet: y") || strings.Contains(said[0], "\n") {
			t.Errorf("%s %s: %q", test.method, test.path, said)
		}
	}
	asked = nil
	if said := write("POST", "/apis/bocage.dev/v1/zones", `{"apiVersion":"bocage.dev/v1","kind":"Zone","metadata":{"name":"z"},"spec":{"hosts":["h1"]}}`); len(said) > 0 || len(asked) > 0 {
		t.Errorf("a Zone is no policy: %q", said)
	}
	if code, text, _ := b.raw(t, http.MethodGet, "/readyz?verbose", "", ""); code != 200 || !strings.Contains(text, "[!]policy: generation 7 is kept back\n") {
		t.Errorf("%d %s", code, text)
	}
}

// TestWeightsAreAdmitted refuses a weight that cannot be read where it is set, and leaves
// alone what was there.
func TestWeightsAreAdmitted(t *testing.T) {
	b := start(t, nil)
	body := func(weight, interfaceName string) string {
		return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Workload","metadata":{"name":"w","namespace":"shop","labels":{"bocage.dev/weight":%q}},
			"spec":{"host":"h1","interface":%q,"addresses":["10.0.0.1"]}}`, weight, interfaceName)
	}
	const path = "/apis/bocage.dev/v1/namespaces/shop/workloads"
	apply := func(weight, interfaceName string) (int, string) {
		code, text, _ := b.raw(t, "PATCH", path+"/w?fieldManager=x", "application/apply-patch+yaml", body(weight, interfaceName))
		return code, text
	}
	for _, weight := range []string{"abc", "1.5", "-1", "1000001", "9223372036854775807", "99999999999999999999", ""} {
		if code, text := apply(weight, "v1"); code != 422 || weight != "-1" && !strings.Contains(text, "whole number from 0 to 1000000") {
			t.Errorf("weight %q: %d %s", weight, code, text)
		}
	}
	for _, weight := range []string{"0", "1", "1000000"} {
		if code, text := apply(weight, "v1"); code/100 != 2 {
			t.Errorf("weight %q: %d %s", weight, code, text)
		}
	}
	if code, text := apply("7.5", "v1"); code != 422 {
		t.Errorf("a change to 7.5: %d %s", code, text)
	}
}
