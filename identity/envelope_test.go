package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"bocage.dev/bocage/identity"
)

func TestEnvelope(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	h1, h2 := issue(t, a, "/agent/h1"), issue(t, a, "/agent/h2")
	payload := []byte("a batch of events")
	sealed, err := h1.Sign("batch", payload)
	if err != nil {
		t.Fatal(err)
	}
	got, id, err := a.Bundle().Open(sealed, "batch", time.Now())
	if err != nil || !bytes.Equal(got, payload) || id != "spiffe://bocage.local/agent/h1" {
		t.Fatalf("Open = %q of %s, %v", got, id, err)
	}
	t.Logf("an envelope adds %d bytes", len(sealed)-len(payload))

	twin, err := h2.Sign("batch", payload)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := issue(t, other, "/agent/h1").Sign("batch", payload)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		envelope []byte
		kind     string
		now      time.Time
	}{
		{"another kind", sealed, "ruleset", time.Now()},
		{"a prefix of the kind", sealed, "bat", time.Now()},
		{"no kind", sealed, "", time.Now()},
		{"the same name in another domain's envelope", foreign, "batch", time.Now()},
		{"after its signer's time", sealed, "batch", h1.Expires().Add(6 * time.Minute)},
		{"before its signer's time", sealed, "batch", time.Now().Add(-time.Hour)},
		{"nothing", nil, "batch", time.Now()},
		{"one byte more", append(bytes.Clone(sealed), 0), "batch", time.Now()},
		{"two of them", append(bytes.Clone(sealed), sealed...), "batch", time.Now()},
		{"another's signature", swapTails(t, sealed, twin), "batch", time.Now()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if payload, id, err := a.Bundle().Open(test.envelope, test.kind, test.now); !errors.Is(err, identity.ErrUntrusted) {
				t.Errorf("Open = %q of %s, %v: want ErrUntrusted", payload, id, err)
			}
		})
	}
	// No byte of it can change, and none be missing.
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 0x01
		if _, _, err := a.Bundle().Open(changed, "batch", time.Now()); !errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, _, err := a.Bundle().Open(sealed[:i], "batch", time.Now()); !errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

// swapTails puts the signature of one envelope behind the content of another.
func swapTails(t *testing.T, content, tail []byte) []byte {
	t.Helper()
	cut := func(e []byte) int {
		for i := len(e) - 60; i > len(e)-80; i-- { // an ECDSA signature has some 70 bytes
			if int(binary.BigEndian.Uint16(e[i:])) == len(e)-i-2 {
				return i
			}
		}
		t.Fatal("there is no signature")
		return 0
	}
	return append(bytes.Clone(content[:cut(content)]), tail[cut(tail):]...)
}

