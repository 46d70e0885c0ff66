package api

import (
	"fmt"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

// TestMetadata: what is wrong with metadata is refused as Kubernetes refuses it,
// however it is written.
func TestMetadata(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "all", "")
	long := strings.Repeat("x", 200<<10)
	for _, test := range []struct {
		metadata string
		policy   int // of a NetworkPolicy
		scope    int // of a kind of our own
		want     string
	}{
		{`"finalizers":["nope"]`, 422, 201, "neither a standard finalizer name nor is it fully qualified"},
		{`"finalizers":["foregroundDeletion","orphan"]`, 422, 422, "cannot be both set"},
		{`"finalizers":["a b/c"]`, 422, 422, "metadata.finalizers"},
		{`"finalizers":["/c"]`, 422, 422, "metadata.finalizers"},
		{`"finalizers":[""]`, 422, 422, "metadata.finalizers"},
		{`"finalizers":["orphan","example.com/x"]`, 201, 201, ""},
		{`"ownerReferences":[{"apiVersion":"v1","kind":"Event","name":"e","uid":"1"}]`, 422, 422, "disallowed from being an owner"},
		{`"ownerReferences":[{"apiVersion":"a/b/c","kind":"X","name":"e","uid":"1"}]`, 422, 422, "metadata.ownerReferences[0].apiVersion"},
		{`"ownerReferences":[{"apiVersion":"a/v1","kind":"X","name":"e","uid":""}]`, 422, 422, "an owner is named whole"},
		{`"ownerReferences":[{"apiVersion":"events.k8s.io/v1","kind":"Event","name":"e","uid":"1"}]`, 201, 201, ""},
		{`"generateName":"B_"`, 422, 422, "metadata.generateName"},
		{`"generateName":"b-"`, 201, 201, ""},
		{`"annotations":{"a b":"c"}`, 422, 422, "metadata.annotations"},
		{`"annotations":{"Example.COM/B":"c"}`, 201, 201, ""},
		{`"annotations":{"a":"` + long + `","b":"` + long + `"}`, 422, 422, "metadata.annotations"},
	} {
		of := func(kind, metadata string) string {
			if kind == "Scope" {
				return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"all",%s},"spec":{"mode":"observe"}}`, metadata)
			}
			return fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web","namespace":"shop",%s},"spec":{"podSelector":{}}}`, metadata)
		}
		if code, text, _ := b.raw(t, "POST", policiesPath+"?dryRun=All", jsonType, of("NetworkPolicy", test.metadata)); code != test.policy || !strings.Contains(text, test.want) && code != 201 {
			t.Errorf("%.80s of a NetworkPolicy: %d %.300s", test.metadata, code, text)
		}
		scope := strings.Replace(of("Scope", test.metadata), `"name":"all"`, `"name":"new"`, 1)
		if code, text, _ := b.raw(t, "POST", scopesPath+"?dryRun=All", jsonType, scope); code != test.scope || !strings.Contains(text, test.want) && code != 201 {
			t.Errorf("%.80s of a Scope: %d %.300s", test.metadata, code, text)
		}
		want := test.scope
		if want == 201 {
			want = 200
		}
		if code, text, _ := b.raw(t, "PATCH", scopesPath+"/all?dryRun=All", mergeType, `{"metadata":{`+test.metadata+`}}`); code != want {
			t.Errorf("%.80s in a patch: %d %.300s", test.metadata, code, text)
		}
		if code, text, _ := b.raw(t, "PATCH", scopesPath+"/all?dryRun=All&fieldManager=m", "application/apply-patch+yaml", of("Scope", test.metadata)); code != want {
			t.Errorf("%.80s in an apply: %d %.300s", test.metadata, code, text)
		}
	}
}

