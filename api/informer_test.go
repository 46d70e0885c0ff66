package api

import (
	"context"
	"errors"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// TestOwnInformer lets the Go client's informer follow a server, over HTTP/2.
func TestOwnInformer(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")
	informer, want, end := followScopes(t, b)
	want("+a")
	<-informer.Synced()
	b.mustScope(t, "POST", "b", "")
	want("+b")
	b.mustScope(t, "PATCH", "b", `{"spec":{"mode":"enforce"}}`)
	want("~b")
	if found := informer.ByIndex("mode", "enforce"); len(found) != 1 || found[0].Name != "b" || informer.Len() != 2 {
		t.Errorf("%v enforce, of %d", found, informer.Len())
	}
	b.mustScope(t, "DELETE", "a", "")
	want("-a")
	end()
}

// followScopes runs the Go client's informer, by mode. want takes what it tells
// next ("+a", "~a", "-a"), end has it end.
func followScopes(t *testing.T, b *bench) (informer *client.Informer[*bocage.Scope], want func(string), end func()) {
	t.Helper()
	told := make(chan string, 10)
	informer, err := client.NewInformer(b.as(t, RoleViewer), client.InformerOptions[*bocage.Scope]{
		Indexers: map[string]func(*bocage.Scope) []string{"mode": func(s *bocage.Scope) []string { return []string{s.Spec.Mode} }},
		Handle: func(c client.Change[*bocage.Scope]) {
			switch {
			case c.Was == nil:
				told <- "+" + c.Is.Name
			case c.Is == nil:
				told <- "-" + c.Was.Name
			default:
				told <- "~" + c.Is.Name
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- informer.Run(ctx) }()
	want = func(text string) {
		t.Helper()
		select {
		case got := <-told:
			if got != text {
				t.Errorf("told %q, want %q", got, text)
			}
		case err := <-done:
			t.Fatalf("the informer ended: %v", err)
		}
	}
	end = func() {
		t.Helper()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	return informer, want, end
}
