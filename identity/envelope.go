package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// An envelope is, in this order and nothing after it:
//
//	magic      4 bytes "BEV1"
//	kind       1-byte length, then the kind
//	chain      1-byte count, then each certificate (DER) behind a 4-byte length
//	payload    4-byte length, then the payload
//	signature  2-byte length, then the signature
//
// Lengths are big-endian. The signature is over everything before its length,
// behind a context string, so nothing of the envelope can be exchanged: neither
// its kind, nor whose chain it shows.
const (
	envelopeMagic   = "BEV1"
	envelopeContext = "bocage envelope 1\x00"

	maxKind = 64
	// maxChain is a leaf with its intermediates.
	maxChain       = 4
	maxCertificate = 16 << 10
)

// MaxPayload is the most that an envelope carries, in bytes.
const MaxPayload = 64 << 20

// Sign puts a payload into an envelope of a kind.
func (s *SVID) Sign(kind string, payload []byte) ([]byte, error) {
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("sign %s: payload of %d bytes is larger than %d", kind, len(payload), MaxPayload)
	}
	size := len(envelopeMagic) + 1 + len(kind) + 1 + 4 + len(payload) + 2 + 512
	for _, c := range s.chain {
		size += 4 + len(c.Raw)
	}
	be := binary.BigEndian
	e := make([]byte, 0, size)
	e = append(e, envelopeMagic...)
	e = append(e, byte(len(kind)))
	e = append(e, kind...)
	e = append(e, byte(len(s.chain)))
	for _, c := range s.chain {
		e = be.AppendUint32(e, uint32(len(c.Raw)))
		e = append(e, c.Raw...)
	}
	e = be.AppendUint32(e, uint32(len(payload)))
	e = append(e, payload...)
	signature, err := signBytes(s.key, e)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", kind, err)
	}
	e = be.AppendUint16(e, uint16(len(signature)))
	return append(e, signature...), nil
}

// Open checks an envelope's form, kind, signature and chain, the last at the time
// now, and returns its payload, which shares the envelope's memory, with the
// SPIFFE id of its signer. Whether that id may sign such a kind is the caller's
// business. For something kept, now is when it was received first.
func (b *Bundle) Open(envelope []byte, kind string, now time.Time) (payload []byte, id string, err error) {
	opened, err := parseEnvelope(envelope)
	if err != nil {
		return nil, "", fmt.Errorf("open %s: %w: %w", kind, ErrUntrusted, err)
	}
	if opened.kind != kind {
		return nil, "", fmt.Errorf("open %s: %w: it is a %q", kind, ErrUntrusted, opened.kind)
	}
	chain := make([]*x509.Certificate, len(opened.chain))
	for i, raw := range opened.chain {
		if chain[i], err = x509.ParseCertificate(raw); err != nil {
			return nil, "", fmt.Errorf("open %s: %w: certificate %d: %w", kind, ErrUntrusted, i+1, err)
		}
	}
	if id, err = b.Verify(chain, now); err != nil {
		return nil, "", fmt.Errorf("open %s: %w", kind, err)
	}
	if err := verifyBytes(chain[0].PublicKey, opened.signed, opened.signature); err != nil {
		return nil, "", fmt.Errorf("open %s of %s: %w: %w", kind, id, ErrUntrusted, err)
	}
	return opened.payload, id, nil
}

// SignedUntil is when the certificate ends that an envelope shows of its signer. That is
// only what it says: [Bundle.Open] at that moment opens what was signed by one whom the
// anchors vouched for then, for what counts as much however long ago it was signed.
func SignedUntil(envelope []byte) (time.Time, error) {
	opened, err := parseEnvelope(envelope)
	if err != nil {
		return time.Time{}, err
	}
	leaf, err := x509.ParseCertificate(opened.chain[0])
	if err != nil {
		return time.Time{}, err
	}
	return leaf.NotAfter, nil
}

func checkKind(kind string) error {
	if kind == "" || len(kind) > maxKind {
		return fmt.Errorf("kind %.80q of an envelope has %d bytes: want 1 to %d", kind, len(kind), maxKind)
	}
	return nil
}

// opened is an envelope's parts, all of them slices of it.
type opened struct {
	kind      string
	chain     [][]byte
	payload   []byte
	signed    []byte // what the signature is over
	signature []byte
}

var errShort = errors.New("it is cut short")

func parseEnvelope(envelope []byte) (opened, error) {
	r := reader{rest: envelope}
	if string(r.take(len(envelopeMagic))) != envelopeMagic {
		return opened{}, errors.New("it is no envelope")
	}
	var o opened
	o.kind = string(r.take(r.length(1)))
	if r.err == nil {
		r.err = checkKind(o.kind)
	}
	count := r.length(1)
	if r.err == nil && (count == 0 || count > maxChain) {
		return opened{}, fmt.Errorf("it shows %d certificates: want 1 to %d", count, maxChain)
	}
	for range count {
		length := r.length(4)
		if length > maxCertificate {
			return opened{}, fmt.Errorf("it shows a certificate of %d bytes: want at most %d", length, maxCertificate)
		}
		o.chain = append(o.chain, r.take(length))
	}
	length := r.length(4)
	if length > MaxPayload {
		return opened{}, fmt.Errorf("its payload has %d bytes: want at most %d", length, MaxPayload)
	}
	o.payload = r.take(length)
	o.signed = envelope[:len(envelope)-len(r.rest)]
	o.signature = r.take(r.length(2))
	if r.err != nil {
		return opened{}, r.err
	}
	if len(r.rest) > 0 {
		return opened{}, fmt.Errorf("%d bytes follow its signature", len(r.rest))
	}
	return o, nil
}

// reader takes lengths and bytes off the front until something is missing; from
// then on it yields nothing.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.rest) {
		r.err = errShort
	}
	if r.err != nil {
		r.rest = nil
		return nil
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) length(width int) int {
	n := 0
	for _, b := range r.take(width) {
		n = n<<8 | int(b)
	}
	return n
}

func digest(message []byte) []byte {
	h := sha256.New()
	h.Write([]byte(envelopeContext)) // a hash never fails to write
	h.Write(message)
	return h.Sum(nil)
}

func signBytes(key crypto.Signer, message []byte) ([]byte, error) {
	sum := digest(message)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		return key.Sign(rand.Reader, sum, crypto.Hash(0))
	}
	return key.Sign(rand.Reader, sum, crypto.SHA256)
}

var errSignature = errors.New("the signature is not of this content by this key")

func verifyBytes(public crypto.PublicKey, message, signature []byte) error {
	sum := digest(message)
	valid := false
	switch key := public.(type) {
	case ed25519.PublicKey:
		valid = ed25519.Verify(key, sum, signature)
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, sum, signature)
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(key, crypto.SHA256, sum, signature) == nil
	}
	if !valid {
		return errSignature
	}
	return nil
}
