package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
)

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
}

// TestLifeOfAnObject walks one object from its creation to its removal.
func TestLifeOfAnObject(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	scopes := kind("Scope")

	created, err := b.client.Create(ctx, scopes, scope("all", "observe"), client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta := created.Meta()
	if meta.UID == "" || meta.Generation != 1 || meta.CreationTimestamp == nil || meta.ResourceVersion == "" {
		t.Errorf("created without what the system gives: %+v", meta)
	}
	if _, err := b.client.Create(ctx, scopes, scope("all", "observe"), client.WriteOptions{}); !client.HasReason(err, client.ReasonAlreadyExists) {
		t.Errorf("created twice: %v", err)
	}

	read, err := b.client.Get(ctx, scopes, "", "all")
	if err != nil {
		t.Fatal(err)
	}
	changed := read.(*bocage.Scope)
	changed.Spec.Mode = "enforce"
	changed.Status.Conditions = []bocage.Condition{{Type: "Enforced", Status: "True"}}
	stored, err := b.client.Update(ctx, scopes, changed, client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := stored.(*bocage.Scope); got.Generation != 2 || got.Spec.Mode != "enforce" || got.UID != meta.UID {
		t.Errorf("updated to %+v", got)
	} else if len(got.Status.Conditions) > 0 {
		t.Error("the status was written through the main path")
	}
	if _, err := b.client.Update(ctx, scopes, changed, client.WriteOptions{}); !client.HasReason(err, client.ReasonConflict) {
		t.Errorf("an old revision was written: %v", err)
	}

	labelled, err := b.client.Patch(ctx, scopes, "", "all", "", map[string]any{"metadata": map[string]any{"labels": map[string]any{"a": "b"}}}, client.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if labelled.Meta().Generation != 2 || labelled.Meta().Labels["a"] != "b" {
		t.Errorf("a label makes generation %d, labels %v", labelled.Meta().Generation, labelled.Meta().Labels)
	}

	list, _, err := b.client.List(ctx, scopes, client.ListOptions{LabelSelector: "a in (b,c)"})
	if err != nil || len(list) != 1 {
		t.Errorf("list: %d, %v", len(list), err)
	}
	if _, err := b.client.Delete(ctx, scopes, "", "all", client.WriteOptions{DryRun: true}); err != nil {
		t.Error(err)
	}
	if _, err := b.client.Delete(ctx, scopes, "", "all", client.WriteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := b.client.Get(ctx, scopes, "", "all"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("read after removal: %v", err)
	}
	if !strings.Contains(b.log.String(), `"person":"local:root"`) {
		t.Errorf("the audit log does not name the person:\n%s", b.log)
	}
}

// TestNoLostUpdate: whatever many writers are told was written is there in the
// end, whether they replace the whole object or patch a part of it.
func TestNoLostUpdate(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	scopes := kind("Scope")
	if _, err := b.client.Create(ctx, scopes, scope("shared", "observe"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	const writers, rounds = 6, 8
	append := func(token string) error {
		object, err := b.client.Get(ctx, scopes, "", "shared")
		if err != nil {
			return err
		}
		if object.Meta().Annotations == nil {
			object.Meta().Annotations = map[string]string{}
		}
		object.Meta().Annotations["tokens"] += token + ","
		_, err = b.client.Update(ctx, scopes, object, client.WriteOptions{})
		return err
	}
	add := func(token string) error {
		_, err := b.client.Patch(ctx, scopes, "", "shared", "", map[string]any{
			"metadata": map[string]any{"annotations": map[string]any{token: "x"}},
		}, client.WriteOptions{})
		return err
	}
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for round := range rounds {
				token := fmt.Sprintf("w%dr%d", w, round)
				for {
					write := append
					if w%2 == 0 {
						write = add
					}
					err := write(token)
					if err == nil {
						break
					}
					if !client.HasReason(err, client.ReasonConflict) {
						t.Errorf("%s: %v", token, err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	object, err := b.client.Get(ctx, scopes, "", "shared")
	if err != nil {
		t.Fatal(err)
	}
	annotations := object.Meta().Annotations
	for w := range writers {
		for round := range rounds {
			token := fmt.Sprintf("w%dr%d", w, round)
			if times := strings.Count(annotations["tokens"], token+","); w%2 == 1 && times != 1 {
				t.Errorf("%s was appended %d times", token, times)
			}
			if w%2 == 0 && annotations[token] != "x" {
				t.Errorf("%s was lost", token)
			}
		}
	}
}

// TestIdentitiesAreGivenOnce: workloads that are made and removed all at once get
// numbers that nobody else ever had, and never an address that is taken.
func TestIdentitiesAreGivenOnce(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	workloads := kind("Workload")
	var mu sync.Mutex
	given := map[bocage.Identity]string{}
	var group sync.WaitGroup
	const makers, rounds = 8, 12
	for m := range makers {
		group.Go(func() {
			for round := range rounds {
				name := fmt.Sprintf("w%d-%d", m, round)
				made, err := b.client.Create(ctx, workloads, &bocage.Workload{
					ObjectMeta: bocage.ObjectMeta{Name: name, Namespace: "shop"},
					// Half of the makers fight for the same address.
					Spec: bocage.WorkloadSpec{Host: "h1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(m / 2), byte(round)})}},
				}, client.WriteOptions{})
				if client.HasReason(err, client.ReasonInvalid) {
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				w := made.(*bocage.Workload)
				mu.Lock()
				if other, twice := given[w.Status.Identity]; twice || w.Status.Identity < bocage.IdentityFirst {
					t.Errorf("%s has identity %d, as has %q", name, w.Status.Identity, other)
				}
				given[w.Status.Identity] = name
				mu.Unlock()
				if want := "spiffe://test.local/workload/shop/" + name; w.Status.SPIFFEID != want {
					t.Errorf("%s is %s", name, w.Status.SPIFFEID)
				}
				if round%2 == 0 {
					if _, err := b.client.Delete(ctx, workloads, "shop", name, client.WriteOptions{}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	left, _, err := b.client.List(ctx, workloads, client.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holders := map[netip.Addr]string{}
	for _, object := range left {
		w := object.(*bocage.Workload)
		for _, address := range w.Spec.Addresses {
			if other, twice := holders[address]; twice {
				t.Errorf("%s and %s both have %s", w.Name, other, address)
			}
			holders[address] = w.Name
		}
	}
	claims, _, err := b.store.List(ctx, addressClaims, "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(claims) != len(holders) {
		t.Errorf("%d claims for %d addresses", len(claims), len(holders))
	}
}

func TestWorkloadsKeepTheirIdentityAndGiveUpAddresses(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	workloads := kind("Workload")
	apply := func(text string) error {
		_, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{})
		return err
	}
	identityOf := func(name string) bocage.Identity {
		t.Helper()
		object, err := b.client.Get(ctx, workloads, "shop", name)
		if err != nil {
			t.Fatal(err)
		}
		return object.(*bocage.Workload).Status.Identity
	}
	if err := apply(workload("shop", "web", "h1", "v1", "10.0.0.1") + "---\n" + workload("shop", "api", "h1", "v2", "10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	web, api := identityOf("web"), identityOf("api")
	if web == api {
		t.Fatalf("both have %d", web)
	}
	// One goes elsewhere and the other takes its place, at once.
	if err := apply(workload("shop", "web", "h2", "v1", "10.0.0.9") + "---\n" + workload("shop", "api", "h1", "v1", "10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if identityOf("web") != web || identityOf("api") != api {
		t.Error("an identity changed with an address")
	}
	if err := apply(workload("shop", "db", "h1", "v2", "10.0.0.2")); err != nil {
		t.Errorf("an address that was given up is refused: %v", err)
	}
	// A workload that was removed behind our back holds nothing.
	if _, err := store.Delete(ctx, b.store, workloads.Key("shop", "db"), store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	if err := apply(workload("shop", "cache", "h1", "v2", "10.0.0.2")); err != nil {
		t.Errorf("the address of a workload that is gone is refused: %v", err)
	}
	// Nor does a counter that was lost give numbers again.
	if _, err := store.Delete(ctx, b.store, identityCounter, store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	highest := max(web, api, identityOf("cache"))
	if err := apply(workload("shop", "late", "h3", "v2", "10.0.3.3")); err != nil {
		t.Fatal(err)
	}
	if got := identityOf("late"); got <= highest {
		t.Errorf("identity %d was given again: %d was the highest", got, highest)
	}
	// The status is not for people to write.
	_, err := b.client.Patch(ctx, workloads, "shop", "web", "", map[string]any{"status": map[string]any{"identity": 7}}, client.WriteOptions{})
	if err != nil || identityOf("web") != web {
		t.Errorf("identity %d after a patch of the status: %v", identityOf("web"), err)
	}
	_, err = b.client.Patch(ctx, workloads, "shop", "web", "status", map[string]any{"status": map[string]any{"identity": 7}}, client.WriteOptions{})
	if !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("the status was patched: %v", err)
	}
}

func TestFaultsComeBackWithTheirSource(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	apply := func(text string) error {
		_, err := b.client.Apply(ctx, documents(t, text), client.WriteOptions{})
		return err
	}
	if err := apply(workload("shop", "web", "h1", "v1", "10.0.0.1") + "---\n" + workload("shop", "api", "h1", "v2", "10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	err := apply(workload("shop", "db", "h1", "v3", "10.0.0.3") + "---\n" + workload("shop", "cache", "h1", "v1", "10.0.0.2"))
	var e *client.Error
	if !errors.As(err, &e) || len(e.Faults) != 2 {
		t.Fatalf("two faults expected: %v", err)
	}
	for _, want := range []string{
		"test.yaml:9: spec.addresses[0]: 10.0.0.2 belongs to workload shop/api already",
		"test.yaml:9: spec.interface: v1 of host h1 is the interface of workload shop/web already",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
	if _, err := b.client.Get(ctx, kind("Workload"), "shop", "db"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("a document was applied beside a faulty one: %v", err)
	}
}
