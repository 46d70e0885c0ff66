package ssh

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"io"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305" //lint:ignore SA1019 chacha20-poly1305@openssh.com predates the AEAD and needs the bare authenticator
)

// cipherMode makes a cipher from its keys.
type cipherMode struct {
	keySize, ivSize int
	// aead makes a cipher that authenticates by itself; nil: it needs a MAC.
	aead func(key, iv []byte) packetCipher
}

var cipherModes = map[string]cipherMode{
	"chacha20-poly1305@openssh.com": {64, 0, newChaCha},
	"aes128-ctr":                    {16, 16, nil},
	"aes192-ctr":                    {24, 16, nil},
	"aes256-ctr":                    {32, 16, nil},
	"aes128-gcm@openssh.com":        {16, 12, newGCM},
	"aes256-gcm@openssh.com":        {32, 12, newGCM},
}

// macMode makes a message authentication code.
type macMode struct {
	keySize, size int
	etm           bool // over the encrypted packet
	tag           func(key []byte) tagger
}

// tagger computes the tag of a packet.
type tagger func(sequence uint32, packet ...[]byte) []byte

var macModes = map[string]macMode{
	"umac-64-etm@openssh.com":       {16, 8, true, newUMAC(8)},
	"umac-128-etm@openssh.com":      {16, 16, true, newUMAC(16)},
	"hmac-sha2-256-etm@openssh.com": {32, 32, true, newHMAC(sha256.New)},
	"hmac-sha2-512-etm@openssh.com": {64, 64, true, newHMAC(sha512.New)},
	"hmac-sha1-etm@openssh.com":     {20, 20, true, newHMAC(sha1.New)},
	"umac-64@openssh.com":           {16, 8, false, newUMAC(8)},
	"umac-128@openssh.com":          {16, 16, false, newUMAC(16)},
	"hmac-sha2-256":                 {32, 32, false, newHMAC(sha256.New)},
	"hmac-sha2-512":                 {64, 64, false, newHMAC(sha512.New)},
	"hmac-sha1":                     {20, 20, false, newHMAC(sha1.New)},
}

func newHMAC(h func() hash.Hash) func(key []byte) tagger {
	return func(key []byte) tagger {
		mac := hmac.New(h, key)
		return func(sequence uint32, packet ...[]byte) []byte {
			mac.Reset()
			mac.Write(binary.BigEndian.AppendUint32(nil, sequence))
			for _, p := range packet {
				mac.Write(p)
			}
			return mac.Sum(nil)
		}
	}
}

func newUMAC(size int) func(key []byte) tagger {
	return func(key []byte) tagger {
		u := newUmac(key, size)
		return func(sequence uint32, packet ...[]byte) []byte {
			var message []byte
			for _, p := range packet {
				message = append(message, p...)
			}
			return u.tag(uint64(sequence), message)
		}
	}
}

// newCounter is AES in counter mode with a MAC (RFC 4344; etm: OpenSSH's
// PROTOCOL, section 1.1).
func newCounter(key, iv []byte, mode macMode, macKey []byte) packetCipher {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key's size comes from our own table
	}
	return &counter{stream: cipher.NewCTR(block, iv), mode: mode, tag: mode.tag(macKey)}
}

type counter struct {
	stream cipher.Stream
	mode   macMode
	tag    tagger
}

func (c *counter) blockSize() int    { return aes.BlockSize }
func (c *counter) lengthApart() bool { return c.mode.etm }

func (c *counter) seal(sequence uint32, packet []byte) []byte {
	if c.mode.etm {
		c.stream.XORKeyStream(packet[4:], packet[4:])
		return append(packet, c.tag(sequence, packet)...)
	}
	tag := c.tag(sequence, packet)
	c.stream.XORKeyStream(packet, packet)
	return append(packet, tag...)
}

