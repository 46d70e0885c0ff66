package api

import (
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
	_, err = alice.Approve(ctx, rails, "", "g", 0)
	refused("the deletion by who deletes", "deleted it", err)
	if _, err := bob.Approve(ctx, rails, "", "g", 0); err != nil {
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

// TestDeletionByOwner: who cannot delete a guardrail alone cannot do it by
// deleting what owns it either.
func TestDeletionByOwner(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	owner, err := b.client.ApplyObject(ctx, kind("Scope"), scope("owner", "observe"), client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g := guardrail("g", "one")
	g.OwnerReferences = []bocage.OwnerReference{{APIVersion: bocage.APIVersion, Kind: "Scope", Name: "owner", UID: owner.Meta().UID}}
	if _, err := b.client.ApplyObject(ctx, kind("Guardrail"), g, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Delete(ctx, kind("Scope"), "", "owner", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for b.guardrail(t, "g").DeletionTimestamp == nil {
		<-tick.C
	}
	if a := b.guardrail(t, "g").Status.Approval; a.Deleter != sweeperName {
		t.Errorf("%+v", a)
	}
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
