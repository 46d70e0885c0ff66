package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

const (
	scopesPath = "/apis/bocage.dev/v1/scopes"
	appsPath   = "/apis/bocage.dev/v1/namespaces/shop/applications"
	jsonType   = "application/json"
	mergeType  = "application/merge-patch+json"
	patchType  = "application/json-patch+json"
	applyType  = "application/apply-patch+yaml"
)

func scopeJSON(name, mode, rest string) string {
	return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":%q},"spec":{"mode":%q}%s}`, name, mode, rest)
}

// TestRequests: one request after the other against one server that has the
// Scope "all".
func TestRequests(t *testing.T) {
	b := start(t, nil)
	if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, scopeJSON("all", "observe", "")); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	for _, test := range []struct {
		name, method, path, contentType, body string
		code                                  int
		want                                  string // part of the answer
	}{
		{"a kind that does not exist", "GET", "/apis/bocage.dev/v1/widgets", "", "", 404, "could not find the requested resource"},
		{"a version that does not exist", "GET", "/apis/bocage.dev/v2/scopes", "", "", 404, "could not find"},
		{"too long a path", "GET", scopesPath + "/all/status/x", "", "", 404, "could not find"},
		{"a subresource that does not exist", "GET", scopesPath + "/all/scale", "", "", 404, "could not find"},
		{"a cluster-wide kind in a namespace", "GET", "/apis/bocage.dev/v1/namespaces/shop/scopes", "", "", 404, "could not find"},
		{"a namespaced object without one", "GET", "/apis/bocage.dev/v1/applications/web", "", "", 404, "could not find"},
		{"an empty segment", "GET", scopesPath + "//all", "", "", 404, "could not find"},
		{"a method that does not exist", "TRACE", scopesPath + "/all", "", "", 405, "not supported"},
		{"creating with a name in the path", "POST", scopesPath + "/all", jsonType, "{}", 405, "not supported"},
		{"creating in no namespace", "POST", "/apis/bocage.dev/v1/applications", jsonType, "{}", 400, "is created in a namespace"},
		{"the status", "GET", scopesPath + "/all/status", "", "", 200, `"mode":"observe"`},

		{"no JSON", "POST", scopesPath, jsonType, "{", 400, "is not YAML"},
		{"no object", "POST", scopesPath, jsonType, "[]", 400, "is no object"},
		{"no body", "POST", scopesPath, jsonType, "", 400, "holds 0 objects"},
		{"two objects", "POST", scopesPath, jsonType, "{}{}", 400, "holds 2 objects"},
		{"YAML that says that it is JSON", "POST", scopesPath, jsonType, "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: b}\nspec: {mode: observe}\n", 400, "send YAML as application/yaml"},
		{"a number that only YAML knows", "POST", policiesPath, jsonType, `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":0x50}]}]}}`, 400, "is no JSON: invalid character 'x'"},
		{"the same in YAML", "POST", policiesPath + "?dryRun=All", "application/yaml", `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":0x50}]}]}}`, 201, `"port":80`},
		{"a comment in JSON", "PUT", scopesPath + "/all", jsonType, scopeJSON("all", "observe", "") + " # mine", 400, "is no JSON"},
		{"a merge patch in YAML", "PATCH", scopesPath + "/all", mergeType, "spec: {mode: enforce}", 400, "is no JSON object"},
		{"more behind a merge patch", "PATCH", scopesPath + "/all", mergeType, `{"spec":{"mode":"enforce"}}}`, 400, "is no JSON object"},
		{"a JSON patch in YAML", "PATCH", scopesPath + "/all", patchType, `[{"op":"test","path":"/metadata/generation","value":0x1}]`, 400, "cannot be read"},
		{"a strategic merge patch in YAML", "PATCH", "/api/v1/namespaces/default", "application/strategic-merge-patch+json", "metadata: {labels: {a: b}}", 400, "is no JSON object"},
		{"protobuf", "POST", scopesPath, "application/vnd.kubernetes.protobuf", "k8s\x00", 415, "send application/json"},
		{"YAML", "POST", scopesPath + "?dryRun=All", "application/yaml", "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: y}\nspec: {mode: observe}\n", 201, `"name":"y"`},
		{"every fault of every layer", "POST", scopesPath, jsonType, `{"apiVersion":"v1","kind":"Scop","metadata":{"name":"A_","labels":{"a":1}},"spec":{"mod":"x","mode":"y"}}`, 422,
			`"causes":[{"reason":"FieldValueInvalid","message":"is unknown: did you mean mode?","field":"spec.mod"},` +
				`{"reason":"FieldValueInvalid","message":"is a number where text is needed: write \"1\"","field":"metadata.labels[a]"},` +
				`{"reason":"FieldValueInvalid","message":"\"v1\" is not bocage.dev/v1","field":"apiVersion"},` +
				`{"reason":"FieldValueInvalid","message":"\"Scop\" is not Scope, which the path names","field":"kind"},` +
				`{"reason":"FieldValueInvalid","message":"\"A_\" is not a lower-case DNS name of at most 253 characters","field":"metadata.name"},` +
				`{"reason":"FieldValueInvalid","message":"\"y\" is neither observe nor enforce","field":"spec.mode"}]`},
		{"a key given twice", "POST", scopesPath, jsonType, `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a"},"spec":{"mode":"observe","mode":"enforce"}}`, 422, "stands twice"},
		{"lenient about unknown fields", "POST", scopesPath + "?dryRun=All&fieldValidation=Ignore", jsonType, scopeJSON("b", "observe", `,"x":1`), 201, `"name":"b"`},
		{"a validation that does not exist", "POST", scopesPath + "?fieldValidation=Lax", jsonType, scopeJSON("b", "observe", ""), 422, "not Strict, Warn or Ignore"},
		{"a dry run that does not exist", "POST", scopesPath + "?dryRun=Some", jsonType, scopeJSON("b", "observe", ""), 422, "not All"},
		{"created already", "POST", scopesPath, jsonType, scopeJSON("all", "observe", ""), 409, "AlreadyExists"},
		{"another namespace than the path's", "POST", appsPath, jsonType, `{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":"a","namespace":"bank"},"spec":{"workload":{}}}`, 422, `\"bank\" is not \"shop\"`},
		{"owners of fancy", "POST", scopesPath, jsonType, strings.Replace(scopeJSON("b", "observe", ""), `"name"`, `"managedFields":[{"manager":7}],"name"`, 1), 422, "metadata.managedFields: cannot be read"},
		{"a generated name", "POST", appsPath + "?dryRun=All", jsonType, `{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"generateName":"a-"},"spec":{"workload":{}}}`, 201, `"name":"a-`},

		{"replacing without a revision", "PUT", scopesPath + "/all", jsonType, scopeJSON("all", "enforce", ""), 422, "metadata.resourceVersion"},
		{"replacing an old revision", "PUT", scopesPath + "/all", jsonType, strings.Replace(scopeJSON("all", "enforce", ""), `"name"`, `"resourceVersion":"1","name"`, 1), 409, "has been modified"},
		{"replacing what is not there", "PUT", scopesPath + "/none", jsonType, scopeJSON("none", "enforce", ""), 404, `\"none\" not found`},
		{"replacing under another name", "PUT", scopesPath + "/all", jsonType, scopeJSON("other", "enforce", ""), 400, "does not match the name on the URL"},
		{"writing the status", "PUT", scopesPath + "/all/status", jsonType, scopeJSON("all", "observe", ""), 403, "written by the system"},

		{"a strategic merge patch", "PATCH", scopesPath + "/all", "application/strategic-merge-patch+json", "{}", 415, "unknown format"},
		{"a merge patch of nothing", "PATCH", scopesPath + "/all", mergeType, "{}", 200, `"generation":1`},
		{"a merge patch that is no object", "PATCH", scopesPath + "/all", mergeType, "7", 400, "is no JSON object"},
		{"a merge patch that breaks the object", "PATCH", scopesPath + "/all", mergeType, `{"spec":{"mode":7}}`, 422, "is a number where text is needed"},
		{"a merge patch of the name", "PATCH", scopesPath + "/all", mergeType, `{"metadata":{"name":"x"}}`, 422, "which the path names"},
		{"a merge patch of an old revision", "PATCH", scopesPath + "/all", mergeType, `{"metadata":{"resourceVersion":"1"}}`, 409, "has been modified"},
		{"a merge patch of another object", "PATCH", scopesPath + "/all", mergeType, `{"metadata":{"uid":"1"}}`, 409, "UID in precondition"},
		{"a merge patch of the system's own", "PATCH", scopesPath + "/all?dryRun=All", mergeType, `{"metadata":{"generation":99,"creationTimestamp":"2000-01-01T00:00:00Z"}}`, 200, `"generation":1`},
		{"a JSON patch whose test fails", "PATCH", scopesPath + "/all", patchType, `[{"op":"test","path":"/spec/mode","value":"enforce"}]`, 422, "cannot be applied"},
		{"a JSON patch beyond the object", "PATCH", scopesPath + "/all", patchType, `[{"op":"remove","path":"/spec/nothing"}]`, 422, "cannot be applied"},
		{"a JSON patch that is none", "PATCH", scopesPath + "/all", patchType, `{}`, 400, "cannot be read"},
		{"a JSON patch that removes the spec", "PATCH", scopesPath + "/all", patchType, `[{"op":"remove","path":"/spec"}]`, 422, "neither observe nor enforce"},
		{"too many operations", "PATCH", scopesPath + "/all", patchType, "[" + strings.Repeat(`{"op":"test","path":"","value":1},`, maxPatchOperations) + `{"op":"test","path":"","value":1}]`, 413, "at most 10000"},
		{"copies that grow", "PATCH", scopesPath + "/all", patchType, "[" + `{"op":"add","path":"/metadata/annotations","value":{"a":"` + strings.Repeat("x", 1000) + `"}}` +
			strings.Repeat(`,{"op":"copy","from":"/metadata/annotations","path":"/metadata/annotations/b"}`, 120) + "]", 422, "cannot be applied"},

		{"an apply without a manager", "PATCH", scopesPath + "/all", applyType, scopeJSON("all", "observe", ""), 422, "is required for apply patch"},
		{"an apply with owners", "PATCH", scopesPath + "/all?fieldManager=x", applyType, strings.Replace(scopeJSON("all", "observe", ""), `"name"`, `"managedFields":[{"manager":"x"}],"name"`, 1), 400, "must be nil"},
		{"an apply of a wrong type", "PATCH", scopesPath + "/all?fieldManager=x", applyType, strings.Replace(scopeJSON("all", "observe", ""), `"observe"`, `{}`, 1), 422, "is a map where text is needed"},
		{"an apply of an unknown field", "PATCH", scopesPath + "/all?fieldManager=x", applyType, scopeJSON("all", "observe", `,"speck":1`), 422, "did you mean spec?"},
		{"an apply to a status that is not there", "PATCH", scopesPath + "/none/status?fieldManager=x", applyType, scopeJSON("none", "observe", ""), 403, "written by the system"},
		{"an apply that takes part in the same field", "PATCH", scopesPath + "/all?fieldManager=x&dryRun=All", applyType, scopeJSON("all", "observe", ""), 200, `"manager":"x"`},
		{"an apply of an old revision", "PATCH", scopesPath + "/none?fieldManager=x", applyType, strings.Replace(scopeJSON("none", "observe", ""), `"name"`, `"resourceVersion":"1","name"`, 1), 409, "the object is not there"},

		{"deleting another revision", "DELETE", scopesPath + "/all", jsonType, `{"preconditions":{"resourceVersion":"1"}}`, 409, "ResourceVersion in precondition"},
		{"deleting another object", "DELETE", scopesPath + "/all", jsonType, `{"preconditions":{"uid":"x"}}`, 409, "UID in precondition"},
		{"deleting with options that are none", "DELETE", scopesPath + "/all", jsonType, `{"preconditions":7}`, 400, "DeleteOptions"},
		{"deleting what is not there", "DELETE", scopesPath + "/none", "", "", 404, `\"none\" not found`},
		{"deleting a dry run", "DELETE", scopesPath + "/all", jsonType, `{"dryRun":["All"]}`, 200, `"status":"Success"`},

		{"a time to list that is none", "GET", scopesPath + "?timeoutSeconds=abc", "", "", 400, "timeoutSeconds"},
		{"a time to list", "GET", scopesPath + "?timeoutSeconds=30", "", "", 200, `"name":"all"`},
		{"a selector that is none", "GET", scopesPath + "?labelSelector=%3D%3D", "", "", 400, "cannot be read"},
		{"a field that cannot be selected", "GET", scopesPath + "?fieldSelector=spec.nothing%3Denforce", "", "", 400, "field label not supported: spec.nothing"},
		{"a limit that is none", "GET", scopesPath + "?limit=-1", "", "", 400, "limit"},
		{"a continue token that is none", "GET", scopesPath + "?continue=xyz", "", "", 400, "continue token"},
		{"a revision that is none", "GET", scopesPath + "?resourceVersion=x", "", "", 400, "not a number that this interface gave out"},
		{"a revision of the future", "GET", scopesPath + "?resourceVersion=1000000", "", "", 504, "Too large resource version"},
		{"a revision of the future, exactly", "GET", scopesPath + "?resourceVersion=1000000&resourceVersionMatch=Exact", "", "", 504, "Too large resource version"},
		{"a match that does not exist", "GET", scopesPath + "?resourceVersion=1&resourceVersionMatch=About", "", "", 422, "neither Exact nor NotOlderThan"},
		{"initial events of a list", "GET", scopesPath + "?sendInitialEvents=true", "", "", 422, "forbidden for list"},
		{"a match with a token", "GET", scopesPath + "?continue=x&resourceVersionMatch=Exact", "", "", 422, "forbidden when continue"},
		{"a match of a watch", "GET", scopesPath + "?watch=1&resourceVersionMatch=NotOlderThan", "", "", 422, "forbidden for watch unless"},
		{"a merge by force", "PATCH", scopesPath + "/all?force=true", mergeType, `{}`, 422, "may not be specified for non-apply patch"},
		{"a match of nothing", "GET", scopesPath + "?resourceVersionMatch=NotOlderThan", "", "", 422, "forbidden unless resourceVersion"},
		{"initial events without a match", "GET", scopesPath + "?watch=1&sendInitialEvents=true", "", "", 422, "NotOlderThan"},
		{"a watch of the future", "GET", scopesPath + "?watch=1&resourceVersion=1000000", "", "", 504, "Too large resource version"},

		{"writing what a room writes", "POST", "/apis/bocage.dev/v1/generations", jsonType, "{}", 403, "written by the system"},
		{"a namespace without a name", "POST", "/api/v1/namespaces", jsonType, `{"apiVersion":"v1","kind":"Namespace"}`, 422, "metadata.name"},
		{"a namespace that nothing is in", "GET", "/api/v1/namespaces/none", "", "", 404, "not found"},
		{"the root", "GET", "/", "", "", 200, `"/openapi/v3"`},
		{"the groups", "GET", "/apis", "", "", 200, `"groupVersion":"bocage.dev/v1"`},
		{"the group", "GET", "/apis/bocage.dev", "", "", 200, `"kind":"APIGroup"`},
		{"the kinds", "GET", "/apis/bocage.dev/v1", "", "", 200, `"shortNames":["app"]`},
		{"the core", "GET", "/api/v1", "", "", 200, `"namespaces"`},
		{"a group that does not exist", "GET", "/apis/apps/v1", "", "", 404, "could not find"},
		{"OpenAPI", "GET", "/openapi/v3/apis/bocage.dev/v1", "", "", 200, `"x-kubernetes-group-version-kind"`},
		{"OpenAPI of nothing", "GET", "/openapi/v3/apis/x", "", "", 404, "no OpenAPI"},
		{"metrics", "GET", "/metrics", "", "", 200, `bocage_api_requests_total{code="400",resource="scopes",verb="create"}`},
		{"readiness, in words", "GET", "/readyz?verbose", "", "", 200, "[+]store ok"},
		{"liveness", "GET", "/livez", "", "", 200, "ok"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, text, _ := b.raw(t, test.method, test.path, test.contentType, test.body)
			if code != test.code || !strings.Contains(text, test.want) {
				t.Errorf("%s %s: %d, want %d and %q in\n%.2000s", test.method, test.path, code, test.code, test.want, text)
			}
		})
	}
	// None of it changed what is there.
	object, err := b.client.Get(t.Context(), kind("Scope"), "", "all")
	if err != nil || object.Meta().Generation != 1 || object.(*bocage.Scope).Spec.Mode != "observe" {
		t.Errorf("afterwards: %+v, %v", object, err)
	}
	if list, _, err := b.client.List(t.Context(), kind("Scope"), client.ListOptions{}); err != nil || len(list) != 1 {
		t.Errorf("afterwards there are %d scopes: %v", len(list), err)
	}
}