// An envelope opens at the last moment of its signer, however long ago that was, and
// what is none has no such moment.
func TestSignedUntil(t *testing.T) {
	a := newAuthority(t)
	s := issue(t, a, "/agent/h1")
	sealed, err := s.Sign("batch", []byte("events"))
	if err != nil {
		t.Fatal(err)
	}
	until, err := identity.SignedUntil(sealed)
	if err != nil || !until.Equal(s.Expires()) {
		t.Errorf("%v, %v; want %v", until, err, s.Expires())
	}
	if _, _, err := a.Bundle().Open(sealed, "batch", until); err != nil {
		t.Error(err)
	}
	for length := range len(sealed) {
		if _, err := identity.SignedUntil(sealed[:length]); err == nil {
			t.Errorf("its first %d bytes have one", length)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	s := issue(t, newAuthority(t), "/agent/h1")
	for _, kind := range []string{"", string(make([]byte, 65))} {
		if _, err := s.Sign(kind, nil); err == nil {
			t.Errorf("kind %q was signed", kind)
		}
	}
	if _, err := s.Sign("batch", make([]byte, identity.MaxPayload+1)); err == nil {
		t.Error("a payload over the limit was signed")
	}
}

func TestEnvelopeOfEdKey(t *testing.T) {
	a := newAuthority(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue("/agent/h1", request, 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Sign("batch", nil)
	if err != nil {
		t.Fatal(err)
	}
	if payload, _, err := a.Bundle().Open(sealed, "batch", time.Now()); err != nil || len(payload) != 0 {
		t.Errorf("Open = %q, %v", payload, err)
	}
}

func FuzzOpen(f *testing.F) {
	a := newAuthority(f)
	s := issue(f, a, "/agent/h1")
	now := time.Now()
	for _, payload := range [][]byte{nil, []byte("payload"), bytes.Repeat([]byte{0xff}, 300)} {
		sealed, err := s.Sign("batch", payload)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sealed)
		f.Add(sealed[:len(sealed)/2])
	}
	f.Add([]byte("BEV1\x05batch\xff"))
	f.Add([]byte("BEV1\x05batch\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, envelope []byte) {
		payload, id, err := a.Bundle().Open(envelope, "batch", now)
		if (err == nil) != (id != "") || err != nil && (payload != nil || !errors.Is(err, identity.ErrUntrusted)) {
			t.Errorf("Open = %q of %q, %v", payload, id, err)
		}
		if err == nil && id != s.ID() {
			t.Errorf("an envelope of %s was opened, whom nobody knows", id)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	a := newAuthority(f)
	pem := a.Bundle().MarshalPEM()
	f.Add(pem)
	f.Add(append(bytes.Clone(pem), pem...))
	f.Add(pem[:len(pem)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := identity.ParseBundle("bocage.local", data)
		if err != nil {
			return
		}
		again, err := identity.ParseBundle("bocage.local", b.MarshalPEM())
		if err != nil || !bytes.Equal(again.MarshalPEM(), b.MarshalPEM()) {
			t.Errorf("a bundle does not survive writing: %v", err)
		}
	})
}

func FuzzNewSVID(f *testing.F) {
	a := newAuthority(f)
	key, csr, err := identity.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	chain, err := a.Issue("/agent/h1", csr, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(chain)
	f.Add(a.Bundle().MarshalPEM())
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := identity.NewSVID(key, data)
		if err != nil {
			return
		}
		if _, _, err := identity.ParseID(s.ID()); err != nil {
			t.Errorf("an SVID with the name %q", s.ID())
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://bocage.local/agent/h1")
	f.Add("spiffe://bocage.local/workload/a/b")
	f.Add("spiffe://x/agent/h1.>")
	f.Fuzz(func(t *testing.T, id string) {
		domain, path, err := identity.ParseID(id)
		if err != nil {
			return
		}
		if again, err := identity.ID(domain, path); err != nil || again != id {
			t.Errorf("%q is read as %q and %q", id, domain, path)
		}
		for _, c := range []byte(path) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '/') {
				t.Errorf("%q holds %q", id, c)
			}
		}
	})
}

func FuzzIssue(f *testing.F) {
	a := newAuthority(f)
	_, csr, err := identity.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := a.Issue("/agent/h1", csr, time.Minute)
		if err != nil {
			return
		}
		b, err := identity.ParseBundle("bocage.local", chain)
		if err == nil {
			t.Errorf("what was issued may issue: %s", b.MarshalPEM())
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	a := newAuthority(b)
	_, csr, err := identity.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.Issue("/agent/h1", csr, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	s := issue(b, newAuthority(b), "/agent/h1")
	payload := make([]byte, 40_000)
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		if _, err := s.Sign("batch", payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	a := newAuthority(b)
	sealed, err := issue(b, a, "/agent/h1").Sign("batch", make([]byte, 40_000))
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.SetBytes(int64(len(sealed)))
	for b.Loop() {
		if _, _, err := a.Bundle().Open(sealed, "batch", now); err != nil {
			b.Fatal(err)
		}
	}
}
