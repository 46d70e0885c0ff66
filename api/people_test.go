package api

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
)

func TestClientCertificates(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	with := func(authority *identity.Authority, path string) error {
		svid, err := authority.IssueSVID(path, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New(client.Config{
			Address: b.address, TLS: identity.ClientTLS(func() *identity.SVID { return svid }, b.authority.Bundle(), "/controller/"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		person, err := c.WhoAmI(ctx)
		if err == nil && person.Role != string(RoleAdmin) {
			return fmt.Errorf("role %s", person.Role)
		}
		return err
	}
	if err := with(b.authority, "/admin/alice"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/agent/h1", "/workload/shop/web", "/controller/c2"} {
		if err := with(b.authority, path); !client.HasReason(err, client.ReasonForbidden) {
			t.Errorf("%s: %v", path, err)
		}
	}
	stranger, err := identity.OpenAuthority(t.TempDir(), "test.local")
	if err != nil {
		t.Fatal(err)
	}
	if err := with(stranger, "/admin/mallory"); err == nil {
		t.Error("a certificate of another authority was accepted")
	}
	if _, err := b.withToken(t, "").WhoAmI(ctx); !client.HasReason(err, "Unauthorized") {
		t.Errorf("nobody: %v", err)
	}
	for _, test := range []struct {
		id   string
		role Role
	}{
		{"spiffe://x/admin/a", RoleAdmin}, {"spiffe://x/viewer/a", RoleViewer}, {"spiffe://x/responder/a", RoleResponder},
		{"spiffe://x/owner/shop/a", RoleOwner}, {"spiffe://x/auditor/a", RoleAuditor}, {"spiffe://x/policy-admin/a", RolePolicyAdmin}, {"spiffe://x/owner/a", ""}, {"spiffe://x/admin", ""}, {"spiffe://x/admin/a/b", ""}, {"spiffe://x", ""},
	} {
		if person := certifiedPerson(test.id, nil); person.rolesText() != string(test.role) || person.Name != test.id {
			t.Errorf("%s is %+v", test.id, person)
		}
	}
}

func TestOneTimeToken(t *testing.T) {
	const token = "correct-horse-battery-staple"
	b := start(t, func(c *Config) { c.AdminToken = token })
	ctx := t.Context()
	if _, err := b.withToken(t, "correct-horse-battery-stapler").Login(ctx); !client.HasReason(err, "Unauthorized") {
		t.Errorf("a wrong token: %v", err)
	}
	if _, err := b.withToken(t, token).WhoAmI(ctx); !client.HasReason(err, "Unauthorized") {
		t.Errorf("the one-time token is no session: %v", err)
	}
	var sessions atomic.Int32
	var session client.Session
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if got, err := b.withToken(t, token).Login(ctx); err == nil {
				sessions.Add(1)
				session = got
			}
		})
	}
	group.Wait()
	if sessions.Load() != 1 {
		t.Fatalf("%d sessions for one token", sessions.Load())
	}
	if person, err := b.withToken(t, session.Token).WhoAmI(ctx); err != nil || person.Role != "admin" {
		t.Error(person, err)
	}
	b.server.adminTokenEnds = time.Now()
	if _, err := b.server.login(ctx, token); err == nil {
		t.Error("the token outlived its end")
	}
	entries, _, err := b.store.List(ctx, "", "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if text := entry.Key + string(entry.Value); strings.Contains(text, token) || strings.Contains(text, session.Token) {
			t.Errorf("a token can be read in %s", entry.Key)
		}
	}
	if strings.Contains(b.log.String(), token) || strings.Contains(b.log.String(), session.Token) {
		t.Error("a token can be read in the log")
	}
}

