package api

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// scopeOf makes a Scope that others own.
func (b *bench) scopeOf(t *testing.T, name string, blocks bool, owners ...string) {
	t.Helper()
	var references []string
	for _, owner := range owners {
		object, err := b.client.Get(t.Context(), kind("Scope"), "", owner)
		if err != nil {
			t.Fatal(err)
		}
		references = append(references, fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","name":%q,"uid":%q,"blockOwnerDeletion":%v}`,
			owner, object.Meta().UID, blocks))
	}
	body := strings.Replace(scopeJSON(name, "observe", ""), `"name"`, `"ownerReferences":[`+strings.Join(references, ",")+`],"name"`, 1)
	if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, body); code != 201 {
		t.Fatal(code, text)
	}
}

// wantScopes waits until exactly these are there, in this form: name, or
// name(owner,owner) of one that is owned.
func (b *bench) wantScopes(t *testing.T, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if want == "" { // of what is gone already no watch tells
		if list, _, err := b.client.List(ctx, kind("Scope"), client.ListOptions{}); err == nil && len(list) == 0 {
			return
		}
	}
	there := map[string]string{}
	got := ""
	err := b.client.Watch(ctx, kind("Scope"), client.ListOptions{}, func(e client.Event) error {
		name := e.Object.Meta().Name
		delete(there, name)
		if e.Type != client.Deleted {
			var owners []string
			for _, o := range e.Object.Meta().OwnerReferences {
				owners = append(owners, o.Name)
			}
			there[name] = name
			if len(owners) > 0 {
				there[name] += "(" + strings.Join(owners, ",") + ")"
			}
		}
		var list []string
		for _, key := range []string{"a", "b", "c", "d"} {
			if text, ok := there[key]; ok {
				list = append(list, text)
			}
		}
		if got = strings.Join(list, " "); got == want {
			cancel()
		}
		return nil
	})
	if got != want && !(want == "" && len(there) == 0) {
		t.Errorf("there are %q, want %q: %v", got, want, err)
	}
}

func (b *bench) deleteScope(t *testing.T, name, options string) {
	t.Helper()
	if code, text, _ := b.raw(t, "DELETE", scopesPath+"/"+name, jsonType, options); code != 200 {
		t.Fatal(code, text)
	}
}

// TestOwners: what becomes of objects whose owners go.
func TestOwners(t *testing.T) {
	for _, test := range []struct {
		name    string
		make    func(t *testing.T, b *bench)
		options string // of the deletion of a
		want    string
	}{
		{"in the background", func(t *testing.T, b *bench) { b.scopeOf(t, "b", false, "a"); b.scopeOf(t, "c", false, "b") }, "", "d"},
		{"in the foreground", func(t *testing.T, b *bench) { b.scopeOf(t, "b", true, "a"); b.scopeOf(t, "c", true, "b") },
			`{"propagationPolicy":"Foreground"}`, "d"},
		{"in the foreground, with nothing owned", func(*testing.T, *bench) {}, `{"propagationPolicy":"Foreground"}`, "d"},
		{"left behind", func(t *testing.T, b *bench) { b.scopeOf(t, "b", true, "a"); b.scopeOf(t, "c", false, "b") },
			`{"propagationPolicy":"Orphan"}`, "b c(b) d"},
		{"left behind, as old clients say it", func(t *testing.T, b *bench) { b.scopeOf(t, "b", false, "a") }, `{"orphanDependents":true}`, "b d"},
		{"one of two owners", func(t *testing.T, b *bench) { b.scopeOf(t, "b", false, "a", "d") }, "", "b(d) d"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, nil)
			b.mustScope(t, "POST", "a", "")
			b.mustScope(t, "POST", "d", "")
			test.make(t, b)
			b.deleteScope(t, "a", test.options)
			b.wantScopes(t, test.want)
		})
	}
}

