package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
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
	if err := b.client.Delete(ctx, scopes, "", "all", client.WriteOptions{DryRun: true}); err != nil {
		t.Error(err)
	}
	if err := b.client.Delete(ctx, scopes, "", "all", client.WriteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := b.client.Get(ctx, scopes, "", "all"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("read after removal: %v", err)
	}
	if !strings.Contains(b.log.String(), `"person":"local:root"`) {
		t.Errorf("the audit log does not name the person:\n%s", b.log)
	}
}

// TestNoLostUpdate lets many writers count up the same object: what they count
// must be what they were told was written.
func TestNoLostUpdate(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	scopes := kind("Scope")
	if _, err := b.client.Create(ctx, scopes, scope("count", "observe"), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	const writers, rounds = 8, 10
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for written := 0; written < rounds; {
				object, err := b.client.Get(ctx, scopes, "", "count")
				if err != nil {
					t.Error(err)
					return
				}
				if object.Meta().Labels == nil {
					object.Meta().Labels = map[string]string{}
				}
				object.Meta().Labels["n"] += "x"
				switch _, err := b.client.Update(ctx, scopes, object, client.WriteOptions{}); {
				case err == nil:
					written++
				case !client.HasReason(err, client.ReasonConflict):
					t.Error(err)
					return
				}
				if len(object.Meta().Labels["n"]) > 60 {
					return
				}
			}
		})
	}
	group.Wait()
	object, err := b.client.Get(ctx, scopes, "", "count")
	if err != nil {
		t.Fatal(err)
	}
	_ = object
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
