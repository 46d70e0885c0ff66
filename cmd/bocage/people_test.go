package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
	"bocage.dev/bocage/store/storetest"
)

// office is an API that commands are run against.
type office struct {
	dir, address, bundle string
}

func newOffice(t *testing.T, s store.Store) *office {
	t.Helper()
	// Paths of unix sockets are short, so t.TempDir may be too long.
	dir, err := os.MkdirTemp("", "bct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	authority, err := identity.OpenAuthority(filepath.Join(dir, "authority"), "test.local")
	if err != nil {
		t.Fatal(err)
	}
	svid, err := authority.IssueSVID("/controller/c1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(api.Config{
		Store: s, TrustDomain: "test.local", Socket: filepath.Join(dir, "api.sock"), Listen: "127.0.0.1:0",
		SVID: func() *identity.SVID { return svid }, Bundle: authority.Bundle(), TwoPerson: true, Logger: slog.New(slog.DiscardHandler),
		Functions: api.Functions{Plan: func(context.Context, []bocage.Resource) (bocage.PlanResult, error) {
			return bocage.PlanResult{}, nil
		}, Certificate: func(_ context.Context, path string, groups []string, csr []byte, ttl time.Duration) ([]byte, error) {
			return authority.Issue(path, csr, ttl, identity.IssueOptions{ClientOnly: true, Groups: groups})
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	addresses, err := server.Addresses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := &office{dir: dir, bundle: filepath.Join(dir, "authority", "bundle.pem")}
	for _, address := range addresses {
		if tcp, ok := address.(*net.TCPAddr); ok {
			o.address = "https://" + tcp.String()
		}
	}
	return o
}

// run runs one command line as root on the controller's host, or as whoever has a
// certificate.
func (o *office) run(t *testing.T, certificate, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	all := []string{"--run-dir", o.dir, "--trust-domain", "test.local"}
	if certificate != "" {
		all = append(all, "--server", o.address, "--ca", o.bundle, "--certificate", certificate)
	}
	code = run(t.Context(), &env{in: strings.NewReader(stdin), out: &out, err: &errs}, append(all, args...))
	return out.String(), errs.String(), code
}

// TestPeopleWithCertificates: two people with certificates of their own write,
// approve and delete a guardrail, and are told what really happened.
func TestPeopleWithCertificates(t *testing.T) {
	o := newOffice(t, mem.New())
	alice, bob := filepath.Join(o.dir, "alice.pem"), filepath.Join(o.dir, "bob.pem")
	told := func(certificate, stdin, want, wantErr string, args ...string) {
		t.Helper()
		out, errs, code := o.run(t, certificate, stdin, args...)
		if failed := code != exitOK; failed != (want == "") || !strings.Contains(out, want) || !strings.Contains(errs, wantErr) {
			t.Errorf("bocage %s: exit code %d, %q, %q, want %q and %q", strings.Join(args, " "), code, out, errs, want, wantErr)
		}
	}
	told("", "", "alice is spiffe://test.local/user/alice until", `name spiffe://test.local/user/alice or group:ops in a RoleBinding`, "user", "certificate", "alice", "--group", "ops", "--out", alice)
	told(alice, "", "", "RoleBinding", "whoami")
	told("", "apiVersion: bocage.dev/v1\nkind: RoleBinding\nmetadata: {name: ops}\nspec: {role: policy-admin, subjects: [\"group:ops\"]}\n", "RoleBinding ops created", "", "apply", "-f", "-")
	told("", "", "policy-admin, by RoleBinding ops", "", "user", "certificate", "bob", "--group", "ops", "--for", "1h", "--out", bob)
	told(alice, "", "policy-admin everywhere, by RoleBinding ops", "", "whoami")
	told(alice, "", "", "root on a controller's host makes them", "user", "certificate", "eve")

	for name, path := range map[string]string{"alice": alice, "bob": bob} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s's key: %v %v", name, info, err)
		}
	}
	told(alice, "apiVersion: bocage.dev/v1\nkind: Guardrail\nmetadata: {name: pci}\nspec: {never: [{from: {namespaces: [dev]}}]}\n",
		"Guardrail pci created", "! Guardrail pci waits: it has no effect until somebody else than spiffe://test.local/user/alice agrees to generation 1: bocage approve guardrail pci", "apply", "-f", "-")
	told(alice, "", "", "a second person has to agree", "approve", "guardrail", "pci")
	told(bob, "", "guardrails/pci approved: generation 1 is in force", "", "approve", "guardrail", "pci")
	told(alice, "", "Guardrail pci not deleted yet: it stays in force until a second person agrees: bocage approve guardrail pci --deletion", "", "delete", "guardrail", "pci")
	told(bob, "", "guardrails/pci: its deletion is approved", "", "approve", "guardrail", "pci", "--deletion")
	told(alice, "", "", "not found", "get", "guardrail", "pci")

	scope := func(mode string) string {
		return "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: all}\nspec: {mode: " + mode + "}\n"
	}
	told(alice, scope("enforce"), "Scope all created", "", "apply", "-f", "-")
	told(bob, scope("observe"), "Scope all configured",
		"! Scope all waits, since it takes guardrails out of force for whom the scope picks: what was declared before is in force until somebody else than spiffe://test.local/user/bob agrees to generation 2: bocage approve scope all", "apply", "-f", "-")
	told(bob, "", "", "a second person has to agree", "approve", "scope", "all")
	told(alice, "", "scopes/all approved: generation 2 is in force", "", "approve", "scope", "all")
	told(bob, "", "", `"responses" cannot be approved`, "approve", "responses", "x")
}

// TestGetNamespaces: get shows every namespace unless one is named, and with -A
// whatever is named.
func TestGetNamespaces(t *testing.T) {
	o := newOffice(t, mem.New())
	if _, errs, code := o.run(t, "", "apiVersion: bocage.dev/v1\nkind: AddressGroup\nmetadata: {name: a}\nspec: {addresses: [192.0.2.1/32]}\n---\n"+
		"apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: api, namespace: one}\nspec: {workload: {matchLabels: {app: api}}}\n---\n"+
		"apiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: web, namespace: two}\nspec: {workload: {matchLabels: {app: web}}}\n", "apply", "-f", "-"); code != exitOK {
		t.Fatal(errs)
	}
	for _, c := range []struct{ args, want string }{
		{"applications", "applications/one/api applications/two/web"},
		{"applications -n one", "applications/one/api"},
		{"applications -A", "applications/one/api applications/two/web"},
		{"applications --all-namespaces -n one", "applications/one/api applications/two/web"},
		{"addressgroups -A", "addressgroups/a"},
	} {
		out, errs, code := o.run(t, "", "", append([]string{"get", "-o", "name"}, strings.Fields(c.args)...)...)
		if got := strings.Join(strings.Fields(out), " "); code != exitOK || got != c.want {
			t.Errorf("get %s: %q, want %q (%d, %s)", c.args, got, c.want, code, errs)
		}
	}
}

// TestDeletionsThatWait: a guardrail is not called deleted before a second person
// agrees to that.
func TestDeletionsThatWait(t *testing.T) {
	s := mem.New()
	o := newOffice(t, s)
	// Written when nobody had to agree, so that it is in force.
	value := []byte(`{"apiVersion":"bocage.dev/v1","kind":"Guardrail","metadata":{"name":"pci","uid":"1","generation":1},"spec":{"never":[{"from":{"namespaces":["dev"]}}]}}`)
	if _, err := store.Put(t.Context(), s, "resources/guardrails/pci", value, store.Absent); err != nil {
		t.Fatal(err)
	}
	out, _, code := o.run(t, "", "", "delete", "guardrail", "pci")
	if want := "Guardrail pci not deleted yet: it stays in force until a second person agrees: bocage approve guardrail pci --deletion\n"; code != exitOK || out != want {
		t.Errorf("%d %q", code, out)
	}
	if _, errs, code := o.run(t, "", "", "approve", "guardrail", "pci"); code != exitFailed || !strings.Contains(errs, "a second person has to agree") {
		t.Errorf("the same person: %d %s", code, errs)
	}
	scope := "apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s}\nspec: {mode: observe}\n"
	for _, args := range [][]string{{"apply", "-f", "-"}, {"delete", "-f", "-"}} {
		var errs string
		if out, errs, code = o.run(t, "", scope, args...); code != exitOK {
			t.Errorf("%v: %s", args, errs)
		}
	}
	if out != "Scope s deleted\n" {
		t.Errorf("what nothing holds: %q", out)
	}
}

// TestApplyInParts: when a later part cannot be written, of each object is told
// whether it was, and the same again finishes it.
func TestApplyInParts(t *testing.T) {
	full := &storetest.FullAfter{Store: mem.New(), Left: 1}
	o := newOffice(t, full)
	var text strings.Builder
	const count = 1500
	for i := range count {
		fmt.Fprintf(&text, "---\napiVersion: bocage.dev/v1\nkind: Application\nmetadata: {name: a%05d, namespace: shop}\nspec: {workload: {matchLabels: {app: a%d}}}\n", i, i)
	}
	out, errs, code := o.run(t, "", text.String(), "apply", "-f", "-")
	created, not := strings.Count(out, " created\n"), strings.Count(out, " NOT applied\n")
	if code != exitFailed || created == 0 || not == 0 || created+not != count ||
		!strings.Contains(errs, fmt.Sprintf("%d of %d objects were applied, and %d were not", created, count, not)) || strings.Contains(errs, "nothing was changed") {
		t.Errorf("%d: %d created, %d not: %s", code, created, not, errs)
	}
	full.Left = 100
	out, errs, code = o.run(t, "", text.String(), "apply", "-f", "-")
	if again, rest := strings.Count(out, " unchanged\n"), strings.Count(out, " created\n"); code != exitOK || again != created || rest != not {
		t.Errorf("again: %d, %d unchanged, %d created: %s", code, again, rest, errs)
	}
}

// A quarantine is said to be one once it is: until then people are told who has not
// taken it, by an exit code too.
func TestQuarantineInForce(t *testing.T) {
	objects := mem.New()
	o := newOffice(t, objects)
	if _, errs, code := o.run(t, "", "apiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: web, namespace: shop}\nspec: {host: h9, interface: bct9, addresses: [192.0.2.1]}\n", "apply", "-f", "-"); code != exitOK {
		t.Fatal(errs)
	}
	kind, _ := bocage.KindNamed("Quarantine")
	for _, c := range []struct {
		said      bocage.Condition
		wait      string
		code      int
		out, errs string
	}{
		{bocage.Condition{}, "50ms", exitNotReady, "quarantine of shop/web declared, until it is released", "was not in force within 50ms: no controller has said"},
		{bocage.Condition{}, "0s", exitOK, "`bocage quarantine ls` says whether it is enforced", ""},
		{bocage.Condition{}, "-1s", exitUsage, "", "--wait cannot be negative"},
		{bocage.Condition{Status: "False", Message: "1 of 1 hosts concerned have not taken it yet: h9"}, "2s", exitNotReady, "declared", "have not taken it yet: h9"},
		{bocage.Condition{Status: "True", Reason: "NoWorkloads", Message: "it is nowhere"}, "1m", exitNotReady, "declared", "nothing enforces it: it is nowhere"},
		{bocage.Condition{Status: "True", Reason: "AllHosts"}, "1m", exitOK, "■ shop/web is quarantined until it is released", ""},
	} {
		if c.said.Status != "" {
			if err := store.UpdateObject(t.Context(), objects, kind, "", "shop.web", func(q *bocage.Quarantine) (bool, error) {
				c.said.Type, c.said.ObservedGeneration = bocage.ConditionEnforced, q.Generation
				q.Status.Conditions = bocage.SetCondition(q.Status.Conditions, c.said)
				return true, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		out, errs, code := o.run(t, "", "", "quarantine", "add", "shop/web", "--wait", c.wait)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errs) || strings.Contains(out, "■") != (c.said.Reason == "AllHosts") {
			t.Errorf("%+v: exit code %d, %q, %q", c, code, out, errs)
		}
	}
	if out, _, _ := o.run(t, "", "", "quarantine", "ls"); !strings.Contains(out, "ENFORCED") || !strings.Contains(out, "True") {
		t.Errorf("the list says %q", out)
	}
}
