package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store/mem"
	"bocage.dev/bocage/store/storetest"
)

// manyObjects are n objects, of which every third is a workload with an identity
// and a claim.
func manyObjects(t *testing.T, n int) []manifest.Document {
	t.Helper()
	var text strings.Builder
	for i := range n {
		if i > 0 {
			text.WriteString("---\n")
		}
		switch {
		case i%3 == 0:
			text.WriteString(workload("shop", fmt.Sprintf("w%05d", i), "h1", fmt.Sprintf("v%05d", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)))
		default:
			fmt.Fprintf(&text, "apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a%05d, namespace: shop}\nspec: {workload: {matchLabels: {app: a%d}}}\n", i, i)
		}
	}
	return documents(t, text.String())
}

// TestApplyOfTenThousand: more than the store takes at once is checked whole,
// then written in parts, and what it means is the same.
func TestApplyOfTenThousand(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	const count = 10_000
	objects := manyObjects(t, count)
	result, err := b.client.Apply(ctx, objects, client.WriteOptions{})
	if err != nil || len(result.Objects) != count {
		t.Fatalf("%d objects: %v", len(result.Objects), err)
	}
	for _, o := range result.Objects {
		if o.Outcome != "created" {
			t.Fatalf("%s %s is %s", o.Kind, o.Name, o.Outcome)
		}
	}
	workloads, _, err := b.client.List(ctx, kind("Workload"), client.ListOptions{})
	if err != nil || len(workloads) != (count+2)/3 {
		t.Fatalf("%d workloads: %v", len(workloads), err)
	}
	given := map[bocage.Identity]string{}
	for _, o := range workloads {
		w := o.(*bocage.Workload)
		if other, twice := given[w.Status.Identity]; twice || w.Status.Identity == 0 {
			t.Fatalf("%s and %s have identity %d", other, w.Name, w.Status.Identity)
		}
		given[w.Status.Identity] = w.Name
	}
	// One more goes on counting, and one address of them is taken.
	if _, err := b.client.Apply(ctx, documents(t, workload("shop", "next", "h1", "vnext", "10.0.0.0")), client.WriteOptions{}); err == nil {
		t.Error("an address was given twice")
	}
	if _, err := b.client.Apply(ctx, documents(t, workload("shop", "next", "h1", "vnext", "10.9.0.1")), client.WriteOptions{}); err != nil {
		t.Error(err)
	}

	// One fault among many: nothing is written.
	bad := append(manyObjects(t, 3000), documents(t, workload("shop", "late", "h1", "vlate", "10.0.0.0"))...)
	if _, err := b.client.Delete(ctx, kind("Workload"), "shop", "w00003", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = b.client.Apply(ctx, bad, client.WriteOptions{})
	var e *client.Error
	if !errors.As(err, &e) || len(e.Faults) != 1 || !strings.Contains(e.Faults[0].Message, "belongs to workload") {
		t.Errorf("one fault among many: %v", err)
	}
	if _, err := b.client.Get(ctx, kind("Workload"), "shop", "w00003"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("a part was written although another was at fault: %v", err)
	}
}

// TestApplyThatEndsHalfway: of each object is told whether it was written, and
// the same apply finishes it.
func TestApplyThatEndsHalfway(t *testing.T) {
	full := &storetest.FullAfter{Store: mem.New(), Left: 2}
	b := start(t, func(c *Config) { c.Store = full })
	objects := manyObjects(t, 3000)
	result, err := b.client.Apply(t.Context(), objects, client.WriteOptions{})
	var e *client.Error
	if !errors.As(err, &e) || e.Code != 507 || !strings.Contains(err.Error(), "store is full") || !strings.Contains(err.Error(), "apply all of them again") {
		t.Fatalf("half an apply: %v", err)
	}
	outcomes := map[string]int{}
	for _, o := range result.Objects {
		outcomes[o.Outcome]++
	}
	listed := 0
	for _, name := range []string{"Workload", "Application"} {
		found, _, err := b.client.List(t.Context(), kind(name), client.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		listed += len(found)
	}
	if outcomes["created"] != listed || outcomes["pending"] != 3000-listed || listed == 0 {
		t.Errorf("told %v, there are %d", outcomes, listed)
	}
	full.Left = 100
	again, err := b.client.Apply(t.Context(), objects, client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	clear(outcomes)
	for _, o := range again.Objects {
		outcomes[o.Outcome]++
	}
	if outcomes["unchanged"] != listed || outcomes["created"] != 3000-listed {
		t.Errorf("again: %v, after %d", outcomes, listed)
	}
}

// TestApplyOfWhatIsTooLarge: one object among others that is larger than the store takes
// is named before any of them is written.
func TestApplyOfWhatIsTooLarge(t *testing.T) {
	b := start(t, nil)
	objects := documents(t, strings.Join([]string{
		"apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: before}\nspec: {mode: observe}\n",
		"apiVersion: bocage.dev/v1\nkind: AddressGroup\nmetadata: {name: large}\nspec: {addresses: [192.0.2.0/24], description: \"" + strings.Repeat("x", 4<<20) + "\"}\n",
		"apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: behind}\nspec: {mode: observe}\n",
	}, "---\n"))
	for _, dry := range []bool{true, false} {
		_, err := b.client.Apply(t.Context(), objects, client.WriteOptions{DryRun: dry})
		if err == nil || !strings.Contains(err.Error(), ":6") || !strings.Contains(err.Error(), "make several of it") {
			t.Errorf("%.300v", err)
		}
	}
	if scopes, _, err := b.client.List(t.Context(), kind("Scope"), client.ListOptions{}); err != nil || len(scopes) != 0 {
		t.Errorf("%d scopes were written all the same: %v", len(scopes), err)
	}
}