func TestLargeBodyIsRefused(t *testing.T) {
	b := start(t, nil)
	body := scopeJSON("big", "observe", `,"x":"`+strings.Repeat("x", maxBody)+`"`)
	if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, body); code != 413 || !strings.Contains(text, "larger than 10 MiB") {
		t.Errorf("%d %.300s", code, text)
	}
	profile := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"InspectionProfile","metadata":{"name":"big"},"spec":{"signatures":%q}}`, strings.Repeat("x", store.MaxValue))
	if code, text, _ := b.raw(t, "POST", "/apis/bocage.dev/v1/inspectionprofiles", jsonType, profile); code != 413 || !strings.Contains(text, "larger than the 4 MiB") {
		t.Errorf("%d %.300s", code, text)
	}
}

// TestPages reads a list in pages while it changes: the pages are of one moment.
func TestPages(t *testing.T) {
	b := start(t, nil)
	const count = 25
	for i := range count {
		if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, scopeJSON(fmt.Sprintf("s%02d", i), "observe", "")); code != 201 {
			t.Fatal(code, text)
		}
	}
	type page struct {
		Metadata struct {
			ResourceVersion, Continue string
			RemainingItemCount        *int
		}
		Items []struct{ Metadata struct{ Name string } }
	}
	var names []string
	var revision string
	query := "?limit=10"
	for pages := 1; ; pages++ {
		code, text, _ := b.raw(t, "GET", scopesPath+query, "", "")
		var p page
		if err := json.Unmarshal([]byte(text), &p); err != nil || code != 200 {
			t.Fatal(code, text)
		}
		if revision == "" {
			revision = p.Metadata.ResourceVersion
		}
		if p.Metadata.ResourceVersion != revision {
			t.Errorf("page %d is of revision %s, the first of %s", pages, p.Metadata.ResourceVersion, revision)
		}
		for _, item := range p.Items {
			names = append(names, item.Metadata.Name)
		}
		if p.Metadata.Continue == "" {
			break
		}
		if pages == 1 && (p.Metadata.RemainingItemCount == nil || *p.Metadata.RemainingItemCount != count-10) {
			t.Errorf("remaining: %v", p.Metadata.RemainingItemCount)
		}
		query = "?limit=10&continue=" + url.QueryEscape(p.Metadata.Continue)
		b.raw(t, "DELETE", scopesPath+fmt.Sprintf("/s%02d", 20+pages), "", "")
		b.raw(t, "POST", scopesPath, jsonType, scopeJSON(fmt.Sprintf("s%02dx", 20+pages), "observe", ""))
	}
	if len(names) != count || !slices.IsSorted(names) {
		t.Errorf("read %v", names)
	}
	// A page token of another collection, or of a moment that is forgotten.
	token, err := encodeContinuation(continuation{Revision: 1, After: "resources/scopes/s01"})
	if err != nil {
		t.Fatal(err)
	}
	if code, text, _ := b.raw(t, "GET", "/apis/bocage.dev/v1/guardrails?continue="+token, "", ""); code != 400 {
		t.Error(code, text)
	}
}

func TestSelections(t *testing.T) {
	b := start(t, nil)
	for name, labels := range map[string]string{"a": `{"tier":"front","n":"1"}`, "b": `{"tier":"back"}`, "c": `{}`} {
		body := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":%q,"labels":%s},"spec":{"workload":{}}}`, name, labels)
		if code, text, _ := b.raw(t, "POST", appsPath, jsonType, body); code != 201 {
			t.Fatal(code, text)
		}
	}
	for query, want := range map[string]string{
		"labelSelector=tier":                            "a,b",
		"labelSelector=!tier":                           "c",
		"labelSelector=tier=front":                      "a",
		"labelSelector=tier!=front":                     "b,c",
		"labelSelector=tier in (front,back),n":          "a",
		"labelSelector=tier notin (front)":              "b,c",
		"fieldSelector=metadata.name=b":                 "b",
		"fieldSelector=metadata.name!=b":                "a,c",
		"fieldSelector=metadata.namespace=bank":         "",
		"fieldSelector=metadata.name=b&labelSelector=n": "",
		"": "a,b,c",
	} {
		for _, path := range []string{appsPath, "/apis/bocage.dev/v1/applications"} {
			values, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			_, text, _ := b.raw(t, "GET", path+"?"+values.Encode(), "", "")
			var list struct {
				Items []struct{ Metadata struct{ Name string } }
			}
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				t.Fatal(text)
			}
			var names []string
			for _, item := range list.Items {
				names = append(names, item.Metadata.Name)
			}
			if got := strings.Join(names, ","); got != want {
				t.Errorf("%s?%s: %s, want %s", path, query, got, want)
			}
		}
	}
	if code, text, _ := b.raw(t, "DELETE", appsPath+"?labelSelector=tier", "", ""); code != 200 || strings.Contains(text, `"name":"c"`) {
		t.Error(code, text)
	}
	if list, _, err := b.client.List(t.Context(), kind("Application"), client.ListOptions{}); err != nil || len(list) != 1 {
		t.Errorf("%d are left: %v", len(list), err)
	}
}

