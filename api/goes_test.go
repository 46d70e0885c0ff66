package api

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

const groupsPath = "/apis/" + bocage.APIVersion + "/addressgroups"

func addressGroup(name string, prefixes ...string) *bocage.AddressGroup {
	g := &bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: name}}
	for _, p := range prefixes {
		g.Spec.Addresses = append(g.Spec.Addresses, netip.MustParsePrefix(p))
	}
	return g
}

// amend merges a patch as somebody.
func amend(t *testing.T, c *client.Client, kindName, name, patch string) {
	t.Helper()
	var tree map[string]any
	if err := json.Unmarshal([]byte(patch), &tree); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Patch(t.Context(), kind(kindName), "", name, "", tree, client.WriteOptions{}); err != nil {
		t.Fatalf("%s %s: %v", kindName, name, err)
	}
}

// gone reports whether an object is.
func (b *bench) gone(t *testing.T, kindName, name string) bool {
	t.Helper()
	_, err := b.client.Get(t.Context(), kind(kindName), "", name)
	if err != nil && !client.HasReason(err, client.ReasonNotFound) {
		t.Fatal(err)
	}
	return err != nil
}

// TestReachDeletionEdited: who deletes something is no second person, whatever they
// write of it meanwhile; nor is anybody if it is not known who deleted it.
func TestReachDeletionEdited(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	alice, bob := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin)
	g := guardrail("g", "one")
	g.Spec.Never = []bocage.CellMatch{{To: bocage.Side{AddressGroups: []string{"far"}}}}
	if _, err := alice.ApplyObject(ctx, kind("Guardrail"), g, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.Approve(ctx, kind("Guardrail"), "", "g", 0); err != nil {
		t.Fatal(err)
	}
	refused := func(what, part string) {
		t.Helper()
		if _, err := alice.ApproveDeletion(ctx, kind("AddressGroup"), "", "far", 0); !client.HasReason(err, client.ReasonForbidden) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", what, err)
		}
		if b.gone(t, "AddressGroup", "far") {
			t.Fatalf("%s: it is gone", what)
		}
	}
	begin := func() {
		t.Helper()
		if _, err := alice.ApplyObject(ctx, kind("AddressGroup"), addressGroup("far", "192.0.2.0/24"), client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := alice.Delete(ctx, kind("AddressGroup"), "", "far", client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		refused("at once", "deleted it")
	}
	begin()
	for _, addresses := range []string{`"192.0.2.0/24","198.51.100.0/24"`, `"192.0.2.0/24"`, `"192.0.2.0/24","203.0.113.0/24"`} {
		amend(t, alice, "AddressGroup", "far", `{"spec":{"addresses":[`+addresses+`]}}`)
		refused("with "+addresses, "deleted it")
	}
	// The warning says what to type.
	_, _, header := b.raw(t, "PATCH", groupsPath+"/far", mergeType, `{"metadata":{"labels":{"a":"b"}}}`)
	if warning := header.Get("Warning"); !strings.Contains(warning, "bocage approve addressgroup far --deletion") {
		t.Errorf("the warning is %q", warning)
	}
	if _, err := bob.ApproveDeletion(ctx, kind("AddressGroup"), "", "far", 0); err != nil || !b.gone(t, "AddressGroup", "far") {
		t.Errorf("by another: %v", err)
	}

	// One that an earlier version left, without who deleted it.
	forget := func() {
		t.Helper()
		begin()
		object, err := b.client.Get(ctx, kind("AddressGroup"), "", "far")
		if err != nil {
			t.Fatal(err)
		}
		object.(*bocage.AddressGroup).Status.Approval = nil
		value, err := store.EncodeObject(kind("AddressGroup"), object)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.Apply(ctx, store.Op{Key: kind("AddressGroup").Key("", "far"), Value: value, IfWas: store.AnyRevision}); err != nil {
			t.Fatal(err)
		}
		refused("by nobody", "not known who deleted it")
	}
	forget()
	if _, err := alice.Delete(ctx, kind("AddressGroup"), "", "far", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	refused("deleted once more", "token:alice deleted it")
	if _, err := bob.ApproveDeletion(ctx, kind("AddressGroup"), "", "far", 0); err != nil || !b.gone(t, "AddressGroup", "far") {
		t.Errorf("by another: %v", err)
	}
	forget()
	if _, err := b.client.ApproveDeletion(ctx, kind("AddressGroup"), "", "far", 0); err != nil || !b.gone(t, "AddressGroup", "far") {
		t.Errorf("by root: %v", err)
	}
}

// TestReachDeletionHeldLate: what began to matter after it was deleted does not go by
// one person when what else held it lets go.
func TestReachDeletionHeldLate(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	alice, bob, carol := b.named(t, "alice", RolePolicyAdmin), b.named(t, "bob", RolePolicyAdmin), b.named(t, "carol", RolePolicyAdmin)
	const free = `{"metadata":{"finalizers":null}}`
	begin := func(o bocage.Resource) {
		t.Helper()
		k, name := kind(kindOf(o)), o.Meta().Name
		o.Meta().Finalizers = []string{"example.org/x"}
		if _, err := alice.ApplyObject(ctx, k, o, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := alice.Delete(ctx, k, "", name, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	held := func(kindName, name string) {
		t.Helper()
		if b.gone(t, kindName, name) || b.inForce(t, kindName, name) == nil {
			t.Fatalf("%s %s went by one person", kindName, name)
		}
		if _, err := alice.ApproveDeletion(ctx, kind(kindName), "", name, 0); !client.HasReason(err, client.ReasonForbidden) {
			t.Errorf("%s %s by who deleted it: %v", kindName, name, err)
		}
	}
	agreed := func(kindName, name string) {
		t.Helper()
		if _, err := bob.ApproveDeletion(ctx, kind(kindName), "", name, 0); err != nil || !b.gone(t, kindName, name) {
			t.Errorf("%s %s by another: %v", kindName, name, err)
		}
	}

	// Another who lets go of it did not agree that it goes, and who deleted it is who
	// deleted it.
	for _, lets := range []*client.Client{alice, carol} {
		begin(scope("all", bocage.ModeObserve))
		amend(t, alice, "Scope", "all", `{"spec":{"mode":"enforce"}}`)
		amend(t, lets, "Scope", "all", free)
		held("Scope", "all")
		agreed("Scope", "all")
	}
	// In one write with what weakens it.
	begin(scope("all", bocage.ModeObserve))
	amend(t, alice, "Scope", "all", `{"spec":{"mode":"enforce"}}`)
	amend(t, alice, "Scope", "all", `{"spec":{"mode":"observe"},"metadata":{"finalizers":null}}`)
	held("Scope", "all")
	agreed("Scope", "all")
	// One that still observes goes as it did.
	begin(scope("seen", bocage.ModeObserve))
	amend(t, alice, "Scope", "seen", free)
	if !b.gone(t, "Scope", "seen") {
		t.Error("one that observes waits")
	}

	// A guardrail came that names it.
	begin(addressGroup("far", "192.0.2.0/24"))
	g := guardrail("g", "one")
	g.Spec.Never = []bocage.CellMatch{{To: bocage.Side{AddressGroups: []string{"far"}}}}
	if _, err := bob.ApplyObject(ctx, kind("Guardrail"), g, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := carol.Approve(ctx, kind("Guardrail"), "", "g", 0); err != nil {
		t.Fatal(err)
	}
	amend(t, alice, "AddressGroup", "far", free)
	held("AddressGroup", "far")
	agreed("AddressGroup", "far")

	// That it goes is agreed to once, though something else holds it still, and again
	// only for what it became since.
	for _, changed := range []bool{false, true} {
		begin(scope("all", bocage.ModeEnforce))
		if _, err := bob.ApproveDeletion(ctx, kind("Scope"), "", "all", 0); err != nil {
			t.Fatal(err)
		}
		if changed {
			amend(t, alice, "Scope", "all", `{"spec":{"disposition":"reject"}}`)
			amend(t, alice, "Scope", "all", free)
			held("Scope", "all")
			agreed("Scope", "all")
			continue
		}
		if _, err := alice.Delete(ctx, kind("Scope"), "", "all", client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		amend(t, alice, "Scope", "all", free)
		if !b.gone(t, "Scope", "all") {
			t.Error("what two people agreed to waits again")
		}
	}
}

// TestReachUnread: while somebody's guardrail, exception or scope cannot be read, it
// may name anything.
func TestReachUnread(t *testing.T) {
	for _, kindName := range []string{"Guardrail", "Exception", "Scope"} {
		b := start(t, func(c *Config) { c.TwoPerson = true })
		ctx := t.Context()
		broken := kind(kindName)
		objects := []bocage.Resource{
			addressGroup("far", "192.0.2.0/24", "198.51.100.0/24"),
			&bocage.InspectionProfile{ObjectMeta: bocage.ObjectMeta{Name: "sql"}, Spec: bocage.InspectionProfileSpec{FailMode: "closed", Signatures: `alert tcp any any -> any any (msg:"a"; sid:1;)`}},
			&bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "dmz"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1", "h2"}}},
		}
		for _, o := range objects {
			if _, err := b.client.ApplyObject(ctx, kind(kindOf(o)), o, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			if b.inForce(t, kindOf(o), o.Meta().Name) == nil {
				t.Fatalf("%s waits though nothing names it", kindOf(o))
			}
		}
		key, text := broken.Key("", "bad"), `{"apiVersion":"bocage.dev/v1","kind":"`+kindName+`","metadata":{"name":"bad"},"spec":7}`
		if _, err := b.store.Apply(ctx, store.Op{Key: key, Value: []byte(text), IfWas: store.AnyRevision}); err != nil {
			t.Fatal(err)
		}
		for i, patch := range []string{`{"spec":{"addresses":["192.0.2.0/24"]}}`, `{"spec":{"failMode":"open"}}`, `{"spec":{"hosts":["h1"]}}`} {
			k, name := kind(kindOf(objects[i])), objects[i].Meta().Name
			path := "/apis/" + bocage.APIVersion + "/" + k.Plural + "/" + name
			code, text, header := b.raw(t, "PATCH", path, mergeType, patch)
			if warning := header.Get("Warning"); code != 200 || !strings.Contains(warning, kindName+" bad cannot be read") {
				t.Errorf("%s beside an unreadable %s: %d %s, warning %q", k.Name, kindName, code, text, warning)
			}
			if counts := b.inForce(t, k.Name, name); !sameJSON(specIn(t, counts), specIn(t, objects[i])) {
				t.Errorf("%s beside an unreadable %s was weakened by one person", k.Name, kindName)
			}
		}
		// One that is read again no longer makes anything wait.
		if _, err := b.store.Apply(ctx, store.Op{Key: key, Delete: true, IfWas: store.AnyRevision}); err != nil {
			t.Fatal(err)
		}
		amend(t, b.client, "Zone", "dmz", `{"spec":{"hosts":["h3"]}}`)
		if z := b.inForce(t, "Zone", "dmz").(*bocage.Zone); z.Status.Approval != nil {
			t.Errorf("it still waits: %+v", z.Status.Approval)
		}
		b.stop()
	}
}
