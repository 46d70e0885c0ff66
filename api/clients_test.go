package api

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

const (
	applicationsPath = "/apis/bocage.dev/v1/namespaces/shop/applications"
	policyBody       = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web"},"spec":{"podSelector":{}}}`
	namelessPolicy   = `{"metadata":{"name":"python"},"spec":{"podSelector":{}}}`
)

// request is one that a client was seen to make, and what it was told.
type request struct {
	name, method, path, contentType, body string
	headers                               []string
	code                                  int
	want                                  string // in the answer
}

func (b *bench) tell(t *testing.T, requests []request) {
	t.Helper()
	for _, r := range requests {
		code, text, _ := b.raw(t, r.method, r.path, r.contentType, r.body, r.headers...)
		if code != r.code || !strings.Contains(text, r.want) {
			t.Errorf("%s: %s %s: %d, want %d with %s: %.600s", r.name, r.method, r.path, code, r.code, r.want, text)
		}
	}
}

// TestNobodyActsAsAnother: who asks to be taken for somebody else is not served as
// who they are.
func TestNobodyActsAsAnother(t *testing.T) {
	b := start(t, nil)
	for _, header := range []string{"Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes"} {
		b.tell(t, []request{
			{"read", "GET", policiesPath, "", "", []string{header, "nobody"}, 403, header + " is not supported"},
			{"write", "POST", policiesPath, jsonType, policyBody, []string{header, "nobody"}, 403, "cannot act as nobody"},
			{"a question", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", jsonType,
				`{"spec":{"resourceAttributes":{"verb":"get","resource":"namespaces"}}}`, []string{header, "nobody"}, 403, header},
		})
	}
	b.tell(t, []request{{"nothing was made", "GET", policiesPath + "/web", "", "", nil, 404, ""}})
}

