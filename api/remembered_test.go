package api

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/etcd/etcdtest"
)

// TestWithoutStore: who is content with what the controller has is served while the
// store does not answer, if the controller has heard of them lately.
func TestWithoutStore(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{server.Endpoint}, Patience: 20 * time.Second, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Store = s })
	t.Cleanup(func() {
		server.Continue(t)
		b.stop()
		_ = s.Close()
	})
	b.mustScope(t, "POST", "w1", "")
	session := func() string {
		session, err := b.client.CreateSession(t.Context(), client.Person{Name: "tester", Role: string(RoleViewer)}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return session.Token
	}
	known, unknown := session(), session()
	ask := func(token, path string) (int, time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, "GET", b.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: identity.ClientTLS(func() *identity.SVID { return nil }, b.authority.Bundle(), "/controller/")}
		began := time.Now()
		answer, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer.StatusCode, time.Since(began)
	}
	for _, path := range []string{"/version", scopesPath + "/w1", scopesPath} {
		if code, _ := ask(known, path); code != 200 {
			t.Fatalf("%s: %d", path, code)
		}
	}

	server.Stop(t)
	for _, path := range []string{"/version", "/apis", "/openapi/v3", scopesPath + "?resourceVersion=0", scopesPath + "?resourceVersion=0&limit=500", scopesPath + "/w1?resourceVersion=0"} {
		// The store's patience is 20 s: whoever waited for it would take that long.
		if code, took := ask(known, path); code != 200 || took > 15*time.Second {
			t.Errorf("%s: %d after %s", path, code, took)
		}
		if code, _, _ := b.raw(t, "GET", path, "", ""); code != 200 {
			t.Errorf("%s over the socket: %d", path, code)
		}
	}
	if code, _ := ask(known, scopesPath+"/nobody?resourceVersion=0"); code != 404 {
		t.Errorf("what is not there: %d", code)
	}
	// Of whom nothing was heard nothing is believed, and what has to be new waits.
	if code, _ := ask(unknown, "/version"); code != 503 {
		t.Errorf("a token that was never used: %d", code)
	}
	if code, _ := ask(known, scopesPath+"/w1"); code != 503 {
		t.Errorf("the newest: %d", code)
	}
	// Nor is anything believed for ever.
	b.server.remembered.mu.Lock()
	for key, heard := range b.server.remembered.sessions {
		heard.at = heard.at.Add(-rememberedLimit)
		b.server.remembered.sessions[key] = heard
	}
	b.server.remembered.mu.Unlock()
	if code, _ := ask(known, "/version"); code != 503 {
		t.Errorf("a token of which nothing was heard for %s: %d", rememberedLimit, code)
	}

	server.Continue(t)
	for _, token := range []string{known, unknown} {
		for {
			if code, _ := ask(token, scopesPath+"/w1"); code == 200 {
				break
			} else if code != 503 {
				t.Fatalf("afterwards: %d", code)
			}
		}
	}
	// What is taken back is so at once where the store answers, whatever is asked for.
	if _, err := b.client.EndSessions(t.Context(), "tester"); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(known, "/version"); code != 401 {
		t.Errorf("a token that was ended: %d", code)
	}
}

// TestRememberedRoles: so are the roles that RoleBindings give.
func TestRememberedRoles(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{server.Endpoint}, Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Store = s })
	t.Cleanup(func() {
		server.Continue(t)
		b.stop()
		_ = s.Close()
	})
	if code, text, _ := b.raw(t, "POST", "/apis/bocage.dev/v1/rolebindings", jsonType,
		`{"apiVersion":"bocage.dev/v1","kind":"RoleBinding","metadata":{"name":"r"},"spec":{"role":"viewer","subjects":["spiffe://test.local/user/ann"]}}`); code != 201 {
		t.Fatal(code, text)
	}
	person := Person{Name: "spiffe://test.local/user/ann"}
	old := context.WithValue(t.Context(), contentKey{}, true)
	for _, ctx := range []context.Context{t.Context(), old} {
		if p, err := b.server.withBindings(ctx, person); err != nil || !p.has(RoleViewer) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	server.Stop(t)
	if p, err := b.server.withBindings(old, person); err != nil || !p.has(bocage.RoleViewer) {
		t.Errorf("%+v, %v", p, err)
	}
	b.server.remembered.mu.Lock()
	b.server.remembered.roles = time.Now().Add(-2 * rememberedLimit)
	b.server.remembered.mu.Unlock()
	if p, err := b.server.withBindings(old, person); err == nil || p.has(bocage.RoleViewer) {
		t.Errorf("after %s: %+v, %v", rememberedLimit, p, err)
	}
}