// TestRefusalsRead: what people are told when they are refused.
func TestRefusalsRead(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	viewer, owner := b.as(t, RoleViewer, "shop"), b.as(t, RoleOwner, "shop", "cart")
	_, err := viewer.Get(ctx, kind("Application"), "bank", "a")
	_, _, listed := viewer.List(ctx, kind("Quarantine"), client.ListOptions{})
	_, hunted := viewer.Hunt(ctx, "select 1", 1)
	_, ownerHunted := owner.Hunt(ctx, "select 1", 1)
	_, written := owner.ApplyObject(ctx, kind("Application"), &bocage.Application{ObjectMeta: bocage.ObjectMeta{Name: "a", Namespace: "bank"}}, client.WriteOptions{})
	for _, test := range []struct {
		err  error
		want string
	}{
		{err, "their role of viewer is for the namespace shop"},
		{listed, `quarantines.bocage.dev is forbidden: User "token:tester" cannot list`},
		{hunted, "it is for admin, policy-admin, responder, auditor, viewer of all namespaces, and theirs is a role in some"},
		{ownerHunted, "it is for admin, policy-admin, responder, auditor, viewer"},
		{written, "their role of owner is for the namespaces "},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) || strings.Contains(test.err.Error(), "an viewer") {
			t.Errorf("%v, want %q", test.err, test.want)
		}
	}
	b.mustScope(t, "POST", "all", "")
	b.tell(t, []request{
		{"a merge patch that is null", "PATCH", scopesPath + "/all", mergeType, `null`, nil, 400, "no JSON object but null"},
		{"a strategic merge patch that is null", "PATCH", "/api/v1/namespaces/default", "application/strategic-merge-patch+json", `null`, nil, 400, "no JSON object but null"},
		{"too deep", "POST", scopesPath, jsonType, strings.Repeat("[", 20000) + strings.Repeat("]", 20000), nil, 400, "nested more than 10000 levels deep"},
		{"replacing another with an old revision", "PUT", scopesPath + "/all", jsonType,
			strings.Replace(scopeJSON("other", "enforce", ""), `"name"`, `"resourceVersion":"1","name"`, 1), nil, 400, "does not match the name on the URL"},
	})
}

// TestMetadataOfBefore: what a version before took stays, and does not keep an object from
// being changed; nothing wrong comes to it.
func TestMetadataOfBefore(t *testing.T) {
	old := bocage.ObjectMeta{Name: "a", Annotations: map[string]string{"Owner Team": "shop"}, Finalizers: []string{"nope"},
		OwnerReferences: []bocage.OwnerReference{{APIVersion: "v1", Kind: "Event", Name: "e", UID: "1"}}}
	was, err := untyped(kind("NetworkPolicy"), &bocage.NetworkPolicy{ObjectMeta: old})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*bocage.ObjectMeta)
		faults int
	}{
		"nothing of it":      {func(m *bocage.ObjectMeta) { m.Labels = map[string]string{"a": "b"} }, 0},
		"its value":          {func(m *bocage.ObjectMeta) { m.Annotations = map[string]string{"Owner Team": "bank"} }, 0},
		"another key":        {func(m *bocage.ObjectMeta) { m.Annotations = map[string]string{"Owner Team": "shop", "An other": ""} }, 1},
		"too large":          {func(m *bocage.ObjectMeta) { m.Annotations = map[string]string{"a": strings.Repeat("x", 300<<10)} }, 1},
		"a finalizer before": {func(m *bocage.ObjectMeta) { m.Finalizers = []string{"example.com/x", "nope"} }, 0},
		"another finalizer":  {func(m *bocage.ObjectMeta) { m.Finalizers = []string{"nope", "neither"} }, 1},
		"an owner before": {func(m *bocage.ObjectMeta) {
			m.OwnerReferences = append([]bocage.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "2"}}, m.OwnerReferences...)
		}, 0},
		"the owner is another": {func(m *bocage.ObjectMeta) {
			m.OwnerReferences = []bocage.OwnerReference{{APIVersion: "v1", Kind: "Event", Name: "f", UID: "1"}}
		}, 1},
	} {
		meta := old
		test.change(&meta)
		ch := &change{access: access{kind: kind("NetworkPolicy")}, old: &stored{object: was}}
		if faults, err := ch.metaFaults(&meta); err != nil || len(faults) != test.faults {
			t.Errorf("%s: %v, %v; want %d", name, faults, err, test.faults)
		}
		ch.old = nil
		if faults, err := ch.metaFaults(&meta); err != nil || len(faults) == 0 {
			t.Errorf("%s, of a new object: %v, %v", name, faults, err)
		}
	}
}

