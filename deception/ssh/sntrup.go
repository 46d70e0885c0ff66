package ssh

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
)

// The sender's half of Streamlined NTRU Prime 761 (ntruprime.cr.yp.to, round 3,
// and draft-josefsson-ntruprime-ssh): a server only encapsulates. Names are those of the
// specification. Nothing here is worth protecting from timing: what the secret
// protects is a lie.
const (
	sntrupP = 761
	sntrupQ = 4591
	sntrupW = 286 // entries of a short polynomial that are not zero
	sntrupC = (sntrupQ - 1) / 2

	sntrupPublicSize = 1158
)

// sntrupEncapsulate makes a key and the ciphertext that carries it to the owner
// of a public key, which has sntrupPublicSize bytes. Any bytes are a public key.
func sntrupEncapsulate(public []byte) (ciphertext, key []byte) {
	r := shortRandom()
	packed := packSmall(r)
	ciphertext = packRounded(roundToThree(mulShort(unpackRq(public), r)))
	inner := prefixed(3, packed)
	confirm := prefixed(2, inner, prefixed(4, public))
	ciphertext = append(ciphertext, confirm...)
	return ciphertext, prefixed(1, inner, ciphertext)
}

// prefixed is the first half of SHA-512 over a number and parts.
func prefixed(number byte, parts ...[]byte) []byte {
	h := sha512.New()
	h.Write([]byte{number})
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)[:32]
}

// shortRandom is a polynomial with sntrupW entries of 1 or -1, the rest 0.
func shortRandom() (r [sntrupP]int8) {
	var random [4 * sntrupP]byte
	rand.Read(random[:])
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(random[4*i:]) }
	for i := range sntrupW {
		r[i] = int8(word(i)>>31)*2 - 1
	}
	for i := sntrupP - 1; i > 0; i-- {
		j := int(uint64(word(i)&0x7fffffff) * uint64(i+1) >> 31)
		r[i], r[j] = r[j], r[i]
	}
	return r
}

// packSmall writes entries of -1 to 1 in two bits each.
func packSmall(r [sntrupP]int8) []byte {
	out := make([]byte, (sntrupP+3)/4)
	for i, x := range r {
		out[i/4] |= byte(x+1) << (2 * (i % 4))
	}
	return out
}

// mulShort multiplies modulo x^p - x - 1 and q, centred.
func mulShort(h [sntrupP]int16, r [sntrupP]int8) (out [sntrupP]int16) {
	var product [2*sntrupP - 1]int32
	for i, x := range r {
		switch x {
		case 1:
			for j, y := range h {
				product[i+j] += int32(y)
			}
		case -1:
			for j, y := range h {
				product[i+j] -= int32(y)
			}
		}
	}
	for i := len(product) - 1; i >= sntrupP; i-- {
		product[i] %= sntrupQ
		product[i-sntrupP] += product[i]
		product[i-sntrupP+1] += product[i]
	}
	for i := range out {
		x := product[i] % sntrupQ
		switch {
		case x > sntrupC:
			x -= sntrupQ
		case x < -sntrupC:
			x += sntrupQ
		}
		out[i] = int16(x)
	}
	return out
}

// roundToThree takes every entry to the nearest multiple of 3.
func roundToThree(a [sntrupP]int16) [sntrupP]int16 {
	for i, x := range a {
		rest := x % 3
		switch rest {
		case 2:
			rest = -1
		case -2:
			rest = 1
		}
		a[i] = x - rest
	}
	return a
}

// packRounded writes multiples of 3.
func packRounded(a [sntrupP]int16) []byte {
	values, moduli := make([]uint32, sntrupP), make([]uint32, sntrupP)
	for i, x := range a {
		values[i] = uint32(int32(x)+sntrupC) / 3
		moduli[i] = (sntrupQ + 2) / 3
	}
	return radixEncode(nil, values, moduli)
}

// unpackRq reads a public key: entries modulo q, centred.
func unpackRq(in []byte) (out [sntrupP]int16) {
	moduli := make([]uint32, sntrupP)
	for i := range moduli {
		moduli[i] = sntrupQ
	}
	for i, x := range radixDecode(in, moduli) {
		out[i] = int16(int32(x) - sntrupC)
	}
	return out
}

// radixEncode writes numbers below moduli: pairs merge into numbers below the
// products, of which bytes are given off as soon as the products allow.
func radixEncode(out []byte, values, moduli []uint32) []byte {
	const limit = 16384
	if len(values) == 1 {
		for r, m := values[0], moduli[0]; m > 1; m = (m + 255) >> 8 {
			out = append(out, byte(r))
			r >>= 8
		}
		return out
	}
	var values2, moduli2 []uint32
	for i := 0; i+1 < len(values); i += 2 {
		r := values[i] + values[i+1]*moduli[i]
		m := moduli[i+1] * moduli[i]
		for m >= limit {
			out = append(out, byte(r))
			r >>= 8
			m = (m + 255) >> 8
		}
		values2, moduli2 = append(values2, r), append(moduli2, m)
	}
	if len(values)%2 == 1 {
		values2, moduli2 = append(values2, values[len(values)-1]), append(moduli2, moduli[len(moduli)-1])
	}
	return radixEncode(out, values2, moduli2)
}

// radixDecode undoes radixEncode. Bytes that are not there count as 0.
func radixDecode(in []byte, moduli []uint32) []uint32 {
	const limit = 16384
	at := func(i int) uint32 {
		if i < len(in) {
			return uint32(in[i])
		}
		return 0
	}
	if len(moduli) == 1 {
		if moduli[0] == 1 {
			return []uint32{0}
		}
		r := at(0)
		if moduli[0] > 256 {
			r += at(1) << 8
		}
		return []uint32{r % moduli[0]}
	}
	type bottom struct{ rest, scale uint32 }
	var (
		bottoms  []bottom
		moduli2  []uint32
		consumed int
	)
	for i := 0; i+1 < len(moduli); i += 2 {
		m := moduli[i] * moduli[i+1]
		b := bottom{0, 1}
		for m >= limit {
			b.rest += at(consumed) * b.scale
			b.scale <<= 8
			consumed++
			m = (m + 255) >> 8
		}
		bottoms, moduli2 = append(bottoms, b), append(moduli2, m)
	}
	if len(moduli)%2 == 1 {
		moduli2 = append(moduli2, moduli[len(moduli)-1])
	}
	upper := radixDecode(in[min(consumed, len(in)):], moduli2)
	var out []uint32
	for i, b := range bottoms {
		r := b.rest + b.scale*upper[i]
		m0, m1 := moduli[2*i], moduli[2*i+1]
		out = append(out, r%m0, r/m0%m1)
	}
	if len(moduli)%2 == 1 {
		out = append(out, upper[len(upper)-1])
	}
	return out
}
