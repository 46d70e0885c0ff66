package api

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	utilproto "k8s.io/kube-openapi/pkg/util/proto"

	"bocage.dev/bocage"
)

const (
	policiesPath  = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
	strategicType = "application/strategic-merge-patch+json"
)

// wireMessage builds protobuf as client-go's types write it.
type wireMessage []byte

func (m wireMessage) text(number protowire.Number, value string) wireMessage {
	return protowire.AppendString(protowire.AppendTag(m, number, protowire.BytesType), value)
}

func (m wireMessage) within(number protowire.Number, inner wireMessage) wireMessage {
	return protowire.AppendBytes(protowire.AppendTag(m, number, protowire.BytesType), inner)
}

func (m wireMessage) number(number protowire.Number, value uint64) wireMessage {
	return protowire.AppendVarint(protowire.AppendTag(m, number, protowire.VarintType), value)
}

func (m wireMessage) entry(number protowire.Number, key, value string) wireMessage {
	return m.within(number, wireMessage{}.text(1, key).text(2, value))
}

func envelope(apiVersion, kind string, object wireMessage) string {
	unknown := wireMessage{}.within(1, wireMessage{}.text(1, apiVersion).text(2, kind)).within(2, object).text(3, "").text(4, "")
	return string(protobufMagic) + string(unknown)
}

// TestProtobufBodies: client-go's typed clients write NetworkPolicies, Namespaces
// and DeleteOptions as protobuf.
func TestProtobufBodies(t *testing.T) {
	b := start(t, nil)
	selector := wireMessage{}.entry(1, "app", "web").within(2, wireMessage{}.text(1, "tier").text(2, "In").text(3, "a").text(3, "b"))
	number := wireMessage{}.text(1, "TCP").within(2, wireMessage{}.number(1, 0).number(2, 80).text(3, "")).number(3, 90)
	name := wireMessage{}.text(1, "UDP").within(2, wireMessage{}.number(1, 1).number(2, 0).text(3, "dns"))
	block := wireMessage{}.within(3, wireMessage{}.text(1, "10.0.0.0/8").text(2, "10.1.0.0/16"))
	everyone := wireMessage{}.within(1, wireMessage{})
	metadata := wireMessage{}.text(1, "web").text(2, "").text(3, "shop").text(5, "").text(6, "").number(7, 0).within(8, nil).
		entry(11, "a", "b").text(14, "x/y").
		within(13, wireMessage{}.text(1, "Deployment").text(3, "d").text(4, "1").text(5, "apps/v1").number(6, 1).number(7, 0))
	policy := wireMessage{}.within(1, metadata).within(2, wireMessage{}.within(1, selector).
		within(2, wireMessage{}.within(1, number).within(1, name).within(2, block).within(2, everyone)).
		text(4, "Ingress"))
	body := envelope("networking.k8s.io/v1", "NetworkPolicy", policy)
	code, text, _ := b.raw(t, "POST", policiesPath, protobufType, body, "Accept", protobufType+",application/json")
	want := `"spec":{"podSelector":{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"tier","operator":"In","values":["a","b"]}]},` +
		`"ingress":[{"ports":[{"protocol":"TCP","port":80,"endPort":90},{"protocol":"UDP","port":"dns"}],` +
		`"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"podSelector":{}}]}],"policyTypes":["Ingress"]}`
	if code != 201 || !strings.Contains(text, want) || !strings.Contains(text, `"ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment"`) {
		t.Errorf("%d %s", code, text)
	}
	namespace := wireMessage{}.within(1, wireMessage{}.text(1, "bank").entry(11, "team", "money"))
	if code, text, _ := b.raw(t, "POST", "/api/v1/namespaces", protobufType, envelope("v1", "Namespace", namespace)); code != 201 || !strings.Contains(text, `"team":"money"`) {
		t.Errorf("%d %s", code, text)
	}
	for _, broken := range []string{"k8s\x00\xff\xff", body[:len(body)-40], "k8s\x00"} {
		if code, text, _ := b.raw(t, "POST", policiesPath, protobufType, broken); code != 400 && code != 422 {
			t.Errorf("%q: %d %s", broken, code, text)
		}
	}
	if code, text, _ := b.raw(t, "POST", scopesPath, protobufType, body); code != 415 {
		t.Errorf("a kind that nobody has compiled in: %d %s", code, text)
	}
	options := func(uid string) string {
		return envelope("meta.k8s.io/v1", "DeleteOptions", wireMessage{}.within(2, wireMessage{}.text(1, uid)).text(4, "Background"))
	}
	if code, text, _ := b.raw(t, "DELETE", policiesPath+"/web", protobufType, options("of-another")); code != 409 {
		t.Errorf("%d %s", code, text)
	}
	object, err := b.client.Get(t.Context(), kind("NetworkPolicy"), "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	if code, text, _ := b.raw(t, "DELETE", policiesPath+"/web", protobufType, options(object.Meta().UID)); code != 200 || !strings.Contains(text, "deletionTimestamp") {
		t.Errorf("%d %s", code, text)
	}
	// Who takes nothing but protobuf is told so.
	if code, text, _ := b.raw(t, "GET", policiesPath, "", "", "Accept", protobufType); code != 406 || !strings.Contains(text, "application/json") {
		t.Errorf("%d %s", code, text)
	}
}