// TestChangesOfMetadataOfBefore: an object that a version before took, with what is
// refused now, is changed in every way that there is, keeps what it had, and gets
// nothing else that is wrong.
func TestChangesOfMetadataOfBefore(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	seed := func(kindName string, resource bocage.Resource) {
		t.Helper()
		k := kind(kindName)
		meta := resource.Meta()
		meta.UID, meta.Generation = "11111111-1111-1111-1111-111111111111", 1
		meta.Annotations, meta.Finalizers = map[string]string{"Owner Team": "shop"}, []string{"nope"}
		value, err := store.EncodeObject(k, resource)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.Apply(ctx, store.Op{Key: k.Key(meta.Namespace, meta.Name), Value: value, IfWas: store.AnyRevision}); err != nil {
			t.Fatal(err)
		}
	}
	seed("NetworkPolicy", &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "web", Namespace: "shop"}})
	seed("Scope", scope("all", bocage.ModeObserve))
	seed("Incident", &bocage.Incident{ObjectMeta: bocage.ObjectMeta{Name: "case"}, Status: bocage.IncidentStatus{Phase: "open"}})
	const old = `"annotations":{"Owner Team":"shop"},"finalizers":["nope"]`
	object := func(metadata, types string) string {
		return `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web","namespace":"shop",` + metadata + `},"spec":{"podSelector":{},"policyTypes":[` + types + `]}}`
	}
	const apply = "application/apply-patch+yaml"
	web, incident := policiesPath+"/web", "/apis/bocage.dev/v1/incidents/case"
	for _, test := range []struct {
		what, method, path, media, body string
		code                            int
		said                            string
	}{
		{"update", "PUT", web, jsonType, object(old, `"Ingress"`), 200, ""},
		{"update of the value", "PUT", web, jsonType, object(`"annotations":{"Owner Team":"bank"},"finalizers":["nope"]`, `"Ingress"`), 200, ""},
		{"update with another key", "PUT", web, jsonType, object(`"annotations":{"Owner Team":"bank","An other":""},"finalizers":["nope"]`, `"Ingress"`), 422, "An other"},
		{"merge patch", "PATCH", web, mergeType, `{"metadata":{"labels":{"a":"b"}}}`, 200, ""},
		{"merge patch with another finalizer", "PATCH", web, mergeType, `{"metadata":{"finalizers":["nope","neither"]}}`, 422, "neither"},
		{"JSON patch", "PATCH", web, "application/json-patch+json", `[{"op":"add","path":"/metadata/annotations/good","value":"x"}]`, 200, ""},
		{"JSON patch with another key", "PATCH", web, "application/json-patch+json", `[{"op":"add","path":"/metadata/annotations/not good","value":"x"}]`, 422, "not good"},
		{"strategic patch", "PATCH", web, "application/strategic-merge-patch+json", `{"spec":{"policyTypes":["Ingress","Egress"]}}`, 200, ""},
		{"apply", "PATCH", web + "?fieldManager=m&force=true", apply, object(`"labels":{"c":"d"}`, `"Egress"`), 200, ""},
		{"apply with another key", "PATCH", web + "?fieldManager=m&force=true", apply, object(`"annotations":{"An other":""}`, `"Egress"`), 422, "An other"},
		{"apply that takes the old key", "PATCH", web + "?fieldManager=m&force=true", apply, object(old, `"Egress"`), 200, ""},
		{"create beside", "POST", policiesPath, jsonType, strings.Replace(object(old, ""), `"web"`, `"api"`, 1), 422, "Owner Team"},
		{"apply beside", "PATCH", policiesPath + "/api?fieldManager=m", apply, strings.Replace(object(old, ""), `"web"`, `"api"`, 1), 422, "Owner Team"},
		{"update of a kind of our own", "PATCH", scopesPath + "/all", mergeType, `{"spec":{"mode":"enforce"}}`, 200, ""},
		{"its status", "PATCH", incident + "/status", mergeType, `{"status":{"phase":"contained"}}`, 200, ""},
		{"the case itself", "PATCH", incident, mergeType, `{"metadata":{"annotations":{"note":"x"}}}`, 200, ""},
		{"the case with another key", "PATCH", incident, mergeType, `{"metadata":{"annotations":{"no te":"x"}}}`, 422, "no te"},
		{"it lets the key go", "PATCH", incident, mergeType, `{"metadata":{"annotations":{"Owner Team":null}}}`, 200, ""},
		{"and does not get it back", "PATCH", incident, mergeType, `{"metadata":{"annotations":{"Owner Team":"shop"}}}`, 422, "Owner Team"},
	} {
		if code, text, _ := b.raw(t, test.method, test.path, test.media, test.body); code != test.code || !strings.Contains(text, test.said) {
			t.Errorf("%s: %d %.400s", test.what, code, text)
		}
	}
	// Many at once.
	many := func(annotation string) string {
		return "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: all, annotations: {" + annotation + ": shop}}\nspec: {mode: observe}\n"
	}
	if _, err := b.client.Apply(ctx, documents(t, many("Owner Team")), client.WriteOptions{Force: true}); err != nil {
		t.Errorf("applied among many: %v", err)
	}
	if _, err := b.client.Apply(ctx, documents(t, many("Not That")), client.WriteOptions{Force: true}); err == nil || !strings.Contains(err.Error(), "Not That") {
		t.Errorf("applied among many with another key: %v", err)
	}
	// It goes, and with the finalizer that nobody could set today.
	if code, text, _ := b.raw(t, "DELETE", web, "", ""); code != 200 || !strings.Contains(text, "deletionTimestamp") {
		t.Errorf("deleted: %d %s", code, text)
	}
	if code, text, _ := b.raw(t, "PATCH", web, mergeType, `{"metadata":{"finalizers":null}}`); code != 200 {
		t.Errorf("let go: %d %s", code, text)
	}
	if code, _, _ := b.raw(t, "GET", web, "", ""); code != 404 {
		t.Errorf("it is there still: %d", code)
	}
}

