package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Files of an authority's directory.
const (
	authorityFile = "authority.pem" // key and certificate
	bundleFile    = "bundle.pem"    // what others need to verify; public
)

// authorityLife is how long a trust anchor is valid. Whoever wants another one
// earlier adds it to the bundles first.
const authorityLife = 10 * 365 * 24 * time.Hour

// Authority issues the names of one trust domain. It is safe for concurrent use.
type Authority struct {
	signer credential
	bundle *Bundle
}

// OpenAuthority reads the authority kept in a directory, or creates it there on
// first use. A directory that once held an authority and lost its key is an
// error: a new one would make a stranger of everybody who knows the old.
func OpenAuthority(dir, trustDomain string) (*Authority, error) {
	if err := checkTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, authorityFile)
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = createAuthority(dir, trustDomain)
	}
	if err != nil {
		return nil, err
	}
	return readAuthority(dir, data, trustDomain)
}

func createAuthority(dir, trustDomain string) ([]byte, error) {
	path := filepath.Join(dir, authorityFile)
	if _, err := os.Stat(filepath.Join(dir, bundleFile)); err == nil {
		return nil, fmt.Errorf("%s is missing although %s is there: restore it from a backup, or remove %s to begin a new trust domain that every agent must join again", path, bundleFile, dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Bocage"}, CommonName: trustDomain},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		NotBefore: now.Add(-ClockTolerance), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true,
		MaxPathLen: 1, // room for an intermediate of each controller
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})...)
	// Whoever links first wins; the loser takes what the winner made.
	if err := writeFile(path, data, 0o600, false); errors.Is(err, fs.ErrExist) {
		return readPrivate(path)
	} else if err != nil {
		return nil, err
	}
	return data, nil
}

func readAuthority(dir string, data []byte, trustDomain string) (*Authority, error) {
	path := filepath.Join(dir, authorityFile)
	signer, err := parseCredential(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or remove %s to begin a new trust domain that every agent must join again", path, err, dir)
	}
	certificate := signer.chain[0]
	if len(certificate.URIs) != 1 || certificate.URIs[0].String() != "spiffe://"+trustDomain {
		return nil, fmt.Errorf("%s belongs to trust domain %v, not %s: name that one, or use another directory", path, certificate.URIs, trustDomain)
	}
	if now := time.Now(); now.After(certificate.NotAfter) {
		return nil, fmt.Errorf("%s expired on %s: remove %s to begin a new trust domain that every agent must join again", path, certificate.NotAfter.Format(time.DateOnly), dir)
	}
	bundle, err := NewBundle(trustDomain, certificate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := writeFile(filepath.Join(dir, bundleFile), bundle.MarshalPEM(), 0o644, true); err != nil {
		return nil, err
	}
	return &Authority{signer: signer, bundle: bundle}, nil
}

// Bundle returns the trust anchors by which others verify what the authority issues.
func (a *Authority) Bundle() *Bundle { return a.bundle }

// By returns the authority with another clock, by which it issues.
func (a *Authority) By(clock func() time.Time) *Authority {
	return &Authority{signer: a.signer, bundle: a.bundle.By(clock)}
}

// Fingerprint tells the authority from others of its trust domain.
func (a *Authority) Fingerprint() string { return pinOf(a.signer.chain[0]) }

// HasAuthority reports whether a directory holds an authority already.
func HasAuthority(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, authorityFile))
	return err == nil
}

// TrustDomain is the domain that the authority issues names in.
func (a *Authority) TrustDomain() string { return a.bundle.TrustDomain() }

// IssueOptions are what a certificate says besides its SPIFFE id.
type IssueOptions struct {
	// DNSNames and Addresses are a server's, so that tools that know nothing of
	// SPIFFE can verify it.
	DNSNames  []string
	Addresses []netip.Addr
	// ClientOnly keeps a person's certificate from being a server's.
	ClientOnly bool
	// Groups are those that a person is in; see [Groups].
	Groups []string
}

// Groups returns those that a certificate of a person vouches for.
func Groups(leaf *x509.Certificate) []string { return leaf.Subject.OrganizationalUnit }

// Issue signs a certificate for the path. The request (PKCS#10, DER) only proves
// possession of the key: nothing else is taken from it. ttl 0 means [DefaultTTL].
func (a *Authority) Issue(path string, csr []byte, ttl time.Duration, options ...IssueOptions) (chainPEM []byte, err error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("issue %s: read certificate request: %w", path, err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("issue %s: the request does not prove possession of its key: %w", path, err)
	}
	raw, err := a.sign(path, request.PublicKey, ttl, options)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), nil
}

// IssueSVID makes a key here and signs a certificate for it: for the controller
// itself and the local administrator.
func (a *Authority) IssueSVID(path string, ttl time.Duration, options ...IssueOptions) (*SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", path, err)
	}
	raw, err := a.sign(path, key.Public(), ttl, options)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", path, err)
	}
	return newSVID(credential{key: key, chain: []*x509.Certificate{leaf}})
}

func (a *Authority) sign(path string, public crypto.PublicKey, ttl time.Duration, options []IssueOptions) ([]byte, error) {
	id, err := ID(a.TrustDomain(), path)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if err := checkKey(public); err != nil {
		return nil, fmt.Errorf("issue %s: %w", path, err)
	}
	if ttl < 0 {
		return nil, fmt.Errorf("issue %s: a life of %s is negative", path, ttl)
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", path, err)
	}
	issuer, now := a.signer.chain[0], a.bundle.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Bocage"}},
		URIs:                  []*url.URL{uri},
		NotBefore:             now.Add(-ClockTolerance),
		NotAfter:              earlier(now.Add(ttl), issuer.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, o := range options {
		template.DNSNames = append(template.DNSNames, o.DNSNames...)
		for _, address := range o.Addresses {
			template.IPAddresses = append(template.IPAddresses, net.IP(address.Unmap().AsSlice()))
		}
		if o.ClientOnly {
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}
		template.Subject.OrganizationalUnit = append(template.Subject.OrganizationalUnit, o.Groups...)
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, issuer, public, a.signer.key)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", path, err)
	}
	return raw, nil
}

// checkKey refuses keys that are too weak to carry a name.
func checkKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize >= 256 {
			return nil
		}
	case *rsa.PublicKey:
		if key.N.BitLen() >= 2048 && key.N.BitLen() <= 8192 {
			return nil
		}
	}
	return fmt.Errorf("key of type %T is not Ed25519, ECDSA from P-256 or RSA of 2048 to 8192 bits", public)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
