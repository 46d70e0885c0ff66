package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// served is a server that is asked without a connection.
func served(f testing.TB) *Server {
	s, err := New(Config{Store: mem.New(), TrustDomain: "test.local", RequestsPerSecond: 1e9, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.view.run(ctx) }()
	f.Cleanup(func() { cancel(); <-done })
	return s
}

func ask(s *Server, method, path, contentType, body string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, "http://bocage/", strings.NewReader(body))
	at, query, _ := strings.Cut(path, "?")
	request.URL = &url.URL{Path: at, RawQuery: query}
	request.Header.Set("Content-Type", contentType)
	peer := &unix.Ucred{Uid: uint32(os.Getuid())}
	answer := httptest.NewRecorder()
	s.ServeHTTP(answer, request.WithContext(context.WithValue(request.Context(), peerKey{}, peer)))
	return answer
}

// FuzzPatch: no patch of any form fails the server, leaves an object behind that
// is invalid, or changes what the system says of it.
func FuzzPatch(f *testing.F) {
	f.Add(uint8(0), []byte(`{"spec":{"host":"h2","addresses":["10.0.0.2"]}}`))
	f.Add(uint8(0), []byte(`{"metadata":{"labels":{"a":"b"},"uid":null},"status":{"identity":7}}`))
	f.Add(uint8(1), []byte(`[{"op":"add","path":"/metadata/labels","value":{"a":"b"}},{"op":"copy","from":"/spec","path":"/status"}]`))
	f.Add(uint8(1), []byte(`[{"op":"move","from":"/spec/addresses/0","path":"/spec/addresses/-"},{"op":"test","path":"/kind","value":"Workload"}]`))
	f.Add(uint8(2), []byte("apiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: web, namespace: shop}\nspec: {host: h1, addresses: [10.0.0.1, fd00::1]}\n"))
	f.Add(uint8(2), []byte(`{"apiVersion":"bocage.dev/v1","kind":"Workload","metadata":{"name":"web","finalizers":["a","a"],"ownerReferences":[{}]},"spec":{}}`))
	forms := []string{mergeType, patchType, applyType}
	s := served(f)
	f.Fuzz(func(t *testing.T, form uint8, patch []byte) {
		s.config.Store = mem.New()
		ctx := t.Context()
		made := ask(s, "POST", "/apis/bocage.dev/v1/namespaces/shop/workloads", jsonType,
			`{"apiVersion":"bocage.dev/v1","kind":"Workload","metadata":{"name":"web"},"spec":{"host":"h1","interface":"v1","addresses":["10.0.0.1"]}}`)
		if made.Code != http.StatusCreated {
			t.Fatal(made.Body)
		}
		before, _, err := store.Object(ctx, s.config.Store, kind("Workload"), "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		answer := ask(s, "PATCH", "/apis/bocage.dev/v1/namespaces/shop/workloads/web?fieldManager=fuzz&force=true", forms[int(form)%len(forms)], string(patch))
		if answer.Code >= 500 {
			t.Fatalf("%d %s", answer.Code, answer.Body)
		}
		after, _, err := store.Object(ctx, s.config.Store, kind("Workload"), "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		if faults := after.Validate(); len(faults) > 0 {
			t.Fatalf("an invalid object was stored: %v", faults)
		}
		was, is := before.(*bocage.Workload), after.(*bocage.Workload)
		if is.UID != was.UID || is.Status.Identity != was.Status.Identity || is.Status.SPIFFEID != was.Status.SPIFFEID || !is.CreationTimestamp.Equal(*was.CreationTimestamp) {
			t.Fatalf("the system's own changed:\n%+v\n%+v", was, is)
		}
		for _, address := range is.Spec.Addresses {
			if entry, err := s.config.Store.Get(ctx, addressClaims+address.String()); err != nil || string(entry.Value) != "shop/web" {
				t.Fatalf("%s is not claimed: %v", address, err)
			}
		}
	})
}

// FuzzCreate: no body fails the server, and what it takes can be read back.
func FuzzCreate(f *testing.F) {
	f.Add([]byte(scopeJSON("all", "observe", "")))
	f.Add([]byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a","managedFields":[{"manager":7}],"creationTimestamp":null},"spec":{"mode":"observe","workload":{"matchExpressions":[{"key":"a","operator":"Exists"}]}}}`))
	s := served(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		s.config.Store = mem.New()
		answer := ask(s, "POST", scopesPath, jsonType, string(body))
		if answer.Code >= 500 {
			t.Fatalf("%d %s", answer.Code, answer.Body)
		}
		objects, _, err := store.Objects(t.Context(), s.config.Store, kind("Scope"))
		if err != nil || (len(objects) == 1) != (answer.Code == http.StatusCreated) {
			t.Fatalf("%d objects after %d: %v", len(objects), answer.Code, err)
		}
	})
}

// FuzzQuery: no parameter fails the server, and a selection of a list is the
// same as that of a watch.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"labelSelector=a%20in%20(b,c)&limit=1", "fieldSelector=metadata.name%3Da", "continue=eyJyIjoxfQ&limit=5",
		"resourceVersion=1&resourceVersionMatch=Exact", "labelSelector=!a,b%3D%3Dc", "limit=99999999999", "resourceVersion=-1",
	} {
		f.Add(seed)
	}
	s := served(f)
	ask(s, "POST", scopesPath, jsonType, strings.Replace(scopeJSON("a", "observe", ""), `"name"`, `"labels":{"a":"b"},"name"`, 1))
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{scopesPath, appsPath, "/api/v1/namespaces", functionsPath + "/explain", functionsPath + "/flows"} {
			// 501 is the answer of functions that are not wired; 504 of a revision
			// that is to come.
			if answer := ask(s, "GET", path+"?"+query, "", ""); answer.Code >= 500 && answer.Code != 501 && answer.Code != 504 && !strings.Contains(query, "watch") {
				t.Fatalf("%s?%s: %d %s", path, query, answer.Code, answer.Body)
			}
		}
	})
}

