package ssh

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
)

// umac is UMAC with AES-128 (RFC 4418), for tags of 8 or 16 bytes and messages
// up to 16 MiB, which is all that SSH needs. Names follow the RFC.
type umac struct {
	size int // of the tag
	pad  cipher.Block
	// Per 4 bytes of tag:
	l1     [][256]uint32
	l2     []uint64
	l3     [][8]uint64
	l3mask []uint32
}

const (
	umacChunk = 1024       // bytes that one round of L1-HASH takes
	p36       = 1<<36 - 5  // prime(36)
	p64       = 1<<64 - 59 // prime(64)
	mask64    = 0x01ffffff<<32 | 0x01ffffff
)

func newUmac(key []byte, size int) *umac {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key's size comes from our own table
	}
	kdf := func(index byte, n int) []byte {
		out := make([]byte, (n+15)/16*16)
		for i := 0; i < len(out); i += 16 {
			var in [16]byte
			in[7] = index
			binary.BigEndian.PutUint64(in[8:], uint64(i/16+1))
			block.Encrypt(out[i:], in[:])
		}
		return out[:n]
	}
	pad, err := aes.NewCipher(kdf(0, 16))
	if err != nil {
		panic(err)
	}
	u := &umac{size: size, pad: pad}
	rounds := size / 4
	l1, l2, l3, mask := kdf(1, umacChunk+(rounds-1)*16), kdf(2, rounds*24), kdf(3, rounds*64), kdf(4, rounds*4)
	for i := range rounds {
		var words [256]uint32
		for j := range words {
			words[j] = binary.BigEndian.Uint32(l1[i*16+j*4:])
		}
		var k [8]uint64
		for j := range k {
			k[j] = binary.BigEndian.Uint64(l3[i*64+j*8:]) % p36
		}
		u.l1 = append(u.l1, words)
		u.l2 = append(u.l2, binary.BigEndian.Uint64(l2[i*24:])&mask64)
		u.l3 = append(u.l3, k)
		u.l3mask = append(u.l3mask, binary.BigEndian.Uint32(mask[i*4:]))
	}
	return u
}

// tag is UHASH(message) xor PDF(nonce).
func (u *umac) tag(nonce uint64, message []byte) []byte {
	var in, pad [16]byte
	offset := 0
	if u.size == 8 { // two tags from one block
		offset = int(nonce&1) * 8
		nonce &^= 1
	}
	binary.BigEndian.PutUint64(in[:], nonce)
	u.pad.Encrypt(pad[:], in[:])
	out := make([]byte, u.size)
	for i := range u.l1 {
		binary.BigEndian.PutUint32(out[i*4:], u.hash(i, message)^binary.BigEndian.Uint32(pad[offset+i*4:]))
	}
	return out
}

func (u *umac) hash(round int, message []byte) uint32 {
	single := len(message) <= umacChunk
	y := uint64(1)
	for first := true; first || len(message) > 0; first = false {
		chunk := message[:min(len(message), umacChunk)]
		message = message[len(chunk):]
		a := nh(&u.l1[round], chunk)
		if single {
			y = a
		} else {
			y = poly64(u.l2[round], y, a)
		}
	}
	// L3-HASH: the first half of its 16 bytes is zero for messages of our size.
	var sum uint64
	for i := range 4 {
		sum += y >> (48 - 16*i) & 0xffff * u.l3[round][4+i]
	}
	return uint32(sum%p36) ^ u.l3mask[round]
}

// nh is NH plus the length in bits. The message's words are little-endian
// (ENDIAN-SWAP), the key's are not.
func nh(key *[256]uint32, chunk []byte) uint64 {
	length := uint64(len(chunk)) * 8
	if rest := len(chunk) % 32; rest != 0 || len(chunk) == 0 {
		chunk = append(chunk[:len(chunk):len(chunk)], make([]byte, 32-rest)...)
	}
	var sum uint64
	for i := 0; i < len(chunk); i += 32 {
		for j := range 4 {
			a := binary.LittleEndian.Uint32(chunk[i+4*j:]) + key[i/4+j]
			b := binary.LittleEndian.Uint32(chunk[i+4*j+16:]) + key[i/4+j+4]
			sum += uint64(a) * uint64(b)
		}
	}
	return sum + length
}

// poly64 is one step of POLY with words of 64 bits.
func poly64(k, y, m uint64) uint64 {
	const maxWord = 1<<64 - 1<<32
	if m >= maxWord {
		y = mulAdd(k, y, p64-1)
		m -= 59
	}
	return mulAdd(k, y, m)
}

// mulAdd is (k*y + m) mod p64.
func mulAdd(k, y, m uint64) uint64 {
	hi, lo := bits.Mul64(k, y)
	lo, carry := bits.Add64(lo, m, 0)
	return bits.Rem64(hi+carry, lo, p64)
}