// TestOwnersThatCannotBe: who names an owner that never was goes, who names one of
// a kind that is not known here stays.
func TestOwnersThatCannotBe(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	owned := func(name, owner string) string {
		return strings.Replace(scopeJSON(name, "observe", ""), `"name"`, `"ownerReferences":[`+owner+`],"name"`, 1)
	}
	for body, want := range map[string]int{
		owned("b", `{"apiVersion":"bocage.dev/v1","kind":"Scope","name":"a","uid":"of-another-a"}`):                                                                   201,
		owned("c", `{"apiVersion":"argoproj.io/v1","kind":"Rollout","name":"a","uid":"1"}`):                                                                           201,
		owned("d", `{"apiVersion":"bocage.dev/v1","kind":"Scope","name":"a"}`):                                                                                        422,
		owned("d", `{"apiVersion":"b/v1","kind":"B","name":"a","uid":"1","controller":true},{"apiVersion":"b/v1","kind":"B","name":"b","uid":"2","controller":true}`): 422,
	} {
		if code, text, _ := b.raw(t, "POST", scopesPath, jsonType, body); code != want {
			t.Errorf("%s: %d %s", body, code, text)
		}
	}
	b.wantScopes(t, "a c(a)")
	if code, text, _ := b.raw(t, "DELETE", scopesPath+"/a", jsonType, `{"propagationPolicy":"Sideways"}`); code != 422 {
		t.Error(code, text)
	}
	if code, text, _ := b.raw(t, "DELETE", scopesPath+"/a?dryRun=All", jsonType, `{"propagationPolicy":"Foreground"}`); code != 200 {
		t.Error(code, text)
	}
	b.wantScopes(t, "a c(a)")
}