// TestDeletionAsAsked: options of a deletion count wherever they stand, and one that
// cannot be understood deletes nothing.
func TestDeletionAsAsked(t *testing.T) {
	b := start(t, nil)
	b.tell(t, []request{
		{"make", "POST", policiesPath, jsonType, policyBody, nil, 201, ""},
		{"what is no options", "DELETE", policiesPath + "/web", jsonType, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"}}`, nil, 400, "DeleteOptions"},
		{"another uid", "DELETE", policiesPath + "/web", jsonType, `{"preconditions":{"uid":"1"}}`, nil, 409, "UID in precondition: 1"},
		{"another version", "DELETE", policiesPath + "/web", jsonType, `{"preconditions":{"resourceVersion":"1"}}`, nil, 409, "ResourceVersion in precondition: 1, ResourceVersion in object meta"},
		{"unknown policy", "DELETE", policiesPath + "/web?propagationPolicy=Later", "", "", nil, 422, "Later"},
		{"unknown policy for all", "DELETE", policiesPath + "?propagationPolicy=Later", "", "", nil, 422, "Later"},
		{"no yes or no", "DELETE", policiesPath + "/web?orphanDependents=perhaps", "", "", nil, 400, "perhaps"},
		{"both", "DELETE", policiesPath + "/web?orphanDependents=true&propagationPolicy=Orphan", "", "", nil, 422, "says the same"},
		{"another object", "DELETE", policiesPath + "/web", jsonType, `{"preconditions":{"uid":"another"}}`, nil, 409, "Precondition failed"},
		{"still there", "GET", policiesPath + "/web", "", "", nil, 200, ""},
	})
	_, text, _ := b.raw(t, "GET", policiesPath+"/web", "", "")
	var owner metav1.PartialObjectMetadata
	if err := json.Unmarshal([]byte(text), &owner); err != nil {
		t.Fatal(err)
	}
	owned := strings.Replace(policyBody, `"name":"web"`, `"name":"owned","ownerReferences":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","name":"web","uid":"`+
		string(owner.UID)+`","blockOwnerDeletion":true}]`, 1)
	b.tell(t, []request{
		{"owned", "POST", policiesPath, jsonType, owned, nil, 201, ""},
		{"foreground", "DELETE", policiesPath + "/web?propagationPolicy=Foreground&dryRun=All", "", "", nil, 200, `"foregroundDeletion"`},
		{"the body counts", "DELETE", policiesPath + "/web?propagationPolicy=Foreground&dryRun=All", jsonType, `{"propagationPolicy":"Orphan"}`, nil, 200, `"orphan"`},
		{"old words", "DELETE", policiesPath + "/web?orphanDependents=true&dryRun=All", "", "", nil, 200, `"orphan"`},
	})
}

// TestWordsOfClients: yes is written in many ways, Python's True among them, and
// what is compiled into a client is sent without its kind.
func TestWordsOfClients(t *testing.T) {
	b := start(t, nil)
	b.tell(t, []request{
		{"no kind", "POST", policiesPath, jsonType, namelessPolicy, nil, 201, `"kind":"NetworkPolicy"`},
		{"half a kind", "POST", policiesPath, jsonType, strings.Replace(namelessPolicy, `{"metadata":{"name":"python"}`, `{"kind":"NetworkPolicy","metadata":{"name":"half"}`, 1), nil, 422, "apiVersion"},
		{"no kind of a namespace", "POST", "/api/v1/namespaces", jsonType, `{"metadata":{"name":"bank"}}`, nil, 201, `"kind":"Namespace"`},
		{"a custom kind is named", "POST", applicationsPath, jsonType, `{"metadata":{"name":"a"},"spec":{"workload":{}}}`, nil, 422, "apiVersion"},
		{"as it comes", "PUT", policiesPath + "/python", jsonType, namelessPolicy, nil, 200, `"name":"python"`},
		{"but not from long ago", "PUT", policiesPath + "/python", jsonType, strings.Replace(namelessPolicy, `"name"`, `"resourceVersion":"1","name"`, 1), nil, 409, "modified"},
		{"Python watches", "GET", policiesPath + "?watch=True&timeoutSeconds=1", "", "", nil, 200, `{"type":"ADDED"`},
		{"a bare word", "GET", policiesPath + "?watch&timeoutSeconds=1", "", "", nil, 200, `{"type":"ADDED"`},
		{"no is no", "GET", policiesPath + "?watch=False", "", "", nil, 200, `"kind":"NetworkPolicyList"`},
		{"nought is no", "GET", policiesPath + "?watch=0", "", "", nil, 200, `"kind":"NetworkPolicyList"`},
		{"people read", "GET", policiesPath + "?pretty=true", "", "", nil, 200, "\n  \"kind\": \"NetworkPolicyList\""},
		{"and one object", "GET", policiesPath + "/python?pretty=1", "", "", nil, 200, "\n    \"name\": \"python\""},
		{"a group's address may end in a slash", "GET", "/apis/bocage.dev/v1/", "", "", nil, 200, "APIResourceList"},
		{"a name must not be missing", "DELETE", policiesPath + "/", "", "", nil, 404, ""},
		{"so nothing went", "GET", policiesPath + "/python", "", "", nil, 200, ""},
		{"forms of patches", "PATCH", policiesPath + "/python", jsonType, "{}", nil, 415, "application/strategic-merge-patch+json"},
	})
}

// TestAcceptedForms: of the forms that a client takes it gets the one that it likes most, and
// never another one than it can read.
func TestAcceptedForms(t *testing.T) {
	b := start(t, nil)
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	for _, test := range []struct {
		accept string
		code   int
		want   string
	}{
		{"", 200, `"kind":"NetworkPolicyList"`},
		{"application/json;q=0.2, application/yaml;q=0.1", 200, `"kind":"NetworkPolicyList"`},
		{"application/yaml;q=0.1, application/json", 200, `"kind":"NetworkPolicyList"`},
		{"application/json;q=0.1, application/yaml", 200, "kind: NetworkPolicyList"},
		{"application/json;q=0", 406, "NotAcceptable"},
		{"application/json;q=much", 406, "NotAcceptable"},
		{table, 200, `"kind":"Table"`},
		{"application/json;as=Table;v=v2;g=meta.k8s.io", 406, "NotAcceptable"},
		{"application/json;as=Table;v=v2;g=meta.k8s.io,application/json", 200, `"kind":"NetworkPolicyList"`},
		{"application/json;as=Chair;v=v1;g=meta.k8s.io", 406, "NotAcceptable"},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io," + table, 200, `"kind":"Table"`},
		{"application/cbor", 406, "NotAcceptable"},
		{"application/cbor,application/json;q=0.9", 200, `"kind":"NetworkPolicyList"`},
		{"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", 200, `"kind":"PartialObjectMetadataList"`},
	} {
		b.tell(t, []request{{test.accept, "GET", policiesPath, "", "", []string{"Accept", test.accept}, test.code, test.want}})
	}
	b.tell(t, []request{
		{"make", "POST", policiesPath, jsonType, policyBody, nil, 201, ""},
		{"a table of one has its version", "GET", policiesPath + "/web", "", "", []string{"Accept", table}, 200, `"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"`},
		{"one is no list", "GET", policiesPath + "/web", "", "", []string{"Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}, 406, ""},
	})
}

// TestGeneratedNames: a name that is left to the server is drawn, short enough, and
// what it was drawn from stays.
func TestGeneratedNames(t *testing.T) {
	b := start(t, nil)
	for _, prefix := range []string{"gen-", strings.Repeat("g", 240) + "-"} {
		seen := map[string]bool{}
		for range 3 {
			code, text, _ := b.raw(t, "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name":"web"`, `"generateName":"`+prefix+`"`, 1))
			var made metav1.PartialObjectMetadata
			if err := json.Unmarshal([]byte(text), &made); err != nil || code != 201 {
				t.Fatal(code, text)
			}
			if seen[made.Name] || len(made.Name) > 63 || !strings.HasPrefix(made.Name, prefix[:min(len(prefix), 58)]) || made.GenerateName != prefix {
				t.Errorf("%q from %q", made.Name, made.GenerateName)
			}
			seen[made.Name] = true
		}
	}
	b.tell(t, []request{
		{"neither", "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name":"web"`, "", 1), nil, 422, "metadata.name"},
		{"a name counts before", "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name":"web"`, `"name":"web","generateName":"x-"`, 1), nil, 201, `"name":"web"`},
		{"and is taken then", "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name":"web"`, `"name":"web","generateName":"x-"`, 1), nil, 409, "AlreadyExists"},
	})
}

// TestVersionsOfOwners: an owner's entry names the version that they wrote in, and so
// does the copy that kubectl keeps of what it applied.
func TestVersionsOfOwners(t *testing.T) {
	b := start(t, nil)
	owners := func() map[string]string {
		t.Helper()
		_, text, _ := b.raw(t, "GET", alphaPath+"/owned", "", "")
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, entry := range object.ManagedFields {
			found[entry.Manager+" "+string(entry.Operation)] += entry.APIVersion[strings.LastIndexByte(entry.APIVersion, '/')+1:]
		}
		return found
	}
	apply := func(code int, path, version, manager, network string) {
		t.Helper()
		b.tell(t, []request{{manager, "PATCH", path + "/owned?fieldManager=" + manager, "application/apply-patch+yaml", policyText(version, "owned", network), nil, code, ""}})
	}
	is := func(want map[string]string) {
		t.Helper()
		found := owners()
		for who, version := range want {
			if found[who] != version {
				t.Errorf("%s wrote in %q, want %q: %v", who, found[who], version, found)
			}
		}
		if len(found) != len(want) {
			t.Errorf("%v, want %v", found, want)
		}
	}
	apply(201, betaPath, "v1beta1", "one", "10.0.0.0/8")
	is(map[string]string{"one Apply": "v1beta1"})
	apply(200, alphaPath, "v1alpha2", "two", "10.0.0.0/8")
	is(map[string]string{"one Apply": "v1beta1", "two Apply": "v1alpha2"})
	apply(409, alphaPath, "v1alpha2", "two", "11.0.0.0/8")
	apply(200, alphaPath, "v1alpha2", "one", "10.0.0.0/8")
	is(map[string]string{"one Apply": "v1alpha2", "two Apply": "v1alpha2"})
	for path, manager := range map[string]string{betaPath: "three", alphaPath: "four"} {
		b.tell(t, []request{{manager, "PATCH", path + "/owned?fieldManager=" + manager, "application/merge-patch+json", `{"metadata":{"labels":{"` + manager + `":"x"}}}`, nil, 200, ""}})
	}
	is(map[string]string{"one Apply": "v1alpha2", "two Apply": "v1alpha2", "three Update": "v1beta1", "four Update": "v1alpha2"})
	// What nobody applies any more goes, whatever version it was applied in.
	labelled := strings.Replace(policyText("v1beta1", "owned", "10.0.0.0/8"), `"name":"owned"`, `"name":"owned","labels":{"mine":"x"}`, 1)
	b.tell(t, []request{
		{"with a label", "PATCH", betaPath + "/owned?fieldManager=one", "application/apply-patch+yaml", labelled, nil, 200, `"mine":"x"`},
	})
	apply(200, alphaPath, "v1alpha2", "one", "10.0.0.0/8")
	if _, text, _ := b.raw(t, "GET", betaPath+"/owned", "", ""); strings.Contains(text, "mine") {
		t.Error(text)
	}
	// kubectl's copy.
	b.tell(t, []request{{"kubectl", "PATCH", betaPath + "/copied?fieldManager=kubectl", "application/apply-patch+yaml",
		strings.Replace(policyText("v1beta1", "copied", "10.0.0.0/8"), `"name":"copied"`, `"name":"copied","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}`, 1),
		nil, 201, `{\"apiVersion\":\"policy.networking.k8s.io/v1beta1\",`}})
}

// TestForeignOwners: an owner's entry of another group, as in an old dump, is dropped
// alone; what nobody can read is refused.
func TestForeignOwners(t *testing.T) {
	b := start(t, nil)
	entry := func(manager, version string) string {
		return `{"manager":"` + manager + `","operation":"Update","apiVersion":"` + version + `","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:podSelector":{}}}}`
	}
	with := func(entries ...string) string {
		return strings.Replace(policyBody, `"name":"web"`, `"name":"web","labels":{"n":"`+strconv.Itoa(len(entries))+`"},"managedFields":[`+strings.Join(entries, ",")+`]`, 1)
	}
	owners := func(want ...string) {
		t.Helper()
		_, text, _ := b.raw(t, "GET", policiesPath+"/web", "", "")
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, e := range object.ManagedFields {
			found = append(found, e.Manager)
		}
		slices.Sort(found)
		if !slices.Equal(found, want) {
			t.Errorf("owners %v, want %v", found, want)
		}
	}
	ours, old, other := entry("ours", "networking.k8s.io/v1"), entry("old", "extensions/v1beta1"), entry("other", "apps/v1")
	b.tell(t, []request{{"make", "POST", policiesPath + "?fieldManager=maker", jsonType, with(ours, old), nil, 201, ""}})
	owners("maker") // who makes it writes all of it
	b.tell(t, []request{{"replace", "PUT", policiesPath + "/web?fieldManager=maker", jsonType, with(ours, old, other), nil, 200, ""}})
	owners("maker", "ours")
	b.tell(t, []request{
		{"apply", "PATCH", policiesPath + "/web?fieldManager=applier&force=true", "application/apply-patch+yaml", policyBody, nil, 200, ""},
		{"no version", "PUT", policiesPath + "/web?fieldManager=maker", jsonType, with(entry("bad", "a/b/c")), nil, 422, "metadata.managedFields"},
	})
	owners("applier", "maker", "ours")
}

// TestTimesOfTheSite: objects carry the time that controllers agree on, not this machine's.
func TestTimesOfTheSite(t *testing.T) {
	site := time.Date(2031, 2, 3, 4, 5, 6, 700, time.FixedZone("there", 3600))
	const is = "2031-02-03T03:05:06Z"
	b := start(t, func(c *Config) { c.TwoPerson, c.Now = true, func() time.Time { return site } })
	b.tell(t, []request{
		{"made", "POST", policiesPath, jsonType, strings.Replace(policyBody, `"name"`, `"finalizers":["x/y"],"name"`, 1), nil, 201, `"creationTimestamp":"` + is},
		{"a namespace that nobody made", "PATCH", "/api/v1/namespaces/shop", "application/merge-patch+json", `{"metadata":{"labels":{"a":"b"}}}`, nil, 200, `"creationTimestamp":"` + is},
		{"deleted", "DELETE", policiesPath + "/web", "", "", nil, 200, `"deletionTimestamp":"` + is},
	})
	alice, bob := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin)
	if _, err := alice.ApplyObject(t.Context(), kind("Guardrail"), guardrail("g", "shop"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Approve(t.Context(), kind("Guardrail"), "", "g", 0); err != nil {
		t.Fatal(err)
	}
	b.tell(t, []request{
		{"approved", "GET", "/apis/bocage.dev/v1/guardrails/g", "", "", nil, 200, `"at":"` + is},
		{"told", "GET", "/api/v1/namespaces/default/events", "", "", nil, 200, `"lastTimestamp":"` + is},
	})
}

// TestVersionOfManyApplied: what is applied among others is owned in the version in
// which it was written, too.
func TestVersionOfManyApplied(t *testing.T) {
	b := start(t, nil)
	texts := policyText("v1beta1", "later", "10.0.0.0/8") + "\n---\n" + policyText("v1alpha2", "kept", "10.0.0.0/8")
	if _, err := b.client.Apply(t.Context(), documents(t, texts), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, version := range map[string]string{"later": "v1beta1", "kept": "v1alpha2"} {
		_, text, _ := b.raw(t, "GET", alphaPath+"/"+name, "", "")
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		if object.APIVersion != bocage.ClusterNetworkPolicyAPIVersion || len(object.ManagedFields) != 1 || !strings.HasSuffix(object.ManagedFields[0].APIVersion, "/"+version) {
			t.Errorf("%s: %s", name, text)
		}
	}
	b.tell(t, []request{{"raw, and again", "POST", functionsPath + "/apply?fieldManager=bocage&name=test.yaml", "application/yaml", texts, nil, 200, `"unchanged"`}})
}