// TestManagedFieldsAreDropped: an empty entry drops the note of who owns which field, in
// every form of change, as Kubernetes documents.
func TestManagedFieldsAreDropped(t *testing.T) {
	b := start(t, nil)
	path := scopesPath + "/all"
	owners := func() int {
		t.Helper()
		_, text, _ := b.raw(t, "GET", path, "", "")
		u, err := decodeStored([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return len(u.GetManagedFields())
	}
	for _, test := range []struct{ what, media, body string }{
		{"merge patch", mergeType, `{"metadata":{"managedFields":[{}]}}`},
		{"JSON patch", "application/json-patch+json", `[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]`},
	} {
		if code, text, _ := b.raw(t, "PATCH", path+"?fieldManager=m&force=true", "application/apply-patch+yaml", scopeJSON("all", "observe", "")); code > 201 {
			t.Fatal(code, text)
		}
		if owners() == 0 {
			t.Fatal("nobody owns anything")
		}
		if code, text, _ := b.raw(t, "PATCH", path, test.media, test.body); code != 200 {
			t.Errorf("%s: %d %s", test.what, code, text)
		}
		if n := owners(); n != 0 {
			t.Errorf("%s: %d entries are left", test.what, n)
		}
	}
	if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{},"spec":{"mode":"observe"}}`); code != 422 || strings.Count(text, `"field":"metadata.name"`) != 1 {
		t.Errorf("without a name: %d %s", code, text)
	}
}