// TestNamespaces: declared ones, those that nobody declared, and how they go.
func TestNamespaces(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	const path = "/api/v1/namespaces"
	ask := func(method, at, contentType, body string, code int, want string) {
		t.Helper()
		got, text, _ := b.raw(t, method, path+at, contentType, body)
		if got != code || !strings.Contains(text, want) {
			t.Errorf("%s %s: %d, want %d and %q in\n%s", method, at, got, code, want, text)
		}
	}
	ask("GET", "/shop", "", "", 404, `namespaces \"shop\" not found`)
	ask("GET", "/default", "", "", 200, `"phase":"Active"`)
	app := func(name string) string {
		return fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Application","metadata":{"name":%q},"spec":{"workload":{}}}`, name)
	}
	held := strings.Replace(app("held"), `"name"`, `"finalizers":["a/b"],"name"`, 1)
	for _, body := range []string{app("web"), held} {
		if code, text, _ := b.raw(t, "POST", appsPath, jsonType, body); code != 201 {
			t.Fatal(code, text)
		}
	}
	ask("GET", "/shop", "", "", 200, `"kubernetes.io/metadata.name":"shop"`)
	ask("GET", "?labelSelector=kubernetes.io/metadata.name%3Dshop", "", "", 200, `"name":"shop"`)
	// Whoever changes it declares it; what it must carry it keeps.
	ask("PATCH", "/shop", mergeType, `{"metadata":{"labels":{"team":"web","kubernetes.io/metadata.name":"other"}}}`, 200, `"kubernetes.io/metadata.name":"shop"`)
	ask("PATCH", "/shop", mergeType, `{"spec":{"finalizers":[]},"status":{"phase":"Terminating"}}`, 200, `"phase":"Active"`)
	ask("GET", "?labelSelector=team%3Dweb", "", "", 200, `"name":"shop"`)
	ask("GET", "?fieldSelector=status.phase%3DTerminating", "", "", 200, `"items":[]`)
	ask("DELETE", "/default", "", "", 403, "may not be deleted")
	ask("DELETE", "/none", "", "", 404, "not found")
	ask("DELETE", "/shop?dryRun=All", "", "", 200, `"phase":"Terminating"`)
	ask("GET", "/shop", "", "", 200, `"phase":"Active"`)

	ask("DELETE", "/shop", "", "", 200, `"phase":"Terminating"`)
	if code, text, _ := b.raw(t, "POST", appsPath, jsonType, app("late")); code != 403 || !strings.Contains(text, "NamespaceTerminating") {
		t.Error(code, text)
	}
	// The finalizer holds what it holds; the rest goes.
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	gone := map[string]bool{}
	err := b.client.Watch(wait, kind("Application"), client.ListOptions{Namespace: "shop"}, func(e client.Event) error {
		meta := e.Object.Meta()
		gone[meta.Name] = e.Type == client.Deleted
		if meta.Name == "held" && meta.DeletionTimestamp != nil {
			cancel()
		}
		return nil
	})
	if gone["held"] || len(gone) == 0 {
		t.Fatal(gone, err)
	}
	ask("GET", "/shop", "", "", 200, `"phase":"Terminating"`)
	if code, text, _ := b.raw(t, "PATCH", appsPath+"/held", mergeType, `{"metadata":{"finalizers":null}}`); code != 200 {
		t.Fatal(code, text)
	}
	again, cancelAgain := context.WithTimeout(ctx, 20*time.Second)
	defer cancelAgain()
	there := false
	err = b.client.Watch(again, kind("Namespace"), client.ListOptions{FieldSelector: "metadata.name=shop"}, func(e client.Event) error {
		if there = e.Type != client.Deleted; !there {
			cancelAgain()
		}
		return nil
	})
	if there && again.Err() == context.DeadlineExceeded {
		t.Fatal(err)
	}
	ask("GET", "/shop", "", "", 404, "not found")
	if list, _, err := b.client.List(ctx, kind("Application"), client.ListOptions{}); err != nil || len(list) != 0 {
		t.Errorf("%d are left: %v", len(list), err)
	}
	// It may come back.
	ask("POST", "", jsonType, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"a":"b"}}}`, 201, `"finalizers":["kubernetes"]`)
	namespace, err := b.client.Get(ctx, kind("Namespace"), "", "shop")
	if err != nil || namespace.(*bocage.Namespace).Status.Phase != phaseActive || namespace.Meta().UID == "" {
		t.Errorf("%+v, %v", namespace, err)
	}
	ask("DELETE", "/shop", "", "", 200, `"status":"Success"`)
	ask("GET", "/shop", "", "", 404, "not found")
	// Owners see theirs.
	b.raw(t, "POST", path, jsonType, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"bank"}}`)
	b.raw(t, "POST", path, jsonType, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`)
	list, _, err := b.as(t, RoleOwner, "shop").List(ctx, kind("Namespace"), client.ListOptions{})
	if err != nil || len(list) != 1 || list[0].Meta().Name != "shop" {
		t.Errorf("an owner sees %v: %v", list, err)
	}
}

// TestDeletionAskedAgain: who deletes again and says how replaces what was asked for
// before; who says nothing leaves it.
func TestDeletionAskedAgain(t *testing.T) {
	for _, test := range []struct {
		first, again string
		goes         bool
		want         string // of its finalizers
	}{
		{`{"propagationPolicy":"Foreground"}`, `{"propagationPolicy":"Background"}`, true, ""},
		{`{"propagationPolicy":"Foreground"}`, `{"orphanDependents":false}`, true, ""},
		{`{"propagationPolicy":"Foreground"}`, "", false, "foregroundDeletion"},
	} {
		b := start(t, nil)
		b.mustScope(t, "POST", "a", "")
		b.scopeOf(t, "b", true, "a")
		// What is owned is held, so that its owner waits.
		if code, text, _ := b.raw(t, "PATCH", scopesPath+"/b", mergeType, `{"metadata":{"finalizers":["x/y"]}}`); code != 200 {
			t.Fatal(code, text)
		}
		b.deleteScope(t, "a", test.first)
		code, text, _ := b.raw(t, "GET", scopesPath+"/a", "", "")
		if code != 200 || !strings.Contains(text, `"finalizers":["foregroundDeletion"]`) {
			t.Fatal(code, text)
		}
		b.deleteScope(t, "a", test.again)
		code, text, _ = b.raw(t, "GET", scopesPath+"/a", "", "")
		if test.goes != (code == 404) || !test.goes && !strings.Contains(text, `"finalizers":["`+test.want+`"]`) {
			t.Errorf("%s, then %s: %d %s", test.first, test.again, code, text)
		}
	}
	// One finalizer takes the other's place.
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	b.scopeOf(t, "b", true, "a")
	held := strings.NewReplacer(`"name"`, `"finalizers":["orphan","x/y"],"name"`).Replace(scopeJSON("c", "observe", ""))
	b.tell(t, []request{
		{"make", "POST", scopesPath, jsonType, held, nil, 201, ""},
		{"left as it is", "DELETE", scopesPath + "/c?dryRun=All", "", "", nil, 200, `"finalizers":["orphan","x/y"]`},
		{"replaced", "DELETE", scopesPath + "/c?dryRun=All", jsonType, `{"propagationPolicy":"Background"}`, nil, 200, `"finalizers":["x/y"]`},
		{"only what owns waits", "DELETE", scopesPath + "/c?dryRun=All&propagationPolicy=Foreground", "", "", nil, 200, `"finalizers":["x/y"]`},
	})
}

// TestSweeperKeepsOrphans: what the sweeper deletes goes as its finalizers ask.
func TestSweeperKeepsOrphans(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	b.scopeOf(t, "b", true, "a")
	b.scopeOf(t, "c", true, "b")
	b.tell(t, []request{{"hold", "PATCH", scopesPath + "/b", mergeType, `{"metadata":{"finalizers":["orphan"]}}`, nil, 200, ""}})
	b.deleteScope(t, "a", "")
	b.wantScopes(t, "c")
}

// TestOwnersInACircle: those that own each other, or themselves, do not wait for each
// other for ever.
func TestOwnersInACircle(t *testing.T) {
	for _, circle := range [][]string{{"a"}, {"a", "b"}, {"a", "b", "c"}} {
		t.Run(strings.Join(circle, ""), func(t *testing.T) {
			b := start(t, nil)
			for _, name := range append([]string{"d"}, circle...) {
				b.mustScope(t, "POST", name, "")
			}
			for i, name := range circle {
				owner := circle[(i+1)%len(circle)]
				object, err := b.client.Get(t.Context(), kind("Scope"), "", owner)
				if err != nil {
					t.Fatal(err)
				}
				b.tell(t, []request{{"own", "PATCH", scopesPath + "/" + name, mergeType, fmt.Sprintf(
					`{"metadata":{"ownerReferences":[{"apiVersion":"bocage.dev/v1","kind":"Scope","name":%q,"uid":%q,"blockOwnerDeletion":true}]}}`,
					owner, object.Meta().UID), nil, 200, ""}})
			}
			b.deleteScope(t, "a", `{"propagationPolicy":"Foreground"}`)
			b.wantScopes(t, "d")
		})
	}
}

// TestCircleWithATail: what hangs on a circle and is held holds what it blocks.
func TestCircleWithATail(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	b.scopeOf(t, "b", true, "a")
	b.scopeOf(t, "c", true, "a")
	object, err := b.client.Get(t.Context(), kind("Scope"), "", "b")
	if err != nil {
		t.Fatal(err)
	}
	b.tell(t, []request{
		{"close the circle", "PATCH", scopesPath + "/a", mergeType, fmt.Sprintf(
			`{"metadata":{"ownerReferences":[{"apiVersion":"bocage.dev/v1","kind":"Scope","name":"b","uid":%q,"blockOwnerDeletion":true}]}}`, object.Meta().UID), nil, 200, ""},
		{"hold what hangs on it", "PATCH", scopesPath + "/c", mergeType, `{"metadata":{"finalizers":["x/y"]}}`, nil, 200, ""},
	})
	b.deleteScope(t, "a", `{"propagationPolicy":"Foreground"}`)
	b.wantScopes(t, "a(b) c(a)")
	b.tell(t, []request{{"let go", "PATCH", scopesPath + "/c", mergeType, `{"metadata":{"finalizers":null}}`, nil, 200, ""}})
	b.wantScopes(t, "")
}
