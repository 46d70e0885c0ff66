package ssh

import (
	"container/list"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"net/netip"
	"sync"

	"golang.org/x/crypto/chacha20"
	xssh "golang.org/x/crypto/ssh"
)

// maxKeys is how many host keys are remembered; others are derived again.
const maxKeys = 1024

// rsaBits is the size that ssh-keygen gives RSA host keys.
const rsaBits = 3072

// hostKey is one key with the algorithm to sign with.
type hostKey struct {
	signer    xssh.AlgorithmSigner
	algorithm string
	blob      []byte // public
}

func (k *hostKey) sign(data []byte) ([]byte, error) {
	signature, err := k.signer.SignWithAlgorithm(rand.Reader, data, k.algorithm)
	if err != nil {
		return nil, fmt.Errorf("sign as %s: %w", k.algorithm, err)
	}
	return xssh.Marshal(signature), nil
}

// keyring derives host keys from a secret and the address that shows them, and
// remembers those that were used last.
type keyring struct {
	secret []byte

	mu     sync.Mutex // guards what follows
	recent *list.List // of keyEntry, the last used in front
	byName map[string]*list.Element
}

type keyEntry struct {
	name   string
	signer xssh.AlgorithmSigner
}

func newKeyring(secret []byte) *keyring {
	return &keyring{secret: secret, recent: list.New(), byName: make(map[string]*list.Element)}
}

// forAddress gives the key of an address for a signature algorithm.
func (k *keyring) forAddress(ctx context.Context, s *Server, address netip.Addr, algorithm string) (*hostKey, error) {
	kind := algorithm
	switch algorithm {
	case xssh.KeyAlgoRSASHA256, xssh.KeyAlgoRSASHA512:
		kind = xssh.KeyAlgoRSA
	}
	name := kind + " " + address.String()
	signer := k.lookup(name)
	if signer == nil {
		err := inTurn(ctx, s.derive, func() (err error) {
			if signer = k.lookup(name); signer != nil {
				return nil // made while we waited for our turn
			}
			if signer, err = deriveKey(k.secret, kind, name); err != nil {
				return fmt.Errorf("derive host key %s: %w", name, err)
			}
			k.remember(name, signer)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return &hostKey{signer: signer, algorithm: algorithm, blob: signer.PublicKey().Marshal()}, nil
}

func (k *keyring) lookup(name string) xssh.AlgorithmSigner {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.byName[name]
	if !ok {
		return nil
	}
	k.recent.MoveToFront(e)
	return e.Value.(keyEntry).signer
}

func (k *keyring) remember(name string, signer xssh.AlgorithmSigner) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.byName[name]; ok {
		return
	}
	k.byName[name] = k.recent.PushFront(keyEntry{name, signer})
	if k.recent.Len() > maxKeys {
		oldest := k.recent.Remove(k.recent.Back()).(keyEntry)
		delete(k.byName, oldest.name)
	}
}

// deriveKey makes the same key for the same secret and name, always.
func deriveKey(secret []byte, kind, name string) (xssh.AlgorithmSigner, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, "bocage ssh decoy host key "+name, 32)
	if err != nil {
		return nil, err
	}
	var key crypto.Signer
	switch kind {
	case xssh.KeyAlgoED25519:
		key = ed25519.NewKeyFromSeed(seed)
	case xssh.KeyAlgoECDSA256:
		key, err = deriveP256(seed)
	case xssh.KeyAlgoRSA:
		key, err = deriveRSA(seed)
	default:
		err = fmt.Errorf("no host key of type %s", kind)
	}
	if err != nil {
		return nil, err
	}
	signer, err := xssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, err
	}
	return signer.(xssh.AlgorithmSigner), nil
}

// deriveP256 takes the seed as the private scalar, or its hash in the one case
// in 2^32 in which it is not below the order of the curve.
func deriveP256(seed []byte) (*ecdsa.PrivateKey, error) {
	for range 8 {
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed); err == nil {
			return key, nil
		}
		next := sha256.Sum256(seed)
		seed = next[:]
	}
	return nil, fmt.Errorf("no seed is a P-256 key")
}

// deriveRSA searches primes along a stream of random bytes that the seed
// begins: rsa.GenerateKey never gives the same key twice.
func deriveRSA(seed []byte) (*rsa.PrivateKey, error) {
	stream, err := chacha20.NewUnauthenticatedCipher(seed, make([]byte, chacha20.NonceSize))
	if err != nil {
		return nil, err
	}
	e := big.NewInt(65537)
	one := big.NewInt(1)
	var primes []*big.Int
	for len(primes) < 2 {
		p := nextPrime(stream, rsaBits/2)
		if len(primes) == 1 && p.Cmp(primes[0]) == 0 || new(big.Int).Mod(new(big.Int).Sub(p, one), e).Sign() == 0 {
			continue
		}
		primes = append(primes, p)
	}
	n := new(big.Int).Mul(primes[0], primes[1])
	totient := new(big.Int).Mul(new(big.Int).Sub(primes[0], one), new(big.Int).Sub(primes[1], one))
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: n, E: int(e.Int64())},
		D:         new(big.Int).ModInverse(e, totient), Primes: primes,
	}
	key.Precompute()
	return key, key.Validate()
}

// nextPrime is the first prime of that many bits, its two highest set, from a
// random place on.
func nextPrime(stream *chacha20.Cipher, bits int) *big.Int {
	const span = 1 << 14 // candidates of one place; a gap that wide is not met
	small := smallPrimes(1 << 13)
	rests := make([]uint32, len(small))
	one, two := big.NewInt(1), big.NewInt(2)
	for {
		b := make([]byte, bits/8)
		stream.XORKeyStream(b, b)
		b[0] |= 0xc0
		b[len(b)-1] |= 1
		p := new(big.Int).SetBytes(b)
		word := new(big.Int)
		for i, s := range small {
			rests[i] = uint32(word.Mod(p, big.NewInt(int64(s))).Uint64())
		}
		for step := uint32(0); step < span; step += 2 {
			divisible := false
			for i, s := range small {
				if (rests[i]+step)%s == 0 {
					divisible = true
					break
				}
			}
			if divisible {
				continue
			}
			candidate := new(big.Int).Add(p, big.NewInt(int64(step)))
			// Fermat's test is the cheapest that leaves hardly any.
			if new(big.Int).Exp(two, new(big.Int).Sub(candidate, one), candidate).Cmp(one) != 0 {
				continue
			}
			if candidate.ProbablyPrime(2) && candidate.BitLen() == bits {
				return candidate
			}
		}
	}
}

// smallPrimes are the odd primes below limit.
func smallPrimes(limit uint32) []uint32 {
	composite := make([]bool, limit)
	var out []uint32
	for n := uint32(3); n < limit; n += 2 {
		if composite[n] {
			continue
		}
		out = append(out, n)
		for m := n * n; m < limit; m += 2 * n {
			composite[m] = true
		}
	}
	return out
}
