package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// inForce reads an object as it counts for policy; nil if it does not.
func (b *bench) inForce(t *testing.T, kindName, name string) bocage.Resource {
	t.Helper()
	object, err := b.client.Get(t.Context(), kind(kindName), "", name)
	if err != nil {
		t.Fatal(err)
	}
	return bocage.AsAgreed(object)
}

// TestReachOfGuardrails: where two people decide, no one of them takes anything out of
// guardrails' reach, in whatever way they write it; tightening takes one.
func TestReachOfGuardrails(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	alice, bob := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin)
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	base := []bocage.Resource{
		scope("all", bocage.ModeEnforce),
		&bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: "far"}, Spec: bocage.AddressGroupSpec{Addresses: prefixes("192.0.2.0/24", "198.51.100.0/24")}},
		&bocage.InspectionProfile{ObjectMeta: bocage.ObjectMeta{Name: "sql"}, Spec: bocage.InspectionProfileSpec{FailMode: "closed", Signatures: `alert tcp any any -> any any (msg:"a"; sid:1;)`}},
		&bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "dmz"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1", "h2"}}},
	}
	restore := func() {
		t.Helper()
		for _, o := range base {
			k := kind(kindOf(o))
			if _, err := b.client.ApplyObject(ctx, k, o, client.WriteOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			got := b.inForce(t, k.Name, o.Meta().Name)
			if got == nil || !sameJSON(specIn(t, got), specIn(t, o)) {
				t.Fatalf("%s is not in force: %+v", k.Name, got)
			}
		}
	}
	restore()
	g := guardrail("g", "one")
	g.Spec.Never = []bocage.CellMatch{{To: bocage.Side{AddressGroups: []string{"far"}}}}
	g.Spec.Require = &bocage.Duties{Inspect: "sql"}
	g.Spec.Separate = &bocage.Separate{By: "zone"}
	if _, err := alice.ApplyObject(ctx, kind("Guardrail"), g, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Approve(ctx, kind("Guardrail"), "", "g", 0); err != nil {
		t.Fatal(err)
	}

	weak := map[string]string{ // by kind, as a merge patch of the spec
		"Scope":             `{"mode":"observe"}`,
		"AddressGroup":      `{"addresses":["192.0.2.0/24"]}`,
		"InspectionProfile": `{"failMode":"open"}`,
		"Zone":              `{"hosts":["h1"]}`,
	}
	for _, o := range base {
		k, name := kind(kindOf(o)), o.Meta().Name
		path := "/apis/" + bocage.APIVersion + "/" + k.Plural + "/" + name
		whole := func() string {
			_, text, _ := b.raw(t, "GET", path, "", "")
			return text
		}
		changed := func() string { // the whole object, as the change leaves it
			code, text, _ := b.raw(t, "PATCH", path+"?dryRun=All", mergeType, `{"spec":`+weak[k.Name]+`}`)
			if code != 200 {
				t.Fatal(code, text)
			}
			return text
		}
		manifest := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":%q,"metadata":{"name":%q},"spec":%s}`, k.Name, name, specText(t, changed()))
		for way, write := range map[string]func() (int, string){
			"merge patch": func() (int, string) {
				code, _, header := b.raw(t, "PATCH", path, mergeType, `{"spec":`+weak[k.Name]+`}`)
				return code, header.Get("Warning")
			},
			"JSON patch": func() (int, string) {
				code, _, header := b.raw(t, "PATCH", path, "application/json-patch+json", `[{"op":"replace","path":"/spec","value":`+specText(t, changed())+`}]`)
				return code, header.Get("Warning")
			},
			"apply": func() (int, string) {
				code, _, header := b.raw(t, "PATCH", path+"?fieldManager=m&force=true", "application/apply-patch+yaml", manifest)
				return code, header.Get("Warning")
			},
			"replacement": func() (int, string) {
				code, _, header := b.raw(t, "PUT", path, jsonType, changed())
				return code, header.Get("Warning")
			},
			"many at once": func() (int, string) {
				result, err := b.client.Apply(ctx, documents(t, manifest), client.WriteOptions{Force: true})
				if err != nil {
					t.Fatal(err)
				}
				return 200, result.Objects[0].Note
			},
		} {
			before := specIn(t, b.inForce(t, k.Name, name))
			code, told := write()
			if code != 200 || !strings.Contains(told, "what was declared before is in force until somebody else than local:") || !strings.Contains(told, "bocage approve "+strings.ToLower(k.Name)+" "+name) {
				t.Errorf("%s, %s: %d %s", k.Name, way, code, told)
			}
			if !sameJSON(specIn(t, b.inForce(t, k.Name, name)), before) {
				t.Errorf("%s, %s: one person weakened it: %s", k.Name, way, whole())
			}
			restore()
			if text := whole(); strings.Contains(text, `"approval"`) {
				t.Errorf("%s: it waits although it is what it was: %s", k.Name, text)
			}
		}
		// Its end is no way around, and neither is another of its name.
		for way, del := range map[string]func() int{
			"deletion": func() int { code, _, _ := b.raw(t, "DELETE", path, "", ""); return code },
			"deletion of all": func() int {
				code, _, _ := b.raw(t, "DELETE", "/apis/"+bocage.APIVersion+"/"+k.Plural, "", "")
				return code
			},
			"deletion from below": func() int {
				code, _, _ := b.raw(t, "DELETE", path+"?propagationPolicy=Foreground", "", "")
				return code
			},
		} {
			if code := del(); code != 200 {
				t.Errorf("%s, %s: %d", k.Name, way, code)
			}
			b.raw(t, "PATCH", path, mergeType, `{"metadata":{"finalizers":null}}`)
			if counts := b.inForce(t, k.Name, name); counts == nil || counts.Meta().DeletionTimestamp == nil {
				t.Fatalf("%s, %s: it is not held: %+v", k.Name, way, counts)
			}
		}
		if _, err := b.client.ApproveDeletion(ctx, k, "", name, 0); err == nil || !strings.Contains(err.Error(), "a second person has to agree") {
			t.Errorf("%s: its deletion by who deletes: %v", k.Name, err)
		}
		if _, err := bob.ApproveDeletion(ctx, k, "", name, 0); err != nil {
			t.Errorf("%s: its deletion by another: %v", k.Name, err)
		}
		if code, _, _ := b.raw(t, "GET", path, "", ""); code != 404 {
			t.Errorf("%s is not gone: %d", k.Name, code)
		}
		if _, err := alice.ApplyObject(ctx, k, o, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if counts := b.inForce(t, k.Name, name); (counts == nil) != (k.Name == "InspectionProfile" || k.Name == "Zone") {
			t.Errorf("%s, made anew by one person: %+v", k.Name, counts)
		}
		if _, err := bob.Approve(ctx, k, "", name, 0); err != nil && b.inForce(t, k.Name, name) == nil {
			t.Errorf("%s, made anew, by another: %v", k.Name, err)
		}
		restore()
	}
}

// kindOf names the kind of an object that Go code made.
func kindOf(o bocage.Resource) string { return strings.TrimPrefix(fmt.Sprintf("%T", o), "*bocage.") }

func specIn(t *testing.T, o bocage.Resource) any {
	t.Helper()
	object, err := untyped(kind(kindOf(o)), o)
	if err != nil {
		t.Fatal(err)
	}
	return object.Object["spec"]
}

func specText(t *testing.T, object string) string {
	t.Helper()
	u, err := decodeStored([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(u.Object["spec"])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestScopeOfTwoPeople tells the life of a scope that guardrails are enforced by.
func TestScopeOfTwoPeople(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	scopes := kind("Scope")
	alice, bob, carol := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin), b.named(t, "carol", RolePolicyAdmin)
	write := func(c *client.Client, mode string, namespaces ...string) *bocage.Scope {
		t.Helper()
		s := scope("all", mode)
		s.Spec.Namespaces = namespaces
		object, err := c.ApplyObject(ctx, scopes, s, client.WriteOptions{Force: true})
		if err != nil {
			t.Fatal(err)
		}
		return object.(*bocage.Scope)
	}
	mode := func(want string, namespaces int) {
		t.Helper()
		s, _ := b.inForce(t, "Scope", "all").(*bocage.Scope)
		if s == nil || s.Spec.Mode != want || len(s.Spec.Namespaces) != namespaces {
			t.Fatalf("in force is %+v, want %s", s, want)
		}
	}
	write(alice, bocage.ModeObserve)
	write(alice, bocage.ModeEnforce, "shop")
	mode(bocage.ModeEnforce, 1)
	s := write(alice, bocage.ModeObserve)
	mode(bocage.ModeEnforce, 1)
	if a := s.Status.Approval; a == nil || a.Author != "token:alice" || !strings.Contains(a.Reason, "out of force") || a.Generation != 2 {
		t.Fatalf("%+v", a)
	}
	for _, patch := range []string{`{"status":{"approval":null}}`, `{"status":{"approved":null}}`, `{"status":{"approval":{"generation":3}}}`} {
		if code, text, _ := b.raw(t, "PATCH", scopesPath+"/all/status", mergeType, patch); code != 403 {
			t.Errorf("a status patch: %d %s", code, text)
		}
		b.raw(t, "PATCH", scopesPath+"/all", mergeType, patch)
	}
	mode(bocage.ModeEnforce, 1)
	if _, err := alice.Approve(ctx, scopes, "", "all", 0); err == nil {
		t.Error("its author approved it")
	}
	// What tightens meanwhile is in force at once, and nothing waits any more.
	write(bob, bocage.ModeEnforce, "shop", "bank")
	mode(bocage.ModeEnforce, 2)
	if _, err := carol.Approve(ctx, scopes, "", "all", 0); !client.HasReason(err, client.ReasonConflict) {
		t.Errorf("nothing is to be approved: %v", err)
	}
	// Whoever had a hand in it does not agree to it.
	write(alice, bocage.ModeObserve)
	write(bob, bocage.ModeObserve, "shop")
	mode(bocage.ModeEnforce, 2)
	for _, c := range []*client.Client{alice, bob} {
		if _, err := c.Approve(ctx, scopes, "", "all", 0); err == nil || !strings.Contains(err.Error(), "had no hand in it") {
			t.Errorf("one of its authors: %v", err)
		}
	}
	if _, err := carol.Approve(ctx, scopes, "", "all", 0); err != nil {
		t.Fatal(err)
	}
	mode(bocage.ModeObserve, 1)
	if s := b.inForce(t, "Scope", "all").(*bocage.Scope); s.Status.Approved != nil || s.Status.Approval.By != "token:carol" {
		t.Errorf("%+v", s.Status)
	}
	// One that observes goes as it came; what owns one that enforces does not take it along.
	write(alice, bocage.ModeEnforce)
	patch := map[string]any{"metadata": map[string]any{"ownerReferences": []bocage.OwnerReference{
		{APIVersion: bocage.APIVersion, Kind: "Scope", Name: "gone", UID: "00000000-0000-0000-0000-000000000000"}}}}
	if _, err := alice.Patch(ctx, scopes, "", "all", "", patch, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := b.client.Watch(wait, kind("Event"), client.ListOptions{Namespace: "default"}, func(e client.Event) error {
		if o := e.Object.(*bocage.ObjectEvent); o.Reason == "OwnerGone" {
			cancel()
		}
		return nil
	})
	if wait.Err() == context.DeadlineExceeded {
		t.Fatal("nobody was told that its owner is gone", err)
	}
	mode(bocage.ModeEnforce, 0)
	if code, _, _ := b.raw(t, "POST", scopesPath, jsonType, scopeJSON("seen", "observe", "")); code != 201 {
		t.Fatal(code)
	}
	if code, _, _ := b.raw(t, "DELETE", scopesPath+"/seen", "", ""); code != 200 {
		t.Error(code)
	}
	if code, _, _ := b.raw(t, "GET", scopesPath+"/seen", "", ""); code != 404 {
		t.Errorf("one that observes waits: %d", code)
	}
}

// TestScopeWithoutTheRule: one person decides, and what waited is in force once it is
// written again.
func TestScopeWithoutTheRule(t *testing.T) {
	var two *bench
	two = start(t, func(c *Config) { c.TwoPerson = true })
	if _, err := two.client.ApplyObject(t.Context(), kind("Scope"), scope("all", bocage.ModeEnforce), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := two.client.ApplyObject(t.Context(), kind("Scope"), scope("all", bocage.ModeObserve), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	two.stop()
	b := start(t, func(c *Config) { c.Store = two.store })
	if s := b.inForce(t, "Scope", "all").(*bocage.Scope); s.Spec.Mode != bocage.ModeEnforce {
		t.Errorf("another start decided: %+v", s)
	}
	changed := scope("all", bocage.ModeObserve)
	changed.Spec.Namespaces = []string{"shop"}
	if _, err := b.client.ApplyObject(t.Context(), kind("Scope"), changed, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := b.inForce(t, "Scope", "all").(*bocage.Scope); s.Spec.Mode != bocage.ModeObserve || s.Status.Approval != nil || s.Status.Approved != nil {
		t.Errorf("%+v", s)
	}
	if _, err := b.client.Delete(t.Context(), kind("Scope"), "", "all", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.wantScopes(t, "")
}
