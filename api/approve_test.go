package api

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/manifest"
)

// named returns a client with a session that root made for somebody.
func (b *bench) named(t *testing.T, name string, role Role, groups ...string) *client.Client {
	t.Helper()
	person := client.Person{Name: name, Role: string(role), Groups: groups}
	if role == RoleOwner {
		person.Namespaces = []string{"shop"}
	}
	session, err := b.client.CreateSession(t.Context(), person, 0)
	if err != nil {
		t.Fatal(err)
	}
	return b.withToken(t, session.Token)
}

func guardrail(name, from string, approvers ...string) *bocage.Guardrail {
	return &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.GuardrailSpec{
		Never:      []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{from}}}},
		Exceptions: bocage.ExceptionTerms{Allowed: true, Approvers: approvers},
	}}
}

func (b *bench) guardrail(t *testing.T, name string) *bocage.Guardrail {
	t.Helper()
	object, err := b.client.Get(t.Context(), kind("Guardrail"), "", name)
	if err != nil {
		t.Fatal(err)
	}
	return object.(*bocage.Guardrail)
}

// TestTwoPeople tells the life of a guardrail that two people decide about.
func TestTwoPeople(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	rails := kind("Guardrail")
	alice, bob, carol := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin), b.named(t, "carol", RoleViewer)
	refused := func(what, why string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", what, err, why)
		}
	}
	apply := func(c *client.Client, from string) {
		t.Helper()
		if _, err := c.ApplyObject(ctx, rails, guardrail("g", from), client.WriteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	apply(alice, "one")
	if g := b.guardrail(t, "g"); g.InForce() != nil || g.Status.Approval.Author != "token:alice" {
		t.Fatalf("nobody approved it: %+v", g.Status.Approval)
	}
	_, err := alice.Approve(ctx, rails, "", "g", 0)
	refused("its author", "a second person has to agree", err)
	own, err := alice.CreateSession(ctx, client.Person{Name: "somebody-else", Role: "policy-admin"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.withToken(t, own.Token).Approve(ctx, rails, "", "g", 0)
	refused("its author with another token", "a second person has to agree", err)
	_, err = carol.Approve(ctx, rails, "", "g", 0)
	refused("a viewer", "whoever may write it may approve it", err)
	_, err = bob.Approve(ctx, rails, "", "g", 7)
	refused("a generation that is not there", "look at it again", err)
	for _, patch := range []string{`{"status":{"approval":{"generation":1}}}`, `{"status":{"approval":null}}`} {
		code, text, _ := b.raw(t, "PATCH", "/apis/bocage.dev/v1/guardrails/g/status", "application/merge-patch+json", patch)
		if code != 403 {
			t.Errorf("a status patch: %d %s", code, text)
		}
		b.raw(t, "PATCH", "/apis/bocage.dev/v1/guardrails/g", "application/merge-patch+json", patch)
		b.raw(t, "PATCH", "/apis/bocage.dev/v1/guardrails/g?fieldManager=x&force=true", "application/apply-patch+yaml",
			`{"apiVersion":"bocage.dev/v1","kind":"Guardrail","metadata":{"name":"g"},`+patch[1:])
	}
	if g := b.guardrail(t, "g"); g.InForce() != nil {
		t.Fatalf("somebody approved it by writing the status: %+v", g.Status.Approval)
	}
	if _, err := bob.Approve(ctx, rails, "", "g", 1); err != nil {
		t.Fatal(err)
	}
	if g := b.guardrail(t, "g"); g.InForce() == nil || g.InForce().Never[0].From.Namespaces[0] != "one" || g.Status.Approval.By != "token:bob" {
		t.Fatalf("it was approved: %+v", g.Status.Approval)
	}
	_, err = bob.Approve(ctx, rails, "", "g", 0)
	refused("twice", "is approved already", err)

	apply(bob, "two")
	if g := b.guardrail(t, "g"); g.InForce().Never[0].From.Namespaces[0] != "one" || g.Status.Approval.Author != "token:bob" {
		t.Fatalf("the old one stays: %+v", g.Status.Approval)
	}
	code, text, _ := b.raw(t, "POST", "/apis/bocage.dev/v1/guardrails/g/approve", "", "")
	if code != 200 || b.guardrail(t, "g").InForce().Never[0].From.Namespaces[0] != "two" {
		t.Errorf("root with curl: %d %s", code, text)
	}

	// Labels are nobody's second opinion; going is.
	if _, err := alice.Patch(ctx, rails, "", "g", "", map[string]any{"metadata": map[string]any{"labels": map[string]any{"a": "b"}}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if g := b.guardrail(t, "g"); g.Status.Approval.Waits(g.Generation) {
		t.Error("a label has to be approved")
	}
	if _, err := alice.Delete(ctx, rails, "", "g", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Patch(ctx, rails, "", "g", "", map[string]any{"metadata": map[string]any{"finalizers": nil}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if g := b.guardrail(t, "g"); g.DeletionTimestamp == nil || g.InForce() == nil || g.Status.Approval.Deleter != "token:alice" {
		t.Errorf("it waits to go: %+v", g)
	}
	_, err = alice.ApproveDeletion(ctx, rails, "", "g", 0)
	refused("the deletion by who deletes", "deleted it", err)
	// Who looked before it was deleted meant what it said.
	if _, err := bob.Approve(ctx, rails, "", "g", b.guardrail(t, "g").Generation); !client.HasReason(err, client.ReasonConflict) || !strings.Contains(err.Error(), "token:alice deleted it") {
		t.Errorf("the deletion by who does not know of it: %v", err)
	}
	if g := b.guardrail(t, "g"); g.InForce() == nil {
		t.Error("it went")
	}
	if _, err := bob.ApproveDeletion(ctx, rails, "", "g", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Get(ctx, rails, "", "g"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("after its deletion was approved: %v", err)
	}
	events, _, err := b.client.List(ctx, kind("Event"), client.ListOptions{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, e := range events {
		reasons[e.(*bocage.ObjectEvent).Reason] = true
	}
	if fmt.Sprint(reasons) != "map[ApprovalWaits:true Approved:true DeletionApproved:true DeletionWaits:true]" {
		t.Errorf("people were told %v", reasons)
	}
}

// TestDeletionByOwner: who cannot delete a guardrail alone cannot do it by deleting
// what owns it either, nor by naming an owner that is not there; and what owns it
// does not wait for two people.
func TestDeletionByOwner(t *testing.T) {
	for _, test := range []struct {
		name, uid, policy string
	}{
		{"an owner that goes", "", "Background"},
		{"an owner that waits for what it owns", "", "Foreground"},
		{"an owner that never was", "00000000-0000-0000-0000-000000000000", "Background"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, func(c *Config) { c.TwoPerson = true })
			ctx := t.Context()
			alice, bob := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin)
			owner, err := alice.ApplyObject(ctx, kind("Scope"), scope("owner", "observe"), client.WriteOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := alice.ApplyObject(ctx, kind("Guardrail"), guardrail("g", "one"), client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := bob.Approve(ctx, kind("Guardrail"), "", "g", 0); err != nil {
				t.Fatal(err)
			}
			uid := cmp.Or(test.uid, owner.Meta().UID)
			patch := map[string]any{"metadata": map[string]any{"ownerReferences": []bocage.OwnerReference{
				{APIVersion: bocage.APIVersion, Kind: "Scope", Name: "owner", UID: uid, BlockOwnerDeletion: new(true)}}}}
			if _, err := alice.Patch(ctx, kind("Guardrail"), "", "g", "", patch, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if code, text, _ := b.raw(t, "DELETE", scopesPath+"/owner", jsonType, `{"propagationPolicy":"`+test.policy+`"}`); code != 200 {
				t.Fatal(code, text)
			}
			wait, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			err = b.client.Watch(wait, kind("Event"), client.ListOptions{Namespace: "default"}, func(e client.Event) error {
				if o := e.Object.(*bocage.ObjectEvent); o.Reason == "OwnerGone" {
					cancel()
				}
				return nil
			})
			if wait.Err() == context.DeadlineExceeded {
				t.Fatal("nobody was told that its owner is gone", err)
			}
			if g := b.guardrail(t, "g"); g.DeletionTimestamp != nil || g.InForce() == nil || len(g.OwnerReferences) > 0 {
				t.Errorf("it stays as it was, without an owner: %+v %+v", g.ObjectMeta, g.Status.Approval)
			}
			b.wantScopes(t, "")
			if _, err := alice.Delete(ctx, kind("Guardrail"), "", "g", client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := alice.Approve(ctx, kind("Guardrail"), "", "g", 0); err == nil {
				t.Error("one person alone removed it")
			}
		})
	}
}

// TestSeveralAuthors: whoever had a hand in what waits does not approve it, however
// little they changed; what goes back to what was approved waits for nobody.
func TestSeveralAuthors(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	rails := kind("Guardrail")
	alice, bob, carol := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin), b.named(t, "carol", RolePolicyAdmin)
	apply := func(c *client.Client, from string) {
		t.Helper()
		if _, err := c.ApplyObject(ctx, rails, guardrail("g", from), client.WriteOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	describe := func(c *client.Client, text string) {
		t.Helper()
		if _, err := c.Patch(ctx, rails, "", "g", "", map[string]any{"spec": map[string]any{"description": text}}, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(who string, c *client.Client, why string) {
		t.Helper()
		if _, err := c.Approve(ctx, rails, "", "g", 0); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", who, err, why)
		}
	}
	for round, before := range []any{nil, "one"} {
		apply(alice, fmt.Sprint("n", round))
		describe(bob, fmt.Sprint("round ", round))
		refused("who wrote most of it", alice, "token:alice and token:bob wrote what waits")
		refused("who wrote last", bob, "token:alice and token:bob wrote what waits")
		describe(alice, fmt.Sprint("round ", round, " again"))
		refused("who wrote between", bob, "token:bob and token:alice wrote what waits")
		if _, err := carol.Approve(ctx, rails, "", "g", 0); err != nil {
			t.Fatalf("%v: a third person: %v", before, err)
		}
	}
	approved := b.guardrail(t, "g").InForce()
	describe(bob, "changed")
	apply(alice, "other")
	apply(alice, "n1")
	describe(bob, approved.Description)
	if g := b.guardrail(t, "g"); g.Status.Approval.Waits(g.Generation) || g.Status.Approval.By != "token:carol" || !sameJSON(g.InForce(), approved) {
		t.Errorf("it is what was approved: %+v", g.Status.Approval)
	}
	describe(bob, "changed again")
	if _, err := alice.Approve(ctx, rails, "", "g", 0); err != nil {
		t.Errorf("what alice wrote is undone, and she had no hand in this: %v", err)
	}
}

// TestExceptionOfSeveralAuthors: who may decide about exceptions does not agree to
// what somebody else asks for by changing it; and what a guardrail that waits would
// ask for nobody knows.
func TestExceptionOfSeveralAuthors(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	owner, pa, ann := b.named(t, "olga", RoleOwner), b.named(t, "pa", RolePolicyAdmin), b.named(t, "ann", RolePolicyAdmin)
	exception := func(name string) *bocage.Exception {
		return &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ExceptionSpec{
			Guardrail: "g", Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}}, Until: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}}
	}
	waits := func(name string, want bool) {
		t.Helper()
		object, err := b.client.Get(ctx, kind("Exception"), "", name)
		if err != nil {
			t.Fatal(err)
		}
		if e := object.(*bocage.Exception); e.Status.Approval.Waits(e.Generation) != want {
			t.Errorf("%s: %+v", name, e.Status.Approval)
		}
	}
	if _, err := pa.ApplyObject(ctx, kind("Guardrail"), guardrail("g", "one"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pa.Apply(ctx, documents(t, manifestOf(t, exception("early"))), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	waits("early", true)
	if _, err := ann.Approve(ctx, kind("Guardrail"), "", "g", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Apply(ctx, documents(t, manifestOf(t, exception("asked"))), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pa.Patch(ctx, kind("Exception"), "", "asked", "", map[string]any{"spec": map[string]any{"reason": "a word more"}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	waits("asked", true)
	if _, err := pa.Approve(ctx, kind("Exception"), "", "asked", 0); err != nil {
		t.Errorf("who may decide alone agrees: %v", err)
	}
	waits("asked", false)
}

// TestWithoutTheRule: one person decides, and what waited goes on waiting only
// until it is written.
func TestWithoutTheRule(t *testing.T) {
	b := start(t, nil)
	if _, err := b.client.ApplyObject(t.Context(), kind("Guardrail"), guardrail("g", "one"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if g := b.guardrail(t, "g"); g.Status.Approval != nil {
		t.Errorf("%+v", g.Status.Approval)
	}
	if _, err := b.named(t, "bob", RoleAdmin).Approve(t.Context(), kind("Guardrail"), "", "g", 0); !client.HasReason(err, client.ReasonConflict) {
		t.Errorf("nothing is to be approved: %v", err)
	}
	if _, err := b.client.Delete(t.Context(), kind("Guardrail"), "", "g", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Get(t.Context(), kind("Guardrail"), "", "g"); !client.HasReason(err, client.ReasonNotFound) {
		t.Error(err)
	}
}

// TestExceptionApproval: exceptions wait for whom their guardrail names, and for
// somebody where their author could not decide.
func TestExceptionApproval(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	for _, g := range []*bocage.Guardrail{guardrail("strict", "one", "ann", "group:ciso"), guardrail("easy", "one")} {
		if _, err := b.client.ApplyObject(ctx, kind("Guardrail"), g, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	exceptions := kind("Exception")
	exception := func(name, of string) *bocage.Exception {
		return &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ExceptionSpec{
			Guardrail: of, Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}}, Until: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}}
	}
	pa, owner := b.named(t, "pa", RolePolicyAdmin), b.named(t, "olga", RoleOwner)
	ann, ciso := b.named(t, "ann", RoleViewer), b.named(t, "chief", RoleViewer, "ciso")
	for _, test := range []struct {
		name, of string
		author   *client.Client
		waits    bool
		approver *client.Client
		why      string
	}{
		{"a", "easy", pa, false, nil, ""},
		{"b", "easy", owner, true, pa, ""},
		{"c", "easy", owner, true, ann, "whoever may write it"},
		{"d", "strict", pa, true, ann, ""},
		{"e", "strict", pa, true, ciso, ""},
		{"f", "strict", owner, true, pa, "its approvers are ann, group:ciso"},
		{"g", "strict", owner, true, b.client, "its approvers are"},
		{"h", "strict", owner, true, owner, "its approvers are"},
		{"i", "missing", pa, true, b.client, ""},
		{"j", "missing", pa, true, pa, "a second person"},
	} {
		if _, err := test.author.Apply(ctx, documents(t, manifestOf(t, exception(test.name, test.of))), client.WriteOptions{}); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		read := func() *bocage.Exception {
			object, err := b.client.Get(ctx, exceptions, "", test.name)
			if err != nil {
				t.Fatal(err)
			}
			return object.(*bocage.Exception)
		}
		e := read()
		if e.Status.Approval.Waits(e.Generation) != test.waits {
			t.Errorf("%s waits: %+v", test.name, e.Status.Approval)
		}
		if test.approver == nil {
			continue
		}
		_, err := test.approver.Approve(ctx, exceptions, "", test.name, e.Generation)
		switch {
		case test.why == "" && (err != nil || read().Status.Approval.Waits(e.Generation)):
			t.Errorf("%s: %v %+v", test.name, err, read().Status.Approval)
		case test.why != "" && (err == nil || !strings.Contains(err.Error(), test.why)):
			t.Errorf("%s: %v, want %q", test.name, err, test.why)
		}
	}
	// What was approved waits again when it changes, and an owner may not change it.
	if _, err := b.client.Patch(ctx, exceptions, "", "d", "", map[string]any{"spec": map[string]any{"match": map[string]any{"from": map[string]any{"namespaces": []string{"bank"}}}}}, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	object, err := b.client.Get(ctx, exceptions, "", "d")
	if err != nil {
		t.Fatal(err)
	}
	if e := object.(*bocage.Exception); !e.Status.Approval.Waits(e.Generation) {
		t.Errorf("after a change: %+v", e.Status.Approval)
	}
	changed := exception("b", "easy")
	changed.Spec.Reason = "more"
	if _, err := owner.Apply(ctx, documents(t, manifestOf(t, changed)), client.WriteOptions{}); err == nil || !strings.Contains(err.Error(), "cannot patch") {
		t.Errorf("an owner changed it: %v", err)
	}
}

// TestApprovalRaces lets an author change a guardrail while others approve it: no
// generation that nobody looked at is in force.
func TestApprovalRaces(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	rails := kind("Guardrail")
	alice := b.named(t, "alice", RoleAdmin)
	if _, err := alice.ApplyObject(ctx, rails, guardrail("g", "n0"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	var looked sync.Map
	var done atomic.Bool
	var group sync.WaitGroup
	group.Go(func() {
		defer done.Store(true)
		for i := range 40 {
			if _, err := alice.ApplyObject(ctx, rails, guardrail("g", fmt.Sprint("n", i+1)), client.WriteOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 3 {
		approver := b.named(t, fmt.Sprint("bob", i), RoleAdmin)
		group.Go(func() {
			for !done.Load() {
				object, err := approver.Get(ctx, rails, "", "g")
				if err != nil {
					t.Error(err)
					return
				}
				g := object.(*bocage.Guardrail)
				looked.Store(g.Spec.Never[0].From.Namespaces[0], true)
				if _, err := approver.Approve(ctx, rails, "", "g", g.Generation); err != nil && !client.HasReason(err, client.ReasonConflict) {
					t.Error(err)
				}
				if object, err = approver.Get(ctx, rails, "", "g"); err != nil {
					t.Error(err)
					return
				}
				if spec := object.(*bocage.Guardrail).InForce(); spec != nil {
					if _, seen := looked.Load(spec.Never[0].From.Namespaces[0]); !seen {
						t.Errorf("%v is in force, and nobody looked at it", spec.Never[0].From.Namespaces)
					}
				}
			}
		})
	}
	group.Wait()
}

func manifestOf(t *testing.T, resource bocage.Resource) string {
	t.Helper()
	*resource.Type() = bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Exception"}
	var text strings.Builder
	if err := manifest.Write(&text, resource); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