// TestStrategicMergePatches: lists are merged by their keys where they have some.
func TestStrategicMergePatches(t *testing.T) {
	b := start(t, nil)
	policy := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"web","finalizers":["a/a"],"labels":{"x":"1"},` +
		`"ownerReferences":[{"apiVersion":"b/v1","kind":"B","name":"one","uid":"1"}]},"spec":{"podSelector":{"matchLabels":{"a":"b"}},"policyTypes":["Ingress"],"ingress":[{"ports":[{"port":80}]}]}}`
	if code, text, _ := b.raw(t, "POST", policiesPath, jsonType, policy); code != 201 {
		t.Fatal(code, text)
	}
	for _, test := range []struct {
		name, patch string
		code        int
		want        string
	}{
		{"a list without keys is replaced", `{"spec":{"ingress":[{"ports":[{"port":"http"}]}]}}`, 200, `"ingress":[{"ports":[{"protocol":"TCP","port":"http"}]}]`},
		{"a list of texts is merged", `{"metadata":{"finalizers":["b/b"]}}`, 200, `"finalizers":["b/b","a/a"]`},
		{"and taken from", `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a/a"]}}`, 200, `"finalizers":["b/b"]`},
		{"a list with a key is merged", `{"metadata":{"ownerReferences":[{"uid":"2","apiVersion":"b/v1","kind":"B","name":"two"}]}}`, 200, `"name":"two"`},
		{"and both are there", `{}`, 200, `"name":"one"`},
		{"one is deleted by its key", `{"metadata":{"ownerReferences":[{"uid":"1","$patch":"delete"}]}}`, 200, `"ownerReferences":[{"apiVersion":"b/v1","kind":"B","name":"two","uid":"2"}]`},
		{"a map is replaced", `{"spec":{"podSelector":{"$patch":"replace","matchLabels":{"c":"d"}}}}`, 200, `"podSelector":{"matchLabels":{"c":"d"}}`},
		{"nothing is there any more", `{"metadata":{"labels":null}}`, 200, `"uid"`},
		{"a field that is not there", `{"spec":{"nothing":[{"a":1}]}}`, 422, "spec.nothing: is unknown"},
		{"a directive that is none", `{"spec":{"$patch":"explode"}}`, 422, "cannot be applied"},
		{"no object", `[]`, 400, "is no JSON object"},
		{"a wrong value", `{"spec":{"policyTypes":7}}`, 422, "list"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, text, _ := b.raw(t, "PATCH", policiesPath+"/web", strategicType, test.patch)
			if code != test.code || !strings.Contains(text, test.want) {
				t.Errorf("%d, want %d and %q in\n%s", code, test.code, test.want, text)
			}
		})
	}
}