func (c *counter) open(sequence uint32, r io.Reader) ([]byte, error) {
	known := 4 // bytes that have to be here before the length is known
	if !c.mode.etm {
		known = aes.BlockSize
	}
	head := make([]byte, known)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	if !c.mode.etm {
		c.stream.XORKeyStream(head, head)
	}
	length := binary.BigEndian.Uint32(head)
	if err := checkLength(length, c); err != nil {
		return nil, err
	}
	packet, err := readFull(r, head, 4+int(length)-known+c.mode.size)
	if err != nil {
		return nil, err
	}
	packet, tag := packet[:4+length], packet[4+length:]
	if !c.mode.etm {
		c.stream.XORKeyStream(packet[known:], packet[known:])
	}
	if subtle.ConstantTimeCompare(tag, c.tag(sequence, packet)) != 1 {
		return nil, errCorrupt
	}
	if c.mode.etm {
		c.stream.XORKeyStream(packet[4:], packet[4:])
	}
	return packet[4:], nil
}

// newGCM is AES in Galois/counter mode (RFC 5647): the length is authenticated
// in the clear, the IV counts packets in its last eight bytes.
func newGCM(key, iv []byte) packetCipher {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &gcm{aead: aead, iv: [12]byte(iv)}
}

type gcm struct {
	aead cipher.AEAD
	iv   [12]byte
}

func (g *gcm) blockSize() int    { return aes.BlockSize }
func (g *gcm) lengthApart() bool { return true }

func (g *gcm) next() {
	binary.BigEndian.PutUint64(g.iv[4:], binary.BigEndian.Uint64(g.iv[4:])+1)
}

func (g *gcm) seal(_ uint32, packet []byte) []byte {
	defer g.next()
	return append(packet[:4:4], g.aead.Seal(nil, g.iv[:], packet[4:], packet[:4])...)
}

func (g *gcm) open(_ uint32, r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head)
	if err := checkLength(length, g); err != nil {
		return nil, err
	}
	sealed, err := readFull(r, nil, int(length)+g.aead.Overhead())
	if err != nil {
		return nil, err
	}
	defer g.next()
	packet, err := g.aead.Open(sealed[:0], g.iv[:], sealed, head)
	if err != nil {
		return nil, errCorrupt
	}
	return packet, nil
}

// newChaCha is chacha20-poly1305@openssh.com (OpenSSH's PROTOCOL.chacha20poly1305):
// one key for the length, one for the packet, the sequence number as nonce.
func newChaCha(key, _ []byte) packetCipher { return &chacha{content: key[:32], length: key[32:64]} }

type chacha struct{ content, length []byte }

func (c *chacha) blockSize() int    { return 8 }
func (c *chacha) lengthApart() bool { return true }

// streams are those of one packet: for the length, for the content (from block
// 1 on) and the one-time key of the authenticator.
func (c *chacha) streams(sequence uint32) (length, content *chacha20.Cipher, once [32]byte) {
	nonce := make([]byte, chacha20.NonceSize)
	binary.BigEndian.PutUint32(nonce[8:], sequence)
	length, err := chacha20.NewUnauthenticatedCipher(c.length, nonce)
	if err != nil {
		panic(err)
	}
	content, err = chacha20.NewUnauthenticatedCipher(c.content, nonce)
	if err != nil {
		panic(err)
	}
	content.XORKeyStream(once[:], once[:])
	content.SetCounter(1)
	return length, content, once
}

func (c *chacha) seal(sequence uint32, packet []byte) []byte {
	length, content, once := c.streams(sequence)
	length.XORKeyStream(packet[:4], packet[:4])
	content.XORKeyStream(packet[4:], packet[4:])
	var tag [poly1305.TagSize]byte
	poly1305.Sum(&tag, packet, &once)
	return append(packet, tag[:]...)
}

func (c *chacha) open(sequence uint32, r io.Reader) ([]byte, error) {
	lengths, content, once := c.streams(sequence)
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	var plain [4]byte
	lengths.XORKeyStream(plain[:], head)
	length := binary.BigEndian.Uint32(plain[:])
	if err := checkLength(length, c); err != nil {
		return nil, err
	}
	packet, err := readFull(r, head, int(length)+poly1305.TagSize)
	if err != nil {
		return nil, err
	}
	tag := [poly1305.TagSize]byte(packet[4+length:])
	packet = packet[:4+length]
	if !poly1305.Verify(&tag, packet, &once) {
		return nil, errCorrupt
	}
	content.XORKeyStream(packet[4:], packet[4:])
	return packet[4:], nil
}

func fillRandom(b []byte) { rand.Read(b) }
