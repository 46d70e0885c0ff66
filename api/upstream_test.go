package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

// policyOf is a NetworkPolicy in JSON.
func policyOf(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":%q},"spec":%s}`, name, spec)
}

// specOf reads an object's spec, and who owns which of it, by manager.
func specOf(t *testing.T, object string) (spec string, owned map[string]string, generation int64) {
	t.Helper()
	var o struct {
		Metadata struct {
			Generation    int64
			ManagedFields []struct {
				Manager  string
				FieldsV1 map[string]any
			}
		}
		Spec json.RawMessage
	}
	if err := json.Unmarshal([]byte(object), &o); err != nil {
		t.Fatal(err, object)
	}
	owned = map[string]string{}
	for _, f := range o.Metadata.ManagedFields {
		data, err := json.Marshal(f.FieldsV1["f:spec"])
		if err != nil {
			t.Fatal(err)
		}
		owned[f.Manager] = string(data)
	}
	return string(o.Spec), owned, o.Metadata.Generation
}

// TestNetworkPolicyDefaults: what a policy leaves out is written down when it is kept,
// however it is written.
func TestNetworkPolicyDefaults(t *testing.T) {
	b := start(t, nil)
	const egress = `{"podSelector":{},"egress":[{"ports":[{"port":53}]}]}`
	const kept = `{"podSelector":{},"egress":[{"ports":[{"protocol":"TCP","port":53}]}],"policyTypes":["Ingress","Egress"]}`
	ask := func(method, path, contentType, body string, want int) string {
		t.Helper()
		code, text, _ := b.raw(t, method, path, contentType, body)
		if code != want {
			t.Fatalf("%s %s: %d %s", method, path, code, text)
		}
		return text
	}
	shows := func(text, want string, generation int64) map[string]string {
		t.Helper()
		spec, owned, is := specOf(t, text)
		if spec != want || is != generation {
			t.Errorf("generation %d, want %d of\n%s, want\n%s", is, generation, spec, want)
		}
		return owned
	}
	// Who writes it whole owns what was filled in, and who applies it does not.
	owned := shows(ask("POST", policiesPath+"?fieldManager=maker", jsonType, policyOf("made", egress), 201), kept, 1)
	if !strings.Contains(owned["maker"], "f:policyTypes") {
		t.Errorf("owned: %v", owned)
	}
	for _, query := range []string{"?fieldManager=me&dryRun=All", "?fieldManager=me"} {
		owned = shows(ask("PATCH", policiesPath+"/applied"+query, applyType, policyOf("applied", egress), 201), kept, 1)
		if strings.Contains(owned["me"], "f:policyTypes") || !strings.Contains(owned["me"], "f:egress") {
			t.Errorf("owned: %v", owned)
		}
	}
	// The same again changes nothing.
	again := ask("GET", policiesPath+"/applied", "", "", 200)
	if text := ask("PATCH", policiesPath+"/applied?fieldManager=me", applyType, policyOf("applied", egress), 200); text != again {
		t.Errorf("applied again:\n%s, was\n%s", text, again)
	}
	shows(ask("PUT", policiesPath+"/made?fieldManager=maker", jsonType, policyOf("made", egress), 200), kept, 1)
	shows(ask("PATCH", policiesPath+"/made", mergeType, `{"spec":{"policyTypes":null}}`, 200), kept, 1)
	shows(ask("PATCH", policiesPath+"/made", patchType, `[{"op":"remove","path":"/spec/policyTypes"}]`, 200), kept, 1)
	shows(ask("PATCH", policiesPath+"/made", strategicType, `{"spec":{"policyTypes":[]}}`, 200), kept, 1)
	shows(ask("PATCH", policiesPath+"/made", mergeType, `{"spec":{"egress":null,"policyTypes":null,"ingress":[{"ports":[{"protocol":"UDP"},{"port":"http"}]}]}}`, 200),
		`{"podSelector":{},"ingress":[{"ports":[{"protocol":"UDP"},{"protocol":"TCP","port":"http"}]}],"policyTypes":["Ingress"]}`, 2)
	// Types that are given stay as they are given.
	shows(ask("PATCH", policiesPath+"/made", mergeType, `{"spec":{"policyTypes":["Egress"],"ingress":null}}`, 200), `{"podSelector":{},"policyTypes":["Egress"]}`, 3)
	// So it does for many at once.
	result, err := b.client.Apply(t.Context(), documents(t, strings.Replace(policyOf("many", egress), `"name"`, `"namespace":"shop","name"`, 1)), client.WriteOptions{})
	if err != nil || len(result.Objects) != 1 {
		t.Fatal(result, err)
	}
	shows(ask("GET", policiesPath+"/many", "", "", 200), kept, 1)
}

