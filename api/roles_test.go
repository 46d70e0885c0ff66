package api

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/roles.txt anew")

// TestRoles prints who may do what, for every kind and verb, and compares it with
// what was reviewed.
func TestRoles(t *testing.T) {
	people := []struct {
		name   string
		person Person
	}{
		{"admin", Person{Grants: []Grant{{Role: RoleAdmin}}}},
		{"policy-admin", Person{Grants: []Grant{{Role: RolePolicyAdmin}}}},
		{"responder", Person{Grants: []Grant{{Role: RoleResponder}}}},
		{"auditor", Person{Grants: []Grant{{Role: RoleAuditor}}}},
		{"viewer", Person{Grants: []Grant{{Role: RoleViewer}}}},
		{"owner of shop", Person{Grants: []Grant{{Role: RoleOwner, Namespaces: []string{"shop"}}}}},
		{"viewer of shop", Person{Grants: []Grant{{Role: RoleViewer, Namespaces: []string{"shop"}}}}},
		{"owner of shop who views bank", Person{Grants: []Grant{
			{Role: RoleOwner, Namespaces: []string{"shop"}}, {Role: RoleViewer, Namespaces: []string{"bank"}}}}},
		{"stranger", Person{}},
	}
	verbs := []string{verbGet, verbList, verbWatch, verbCreate, verbUpdate, verbPatch, verbDelete, verbDeleteCollection, "impersonate", ""}
	var text strings.Builder
	for _, p := range people {
		fmt.Fprintf(&text, "%s:\n", p.name)
		for _, kind := range bocage.Kinds() {
			for _, subresource := range subresourcesOf(kind) {
				namespaces := []string{""}
				if kind.Namespaced {
					namespaces = []string{"shop", "bank", ""}
				}
				for _, namespace := range namespaces {
					var may []string
					for _, verb := range verbs {
						ok, why := p.person.allowed(access{verb, kind, subresource, namespace})
						if ok {
							may = append(may, verb)
						} else if why == "" {
							t.Errorf("%s is not told why they may not %s %s", p.name, verb, kind.Plural)
						}
					}
					where := ""
					if kind.Namespaced {
						where = " in " + namespace
						if namespace == "" {
							where = " everywhere"
						}
					}
					if len(may) > 0 {
						fmt.Fprintf(&text, "  %s%s: %s\n", strings.TrimSuffix(kind.Plural+"/"+subresource, "/"), where, strings.Join(may, " "))
					}
				}
			}
		}
	}
	const golden = "testdata/roles.txt"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := text.String(); got != string(want) {
		for i, line := range strings.Split(got, "\n") {
			if lines := strings.Split(string(want), "\n"); i >= len(lines) || lines[i] != line {
				t.Fatalf("line %d is %q (go test ./api -run TestRoles -rewrite, and review the difference)", i+1, line)
			}
		}
		t.Fatal("lines are missing at the end")
	}
}

// TestGiving: nobody hands out more than they have.
func TestGiving(t *testing.T) {
	all := []Grant{
		{Role: RoleAdmin}, {Role: RolePolicyAdmin}, {Role: RoleResponder}, {Role: RoleAuditor}, {Role: RoleViewer},
		{Role: RoleOwner, Namespaces: []string{"shop"}}, {Role: RoleOwner, Namespaces: []string{"shop", "bank"}},
		{Role: RoleViewer, Namespaces: []string{"shop"}}, {Role: RoleViewer, Namespaces: []string{"bank"}},
	}
	for _, has := range all {
		for _, gives := range all {
			if !has.covers(gives) {
				continue
			}
			for _, kind := range bocage.Kinds() {
				for _, namespace := range []string{"", "shop", "bank"} {
					for _, verb := range verbsOf(kind) {
						a := access{verb, kind, "", namespace}
						more, _ := gives.allowed(a)
						if enough, _ := has.allowed(a); more && !enough {
							t.Errorf("%v may give %v, which allows %s %s in %q", has, gives, verb, kind.Plural, namespace)
						}
					}
				}
			}
		}
	}
	if (Grant{Role: RoleResponder}).covers(Grant{Role: RoleAuditor}) || (Grant{Role: RolePolicyAdmin}).covers(Grant{Role: RoleAdmin}) {
		t.Error("a role gives what it has not")
	}
}

