package ssh

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	xssh "golang.org/x/crypto/ssh"
)

// A banner's release decides what is offered, and all that is offered is there.
func TestProfiles(t *testing.T) {
	for _, c := range []struct{ banner, first, last string }{
		{"SSH-2.0-OpenSSH_7.4", "curve25519-sha256", "diffie-hellman-group14-sha256"},
		{"SSH-2.0-OpenSSH_8.4p1 Debian-5+deb11u3", "curve25519-sha256", strictServer},
		{"SSH-2.0-OpenSSH_8.4p1 Debian-5+deb11u1", "curve25519-sha256", "diffie-hellman-group14-sha256"},
		{"SSH-2.0-OpenSSH_8.9p1 Ubuntu-3ubuntu0.13", "curve25519-sha256", strictServer},
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u1", "sntrup761x25519-sha512@openssh.com", "diffie-hellman-group14-sha256"},
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", "sntrup761x25519-sha512@openssh.com", strictServer},
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10", "sntrup761x25519-sha512", strictServer},
		{"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13.5", "sntrup761x25519-sha512@openssh.com", strictServer},
		{"SSH-2.0-OpenSSH_9.9", "sntrup761x25519-sha512", strictServer},
		{"SSH-2.0-OpenSSH_10.0p2 Debian-7", "mlkem768x25519-sha256", strictServer},
		{"SSH-2.0-dropbear_2022.83", "sntrup761x25519-sha512@openssh.com", "diffie-hellman-group14-sha256"},
	} {
		p := profileOf(c.banner)
		if p.kex[0] != c.first || p.kex[len(p.kex)-1] != c.last {
			t.Errorf("%s offers %v", c.banner, p.kex)
		}
		for _, name := range p.kex {
			if _, ok := kexMethods[name]; !ok && name != strictServer {
				t.Errorf("%s offers %s, which we do not have", c.banner, name)
			}
		}
		for _, name := range append(p.ciphers, p.macs...) {
			if _, cipher := cipherModes[name]; !cipher {
				if _, mac := macModes[name]; !mac {
					t.Errorf("%s offers %s, which we do not have", c.banner, name)
				}
			}
		}
	}
}

func TestBanners(t *testing.T) {
	for banner, want := range map[string]string{
		"":                        DefaultBanner,
		"SSH-2.0-OpenSSH_8.9p1":   "SSH-2.0-OpenSSH_8.9p1",
		"OpenSSH_8.9p1":           "SSH-2.0-OpenSSH_8.9p1",
		"SSH-1.5-x":               "",
		"SSH-2.0-a\nb":            "",
		"SSH-2.0-ä":               "",
		strings.Repeat("x", 300):  "",
		"SSH-1.99-OpenSSH_3.9p1":  "SSH-1.99-OpenSSH_3.9p1",
		"SSH-2.0-OpenSSH_99999.1": "SSH-2.0-OpenSSH_99999.1",
	} {
		s, err := New(Config{Banner: banner})
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken", banner)
		case want != "" && (err != nil || s.banner != want):
			t.Errorf("%q became %v, %v", banner, s, err)
		}
	}
}

// The primes are those of RFC 3526.
func TestGroups(t *testing.T) {
	for _, c := range []struct {
		group group
		bits  int
		end   string // the 16 digits before the last 64 bits, which are all ones
	}{
		{group14, 2048, "15728e5a8aacaa68"},
		{group16, 4096, "4df435c934063199"},
		{group18, 8192, "60c980dd98edd3df"},
	} {
		text := hex.EncodeToString(c.group().Bytes())
		if c.group().BitLen() != c.bits || !strings.HasPrefix(text, "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd1") || !strings.HasSuffix(text, c.end+"ffffffffffffffff") {
			t.Errorf("the prime of %d bits is %s", c.bits, text)
		}
	}
}

// The same secret and name give the same key, anything else another.
func TestHostKeysAreDerived(t *testing.T) {
	for _, kind := range []string{xssh.KeyAlgoED25519, xssh.KeyAlgoECDSA256, xssh.KeyAlgoRSA} {
		print := func(secret, name string) string {
			signer, err := deriveKey([]byte(secret), kind, name)
			if err != nil {
				t.Fatal(err)
			}
			return xssh.FingerprintSHA256(signer.PublicKey())
		}
		first := print("secret", "a")
		if print("secret", "a") != first || print("secret", "b") == first || print("other", "a") == first {
			t.Errorf("keys of type %s do not follow from secret and name", kind)
		}
	}
}

func TestKeyringForgets(t *testing.T) {
	k := newKeyring([]byte("secret"))
	s := &Server{derive: make(chan struct{}, 1)}
	for i := range 2 * maxKeys {
		if _, err := k.forAddress(t.Context(), s, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), xssh.KeyAlgoED25519); err != nil {
			t.Fatal(err)
		}
	}
	if k.recent.Len() != maxKeys || len(k.byName) != maxKeys {
		t.Errorf("%d keys are remembered", k.recent.Len())
	}
}

func BenchmarkRSAKey(b *testing.B) {
	for i := range b.N {
		if _, err := deriveRSA(append(make([]byte, 31), byte(i))); err != nil {
			b.Fatal(err)
		}
	}
}
