package api

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// provider is one whose keys the tests have, so that they can sign what no real
// one would.
type provider struct {
	*httptest.Server
	key     *rsa.PrivateKey
	keyID   string
	down    atomic.Bool
	fetches atomic.Int32
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{keyID: "one"}
	p.key = rsaKey(t)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.down.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/.well-known/openid-configuration":
			writeJSON(w, http.StatusOK, map[string]any{
				"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token",
				// What a provider says that it supports is not believed.
				"id_token_signing_alg_values_supported": []string{"none", "HS256", "RS256"},
			})
		case r.URL.Path == "/keys":
			p.fetches.Add(1)
			writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.keyID, Algorithm: "RS256", Use: "sig"}}})
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign writes a token; claims are added to what every token has, nil removes one.
func (p *provider) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	return p.signWith(t, jose.RS256, p.key, claims)
}

func (p *provider) claims(claims map[string]any) []byte {
	now := time.Now()
	all := map[string]any{
		"iss": p.URL, "aud": "bocage", "sub": "1234", "email": "alice@example.org", "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": []string{"payments"},
	}
	for name, value := range claims {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return data
}

func (p *provider) signWith(t *testing.T, algorithm jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: p.keyID}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(p.claims(claims))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestForgedTokens shows every token that somebody might make up, and those that
// are all right.
func TestForgedTokens(t *testing.T) {
	p := newProvider(t)
	b := start(t, func(c *Config) {
		c.OIDC = &OIDC{Issuer: p.URL, ClientID: "bocage", RequiredClaims: map[string]string{"hd": "example.org"}}
	})
	b.bind(t, "alice", RoleViewer, "alice@example.org", "1234", "group:payments")
	b.signedOn(t)
	hd := func(claims map[string]any) map[string]any {
		all := map[string]any{"hd": "example.org"}
		for name, value := range claims {
			all[name] = value
		}
		return all
	}
	now := time.Now()
	public, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	unsigned := func(algorithm string) string {
		return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":%q,"kid":"one"}`, algorithm)) + "." + base64.RawURLEncoding.EncodeToString(p.claims(hd(nil))) + "."
	}
	good := p.sign(t, hd(nil))
	parts := strings.Split(good, ".")
	changed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(p.claims(hd(map[string]any{"email": "root@example.org"}))) + "." + parts[2]
	for _, test := range []struct{ name, token, why string }{
		{"right", good, ""},
		{"right for several", p.sign(t, hd(map[string]any{"aud": []string{"other", "bocage"}})), ""},
		{"just expired", p.sign(t, hd(map[string]any{"exp": now.Add(-2 * time.Second).Unix()})), ""},
		{"from a clock that is ahead", p.sign(t, hd(map[string]any{"iat": now.Add(20 * time.Second).Unix()})), ""},
		{"one group", p.sign(t, hd(map[string]any{"groups": "payments"})), ""},
		{"no algorithm", unsigned("none"), "not accepted"},
		{"no algorithm, shouted", unsigned("NONE"), "not accepted"},
		{"the public key as a secret", p.signWith(t, jose.HS256, publicPEM, hd(nil)), "not accepted"},
		{"another's key", p.signWith(t, jose.RS256, rsaKey(t), hd(nil)), "not accepted"},
		{"other claims", changed, "not accepted"},
		{"no signature", parts[0] + "." + parts[1] + ".", "not accepted"},
		{"expired", p.sign(t, hd(map[string]any{"exp": now.Add(-time.Minute).Unix()})), "expired at"},
		{"endless", p.sign(t, hd(map[string]any{"exp": nil})), "never expires"},
		{"not yet", p.sign(t, hd(map[string]any{"nbf": now.Add(time.Hour).Unix()})), "compare the clocks"},
		{"issued in the future", p.sign(t, hd(map[string]any{"iat": now.Add(time.Hour).Unix()})), "compare the clocks"},
		{"for somebody else", p.sign(t, hd(map[string]any{"aud": "other"})), "expected audience"},
		{"for nobody", p.sign(t, hd(map[string]any{"aud": nil})), "expected audience"},
		{"from somebody else", p.sign(t, hd(map[string]any{"iss": "https://evil.example"})), "issue"},
		{"lacks what is required", p.sign(t, map[string]any{"hd": "other.org"}), "claim hd"},
		{"unverified address", p.sign(t, hd(map[string]any{"email_verified": false})), "not verified"},
		{"unverified address, as a text", p.sign(t, hd(map[string]any{"email_verified": "false"})), "not verified"},
		{"local root", p.sign(t, hd(map[string]any{"email": "local:root"})), "not a provider's to give"},
		{"a token's name", p.sign(t, hd(map[string]any{"email": "token:admin"})), "not a provider's to give"},
		{"a certificate's name", p.sign(t, hd(map[string]any{"email": "spiffe://test.local/admin/root"})), "not a provider's to give"},
		{"a group's name", p.sign(t, hd(map[string]any{"email": "group:payments"})), "not a provider's to give"},
		{"nobody", p.sign(t, hd(map[string]any{"email": "", "sub": ""})), "is missing"},
		{"without an e-mail address", p.sign(t, hd(map[string]any{"email": nil, "email_verified": nil, "groups": nil})), "--oidc-username-claim"},
		{"a line break", p.sign(t, hd(map[string]any{"email": "alice@example.org\nroot"})), "printable"},
		{"groups of groups", p.sign(t, hd(map[string]any{"groups": map[string]any{"a": 1}})), "neither a text nor a list"},
		{"garbage", "a.b.c", "not accepted"},
		{"dots", "..", "not accepted"},
		{"a novel", strings.Repeat("a", longestToken) + ".b.c", "at most"},
	} {
		_, err := b.withToken(t, test.token).WhoAmI(t.Context())
		switch {
		case test.why == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.why != "" && (!client.HasReason(err, "Unauthorized") || !strings.Contains(err.Error(), test.why)):
			t.Errorf("%s: %v, want %q", test.name, err, test.why)
		}
	}
	// Roles come from RoleBindings only.
	person, err := b.withToken(t, p.sign(t, hd(map[string]any{"email": "bob@example.org", "groups": nil, "role": "admin"}))).WhoAmI(t.Context())
	if !client.HasReason(err, client.ReasonForbidden) {
		t.Error(person, err)
	}
	person, err = b.withToken(t, p.sign(t, hd(map[string]any{"email": "bob@example.org"}))).WhoAmI(t.Context())
	if err != nil || person.Role != "viewer" || person.Grants[0].Binding != "alice" {
		t.Error(person, err)
	}
	// Keys that nobody knows do not send the controller to the provider each time.
	p.keyID = "two"
	before := p.fetches.Load()
	for range 3 * oidcFetches {
		_, _ = b.server.signOn.person(t.Context(), p.signWith(t, jose.RS256, p.key, hd(nil)), now)
		p.keyID += "x"
	}
	if asked := p.fetches.Load() - before; asked > oidcFetches {
		t.Errorf("the provider was asked %d times", asked)
	}
}

// bind gives a role.
func (b *bench) bind(t *testing.T, name string, role Role, subjects ...string) {
	t.Helper()
	binding := &bocage.RoleBinding{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.RoleBindingSpec{Role: role, Subjects: subjects}}
	if role == RoleOwner {
		binding.Spec.Namespaces = []string{"shop"}
	}
	if _, err := b.client.ApplyObject(t.Context(), kind("RoleBinding"), binding, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// signedOn waits until the provider's keys are known.
func (b *bench) signedOn(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for b.server.signOn.health() != nil {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(b.server.signOn.health())
		}
	}
}

// TestProviderAway starts without a provider, finds it, loses it, and meets a
// new key.
func TestProviderAway(t *testing.T) {
	p := newProvider(t)
	p.down.Store(true)
	b := start(t, func(c *Config) { c.OIDC = &OIDC{Issuer: p.URL, ClientID: "bocage"} })
	b.bind(t, "alice", RoleViewer, "alice@example.org")
	alice := func() error { _, err := b.withToken(t, p.sign(t, nil)).WhoAmI(t.Context()); return err }
	if err := alice(); !client.HasReason(err, "Unauthorized") || !strings.Contains(err.Error(), "people cannot log in") {
		t.Errorf("without a provider: %v", err)
	}
	code, text, _ := b.raw(t, "GET", "/readyz?verbose", "", "")
	if code != http.StatusOK || !strings.Contains(text, "[!]single-sign-on does not work") {
		t.Errorf("ready without a provider: %d %s", code, text)
	}
	p.down.Store(false)
	if err := b.server.signOn.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := alice(); err != nil {
		t.Errorf("with a provider: %v", err)
	}
	p.down.Store(true)
	if err := b.server.signOn.refresh(t.Context()); err == nil {
		t.Error("a provider that is away is there")
	}
	if err := alice(); err != nil {
		t.Errorf("the keys that were read: %v", err)
	}
	p.down.Store(false)
	p.key, p.keyID = rsaKey(t), "two"
	if err := alice(); err != nil {
		t.Errorf("a new key: %v", err)
	}
}

func TestOIDCConfig(t *testing.T) {
	for _, o := range []OIDC{{}, {Issuer: "http://sso.example", ClientID: "x"}, {Issuer: "https://sso.example"}, {Issuer: "https://x?y", ClientID: "x"}, {Issuer: "sso", ClientID: "x"}} {
		if len(o.validate()) == 0 {
			t.Errorf("%+v was accepted", o)
		}
	}
	for _, o := range []OIDC{{Issuer: "https://sso.example/realms/x", ClientID: "x"}, {Issuer: "http://127.0.0.1:1/x", ClientID: "x"}, {Issuer: "http://[::1]:1", ClientID: "x"}} {
		if faults := o.validate(); len(faults) > 0 {
			t.Error(faults)
		}
	}
}

// TestSingleSignOn logs people in at a real provider, Glewlwyd, as a browser
// would, and uses the tokens that it gives.
func TestSingleSignOn(t *testing.T) {
	g := startGlewlwyd(t)
	b := start(t, func(c *Config) { c.OIDC = &OIDC{Issuer: g.base + "/oidc", ClientID: "bocage"} })
	b.bind(t, "payments", RoleOwner, "group:payments")
	b.bind(t, "security", RoleAuditor, "bob@example.org")
	b.signedOn(t)
	alice, stranger := g.login(t, "alice", "payments", "ciso"), g.login(t, "carol")
	person, err := b.withToken(t, alice.idToken).WhoAmI(t.Context())
	if err != nil || person.Name != "alice@example.org" || person.Role != "owner" || strings.Join(person.Groups, " ") != "ciso payments" {
		t.Fatal(person, err)
	}
	app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Name: "web", Namespace: "shop"}}
	if _, err := b.withToken(t, alice.idToken).ApplyObject(t.Context(), kind("Application"), app, client.WriteOptions{}); err != nil {
		t.Error(err)
	}
	if _, _, err := b.withToken(t, g.login(t, "bob").idToken).List(t.Context(), kind("Decoy"), client.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := b.withToken(t, alice.accessToken).WhoAmI(t.Context()); !client.HasReason(err, "Unauthorized") {
		t.Errorf("an access token was taken for who somebody is: %v", err)
	}
	if _, err := b.withToken(t, stranger.idToken).WhoAmI(t.Context()); !client.HasReason(err, client.ReasonForbidden) {
		t.Errorf("somebody without a role: %v", err)
	}
	if testing.Short() {
		return
	}
	kubectl := os.Getenv("BOCAGE_KUBECTL")
	if kubectl == "" {
		kubectl = tool(t, "kubectl")
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	b.kubeconfig(t, config, RoleViewer)
	run := func(args ...string) string {
		out, err := exec.Command(kubectl, append([]string{"--kubeconfig", config, "--token", alice.idToken}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("kubectl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	if out := run("auth", "whoami"); !strings.Contains(out, "alice@example.org") || !strings.Contains(out, "payments") {
		t.Error(out)
	}
	if out := run("auth", "can-i", "create", "applications.bocage.dev", "-n", "shop"); !strings.HasPrefix(out, "yes") {
		t.Error(out)
	}
	if out := run("get", "app", "-n", "shop"); !strings.Contains(out, "web") {
		t.Error(out)
	}
	// Nobody becomes somebody else by asking for it.
	out, err := exec.Command(kubectl, "--kubeconfig", config, "--token", alice.idToken, "--as", "local:root", "--as-group", "system:masters", "get", "decoys").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Forbidden") || !strings.Contains(string(out), "alice@example.org") {
		t.Errorf("alice as root: %v %s", err, out)
	}

	// A client certificate does as well as a token.
	svid, err := b.authority.IssueSVID("/auditor/dora", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := filepath.Join(t.TempDir(), "crt"), filepath.Join(t.TempDir(), "key")
	shown := svid.Certificate()
	var chain bytes.Buffer
	for _, raw := range shown.Certificate {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: raw}); err != nil {
			t.Fatal(err)
		}
	}
	private, err := x509.MarshalPKCS8PrivateKey(shown.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{certificate: chain.Bytes(), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(bundle, b.authority.Bundle().MarshalPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = exec.Command(kubectl, "--server", b.address, "--certificate-authority", bundle, "--tls-server-name", "localhost",
		"--client-certificate", certificate, "--client-key", key, "auth", "whoami").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "spiffe://test.local/auditor/dora") || !strings.Contains(string(out), "bocage:auditor") {
		t.Errorf("with a certificate: %v %s", err, out)
	}
}

// glewlwyd is a running provider with one client.
type glewlwyd struct {
	base  string // of its API
	admin *http.Client
}

func startGlewlwyd(t *testing.T) *glewlwyd {
	t.Helper()
	schema := "/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3"
	for _, needed := range []string{"glewlwyd", "sqlite3"} {
		if _, err := exec.LookPath(needed); err != nil {
			if os.Getenv("BOCAGE_REQUIRE_ROOT") == "1" {
				t.Fatalf("%s is not installed: run scripts/setup test", needed)
			}
			t.Skipf("%s is not installed (scripts/setup test installs it)", needed)
		}
	}
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	statements, err := os.ReadFile(schema)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(dir, "g.db")
	statements = append(statements, `
UPDATE g_user_module_instance SET gumi_parameters='{"use-glewlwyd-connection":true,"data-format":{"groups":{"multiple":true,"read":true,"write":true,"profile-read":true}}}' WHERE gumi_name='database';
`...)
	fill := exec.Command("sqlite3", database)
	fill.Stdin = bytes.NewReader(statements)
	if out, err := fill.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	config := filepath.Join(dir, "glewlwyd.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `port=%d
bind_address="127.0.0.1"
external_url="http://%s/"
api_prefix="api"
log_mode="console"
log_level="WARNING"
cookie_secure=0
session_expiration=3600
session_key="GLEWLWYD2_SESSION_ID"
admin_scope="g_admin"
profile_scope="g_profile"
user_module_path="/usr/lib/glewlwyd/user/"
client_module_path="/usr/lib/glewlwyd/client"
user_auth_scheme_module_path="/usr/lib/glewlwyd/scheme"
plugin_module_path="/usr/lib/glewlwyd/plugin"
hash_algorithm="SHA512"
database = { type = "sqlite3"; path = %q; };
`, address.Port, address, database), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	process := exec.Command("glewlwyd", "-c", config)
	process.Stdout, process.Stderr = &log, &log
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		if t.Failed() {
			t.Logf("glewlwyd says: %s", log.String())
		}
	})
	g := &glewlwyd{base: fmt.Sprintf("http://%s/api", address)}
	g.admin = g.session(t, "admin", "password")
	key := rsaKey(t)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	g.post(t, g.admin, "/mod/plugin/", map[string]any{"module": "oidc", "name": "oidc", "display_name": "OIDC", "parameters": map[string]any{
		"iss": g.base + "/oidc", "jwt-type": "rsa", "jwt-key-size": "256",
		"key":                   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		"cert":                  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"access-token-duration": 3600, "refresh-token-duration": 3600, "code-duration": 600, "refresh-token-rolling": true,
		"allow-non-oidc": true, "auth-type-code-enabled": true, "auth-type-token-enabled": true, "auth-type-id-token-enabled": true,
		"auth-type-none-enabled": true, "auth-type-password-enabled": false, "auth-type-client-enabled": false, "auth-type-refresh-enabled": false,
		"scope": []any{map[string]string{"name": "openid"}}, "additional-parameters": []any{},
		"claims":            []any{map[string]any{"name": "groups", "user-property": "groups", "type": "string", "mandatory": true}},
		"cookie-expiration": 3600, "subject-type": "public", "pkce-allowed": false, "jwks-show": true, "request-parameter-allow": false,
		"secret-type": "pairwise", "email-claim": "mandatory", "name-claim": "mandatory",
	}})
	g.post(t, g.admin, "/client/", map[string]any{
		"client_id": "bocage", "name": "Bocage", "password": "secret", "confidential": true, "enabled": true, "redirect_uri": []string{"http://127.0.0.1:1/cb"},
		"authorization_type": []string{"code"}, "token_endpoint_auth_method": []string{"client_secret_basic"}, "scope": []string{"openid"},
	})
	return g
}

// session logs somebody in, once the provider answers.
func (g *glewlwyd) session(t *testing.T, name, password string) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for {
		answer, err := c.Get(g.base + "/")
		if err == nil {
			_ = answer.Body.Close()
			break
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("the provider does not start: %v", err)
		}
	}
	g.post(t, c, "/auth/", map[string]any{"username": name, "password": password})
	return c
}

func (g *glewlwyd) post(t *testing.T, c *http.Client, path string, value any) {
	t.Helper()
	g.send(t, c, http.MethodPost, path, value)
}

func (g *glewlwyd) send(t *testing.T, c *http.Client, method, path string, value any) {
	t.Helper()
	body, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, g.base+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s", method, path, answer.Status, text)
	}
}

type tokens struct{ idToken, accessToken string }

// login makes a person with groups and logs them in with the code flow.
func (g *glewlwyd) login(t *testing.T, name string, groups ...string) tokens {
	t.Helper()
	g.post(t, g.admin, "/user/", map[string]any{
		"username": name, "name": name, "email": name + "@example.org", "password": name + "-password", "enabled": true,
		"scope": []string{"openid", "g_profile"}, "groups": append([]string{}, groups...),
	})
	c := g.session(t, name, name+"-password")
	g.send(t, c, http.MethodPut, "/auth/grant/bocage/", map[string]string{"scope": "openid"})
	query := url.Values{"response_type": {"code"}, "g_continue": {""}, "client_id": {"bocage"}, "redirect_uri": {"http://127.0.0.1:1/cb"}, "scope": {"openid"}, "state": {"x"}, "nonce": {"y"}}
	answer, err := c.Get(g.base + "/oidc/auth?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	back, err := answer.Location()
	if err != nil || back.Query().Get("code") == "" {
		t.Fatalf("%s was sent to %v: %v", name, back, err)
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {back.Query().Get("code")}, "redirect_uri": {"http://127.0.0.1:1/cb"}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.base+"/oidc/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth("bocage", "secret")
	if answer, err = c.Do(request); err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got struct {
		IDToken     string `json:"id_token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil || got.IDToken == "" {
		t.Fatalf("%s got no token: %s, %v", name, answer.Status, err)
	}
	return tokens{got.IDToken, got.AccessToken}
}