// TestBindings gives and takes roles by RoleBindings while somebody is at work.
func TestBindings(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	deployer := b.certified(t, "/workload/ci/deployer")
	apps := kind("Application")
	app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Name: "web", Namespace: "shop"}}
	if _, err := deployer.ApplyObject(ctx, apps, app, client.WriteOptions{}); !client.HasReason(err, client.ReasonForbidden) || !strings.Contains(err.Error(), "RoleBinding that names \"spiffe://test.local/workload/ci/deployer\"") {
		t.Fatalf("a stranger: %v", err)
	}
	binding := &bocage.RoleBinding{ObjectMeta: bocage.ObjectMeta{Name: "ci"}, Spec: bocage.RoleBindingSpec{
		Role: RoleOwner, Namespaces: []string{"shop"}, Subjects: []string{"spiffe://test.local/workload/ci/deployer"}}}
	if _, err := b.as(t, RolePolicyAdmin).ApplyObject(ctx, kind("RoleBinding"), binding, client.WriteOptions{}); !client.HasReason(err, client.ReasonForbidden) {
		t.Fatalf("a policy-admin gave a role: %v", err)
	}
	if _, err := b.client.ApplyObject(ctx, kind("RoleBinding"), binding, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := deployer.ApplyObject(ctx, apps, app, client.WriteOptions{}); err != nil {
		t.Fatalf("an owner: %v", err)
	}
	who, err := deployer.WhoAmI(ctx)
	if err != nil || who.Role != "owner" || who.Grants[0].Binding != "ci" {
		t.Fatal(who, err)
	}
	// What they make for themselves goes when their role does.
	token, err := deployer.CreateSession(ctx, client.Person{Name: "nightly", Role: "viewer", Namespaces: []string{"shop"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	nightly := b.withToken(t, token.Token)
	if who, err := nightly.WhoAmI(ctx); err != nil || who.Maker != "spiffe://test.local/workload/ci/deployer" {
		t.Fatal(who, err)
	}
	for name, person := range map[string]client.Person{
		"another namespace": {Name: "x", Role: "owner", Namespaces: []string{"shop", "bank"}}, "everything": {Name: "x", Role: "viewer"},
		"an admin": {Name: "x", Role: "admin"}, "a group": {Name: "x", Role: "owner", Namespaces: []string{"shop"}, Groups: []string{"ciso"}},
	} {
		if _, err := deployer.CreateSession(ctx, person, 0); !client.HasReason(err, client.ReasonForbidden) {
			t.Errorf("gave %s: %v", name, err)
		}
	}
	if _, err := nightly.CreateSession(ctx, client.Person{Name: "x", Role: "viewer", Namespaces: []string{"shop"}}, 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("a token made a token: %v", err)
	}
	if _, err := b.client.Delete(ctx, kind("RoleBinding"), "", "ci", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := deployer.Get(ctx, apps, "shop", "web"); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("after the role went: %v", err)
	}
	if _, err := nightly.Get(ctx, apps, "shop", "web"); !client.HasReason(err, "Unauthorized") {
		t.Errorf("a token after its maker's role went: %v", err)
	}
}

// TestNamesOfTokens: whoever names a token of their own takes nobody's name by it, ends
// nobody else's, and is held to the limits that they are held to themselves.
func TestNamesOfTokens(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	ci := b.named(t, "ci", RoleViewer)
	mallory := b.as(t, RoleViewer) // token:tester, of root's making
	session, err := b.certified(t, "/viewer/mallory").CreateSession(ctx, client.Person{Name: "ci", Role: "viewer"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if name := session.Person.Name; name != "token:spiffe://test.local/viewer/mallory/ci" {
		t.Errorf("it is called %s", name)
	}
	forged := b.withToken(t, session.Token)
	if _, err := forged.EndSessions(ctx, "token:ci"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("a token of the same short name ended another's: %v", err)
	}
	if _, err := mallory.EndSessions(ctx, "ci"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("somebody ended another's: %v", err)
	}
	if _, err := ci.WhoAmI(ctx); err != nil {
		t.Errorf("after that: %v", err)
	}
	if n, err := b.certified(t, "/viewer/mallory").EndSessions(ctx, "ci"); err != nil || n != 1 {
		t.Errorf("its maker ends it by its short name: %d, %v", n, err)
	}

	// One that was made before names were of their makers.
	early := Person{Name: "token:ci", Grants: []Grant{{Role: RoleViewer}}, Maker: &Person{Name: "alice@example.org", Grants: []Grant{{Role: RoleViewer}}}}
	kept, err := b.server.createSession(ctx, early, defaultSession)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := b.withToken(t, kept.Token).WhoAmI(ctx); err != nil || who.Name != "token:alice@example.org/ci" {
		t.Errorf("%+v, %v", who, err)
	}
}

// TestEndedSessions: a token that was stolen is worth nothing once it is ended,
// nor is what was made with it.
func TestEndedSessions(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	session, err := b.client.CreateSession(ctx, client.Person{Name: "alice", Role: "admin"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	alice := b.withToken(t, session.Token)
	child, err := alice.CreateSession(ctx, client.Person{Name: "mallory", Role: "admin"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	viewer := b.as(t, RoleViewer)
	if _, err := viewer.EndSessions(ctx, "alice"); !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("a viewer ended an administrator's session: %v", err)
	}
	if sessions, err := viewer.Sessions(ctx); err != nil || len(sessions) != 1 || sessions[0].Token != "" {
		t.Error(sessions, err)
	}
	if sessions, err := alice.Sessions(ctx); err != nil || len(sessions) != 3 {
		t.Error(sessions, err)
	}
	if n, err := b.client.EndSessions(ctx, "alice"); err != nil || n != 2 {
		t.Error(n, err)
	}
	for _, token := range []string{session.Token, child.Token} {
		if _, err := b.withToken(t, token).WhoAmI(ctx); !client.HasReason(err, "Unauthorized") {
			t.Errorf("a token that was ended: %v", err)
		}
	}
	if n, err := viewer.EndSessions(ctx, ""); err != nil || n != 1 {
		t.Error(n, err)
	}
	if _, err := viewer.WhoAmI(ctx); !client.HasReason(err, "Unauthorized") {
		t.Errorf("after logging out: %v", err)
	}
}

// TestWatchEnds: who follows a kind with a token that was ended is cut off.
func TestWatchEnds(t *testing.T) {
	b := start(t, nil)
	b.server.recheck = 20 * time.Millisecond
	alice := b.named(t, "alice", RoleViewer)
	ended := make(chan error, 1)
	began := make(chan struct{})
	b.mustScope(t, "POST", "a", "")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://bocage/apis/bocage.dev/v1/scopes?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	session, err := b.client.CreateSession(t.Context(), client.Person{Name: "alice", Role: "viewer"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+session.Token)
	go func() {
		answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
		close(began)
		if err == nil {
			_, err = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
		ended <- err
	}()
	<-began
	select {
	case err := <-ended:
		t.Fatalf("it ended by itself: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if n, err := b.client.EndSessions(t.Context(), "alice"); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("who has no token any more still watches")
	}
	if _, err := alice.WhoAmI(t.Context()); !client.HasReason(err, "Unauthorized") {
		t.Error(err)
	}
}

// TestReviews: what people are told that they may do is what they may do.
func TestReviews(t *testing.T) {
	b := start(t, nil)
	for _, role := range bocage.Roles() {
		var namespaces []string
		if role == RoleOwner {
			namespaces = []string{"shop"}
		}
		p := Person{Name: "token:x", Grants: []Grant{{Role: role, Namespaces: namespaces}}}
		for _, kind := range bocage.Kinds() {
			var rules rulesReview
			rules.Spec.Namespace = "shop"
			reviewRules(p, &rules)
			for _, verb := range verbsOf(kind) {
				namespace := ""
				if kind.Namespaced {
					namespace = "shop"
				}
				may, _ := p.allowed(access{verb, kind, "", namespace})
				listed := slices.ContainsFunc(rules.Status.ResourceRules, func(r resourceRule) bool {
					return r.Resources[0] == kind.Plural && slices.Contains(r.Verbs, verb)
				})
				if listed != may {
					t.Errorf("%s: %s %s is listed: %v, allowed: %v", role, verb, kind.Plural, listed, may)
				}
				code, text, _ := b.raw(t, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "application/json",
					fmt.Sprintf(`{"spec":{"resourceAttributes":{"group":%q,"resource":%q,"verb":%q,"namespace":%q}}}`, kind.Group(), kind.Plural, verb, namespace))
				if code != 201 || strings.Contains(text, `"allowed":true`) != slices.Contains(verbsOf(kind), verb) {
					t.Errorf("%s %s: %d %s", verb, kind.Plural, code, text)
				}
			}
		}
	}
}

// certified returns a client over TLS with a certificate of its own.
func (b *bench) certified(t *testing.T, path string) *client.Client {
	t.Helper()
	svid, err := b.authority.IssueSVID(path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{
		Address: b.address, TLS: identity.ClientTLS(func() *identity.SVID { return svid }, b.authority.Bundle(), "/controller/"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
