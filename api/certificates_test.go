package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
)

// issuing wires what a node wires.
func issuing(b **bench) func(*Config) {
	return func(c *Config) {
		c.Functions.Certificate = func(_ context.Context, path string, groups []string, csr []byte, ttl time.Duration) ([]byte, error) {
			return (*b).authority.Issue(path, csr, ttl, identity.IssueOptions{ClientOnly: true, Groups: groups})
		}
	}
}

// TestPersonalCertificates: a certificate says who somebody is and in which
// groups, RoleBindings say what they may do, and only whoever has the machine
// vouches for others.
func TestPersonalCertificates(t *testing.T) {
	var b *bench
	b = start(t, issuing(&b))
	ctx := t.Context()
	key, csr, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	made, err := b.client.CreateCertificate(ctx, "alice", []string{"ops", "pki"}, csr, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(made.Expires); made.ID != "spiffe://test.local/user/alice" || left > 2*time.Hour || left < 119*time.Minute || len(made.Roles) != 0 || made.Serial == "" {
		t.Errorf("made %+v", made)
	}
	block, _ := pem.Decode([]byte(made.Chain))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || leaf.IsCA {
		t.Errorf("it is good for more than a client: %v %v", leaf.ExtKeyUsage, err)
	}
	svid, err := identity.NewSVID(key, []byte(made.Chain))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := identity.ParseBundle("test.local", []byte(made.Bundle))
	if err != nil {
		t.Fatal(err)
	}
	alice, err := client.New(client.Config{Address: b.address, TLS: identity.ClientTLS(func() *identity.SVID { return svid }, bundle, "/controller/")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(alice.Close)
	if _, err := alice.WhoAmI(ctx); !client.HasReason(err, client.ReasonForbidden) || !strings.Contains(err.Error(), `"group:ops"`) {
		t.Errorf("without a role: %v", err)
	}
	binding := &bocage.RoleBinding{ObjectMeta: bocage.ObjectMeta{Name: "ops"}, Spec: bocage.RoleBindingSpec{Role: RolePolicyAdmin, Subjects: []string{"group:ops"}}}
	if _, err := b.client.ApplyObject(ctx, kind("RoleBinding"), binding, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	who, err := alice.WhoAmI(ctx)
	if err != nil || who.Role != string(RolePolicyAdmin) || who.Grants[0].Binding != "ops" {
		t.Errorf("by her group: %+v %v", who, err)
	}
	if made, err = b.client.CreateCertificate(ctx, "alice", []string{"ops"}, csr, 0); err != nil || len(made.Roles) != 1 || time.Until(made.Expires) > 24*time.Hour {
		t.Errorf("another, for the usual time: %+v %v", made, err)
	}
	// Neither she nor an administrator by a role vouches for anybody.
	binding.Spec.Role = RoleAdmin
	if _, err := b.client.ApplyObject(ctx, kind("RoleBinding"), binding, client.WriteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.CreateCertificate(ctx, "bob", nil, csr, 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("an administrator made a second person: %v", err)
	}
	if _, err := b.as(t, RoleAdmin).CreateCertificate(ctx, "bob", nil, csr, 0); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("a token made a person: %v", err)
	}
	if _, err := b.client.Delete(ctx, kind("RoleBinding"), "", "ops", client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.WhoAmI(ctx); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("after her role went: %v", err)
	}
	for name, test := range map[string]struct {
		name   string
		groups []string
		csr    []byte
		ttl    time.Duration
		want   string
	}{
		"another role":    {"x/../admin", nil, csr, 0, "DNS label"},
		"capitals":        {"Alice", nil, csr, 0, "DNS label"},
		"a month":         {"alice", nil, csr, 30 * 24 * time.Hour, "ttlSeconds"},
		"in the past":     {"alice", nil, csr, -time.Hour, "ttlSeconds"},
		"no request":      {"alice", nil, []byte("x"), 0, "no certificate request"},
		"a bad group":     {"alice", []string{"a b"}, csr, 0, "not a group"},
		"a group twice":   {"alice", []string{"a", "a"}, csr, 0, "named twice"},
		"too many groups": {"alice", make([]string, 100), csr, 0, "more than 32"},
	} {
		if _, err := b.client.CreateCertificate(ctx, test.name, test.groups, test.csr, test.ttl); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEarlyTokens: a token that an earlier version made, with its role in another
// form, says what to do.
func TestEarlyTokens(t *testing.T) {
	b := start(t, nil)
	const token = "made-by-an-earlier-version"
	value, err := json.Marshal(map[string]any{"expires": time.Now().Add(time.Hour), "person": map[string]any{"name": "alice", "role": "owner", "namespaces": []string{"shop", "bank"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(t.Context(), b.store, sessionsPrefix+hashOf(token), value, store.Absent); err != nil {
		t.Fatal(err)
	}
	_, err = b.withToken(t, token).WhoAmI(t.Context())
	if !client.HasReason(err, "Unauthorized") || !strings.Contains(err.Error(), "`bocage user token alice --role owner --namespace shop,bank`") {
		t.Errorf("told: %v", err)
	}
}

// TestWhatWaitsIsSaid: a deletion and a change that wait for a second person are
// called nothing else, to our client and to others.
func TestWhatWaitsIsSaid(t *testing.T) {
	b := start(t, func(c *Config) { c.TwoPerson = true })
	ctx := t.Context()
	rails := kind("Guardrail")
	const path = "/apis/bocage.dev/v1/guardrails/g"
	warned := func(what, method, path, contentType, body, want string) {
		t.Helper()
		code, text, header := b.raw(t, method, path, contentType, body)
		if code/100 != 2 || !strings.Contains(header.Get("Warning"), want) {
			t.Errorf("%s: %d, warned %q, %s", what, code, header.Get("Warning"), text)
		}
	}
	const declared = `{"apiVersion":"bocage.dev/v1","kind":"Guardrail","metadata":{"name":"g"},"spec":{"never":[{"from":{"namespaces":["%s"]}}]}}`
	warned("a new one", "PATCH", path+"?fieldManager=me", "application/apply-patch+yaml", strings.Replace(declared, "%s", "one", 1), "it has no effect until somebody else than")
	if _, err := b.named(t, "bob", RoleAdmin).Approve(ctx, rails, "", "g", 0); err != nil {
		t.Fatal(err)
	}
	warned("a change", "PATCH", path+"?fieldManager=me", "application/apply-patch+yaml", strings.Replace(declared, "%s", "two", 1), "what was approved before is in force")
	warned("the same again", "PATCH", path+"?fieldManager=me", "application/apply-patch+yaml", strings.Replace(declared, "%s", "two", 1), "bocage approve guardrail g")
	warned("its deletion, with curl", "DELETE", path, "", "", "it stays in force until a second person agrees to its deletion")
	held, err := b.client.Delete(ctx, rails, "", "g", client.WriteOptions{})
	if err != nil || held == nil || !slices.Contains(held.Meta().Finalizers, bocage.FinalizerApproval) {
		t.Errorf("its deletion: %+v %v", held, err)
	}
	result, err := b.client.Apply(ctx, documents(t, strings.Replace(strings.Replace(declared, "%s", "two", 1), `"g"`, `"h"`, 1)), client.WriteOptions{})
	if err != nil || !strings.Contains(result.Objects[0].Note, "bocage approve guardrail h") {
		t.Errorf("applied with others: %+v %v", result, err)
	}
	if held, err := b.client.Delete(ctx, kind("Scope"), "", "none", client.WriteOptions{}); held != nil || !client.HasReason(err, client.ReasonNotFound) {
		t.Errorf("what is not there: %v %v", held, err)
	}
	if _, err := b.client.ApplyObject(ctx, kind("Scope"), scope("s", bocage.ModeObserve), client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if held, err := b.client.Delete(ctx, kind("Scope"), "", "s", client.WriteOptions{}); held != nil || err != nil {
		t.Errorf("what nothing holds: %v %v", held, err)
	}
}

// TestApprovalIsDescribed: what an approval takes stands in discovery and in both
// kinds of OpenAPI.
func TestApprovalIsDescribed(t *testing.T) {
	b := start(t, nil)
	for _, path := range []string{"/apis/bocage.dev/v1", "/openapi/v2", "/openapi/v3/apis/bocage.dev/v1"} {
		_, text, _ := b.raw(t, "GET", path, "", "", "Accept", "application/json")
		for _, plural := range []string{"guardrails", "exceptions", "scopes", "addressgroups", "inspectionprofiles", "zones"} {
			want := `"/apis/bocage.dev/v1/` + plural + `/{name}/approval":{`
			if path == "/apis/bocage.dev/v1" {
				want = `"name":"` + plural + `/approval"`
			}
			if !strings.Contains(text, want) {
				t.Errorf("%s says nothing of approving %s", path, plural)
			}
		}
		if strings.Contains(text, "responses/{name}/approval") || strings.Contains(text, `"responses/approval"`) {
			t.Errorf("%s: responses can be approved", path)
		}
	}
	code, text, _ := b.raw(t, "GET", "/apis", "", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	if code != 200 || !strings.Contains(text, `"subresource":"approval"`) {
		t.Errorf("aggregated discovery: %d", code)
	}
}

// TestCertificatesForClients: a certificate is good for what its issuer says that it is.
func TestCertificatesForClients(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	domain, err := url.Parse("spiffe://test.local")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sign := func(template, issuer *x509.Certificate) *x509.Certificate {
		t.Helper()
		raw, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(raw)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{domain}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	anchor := sign(template, template)
	bundle, err := identity.NewBundle("test.local", anchor)
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Bundle = bundle })
	for _, test := range []struct {
		name    string
		usages  []x509.ExtKeyUsage
		unknown []asn1.ObjectIdentifier
		code    int
	}{
		{"a client", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil, 200},
		{"as SVIDs are", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, nil, 200},
		{"anything", []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, nil, 200},
		{"nothing said", nil, nil, 200},
		{"a server", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, nil, 401},
		{"code", []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, nil, 401},
		{"what nobody knows", nil, []asn1.ObjectIdentifier{{1, 2, 3}}, 401},
	} {
		id := domain.JoinPath("viewer", "v")
		leaf := sign(&x509.Certificate{
			SerialNumber: big.NewInt(2), URIs: []*url.URL{id}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: test.usages, UnknownExtKeyUsage: test.unknown, BasicConstraintsValid: true,
		}, anchor)
		asking := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, // the server's own certificate is not what this is about
			Certificates:       []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}},
		}}}
		answer, err := asking.Get(b.address + scopesPath)
		if err != nil {
			t.Fatal(test.name, err)
		}
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != test.code || test.code == 401 && !strings.Contains(string(text), "does not have clientAuth") {
			t.Errorf("%s: %d %s %v", test.name, answer.StatusCode, text, err)
		}
		_ = answer.Body.Close()
		asking.CloseIdleConnections()
	}
}
