package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// svidFile holds key and chain of an SVID, key first, as curl and kubectl take it.
const svidFile = "svid.pem"

// SVID is somebody's proof of name: a private key and the certificate chain that
// binds it to a SPIFFE id. It does not change once made.
type SVID struct {
	credential
	id string
}

// NewSVID joins a key with the chain that was issued for it.
func NewSVID(key crypto.Signer, chainPEM []byte) (*SVID, error) {
	chain, err := parseCertificates(chainPEM)
	if err != nil {
		return nil, fmt.Errorf("read certificate chain: %w", err)
	}
	return newSVID(credential{key: key, chain: chain})
}

func newSVID(c credential) (*SVID, error) {
	if err := c.matches(); err != nil {
		return nil, err
	}
	if len(c.chain) > maxChain {
		return nil, fmt.Errorf("the chain holds %d certificates: want at most %d", len(c.chain), maxChain)
	}
	leaf := c.chain[0]
	if len(leaf.URIs) != 1 {
		return nil, fmt.Errorf("the certificate names %d URIs: want one SPIFFE id", len(leaf.URIs))
	}
	id := leaf.URIs[0].String()
	if _, _, err := ParseID(id); err != nil {
		return nil, err
	}
	return &SVID{credential: c, id: id}, nil
}

// NewKey makes a key and the request (PKCS#10, DER) that proves its possession.
func NewKey() (key crypto.Signer, csr []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	if csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, csr, nil
}

// ID is the SPIFFE id.
func (s *SVID) ID() string { return s.id }

// Path is the id's part after the trust domain.
func (s *SVID) Path() string { return s.chain[0].URIs[0].Path }

// TrustDomain is the id's trust domain.
func (s *SVID) TrustDomain() string { return s.chain[0].URIs[0].Host }

// Serial tells the issues of one id apart.
func (s *SVID) Serial() string { return s.chain[0].SerialNumber.Text(16) }

// Expires is when the certificate ends.
func (s *SVID) Expires() time.Time { return s.chain[0].NotAfter }

// RenewAt is when half of the certificate's life is over.
func (s *SVID) RenewAt() time.Time {
	begin := s.chain[0].NotBefore.Add(ClockTolerance) // issued then, see Authority.sign
	return begin.Add(s.Expires().Sub(begin) / 2)
}

// Certificate returns key and chain for crypto/tls.
func (s *SVID) Certificate() tls.Certificate {
	c := tls.Certificate{PrivateKey: s.key, Leaf: s.chain[0]}
	for _, certificate := range s.chain {
		c.Certificate = append(c.Certificate, certificate.Raw)
	}
	return c
}

// Save writes the SVID to a directory: whole, or leaving what was there.
func (s *SVID) Save(dir string) error {
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	data, err := s.encode()
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, svidFile), data, 0o600, true)
}

// SaveFile writes the SVID to a file of its own, key first: whole, or leaving what
// was there.
func (s *SVID) SaveFile(path string) error {
	data, err := s.encode()
	if err != nil {
		return err
	}
	return writeFile(path, data, 0o600, true)
}

// LoadSVIDFile reads what [SVID.SaveFile] wrote. The certificate may have expired.
func LoadSVIDFile(path string) (*SVID, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	c, err := parseCredential(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s, err := newSVID(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// LoadSVID reads what [SVID.Save] wrote; the error wraps fs.ErrNotExist if there
// is none. The certificate may have expired.
func LoadSVID(dir string) (*SVID, error) {
	path := filepath.Join(dir, svidFile)
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no identity in %s (%w): join with a token", dir, err)
	}
	if err != nil {
		return nil, err
	}
	c, err := parseCredential(data)
	if err != nil {
		return nil, damaged(path, err)
	}
	s, err := newSVID(c)
	if err != nil {
		return nil, damaged(path, err)
	}
	return s, nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged (%w): remove it and join again with a new token", path, err)
}

// SaveBundle writes trust anchors beside an SVID.
func SaveBundle(dir string, b *Bundle) error {
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, bundleFile), b.MarshalPEM(), 0o644, true)
}

// LoadBundle reads what [SaveBundle] wrote; the error wraps fs.ErrNotExist if
// there is none.
func LoadBundle(dir, trustDomain string) (*Bundle, error) {
	path := filepath.Join(dir, bundleFile)
	data, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no trust anchors in %s (%w): join with a token", dir, err)
	}
	if err != nil {
		return nil, err
	}
	b, err := ParseBundle(trustDomain, data)
	if err != nil {
		return nil, damaged(path, err)
	}
	return b, nil
}
