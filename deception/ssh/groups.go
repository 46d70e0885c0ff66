package ssh

import (
	"context"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"math/big"
	"sync"

	"golang.org/x/crypto/cryptobyte"
)

var errPublicValue = errors.New("the client's public value is not one")

// curve25519 is X25519 with its result as a number (RFC 8731).
func curve25519(theirs []byte) (ours, secret []byte, err error) {
	return agreeOn(ecdh.X25519(), theirs)
}

// nistp256, nistp384 and nistp521 are RFC 5656 section 4.
func nistp256(theirs []byte) (ours, secret []byte, err error) { return agreeOn(ecdh.P256(), theirs) }
func nistp384(theirs []byte) (ours, secret []byte, err error) { return agreeOn(ecdh.P384(), theirs) }
func nistp521(theirs []byte) (ours, secret []byte, err error) { return agreeOn(ecdh.P521(), theirs) }

func agreeOn(curve ecdh.Curve, theirs []byte) (ours, secret []byte, err error) {
	ours, shared, err := sharedPoint(curve, theirs)
	if err != nil {
		return nil, nil, err
	}
	return ours, encodeNumber(new(big.Int).SetBytes(shared)), nil
}

func sharedPoint(curve ecdh.Curve, theirs []byte) (ours, shared []byte, err error) {
	public, err := curve.NewPublicKey(theirs)
	if err != nil {
		return nil, nil, errPublicValue
	}
	key, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	shared, err = key.ECDH(public)
	if err != nil {
		return nil, nil, errPublicValue
	}
	return key.PublicKey().Bytes(), shared, nil
}

// sntrup761x25519 is draft-ietf-sshm-ntruprime-ssh: both secrets, hashed, as a
// string.
func sntrup761x25519(theirs []byte) (ours, secret []byte, err error) {
	if len(theirs) != sntrupPublicSize+32 {
		return nil, nil, errPublicValue
	}
	ciphertext, key := sntrupEncapsulate(theirs[:sntrupPublicSize])
	point, shared, err := sharedPoint(ecdh.X25519(), theirs[sntrupPublicSize:])
	if err != nil {
		return nil, nil, err
	}
	sum := sha512.Sum512(append(key, shared...))
	return append(ciphertext, point...), encodeString(sum[:]), nil
}

// mlkem768x25519 is draft-ietf-sshm-mlkem-hybrid-kex.
func mlkem768x25519(theirs []byte) (ours, secret []byte, err error) {
	if len(theirs) != mlkem.EncapsulationKeySize768+32 {
		return nil, nil, errPublicValue
	}
	public, err := mlkem.NewEncapsulationKey768(theirs[:mlkem.EncapsulationKeySize768])
	if err != nil {
		return nil, nil, errPublicValue
	}
	key, ciphertext := public.Encapsulate()
	point, shared, err := sharedPoint(ecdh.X25519(), theirs[mlkem.EncapsulationKeySize768:])
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(append(key, shared...))
	return append(ciphertext, point...), encodeString(sum[:]), nil
}

// group is a finite field's prime; the generator is 2.
type group = func() *big.Int

// The MODP groups of RFC 3526 that OpenSSH names, by size in bits and the
// constant that makes the number prime. They are computed when first wanted.
var (
	group14 = sync.OnceValue(func() *big.Int { return modp(2048, 124476) })
	group16 = sync.OnceValue(func() *big.Int { return modp(4096, 240904) })
	group18 = sync.OnceValue(func() *big.Int { return modp(8192, 4743158) })
)

// modp is 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) pi) + k).
func modp(n uint, k int64) *big.Int {
	one := big.NewInt(1)
	p := new(big.Int).Lsh(one, n)
	p.Sub(p, new(big.Int).Lsh(one, n-64))
	p.Sub(p, one)
	middle := new(big.Int).Add(scaledPi(n-130), big.NewInt(k))
	return p.Add(p, middle.Lsh(middle, 64))
}