// TestOpenAPI2 reads the document as kubectl and Argo CD do.
func TestOpenAPI2(t *testing.T) {
	b := start(t, nil)
	code, text, header := b.raw(t, "GET", "/openapi/v2", "", "", "Accept", protobufOpenAPI2Asked)
	if code != 200 || header.Get("Content-Type") != protobufOpenAPI2 {
		t.Fatal(code, header)
	}
	document := &openapi_v2.Document{}
	if err := proto.Unmarshal([]byte(text), document); err != nil {
		t.Fatal(err)
	}
	models, err := utilproto.NewOpenAPIData(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range bocage.Kinds() {
		found := slices.ContainsFunc(models.ListModels(), func(name string) bool {
			list, _ := models.LookupModel(name).GetExtensions()["x-kubernetes-group-version-kind"].([]any)
			for _, gvk := range list {
				fields, _ := gvk.(map[any]any)
				if fields["kind"] == kind.Name && fields["group"] == kind.Group() && fields["version"] == kind.Version() {
					return true
				}
			}
			return false
		})
		if !found {
			t.Errorf("there is no model of %s", kind.Name)
		}
	}
	policy, ok := models.LookupModel("io.k8s.api.networking.v1.NetworkPolicy").(*utilproto.Kind)
	if !ok || policy.Fields["spec"].GetName() == "" && policy.Fields["spec"].GetDescription() == "" {
		t.Errorf("the policy's spec is %+v", policy)
	}
	code, text, header = b.raw(t, "GET", "/openapi/v2", "", "", "Accept", "application/json")
	var swagger struct {
		Swagger string
		Paths   map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &swagger); err != nil || code != 200 || swagger.Swagger != "2.0" ||
		swagger.Paths["/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}"]["patch"] == nil {
		t.Errorf("%d %.500s", code, text)
	}
	if strings.Contains(text, "#/components") {
		t.Error("a reference of v3 is left")
	}
	if code, _, _ := b.raw(t, "GET", "/openapi/v2", "", "", "Accept", "application/json", "If-None-Match", header.Get("ETag")); code != 304 {
		t.Errorf("what the client has: %d", code)
	}
	if code, _, _ := b.raw(t, "GET", "/openapi/v2", "", "", "Accept", "image/png"); code != 406 {
		t.Errorf("as a picture: %d", code)
	}
	// Every reference of every document leads somewhere.
	_, index, _ := b.raw(t, "GET", "/openapi/v3", "", "")
	var paths struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal([]byte(index), &paths); err != nil || len(paths.Paths) != len(groupVersions()) {
		t.Fatal(index, err)
	}
	for name, at := range paths.Paths {
		_, text, _ := b.raw(t, "GET", at.ServerRelativeURL, "", "")
		var v3 struct {
			Components struct{ Schemas map[string]any }
		}
		if err := json.Unmarshal([]byte(text), &v3); err != nil {
			t.Fatal(err)
		}
		for rest := text; ; {
			_, after, found := strings.Cut(rest, `"$ref":"`+refPrefix)
			if !found {
				break
			}
			var reference string
			reference, rest, _ = strings.Cut(after, `"`)
			if v3.Components.Schemas[reference] == nil {
				t.Errorf("%s: %s is not there", name, reference)
			}
		}
	}
}

// TestCompression: large answers are compressed for those who take that.
func TestCompression(t *testing.T) {
	b := start(t, nil)
	note := strings.Repeat("hedges ", 3000)
	for i := range 10 {
		body := strings.Replace(scopeJSON(fmt.Sprintf("s%d", i), "observe", ""), `"name"`, `"annotations":{"note":"`+note+`"},"name"`, 1)
		if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, body); code != 201 {
			t.Fatal(code, text)
		}
	}
	_, plain, header := b.raw(t, "GET", scopesPath, "", "", "Accept-Encoding", "identity")
	if header.Get("Content-Encoding") != "" || header.Get("Vary") == "" || len(plain) < 200_000 {
		t.Errorf("%v, %d bytes", header, len(plain))
	}
	for accept, want := range map[string]bool{"gzip": true, "deflate, gzip;q=1.0": true, "gzip;q=0": false, "gzip; q=0.0": false, "br": false} {
		_, text, header := b.raw(t, "GET", scopesPath, "", "", "Accept-Encoding", accept)
		if got := header.Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("%q: compressed is %v", accept, got)
		} else if got {
			reader, err := gzip.NewReader(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if data, err := io.ReadAll(reader); err != nil || string(data) != plain || len(text) > len(plain)/10 {
				t.Errorf("%q: %d bytes of %d, %v", accept, len(text), len(plain), err)
			}
		}
	}
	// Small ones are not.
	if _, _, header := b.raw(t, "GET", scopesPath+"/s0", "", "", "Accept-Encoding", "gzip"); header.Get("Content-Encoding") != "" {
		t.Error("a small answer is compressed")
	}
}