func TestForms(t *testing.T) {
	b := start(t, nil)
	if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, scopeJSON("all", "observe", "")); code != 201 {
		t.Fatal(code, text)
	}
	table := "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
	partial := "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
	for _, test := range []struct{ path, accept, want string }{
		{scopesPath, table, `"cells":["all","observe","",`},
		{scopesPath + "/all", table, `"kind":"Table"`},
		{scopesPath + "?includeObject=Object", table, `"object":{"apiVersion":"bocage.dev/v1"`},
		{scopesPath + "?includeObject=None", table, `"object":null`},
		{scopesPath, partial, `"kind":"PartialObjectMetadataList"`},
		{scopesPath + "/all", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", `"kind":"PartialObjectMetadata"`},
		{scopesPath + "/all", "application/yaml", "\n  mode: observe\n"},
		{scopesPath, "application/vnd.kubernetes.protobuf,application/json", `"kind":"ScopeList"`},
		{"/api/v1/namespaces", table, `"cells":["default",`},
		{"/api/v1/namespaces/default", "", `"phase":"Active"`},
		{"/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", `"subresource":"status"`},
		{"/api", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", `"resource":"namespaces"`},
	} {
		code, text, _ := b.raw(t, "GET", test.path, "", "", "Accept", test.accept)
		if code != 200 || !strings.Contains(text, test.want) {
			t.Errorf("%s as %s: %d, want %q in\n%s", test.path, test.accept, code, test.want, text)
		}
	}
}

// TestUnchanged: what changes nothing is not written.
func TestUnchanged(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	text := "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: all}\nspec: {mode: observe}\n"
	first, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, before, err := b.store.List(ctx, "resources/", "", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if first.Objects[0].Outcome != "created" || again.Objects[0].Outcome != "unchanged" {
		t.Errorf("outcomes %s, %s", first.Objects[0].Outcome, again.Objects[0].Outcome)
	}
	if code, _, _ := b.raw(t, "PATCH", scopesPath+"/all", mergeType, `{"spec":{"mode":"observe"}}`); code != 200 {
		t.Error(code)
	}
	if _, after, _ := b.store.List(ctx, "resources/", "", 1, 0); after != before {
		t.Errorf("the store went from %d to %d for nothing", before, after)
	}
	if string(first.Objects[0].Object) != string(again.Objects[0].Object) {
		t.Errorf("%s\n%s", first.Objects[0].Object, again.Objects[0].Object)
	}
}

// TestOwnersOfFields: what one person applies, another does not take by accident,
// and what nobody declares any more goes.
func TestOwnersOfFields(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	app := func(metadata, spec string) string {
		return "apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: web, namespace: shop" + metadata + "}\nspec:\n  workload: {matchLabels: {app: web}}\n" + spec
	}
	apply := func(manager, text string, force bool) error {
		_, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{Manager: manager, Force: force})
		return err
	}
	if err := apply("alice", app(", labels: {team: a}", "  provides: [{name: http, port: 80}]\n"), false); err != nil {
		t.Fatal(err)
	}
	err := apply("bob", app("", "  provides: [{name: http, port: 81}]\n"), false)
	if err == nil || !strings.Contains(err.Error(), "test.yaml:6: .spec.provides: conflict with \"alice\"") {
		t.Errorf("conflict: %v", err)
	}
	if err := apply("bob", app("", "  consumes: [{service: api}]\n"), false); err != nil {
		t.Errorf("fields that nobody owns: %v", err)
	}
	if err := apply("alice", app("", "  provides: [{name: http, port: 80}]\n"), false); err != nil {
		t.Fatal(err)
	}
	object, err := b.client.Get(ctx, kind("Application"), "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	got := object.(*bocage.Application)
	if len(got.Labels) != 0 || len(got.Spec.Consumes) != 1 || len(got.Spec.Provides) != 1 {
		t.Errorf("after alice gave up her label: %+v", got)
	}
	if err := apply("bob", app("", "  provides: [{name: http, port: 81}]\n"), true); err != nil {
		t.Fatal(err)
	}
	// Where an object comes from is no field to fight for, and is told only while
	// it is true.
	source := func() string {
		t.Helper()
		object, err := b.client.Get(ctx, kind("Application"), "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		return object.Meta().Annotations[bocage.SourceAnnotation]
	}
	if source() != "test.yaml:1" {
		t.Errorf("declared in %q", source())
	}
	if err := apply("carol", "# carol's\n"+app("", "  provides: [{name: http, port: 81}]\n"), false); err != nil || source() != "test.yaml:2" {
		t.Errorf("declared in %q: %v", source(), err)
	}
	for _, test := range [][2]string{{`{"metadata":{"labels":{"a":"b"}}}`, "test.yaml:2"}, {`{"spec":{"provides":[]}}`, ""}} {
		if code, text, _ := b.raw(t, "PATCH", appsPath+"/web", mergeType, test[0]); code != 200 || source() != test[1] {
			t.Errorf("after %s declared in %q: %d %s", test[0], source(), code, text)
		}
	}
	if err := apply("bob", app("", "  provides: [{name: http, port: 81}]\n"), true); err != nil {
		t.Fatal(err)
	}
	if err := apply("alice", app("", "  provides: [{name: http, port: 80}]\n"), false); err == nil {
		t.Error("bob's field was taken without force")
	}
}
