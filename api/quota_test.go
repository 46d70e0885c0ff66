package api

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// TestQuotas: a namespace takes as many objects as it may hold, however many
// people create them at once.
func TestQuotas(t *testing.T) {
	b := start(t, func(c *Config) { c.Quotas = map[string]int{"applications": 5} })
	ctx := t.Context()
	create := func(namespace, name string) error {
		_, err := b.client.ApplyObject(ctx, kind("Application"), &bocage.Application{ObjectMeta: bocage.ObjectMeta{Name: name, Namespace: namespace}}, client.WriteOptions{})
		return err
	}
	var made atomic.Int32
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			err := create("shop", fmt.Sprint("a", i))
			if err == nil {
				made.Add(1)
			} else if !strings.Contains(err.Error(), "exceeded quota: bocage.dev/quota.applications, requested: applications=1, used: applications=5, limited: applications=5") {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if made.Load() != 5 {
		t.Errorf("%d were made", made.Load())
	}
	namespace := func(c *client.Client, most string) error {
		_, err := c.ApplyObject(ctx, kind("Namespace"), &bocage.Namespace{ObjectMeta: bocage.ObjectMeta{Name: "bank",
			Annotations: map[string]string{"bocage.dev/quota.applications": most}}}, client.WriteOptions{Force: true})
		return err
	}
	policyAdmin := b.as(t, RolePolicyAdmin)
	if err := namespace(policyAdmin, "100"); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("a policy-admin set a quota: %v", err)
	}
	if err := namespace(b.client, "many"); !client.HasReason(err, client.ReasonInvalid) {
		t.Errorf("a quota that is no number: %v", err)
	}
	if err := namespace(b.client, "2"); err != nil {
		t.Fatal(err)
	}
	if _, err := policyAdmin.Patch(ctx, kind("Namespace"), "", "bank", "", map[string]any{"metadata": map[string]any{"labels": map[string]any{"tier": "gold"}}}, client.WriteOptions{}); err != nil {
		t.Errorf("a label: %v", err)
	}
	if _, err := policyAdmin.Patch(ctx, kind("Namespace"), "", "bank", "", map[string]any{"metadata": map[string]any{"annotations": nil}}, client.WriteOptions{}); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("a policy-admin took a quota away: %v", err)
	}
	// All or nothing holds for those that come together, too.
	var text strings.Builder
	for i := range 3 {
		fmt.Fprintf(&text, "---\napiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a%d, namespace: bank}\nspec: {workload: {}}\n", i)
	}
	if _, err := b.client.Apply(ctx, documents(t, text.String()), client.WriteOptions{}); err == nil || !strings.Contains(err.Error(), "used: applications=2") {
		t.Errorf("three where two fit: %v", err)
	}
	for i := range 3 {
		if err := create("bank", fmt.Sprint("a", i)); (err == nil) != (i < 2) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if _, err := b.client.Delete(ctx, kind("Application"), "bank", "a0", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := create("bank", "again"); err != nil {
		t.Errorf("after one went: %v", err)
	}
}

func TestMostObjects(t *testing.T) {
	b := start(t, func(c *Config) { c.MaxObjects = 3 })
	var err error
	n := 0
	for ; err == nil && n < 10; n++ {
		_, err = b.client.ApplyObject(t.Context(), kind("Scope"), scope(fmt.Sprint("s", n), "observe"), client.WriteOptions{})
	}
	if !client.HasReason(err, client.ReasonForbidden) || !strings.Contains(err.Error(), "3 objects at most") {
		t.Errorf("after %d: %v", n, err)
	}
}