// scaledPi is floor(2^n pi), by Machin: pi = 16 arctan(1/5) - 4 arctan(1/239).
func scaledPi(n uint) *big.Int {
	const guard = 64 // bits that the series' roundings may spoil
	arctan := func(x int64) *big.Int {
		power := new(big.Int).Lsh(big.NewInt(1), n+guard)
		power.Quo(power, big.NewInt(x))
		sum, square := new(big.Int).Set(power), big.NewInt(x*x)
		for i := int64(3); power.Sign() != 0; i += 2 {
			power.Quo(power, square)
			term := new(big.Int).Quo(power, big.NewInt(i))
			if i%4 == 3 {
				term.Neg(term)
			}
			sum.Add(sum, term)
		}
		return sum
	}
	pi := new(big.Int).Mul(big.NewInt(16), arctan(5))
	pi.Sub(pi, new(big.Int).Mul(big.NewInt(4), arctan(239)))
	return pi.Rsh(pi, guard)
}

// fixedGroup is a method of RFC 8268.
func fixedGroup(g group) func(context.Context, *exchange) error {
	return func(ctx context.Context, x *exchange) error {
		return x.finiteField(ctx, g, msgKexFirst, nil)
	}
}

// groupExchange is RFC 4419 with the groups that sshd falls back on when it has
// no moduli of its own (dh_new_group_fallback).
func groupExchange(ctx context.Context, x *exchange) error {
	var least, wanted, most uint32
	err := x.receive(msgKexFirst+4, func(s *cryptobyte.String) bool {
		return s.ReadUint32(&least) && s.ReadUint32(&wanted) && s.ReadUint32(&most)
	})
	if err != nil {
		return err
	}
	const smallest, largest = 2048, 8192 // DH_GRP_MIN, DH_GRP_MAX
	if most < smallest || wanted > most || least > wanted {
		return errPublicValue
	}
	g := group18
	switch bits := min(max(wanted, smallest), largest, most); {
	case bits < 3072:
		g = group14
	case bits < 6144:
		g = group16
	}
	var reply, hashed cryptobyte.Builder
	reply.AddUint8(msgKexFirst + 1)
	reply.AddBytes(encodeNumber(g()))
	reply.AddBytes(encodeNumber(big.NewInt(2)))
	if err := x.session.wire.write(reply.BytesOrPanic()); err != nil {
		return err
	}
	hashed.AddUint32(least)
	hashed.AddUint32(wanted)
	hashed.AddUint32(most)
	hashed.AddBytes(encodeNumber(g()))
	hashed.AddBytes(encodeNumber(big.NewInt(2)))
	return x.finiteField(ctx, g, msgKexFirst+2, hashed.BytesOrPanic())
}

// finiteField is Diffie-Hellman in a group, from the client's message on.
func (x *exchange) finiteField(ctx context.Context, g group, number byte, hashed []byte) error {
	var e *big.Int
	err := x.receive(number, func(s *cryptobyte.String) (ok bool) {
		e, ok = readNumber(s)
		return ok
	})
	if err != nil {
		return err
	}
	one := big.NewInt(1)
	if e.Cmp(one) <= 0 || e.Cmp(new(big.Int).Sub(g(), one)) >= 0 {
		return errPublicValue
	}
	return x.session.server.compute(ctx, func() error {
		exponent := make([]byte, 64) // 512 bits: twice the strength of any of our keys
		rand.Read(exponent)
		y := new(big.Int).SetBytes(exponent)
		f := new(big.Int).Exp(big.NewInt(2), y, g())
		k := new(big.Int).Exp(e, y, g())
		public := append(append(hashed, encodeNumber(e)...), encodeNumber(f)...)
		return x.conclude(number+1, public, encodeNumber(f), encodeNumber(k))
	})
}

// encodeNumber is mpint of RFC 4251 section 5, for numbers that are not negative.
func encodeNumber(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return encodeString(b)
}

func encodeString(s []byte) []byte {
	var b cryptobyte.Builder
	addString(&b, s)
	return b.BytesOrPanic()
}

func readNumber(s *cryptobyte.String) (*big.Int, bool) {
	b, ok := readString(s)
	if !ok || len(b) > 2048 || len(b) > 0 && b[0]&0x80 != 0 {
		return nil, false
	}
	return new(big.Int).SetBytes(b), true
}
