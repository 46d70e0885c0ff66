package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/identity"
)

func newAuthority(t testing.TB) *identity.Authority {
	t.Helper()
	a, err := identity.OpenAuthority(filepath.Join(t.TempDir(), "authority"), identity.DefaultTrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *identity.Authority, path string, options ...identity.IssueOptions) *identity.SVID {
	t.Helper()
	s, err := a.IssueSVID(path, time.Hour, options...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := identity.OpenAuthority(dir, "bocage.local")
	if err != nil {
		t.Fatal(err)
	}
	second, err := identity.OpenAuthority(dir, "bocage.local")
	if err != nil {
		t.Fatal(err)
	}
	if string(first.Bundle().MarshalPEM()) != string(second.Bundle().MarshalPEM()) {
		t.Error("the authority changed when opened again")
	}
	for name, want := range map[string]os.FileMode{".": 0o700, "authority.pem": 0o600, "bundle.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %#o, want %#o", name, info.Mode().Perm(), want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("directory holds %v, %v: want two files", entries, err)
	}
	if _, err := identity.OpenAuthority(dir, "other.domain"); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("opened with another trust domain: %v", err)
	}
}

func TestAuthorityCreatedAtOnceByMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "authority")
	bundles := make(chan string, 8)
	for range cap(bundles) {
		go func() {
			a, err := identity.OpenAuthority(dir, "bocage.local")
			if err != nil {
				bundles <- err.Error()
				return
			}
			bundles <- string(a.Bundle().MarshalPEM())
		}()
	}
	first := <-bundles
	for range cap(bundles) - 1 {
		if other := <-bundles; other != first {
			t.Fatalf("two authorities came of one directory:\n%s\n%s", first, other)
		}
	}
}

func TestAuthorityDamaged(t *testing.T) {
	tests := []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"missing", func(dir string) error { return os.Remove(filepath.Join(dir, "authority.pem")) }, "restore it from a backup"},
		{"empty", func(dir string) error { return os.WriteFile(filepath.Join(dir, "authority.pem"), nil, 0o600) }, "restore it from a backup"},
		{"garbage", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "authority.pem"), []byte("hello"), 0o600)
		}, "restore it from a backup"},
		{"cut", func(dir string) error { return os.Truncate(filepath.Join(dir, "authority.pem"), 300) }, "restore it from a backup"},
		{"readable by others", func(dir string) error { return os.Chmod(filepath.Join(dir, "authority.pem"), 0o640) }, "chmod 600"},
		{"directory writable by others", func(dir string) error { return os.Chmod(dir, 0o777) }, "chmod 700"},
		{"certificate of another key", func(dir string) error {
			other := filepath.Join(dir, "other")
			if _, err := identity.OpenAuthority(other, "bocage.local"); err != nil {
				return err
			}
			certificate, err := os.ReadFile(filepath.Join(other, "bundle.pem"))
			if err != nil {
				return err
			}
			own, err := os.ReadFile(filepath.Join(dir, "authority.pem"))
			if err != nil {
				return err
			}
			key, _, _ := strings.Cut(string(own), "-----BEGIN CERTIFICATE")
			return os.WriteFile(filepath.Join(dir, "authority.pem"), append([]byte(key), certificate...), 0o600)
		}, "restore it from a backup"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "authority")
			if _, err := identity.OpenAuthority(dir, "bocage.local"); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := identity.OpenAuthority(dir, "bocage.local"); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("OpenAuthority = %v, want it to say %q", err, test.want)
			}
		})
	}
}