// FuzzPath: no path fails the server.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{scopesPath + "/a/status", appsPath + "/web", "/apis/bocage.dev/v1/namespaces//applications", "/openapi/v3/../x", "/api/v1/namespaces/a/b", "//", resourcesPath} {
		f.Add(seed)
	}
	s := served(f)
	f.Fuzz(func(t *testing.T, path string) {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			if answer := ask(s, method, path, jsonType, "{}"); answer.Code >= 500 && answer.Code != 501 {
				t.Fatalf("%s %q: %d %s", method, path, answer.Code, answer.Body)
			}
		}
	})
}

// FuzzReview: no review, in JSON or protobuf, fails the server.
func FuzzReview(f *testing.F) {
	f.Add([]byte(`{"spec":{"resourceAttributes":{"verb":"get","group":"bocage.dev","resource":"scopes"}}}`))
	f.Add([]byte("k8s\x00\x0a\x04\x0a\x02v1\x12\x0a\x12\x08\x0a\x06\x12\x04list"))
	s := served(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "/apis/authentication.k8s.io/v1/selfsubjectreviews"} {
			if answer := ask(s, "POST", path, jsonType, string(body)); answer.Code >= 500 {
				t.Fatalf("%s: %d %s", path, answer.Code, answer.Body)
			}
		}
	})
}

// TestProtobufReview reads what kubectl sends.
func TestProtobufReview(t *testing.T) {
	attributes := "\x0a\x04shop\x12\x06create\x1a\x0abocage.dev\x2a\x0capplications"
	spec := fmt.Sprintf("\x0a%c%s", len(attributes), attributes)
	review := fmt.Sprintf("\x12%c%s", len(spec), spec)
	body := fmt.Sprintf("k8s\x00\x0a\x06\x0a\x04a/v1\x12%c%s\x1a\x00\x22\x00", len(review), review)
	got, err := protobufAsJSON([]byte(body), reviewMessage("/selfsubjectaccessreviews"))
	want := `{"apiVersion":"a/v1","spec":{"resourceAttributes":{"group":"bocage.dev","namespace":"shop","resource":"applications","verb":"create"}}}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := protobufAsJSON([]byte("k8s\x00\xff\xff"), message{}); err == nil {
		t.Error("garbage was read")
	}
}

// BenchmarkList is a list of many objects, without what the network takes.
func BenchmarkList(b *testing.B) {
	s := served(b)
	const count = 20_000
	for i := range count {
		w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("w%06d", i), Namespace: "shop", Labels: map[string]string{"app": fmt.Sprint("a", i%100)}},
			Spec: bocage.WorkloadSpec{Host: "h1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}}
		if _, err := store.PutObject(b.Context(), s.config.Store, kind("Workload"), w, store.AnyRevision); err != nil {
			b.Fatal(err)
		}
	}
	for name, query := range map[string]string{"all": "", "selected": "?labelSelector=app%3Da7"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if answer := ask(s, "GET", "/apis/bocage.dev/v1/workloads"+query, "", ""); answer.Code != 200 {
					b.Fatal(answer.Body)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/object")
		})
	}
}

// BenchmarkApply is a server-side apply that changes the object, without the
// network and the disk.
func BenchmarkApply(b *testing.B) {
	s := served(b)
	n := 0
	for b.Loop() {
		n++
		body := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":"web"},"spec":{"workload":{"matchLabels":{"app":"web"}},"provides":[{"name":"http","port":%d}]}}`, 1+n%60000)
		if answer := ask(s, "PATCH", appsPath+"/web?fieldManager=bench", applyType, body); answer.Code/100 != 2 {
			b.Fatal(answer.Body)
		}
	}
}