// TestKeptNetworkPolicy: one that was kept without its defaults means the same with
// them, so that they are no new generation of it.
func TestKeptNetworkPolicy(t *testing.T) {
	b := start(t, nil)
	policy := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "old", Namespace: "shop", UID: "1", Generation: 7}}
	policy.Spec.Egress = []bocage.NetworkPolicyEgressRule{{Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Number: 53}}}}}
	if _, err := store.PutObject(t.Context(), b.store, kind("NetworkPolicy"), policy, store.Absent); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		patch, types string
		generation   int64
	}{
		{`{}`, `["Ingress","Egress"]`, 7},
		{`{"metadata":{"labels":{"a":"b"}}}`, `["Ingress","Egress"]`, 7},
		{`{"spec":{"policyTypes":["Egress"]}}`, `["Egress"]`, 8},
	} {
		code, text, _ := b.raw(t, "PATCH", policiesPath+"/old", mergeType, test.patch)
		if _, _, generation := specOf(t, text); code != 200 || generation != test.generation || !strings.Contains(text, `"policyTypes":`+test.types) || !strings.Contains(text, `"protocol":"TCP"`) {
			t.Errorf("%s: %d %s", test.patch, code, text)
		}
	}
}

// TestNoNewFinalizers: while an object is being deleted, those who hold it only let go.
func TestNoNewFinalizers(t *testing.T) {
	b := start(t, nil)
	b.tell(t, []request{
		{"make", "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name"`, `"finalizers":["a.b/c","d.e/f"],"name"`, 1), nil, 201, ""},
		{"new ones before", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"finalizers":["a.b/c","d.e/f","g.h/i"]}}`, nil, 200, ""},
		{"delete", "DELETE", policiesPath + "/web", "", "", nil, 200, "deletionTimestamp"},
	})
	const why = `no new finalizers can be added if the object is being deleted, found new finalizers []string{\"new/x\"}`
	with := func(finalizers string) string {
		return strings.Replace(policyBody, `"name"`, `"finalizers":`+finalizers+`,"name"`, 1)
	}
	b.tell(t, []request{
		{"merge patch", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"finalizers":["a.b/c","new/x"]}}`, nil, 422, why},
		{"strategic merge patch", "PATCH", policiesPath + "/web", strategicType, `{"metadata":{"finalizers":["new/x"]}}`, nil, 422, why},
		{"JSON patch", "PATCH", policiesPath + "/web", patchType, `[{"op":"add","path":"/metadata/finalizers/-","value":"new/x"}]`, nil, 422, why},
		{"replacement", "PUT", policiesPath + "/web", jsonType, with(`["new/x"]`), nil, 422, why},
		{"apply", "PATCH", policiesPath + "/web?fieldManager=me", applyType, with(`["new/x"]`), nil, 422, why},
		{"fewer", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"finalizers":["d.e/f","a.b/c"]}}`, nil, 200, `["d.e/f","a.b/c"]`},
		{"one that has gone", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"finalizers":["a.b/c","g.h/i"]}}`, nil, 422, "g.h/i"},
		{"other changes", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"labels":{"a":"b"}}}`, nil, 200, ""},
		{"none", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"finalizers":null}}`, nil, 200, ""},
		{"gone", "GET", policiesPath + "/web", "", "", nil, 404, ""},
	})
	result, err := b.client.Apply(t.Context(), documents(t, "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s, finalizers: [a.b/c]}\nspec: {mode: observe}\n"), client.WriteOptions{})
	if err != nil || len(result.Objects) != 1 {
		t.Fatal(result, err)
	}
	b.mustScope(t, "DELETE", "s", "")
	if _, err := b.client.Apply(t.Context(), documents(t, "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s, finalizers: [a.b/c, new/x]}\nspec: {mode: observe}\n"), client.WriteOptions{}); err == nil || !strings.Contains(err.Error(), "no new finalizers") {
		t.Error(err)
	}
}

// TestFieldManagers: their names are the same everywhere.
func TestFieldManagers(t *testing.T) {
	b := start(t, nil)
	b.tell(t, []request{{"make", "POST", policiesPath, jsonType, policyBody, nil, 201, ""}})
	for _, test := range []struct{ query, want string }{
		{"a%0ab", "should only contain printable characters"},
		{"%e2%80%8b", "should only contain printable characters"},
		{strings.Repeat("x", 129), "is longer than 128 characters"},
	} {
		query := "fieldManager=" + test.query
		b.tell(t, []request{
			{"create", "POST", policiesPath + "?dryRun=All&" + query, jsonType, policyOf("new", `{"podSelector":{}}`), nil, 422, test.want},
			{"replace", "PUT", policiesPath + "/web?" + query, jsonType, policyBody, nil, 422, test.want},
			{"merge patch", "PATCH", policiesPath + "/web?" + query, mergeType, `{}`, nil, 422, test.want},
			{"apply", "PATCH", policiesPath + "/web?" + query, applyType, policyBody, nil, 422, test.want},
			{"many", "POST", functionsPath + "/apply?" + query, "application/yaml", policyBody, nil, 422, test.want},
		})
	}
	b.tell(t, []request{
		{"many by nobody", "POST", functionsPath + "/apply", "application/yaml", policyBody, nil, 422, "is required"},
		{"printable", "PATCH", policiesPath + "/web?fieldManager=z%C3%BCrich%20%E2%82%AC", mergeType, `{"metadata":{"labels":{"a":"b"}}}`, nil, 200, `"manager":"zürich €"`},
		{"of a client that names none", "PATCH", policiesPath + "/web", mergeType, `{"metadata":{"labels":{"c":"d"}}}`, []string{"User-Agent", "we\tb" + strings.Repeat("ü", 100) + "/1.0"}, 200, `"manager":"web` + strings.Repeat("ü", 62) + `"`},
	})
}

// TestMetricsAreOfAll: what counts everybody's business is for who may read that.
func TestMetricsAreOfAll(t *testing.T) {
	b := start(t, nil)
	ask := func(method, path, body string, role Role, namespaces ...string) (int, string) {
		t.Helper()
		session, err := b.client.CreateSession(t.Context(), client.Person{Name: "tester", Role: string(role), Namespaces: namespaces}, 0)
		if err != nil {
			t.Fatal(err)
		}
		code, text, _ := b.raw(t, method, path, jsonType, body, "Authorization", "Bearer "+session.Token)
		return code, text
	}
	const review = `{"spec":{"nonResourceAttributes":{"path":"/metrics","verb":"get"}}}`
	for _, test := range []struct {
		role       Role
		namespaces []string
		code       int
	}{
		{RoleViewer, nil, 200}, {RoleAuditor, nil, 200}, {RoleAdmin, nil, 200},
		{RoleOwner, []string{"shop"}, 403}, {RoleViewer, []string{"shop"}, 403},
	} {
		if code, text := ask("GET", "/metrics", "", test.role, test.namespaces...); code != test.code {
			t.Errorf("%s of %v: %d %.300s", test.role, test.namespaces, code, text)
		}
		if _, text := ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, test.role, test.namespaces...); strings.Contains(text, `"allowed":true`) != (test.code == 200) {
			t.Errorf("%s of %v is told %.400s", test.role, test.namespaces, text)
		}
	}
}

// TestDocumentsByTheirHash: who asks for a document that is no more is led to what there
// is, and who has it is not sent it again.
func TestDocumentsByTheirHash(t *testing.T) {
	b := start(t, nil)
	_, text, _ := b.raw(t, "GET", "/openapi/v3", "", "")
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal([]byte(text), &index); err != nil {
		t.Fatal(err)
	}
	path := index.Paths["apis/bocage.dev/v1"].ServerRelativeURL
	ask := func(path string, headers ...string) (int, http.Header) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), "GET", "http://bocage"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		answer, err := unixTransport(b.socket).RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, answer.Header
	}
	if code, _ := ask(path); code != 200 {
		t.Errorf("%s: %d", path, code)
	}
	stale, _, _ := strings.Cut(path, "?")
	if code, header := ask(stale + "?hash=ABC"); code != 301 || header.Get("Location") != path {
		t.Errorf("%d to %s, want 301 to %s", code, header.Get("Location"), path)
	}
	if code, _ := ask("/openapi/v3/apis/nothing/v1?hash=ABC"); code != 404 {
		t.Errorf("a document of nothing: %d", code)
	}

	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	tags := map[string]string{}
	for _, path := range []string{"/api", "/apis"} {
		code, header := ask(path, "Accept", aggregated)
		tag := header.Get("ETag")
		if code != 200 || tag == "" || header.Get("Content-Type") != aggregated || !strings.Contains(strings.Join(header.Values("Vary"), ","), "Accept") {
			t.Errorf("%s: %d %v", path, code, header)
		}
		tags[path] = tag
		if code, header := ask(path, "Accept", aggregated, "If-None-Match", tag); code != 304 || header.Get("ETag") != tag {
			t.Errorf("%s again: %d %v", path, code, header)
		}
		if code, _ := ask(path, "Accept", aggregated, "If-None-Match", `"other"`); code != 200 {
			t.Errorf("%s after another: %d", path, code)
		}
	}
	if tags["/api"] == tags["/apis"] {
		t.Errorf("different documents have one tag: %v", tags)
	}
}