func TestIssueTakesNothingFromTheRequest(t *testing.T) {
	a := newAuthority(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "controller"},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "bocage.local", Path: "/controller/c1"}},
		DNSNames:    []string{"controller.example"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue("/agent/h1", forged, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID() != "spiffe://bocage.local/agent/h1" || s.Path() != "/agent/h1" || s.TrustDomain() != "bocage.local" {
		t.Errorf("issued %s (%s in %s)", s.ID(), s.Path(), s.TrustDomain())
	}
	leaf := s.Certificate().Leaf
	if len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.Subject.CommonName != "" || leaf.IsCA {
		t.Errorf("the certificate holds what the request asked for: %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.Subject)
	}
	if life := time.Until(s.Expires()); life > time.Hour || life < 59*time.Minute {
		t.Errorf("it lives %s, want an hour", life)
	}
	if half := time.Until(s.RenewAt()); half > 30*time.Minute || half < 29*time.Minute {
		t.Errorf("renewal is due in %s, want half an hour", half)
	}
}

func TestIssueRefuses(t *testing.T) {
	a := newAuthority(t)
	_, csr, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/agent/h1.>", "/agent/*", "/agent/a.b", "/agent/", "/other/h1", "agent/h1"} {
		if _, err := a.Issue(path, csr, time.Hour); err == nil {
			t.Errorf("Issue(%q) succeeded", path)
		}
	}
	tampered := append([]byte(nil), csr...)
	tampered[len(tampered)-1] ^= 1
	if _, err := a.Issue("/agent/h1", tampered, time.Hour); err == nil {
		t.Error("a request with a broken signature was accepted")
	}
	if _, err := a.Issue("/agent/h1", []byte("x"), time.Hour); err == nil {
		t.Error("garbage was accepted")
	}
	if _, err := a.Issue("/agent/h1", csr, -time.Hour); err == nil {
		t.Error("a negative life was accepted")
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skipf("this Go makes no weak keys: %v", err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Issue("/agent/h1", request, time.Hour); err == nil {
		t.Error("a weak key was accepted")
	}
}

func TestVerify(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	now := time.Now()
	s := issue(t, a, "/agent/h1")
	leaf := s.Certificate().Leaf
	tests := []struct {
		name  string
		b     *identity.Bundle
		now   time.Time
		valid bool
	}{
		{"now", a.Bundle(), now, true},
		{"verifier's clock 5 minutes behind", a.Bundle(), now.Add(-5 * time.Minute), true},
		{"verifier's clock 9 minutes behind", a.Bundle(), now.Add(-9 * time.Minute), true},
		{"verifier's clock 11 minutes behind", a.Bundle(), now.Add(-11 * time.Minute), false},
		{"4 minutes after the end", a.Bundle(), s.Expires().Add(4 * time.Minute), true},
		{"6 minutes after the end", a.Bundle(), s.Expires().Add(6 * time.Minute), false},
		{"another authority", other.Bundle(), now, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id, err := test.b.Verify([]*x509.Certificate{leaf}, test.now)
			if (err == nil) != test.valid {
				t.Fatalf("Verify = %q, %v: want valid %t", id, err, test.valid)
			}
			if err == nil && id != "spiffe://bocage.local/agent/h1" {
				t.Errorf("id = %s", id)
			}
			if err != nil && !errors.Is(err, identity.ErrUntrusted) {
				t.Errorf("%v does not wrap ErrUntrusted", err)
			}
		})
	}
	if _, err := a.Bundle().Verify(nil, now); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("an empty chain: %v", err)
	}
}

func TestSaveAndLoad(t *testing.T) {
	a := newAuthority(t)
	dir := filepath.Join(t.TempDir(), "h1")
	if _, err := identity.LoadSVID(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "join with a token") {
		t.Errorf("LoadSVID of nothing = %v", err)
	}
	if _, err := identity.LoadBundle(dir, "bocage.local"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoadBundle of nothing = %v", err)
	}
	for range 2 { // the second replaces the first
		s := issue(t, a, "/agent/h1")
		if err := errors.Join(s.Save(dir), identity.SaveBundle(dir, a.Bundle())); err != nil {
			t.Fatal(err)
		}
		got, err := identity.LoadSVID(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID() != s.ID() || got.Serial() != s.Serial() {
			t.Errorf("loaded %s %s, want %s %s", got.ID(), got.Serial(), s.ID(), s.Serial())
		}
		b, err := identity.LoadBundle(dir, "bocage.local")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Verify([]*x509.Certificate{got.Certificate().Leaf}, time.Now()); err != nil {
			t.Error(err)
		}
	}
	file := filepath.Join(dir, "svid.pem")
	if _, err := tls.LoadX509KeyPair(file, file); err != nil {
		t.Errorf("other tools cannot read %s: %v", file, err)
	}
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.LoadSVID(dir); err == nil || !strings.Contains(err.Error(), "join again") {
		t.Errorf("LoadSVID of a damaged file = %v", err)
	}
}

func TestStockToolsVerifyTheServer(t *testing.T) {
	a := newAuthority(t)
	s := issue(t, a, "/controller/c1", identity.IssueOptions{
		DNSNames: []string{"localhost"}, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Bundle().MarshalPEM())
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := s.Certificate().Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Certificate().Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "example.com"}); err == nil {
		t.Error("it is valid for a name that was not asked for")
	}
}