// TestFormsOfWatches: a watch in each form says the same.
func TestFormsOfWatches(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	for accept, want := range map[string][]string{
		"application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io": {`"type":"ADDED","object":{"kind":"PartialObjectMetadata"`, `"type":"BOOKMARK"`, `"type":"MODIFIED"`, `"type":"DELETED"`},
		"application/json;as=Table;v=v1;g=meta.k8s.io":                 {`"cells":["a","observe"`, `"type":"BOOKMARK"`, `"columnDefinitions":null`, `"type":"DELETED"`},
		"application/json;stream=watch":                                {`"spec":{"mode":"observe"}`, `"k8s.io/initial-events-end":"true"`, `"mode":"enforce"`, `"type":"DELETED"`},
	} {
		b.raw(t, "POST", scopesPath, jsonType, scopeJSON("a", "observe", ""))
		w := b.watch(t, "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "Accept", accept)
		for i, part := range want {
			switch i {
			case 2:
				b.mustScope(t, "PATCH", "a", `{"spec":{"mode":"enforce"}}`)
			case 3:
				b.mustScope(t, "DELETE", "a", "")
			}
			if !w.lines.Scan() || !strings.Contains(w.lines.Text(), part) {
				t.Errorf("%s: event %d is %q, want %q", accept, i, w.lines.Text(), part)
			}
		}
		w.end()
	}
}

// TestLargeObjects: a hundred thousand rules in one object are taken or refused
// with what to do, soon, and deep or tricky ones are told.
func TestLargeObjects(t *testing.T) {
	b := start(t, nil)
	rules := func(n int, rule string) string {
		return `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"many"},"spec":{"podSelector":{},"egress":[{"ports":[` +
			strings.Repeat(rule+",", n-1) + rule + `]}]}}`
	}
	for _, test := range []struct {
		name, body string
		code       int
		want       string
	}{
		{"a hundred thousand rules", rules(100_000, `{"port":80}`), 201, `"name":"many"`},
		{"more than an object may have", strings.Replace(rules(100_000, `{"port":80,"protocol":"TCP","endPort":443}`), "many", "more", 1), 413, "4 MiB"},
		{"more values than a body may have", rules(600_000, `{"port":1}`), 400, "split it"},
		{"too deep", `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"deep"},"spec":` + strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200) + "}", 400, "nested deeper"},
		{"a name that looks like another", strings.Replace(rules(1, `{"port":80}`), `"many"`, "\"m\u0430ny\"", 1), 422, "metadata.name"},
		{"a name with a mark that nobody sees", strings.Replace(rules(1, `{"port":80}`), `"many"`, "\"ma\u200bny\"", 1), 422, "metadata.name"},
		{"a name with a path", strings.Replace(rules(1, `{"port":80}`), `"many"`, `"../many"`, 1), 422, "metadata.name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, text, _ := b.raw(t, "POST", policiesPath, jsonType, test.body)
			if code != test.code || !strings.Contains(text, test.want) {
				t.Errorf("%d, want %d and %q in\n%.500s", code, test.code, test.want, text)
			}
		})
	}
	if code, text, _ := b.raw(t, "PATCH", policiesPath+"/many?fieldManager=x&force=true", applyType, rules(100_000, `{"port":81}`)); code != 200 {
		t.Errorf("applied: %d %.300s", code, text)
	}
	if code, _, _ := b.raw(t, "GET", "/apis/networking.k8s.io/v1/namespaces/sh%6Fp/networkpolicies/m%61ny", "", ""); code != http.StatusOK {
		t.Errorf("an escaped path: %d", code)
	}
	if code, _, _ := b.raw(t, "GET", "/apis/networking.k8s.io/v1/namespaces/shop%2Fx/networkpolicies/many", "", ""); code != http.StatusNotFound {
		t.Errorf("a path within a name: %d", code)
	}
}