func TestSessions(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	owner := b.as(t, RoleOwner, "shop")
	if _, err := owner.CreateSession(ctx, client.Person{Name: "x", Role: "admin"}, 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("an owner made an administrator: %v", err)
	}
	for name, person := range map[string]client.Person{
		"no name": {Role: "viewer"}, "no role": {Name: "x"}, "no namespace": {Name: "x", Role: "owner"},
		"a role of fancy": {Name: "x", Role: "king"}, "namespaces for all": {Name: "x", Role: "responder", Namespaces: []string{"a"}},
	} {
		if _, err := b.client.CreateSession(ctx, person, 0); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := b.client.CreateSession(ctx, client.Person{Name: "x", Role: "viewer"}, 365*24*time.Hour); err == nil {
		t.Error("a session for a year")
	}
	// A session that has ended is nobody's, and is swept away.
	session, err := b.server.createSession(ctx, Person{Name: "token:late", Grants: []Grant{{Role: RoleViewer}}}, -time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.withToken(t, session.Token).WhoAmI(ctx); !client.HasReason(err, "Unauthorized") {
		t.Errorf("an ended session: %v", err)
	}
	if _, err := b.server.sweepSessions(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Get(ctx, sessionsPrefix+hashOf(session.Token)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an ended session is kept: %v", err)
	}
}

func TestOwnersSeeTheirOwn(t *testing.T) {
	b := start(t, func(c *Config) { c.Functions = answers() })
	ctx := t.Context()
	for _, namespace := range []string{"shop", "bank"} {
		if _, err := b.client.Apply(ctx, documents(t, "apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: web, namespace: "+namespace+"}\nspec: {workload: {}}\n"), client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	owner := b.as(t, RoleOwner, "shop")
	apps := kind("Application")
	if list, _, err := owner.List(ctx, apps, client.ListOptions{Namespace: "shop"}); err != nil || len(list) != 1 {
		t.Error(len(list), err)
	}
	if _, _, err := owner.List(ctx, apps, client.ListOptions{}); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("everybody's: %v", err)
	}
	_, err := owner.Apply(ctx, documents(t, "apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a, namespace: shop}\nspec: {workload: {}}\n---\n"+
		"apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a, namespace: bank}\nspec: {workload: {}}\n---\n"+
		"apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: a}\nspec: {mode: observe}\n"), client.WriteOptions{})
	if err == nil || !strings.Contains(err.Error(), "test.yaml:6: User \"token:tester\" cannot create applications") || !strings.Contains(err.Error(), "test.yaml:11: ") {
		t.Errorf("applied: %v", err)
	}
	if _, err := owner.Get(ctx, apps, "shop", "a"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("half of it was applied: %v", err)
	}

	var flows []string
	err = owner.Flows(ctx, bocage.FlowsQuery{}, func(r bocage.FlowRecord) error {
		flows = append(flows, r.SourceWorkload+">"+r.DestinationWorkload)
		return nil
	})
	if err != nil || strings.Join(flows, " ") != "shop/web>bank/api bank/x>shop/api" {
		t.Errorf("flows %v, %v", flows, err)
	}
	if _, err := owner.Explain(ctx, bocage.ExplainQuery{From: "bank/a", To: "bank/b"}); !client.HasReason(err, client.ReasonForbidden) {
		t.Error(err)
	}
	if _, err := owner.Explain(ctx, bocage.ExplainQuery{From: "shop/a", To: "bank/b", Protocol: bocage.ProtocolTCP}); err != nil {
		t.Error(err)
	}
	if _, err := owner.Hunt(ctx, "select 1", 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Error(err)
	}
	if result, err := owner.Suggest(ctx, time.Minute, nil); err != nil || result.Applications[0].Namespace != "shop" {
		t.Error(result, err)
	}
	if _, err := owner.Suggest(ctx, time.Minute, []string{"bank"}); !client.HasReason(err, client.ReasonForbidden) {
		t.Error(err)
	}
	if _, _, err := owner.JoinToken(ctx, "h1", 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Error(err)
	}
}

// TestIncidents: people say how far a case has been dealt with, and nothing else.
func TestIncidents(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	incidents := kind("Incident")
	incident := &bocage.Incident{
		ObjectMeta: bocage.ObjectMeta{Name: "i1", UID: "u"},
		Status: bocage.IncidentStatus{Title: "scan", Phase: "open", Severity: "high",
			Evidence: []bocage.Evidence{{ID: "e", Weight: 1.5, Time: time.Unix(1, 5).UTC()}}},
	}
	if _, err := store.PutObject(ctx, b.store, incidents, incident, store.Absent); err != nil {
		t.Fatal(err)
	}
	responder := b.as(t, RoleResponder)
	patch := func(status map[string]any) error {
		_, err := responder.Patch(ctx, incidents, "", "i1", "status", map[string]any{"status": status}, client.WriteOptions{})
		return err
	}
	if err := patch(map[string]any{"phase": "closed"}); err != nil {
		t.Error(err)
	}
	if err := patch(map[string]any{"phase": "forgotten"}); !client.HasReason(err, client.ReasonInvalid) {
		t.Errorf("a phase that does not exist: %v", err)
	}
	if err := patch(map[string]any{"phase": "open", "title": "nothing"}); err == nil || !strings.Contains(err.Error(), "people change its phase only") {
		t.Errorf("another title: %v", err)
	}
	if _, err := responder.Patch(ctx, incidents, "", "i1", "", map[string]any{"status": map[string]any{"title": "x"}, "metadata": map[string]any{"labels": map[string]any{"seen": "yes"}}}, client.WriteOptions{}); err != nil {
		t.Error(err)
	}
	object, err := responder.Get(ctx, incidents, "", "i1")
	if err != nil {
		t.Fatal(err)
	}
	if got := object.(*bocage.Incident); got.Status.Phase != "closed" || got.Status.Title != "scan" || got.Labels["seen"] != "yes" {
		t.Errorf("%+v", got)
	}
	if _, err := responder.ApplyObject(ctx, incidents, &bocage.Incident{ObjectMeta: bocage.ObjectMeta{Name: "made-up"}}, client.WriteOptions{}); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("an incident was made up: %v", err)
	}
}

func TestRates(t *testing.T) {
	b := start(t, func(c *Config) { c.RequestsPerSecond = 0.001 })
	refused := 0
	for range 3 {
		if code, text, header := b.raw(t, "GET", "/version", "", ""); code == 429 && header.Get("Retry-After") == "1" && strings.Contains(text, "too many requests") {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("%d of 3 were refused", refused)
	}
	if code, _, _ := b.raw(t, "GET", "/readyz", "", ""); code != 200 {
		t.Errorf("readiness is refused: %d", code)
	}
	l := newLimits(1, 1)
	for i := range maxBuckets + 10 {
		l.allow(fmt.Sprint(i))
	}
	if len(l.buckets) > maxBuckets {
		t.Errorf("%d buckets are kept", len(l.buckets))
	}
}

func TestSocket(t *testing.T) {
	b := start(t, nil)
	info, err := os.Stat(b.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if _, err := listenUnix(b.socket); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("a socket in use was taken: %v", err)
	}
	if code, _, _ := b.raw(t, "GET", "/version", "", "", "Authorization", "Basic eDp5"); code != http.StatusUnauthorized {
		t.Errorf("basic authentication: %d", code)
	}
	c, err := client.New(client.Config{Socket: b.socket + "-none"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WhoAmI(t.Context()); err == nil || !strings.Contains(err.Error(), "bocage doctor") {
		t.Errorf("nobody serves it: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, config := range []Config{{}, {Store: nil, Listen: "x"}, {AdminToken: "short"}} {
		if _, err := New(config); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
	for _, config := range []client.Config{{}, {Address: "http://x"}} {
		if _, err := client.New(config); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
}
