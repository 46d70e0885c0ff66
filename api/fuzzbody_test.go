package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// FuzzProtobuf: no message fails the server; what it takes can be read back and
// is valid.
func FuzzProtobuf(f *testing.F) {
	selector := wireMessage{}.entry(1, "app", "web").within(2, wireMessage{}.text(1, "tier").text(2, "In").text(3, "a"))
	port := wireMessage{}.text(1, "TCP").within(2, wireMessage{}.number(1, 1).text(3, "http")).number(3, 90)
	f.Add([]byte(envelope("networking.k8s.io/v1", "NetworkPolicy", wireMessage{}.
		within(1, wireMessage{}.text(1, "web").within(8, wireMessage{}.number(1, 1e9)).within(17, wireMessage{}.text(1, "m").within(7, wireMessage{}.text(1, "{}")))).
		within(2, wireMessage{}.within(1, selector).within(2, wireMessage{}.within(1, port)).text(4, "Ingress")))))
	f.Add([]byte(envelope("v1", "Namespace", wireMessage{}.within(1, wireMessage{}.text(1, "shop")).within(2, wireMessage{}.text(1, "kubernetes")))))
	f.Add([]byte(envelope("meta.k8s.io/v1", "DeleteOptions", wireMessage{}.number(1, 0).within(2, wireMessage{}.text(1, "u")).number(3, 1).text(5, "All"))))
	s := served(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		s.config.Store = mem.New()
		for _, request := range [][2]string{{"POST", policiesPath}, {"POST", "/api/v1/namespaces"}, {"DELETE", scopesPath + "/a"}} {
			if answer := ask(s, request[0], request[1], protobufType, string(body)); answer.Code >= 500 {
				t.Fatalf("%s %s: %d %s", request[0], request[1], answer.Code, answer.Body)
			}
		}
		for _, name := range []string{"NetworkPolicy", "Namespace"} {
			objects, _, err := store.Objects(t.Context(), s.config.Store, kind(name))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range objects {
				if faults := o.Validate(); len(faults) > 0 {
					t.Fatalf("an invalid object was stored: %v", faults)
				}
			}
		}
	})
}

// FuzzStrategic: no strategic merge patch fails the server or leaves an object
// behind that is invalid, and one that changes nothing does not.
func FuzzStrategic(f *testing.F) {
	f.Add([]byte(`{"spec":{"policyTypes":["Egress"],"ingress":null},"metadata":{"finalizers":["a/b"]}}`))
	f.Add([]byte(`{"metadata":{"$setElementOrder/finalizers":["b/b","a/a"],"$deleteFromPrimitiveList/finalizers":["a/a"],"$retainKeys":["x"]}}`))
	f.Add([]byte(`{"metadata":{"ownerReferences":[{"uid":"1","$patch":"delete"},{"uid":7}],"$setElementOrder/ownerReferences":[{"uid":"1"}]}}`))
	f.Add([]byte(`{"spec":{"podSelector":{"$patch":"replace"}},"$patch":"merge"}`))
	s := served(f)
	f.Fuzz(func(t *testing.T, patch []byte) {
		s.config.Store = mem.New()
		made := ask(s, "POST", policiesPath, jsonType, `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web","finalizers":["a/a"],`+
			`"ownerReferences":[{"apiVersion":"b/v1","kind":"B","name":"one","uid":"1"}]},"spec":{"podSelector":{"matchLabels":{"a":"b"}},"policyTypes":["Ingress"]}}`)
		if made.Code != http.StatusCreated {
			t.Fatal(made.Body)
		}
		answer := ask(s, "PATCH", policiesPath+"/web", strategicType, string(patch))
		if answer.Code >= 500 {
			t.Fatalf("%d %s", answer.Code, answer.Body)
		}
		after, _, err := store.Object(t.Context(), s.config.Store, kind("NetworkPolicy"), "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		if faults := after.Validate(); len(faults) > 0 {
			t.Fatalf("an invalid object was stored: %v", faults)
		}
	})
}

// FuzzSelection: a selector picks the same objects of a list as one by one, and
// with its opposite it picks all.
func FuzzSelection(f *testing.F) {
	for _, seed := range []string{"a=b", "a!=b", "a in (b,c)", "a notin (b)", "!a", "a,c", "a>1", "", "a==b,!c", "=", "a in ()", "\u0430=b"} {
		f.Add(seed, "metadata.name="+seed)
	}
	f.Add("", "spec.host=h1,metadata.namespace!=shop")
	seen := &seenKind{kind("Workload"), selectableFields(kind("Workload"))}
	var objects []*object
	for i, labels := range []string{`{}`, `{"a":"b"}`, `{"a":"c","c":""}`, `{"a":"7"}`} {
		name := string(rune('a' + i))
		objects = append(objects, newObject(seen, "shop/"+name, []byte(startOf(seen.Kind)+`"name":"`+name+`","namespace":"shop","labels":`+labels+`},"spec":{"host":"h1"}}`), 7))
	}
	f.Fuzz(func(t *testing.T, label, field string) {
		selected, err := readSelection(seen.Kind, map[string][]string{"labelSelector": {label}, "fieldSelector": {field}})
		if err != nil {
			return
		}
		for _, o := range objects {
			var decoded struct{ Metadata bocage.ObjectMeta }
			if err := json.Unmarshal(o.value, &decoded); err != nil {
				t.Fatal(err)
			}
			want := selected.labels.Matches(labelMap(decoded.Metadata.Labels)) && selected.fields.Matches(o)
			if got := selected.picks(o); got != want {
				t.Fatalf("%q, %q: %s is picked: %v, want %v", label, field, o.value, got, want)
			}
		}
	})
}

// labelMap is the plain way to look labels up.
type labelMap map[string]string

func (m labelMap) Has(label string) bool              { _, ok := m[label]; return ok }
func (m labelMap) Get(label string) string            { return m[label] }
func (m labelMap) Lookup(label string) (string, bool) { value, ok := m[label]; return value, ok }

// FuzzContinue: no token fails the server, and one that is taken leads on from
// where it says.
func FuzzContinue(f *testing.F) {
	s := served(f)
	var names []string
	for _, name := range []string{"a", "b", "c", "d"} {
		ask(s, "POST", scopesPath, jsonType, scopeJSON(name, "observe", ""))
		names = append(names, name)
	}
	for _, next := range []continuation{{3, "resources/scopes/a"}, {5, "resources/scopes/b"}, {1, ""}, {1 << 62, "resources/scopes/\xff"}, {-1, "x"}} {
		token, err := encodeContinuation(next)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		next, err := decodeContinuation(token)
		request := scopesPath + "?limit=2&continue=" + strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", "#", "%23", ";", "%3B").Replace(token)
		answer := ask(s, "GET", request, "", "")
		var list struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		switch {
		case answer.Code == http.StatusGatewayTimeout: // a revision that is to come
		case answer.Code >= 500:
			t.Fatalf("%q: %d %s", token, answer.Code, answer.Body)
		case answer.Code != http.StatusOK || token == "":
		case err != nil:
			t.Fatalf("%q was taken although it is none: %v", token, err)
		default:
			if err := json.Unmarshal(answer.Body.Bytes(), &list); err != nil {
				t.Fatal(err)
			}
			after := strings.TrimPrefix(next.After, "resources/scopes/")
			for _, item := range list.Items {
				if item.Metadata.Name <= after || !slices.Contains(names, item.Metadata.Name) {
					t.Fatalf("after %q comes %q", after, item.Metadata.Name)
				}
			}
		}
	})
}
