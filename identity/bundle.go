package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxAnchors bounds what a bundle may hold: each failed verification tries all.
const maxAnchors = 64

// Bundle holds a trust domain's anchors: the certificates of those who may issue
// names in it. It does not change once made.
type Bundle struct {
	anchors *x509bundle.Bundle
	clock   func() time.Time // nil: this machine's
}

// NewBundle makes a bundle of certificates.
func NewBundle(trustDomain string, anchors ...*x509.Certificate) (*Bundle, error) {
	if err := checkTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	if len(anchors) == 0 || len(anchors) > maxAnchors {
		return nil, fmt.Errorf("trust bundle of %s holds %d certificates: want 1 to %d", trustDomain, len(anchors), maxAnchors)
	}
	for _, anchor := range anchors {
		if !anchor.IsCA || !anchor.BasicConstraintsValid {
			return nil, fmt.Errorf("trust bundle of %s: certificate %x may not issue others", trustDomain, anchor.SerialNumber)
		}
	}
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	return &Bundle{anchors: x509bundle.FromX509Authorities(domain, anchors)}, nil
}

// By returns the bundle with another clock, by which connections are verified.
func (b *Bundle) By(clock func() time.Time) *Bundle {
	copied := *b
	copied.clock = clock
	return &copied
}

// Now is the time by the bundle's clock.
func (b *Bundle) Now() time.Time {
	if b.clock == nil {
		return time.Now()
	}
	return b.clock()
}

// ParseBundle reads what [Bundle.MarshalPEM] writes. Anything but certificates,
// and any text after the last, is an error.
func ParseBundle(trustDomain string, data []byte) (*Bundle, error) {
	certificates, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("trust bundle of %s: %w", trustDomain, err)
	}
	return NewBundle(trustDomain, certificates...)
}

// MarshalPEM writes the anchors as PEM certificates.
func (b *Bundle) MarshalPEM() []byte {
	return encodeCertificates(b.anchors.X509Authorities())
}

// TrustDomain is the domain that the anchors speak for.
func (b *Bundle) TrustDomain() string { return b.anchors.TrustDomain().Name() }

// Verify checks that a chain, leaf first, leads to an anchor at the time now, give
// or take [ClockTolerance], and returns the leaf's SPIFFE id.
func (b *Bundle) Verify(chain []*x509.Certificate, now time.Time) (string, error) {
	if len(chain) == 0 {
		return "", fmt.Errorf("verify certificate chain: %w: it is empty", ErrUntrusted)
	}
	id, _, err := x509svid.Verify(chain, b.anchors, x509svid.WithTime(tolerate(chain[0], now)))
	if err != nil {
		return "", fmt.Errorf("verify certificate chain: %w: %w", ErrUntrusted, err)
	}
	// go-spiffe admits more names than we do.
	if _, _, err := ParseID(id.String()); err != nil {
		return "", fmt.Errorf("verify certificate chain: %w: %w", ErrUntrusted, err)
	}
	return id.String(), nil
}

// tolerate moves now into the leaf's validity if it misses it by no more than
// ClockTolerance.
func tolerate(leaf *x509.Certificate, now time.Time) time.Time {
	switch {
	case now.Before(leaf.NotBefore) && leaf.NotBefore.Sub(now) <= ClockTolerance:
		return leaf.NotBefore
	case now.After(leaf.NotAfter) && now.Sub(leaf.NotAfter) <= ClockTolerance:
		return leaf.NotAfter
	}
	return now
}

// pins are the hashes by which a join token names the anchors.
func (b *Bundle) pins() []string {
	var pins []string
	for _, anchor := range b.anchors.X509Authorities() {
		pins = append(pins, pinOf(anchor))
	}
	slices.Sort(pins)
	return pins
}

func pinOf(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (b *Bundle) raw() [][]byte {
	var raw [][]byte
	for _, anchor := range b.anchors.X509Authorities() {
		raw = append(raw, anchor.Raw)
	}
	return raw
}

func encodeCertificates(certificates []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certificates {
		// A bytes.Buffer takes everything, and the block has no headers.
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out.Bytes()
}

// parseCertificates reads PEM that holds certificates and nothing else.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("there is something besides PEM certificates in it")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a PEM block %.40q in it: want CERTIFICATE", block.Type)
		}
		if len(certificates) == maxAnchors {
			return nil, fmt.Errorf("there are more than %d certificates in it", maxAnchors)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, certificate)
	}
	if len(certificates) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return certificates, nil
}
