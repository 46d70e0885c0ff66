package ssh

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// kexInit is a KEXINIT (RFC 4253 section 7.1).
type kexInit struct {
	kex, hostKeys          []string
	ciphers, macs, squeeze [2][]string // client to server, server to client
	guessed                bool        // first_kex_packet_follows
}

// suite is what two KEXINITs agree on.
type suite struct {
	kex, hostKey string
	cipher, mac  [2]string // client to server, server to client
	squeeze      [2]string
}

var errNoMatch = errors.New("no algorithm in common")

// exchangeKeys is a key exchange: the one that begins a connection or, given the
// client's proposal, one that it asks for later.
//
//  1. both proposals, from which follow the suite and the client's fingerprint;
//  2. the method, which gives a shared secret and, signed by the host key, proof;
//  3. new keys, ours and theirs;
//  4. the extensions that a client asked for.
func (c *session) exchangeKeys(ctx context.Context, theirs []byte) error {
	first := theirs == nil
	ours := c.server.profile.proposal()
	if err := c.wire.write(ours); err != nil {
		return err
	}
	if first {
		var err error
		if theirs, err = c.await(msgKexInit); err != nil {
			return err
		}
	}
	client, err := parseKexInit(theirs)
	if err != nil {
		return err
	}
	if first {
		c.hassh = client.fingerprint()
		c.reportProbe()
		c.strict = slices.Contains(client.kex, strictClient) && slices.Contains(c.server.profile.kex, strictServer)
		if c.strict && c.wire.in.sequence != 1 {
			return disconnect{"strict KEX violation: KEXINIT was not the first packet"}
		}
		c.wire.strict = c.strict
	}
	agreed, err := c.server.profile.agree(client)
	if err != nil {
		return err
	}
	if client.guessed && !client.guessedRight(c.server.profile) {
		if _, _, err := c.wire.read(); err != nil {
			return err
		}
	}

	key, err := c.server.keys.forAddress(ctx, c.server, c.victim, agreed.hostKey)
	if err != nil {
		return err
	}
	method := kexMethods[agreed.kex]
	x := c.newExchange(method, key, theirs, ours)
	if err := method.run(ctx, x); err != nil {
		return fmt.Errorf("%s: %w", agreed.kex, err)
	}
	if first {
		c.id = x.id
	}
	c.suite = agreed
	return c.takeKeys(x, first && slices.Contains(client.kex, extInfo))
}

// await reads until a message of the key exchange comes. Others of the transport
// are answered as sshd does, those of later stages end the connection.
func (c *session) await(number byte) ([]byte, error) {
	for {
		message, sequence, err := c.wire.read()
		switch {
		case err != nil:
			return nil, err
		case message[0] == number:
			return message, nil
		case c.wire.strict:
			return nil, disconnect{fmt.Sprintf("strict KEX violation: unexpected packet type %d (seqnr %d)", message[0], sequence)}
		case message[0] > 49:
			return nil, errCorrupt
		}
		if err := c.wire.unimplemented(sequence); err != nil {
			return nil, err
		}
	}
}

// takeKeys switches both directions to the keys of an exchange.
func (c *session) takeKeys(x *exchange, wantsExtensions bool) error {
	if err := c.wire.write([]byte{msgNewKeys}); err != nil {
		return err
	}
	c.wire.out.cipher = x.cipher('B', 'D', 'F', c.suite.cipher[1], c.suite.mac[1])
	if c.strict {
		c.wire.out.sequence = 0
	}
	if wantsExtensions {
		if err := c.wire.write(c.server.profile.extensions()); err != nil {
			return err
		}
	}
	message, err := c.await(msgNewKeys)
	if err != nil {
		return err
	}
	if len(message) != 1 {
		return errCorrupt
	}
	c.wire.in.cipher = x.cipher('A', 'C', 'E', c.suite.cipher[0], c.suite.mac[0])
	if c.strict {
		c.wire.in.sequence = 0
		c.wire.strict = false
	}
	return nil
}

// proposal is our KEXINIT.
func (p profile) proposal() []byte {
	var cookie [16]byte
	rand.Read(cookie[:])
	var b cryptobyte.Builder
	b.AddUint8(msgKexInit)
	b.AddBytes(cookie[:])
	for _, list := range [][]string{p.kex, p.hostKeys, p.ciphers, p.ciphers, p.macs, p.macs, p.compressions, p.compressions, nil, nil} {
		addString(&b, []byte(strings.Join(list, ",")))
	}
	b.AddUint8(0)  // no guess follows
	b.AddUint32(0) // reserved
	return b.BytesOrPanic()
}

// extensions is the EXT_INFO that follows our first NEWKEYS (RFC 8308).
func (p profile) extensions() []byte {
	pairs := [][2]string{{"server-sig-algs", p.signatures}}
	if p.hostbound {
		pairs = append(pairs, [2]string{"publickey-hostbound@openssh.com", "0"})
	}
	if p.ping {
		pairs = append(pairs, [2]string{"ping@openssh.com", "0"})
	}
	var b cryptobyte.Builder
	b.AddUint8(msgExtInfo)
	b.AddUint32(uint32(len(pairs)))
	for _, pair := range pairs {
		addString(&b, []byte(pair[0]))
		addString(&b, []byte(pair[1]))
	}
	return b.BytesOrPanic()
}

func parseKexInit(message []byte) (*kexInit, error) {
	s := cryptobyte.String(message)
	var (
		k       kexInit
		lists   [10][]string
		guessed uint8
		ignored uint32
	)
	if !s.Skip(1 + 16) {
		return nil, errCorrupt
	}
	for i := range lists {
		text, ok := readString(&s)
		if !ok || slices.Contains(text, 0) {
			return nil, errCorrupt
		}
		lists[i] = strings.Split(string(text), ",")
	}
	if !s.ReadUint8(&guessed) || !s.ReadUint32(&ignored) {
		return nil, errCorrupt
	}
	k.kex, k.hostKeys = lists[0], lists[1]
	k.ciphers = [2][]string{lists[2], lists[3]}
	k.macs = [2][]string{lists[4], lists[5]}
	k.squeeze = [2][]string{lists[6], lists[7]}
	k.guessed = guessed != 0
	return &k, nil
}

// fingerprint is HASSH: the MD5 of the client's algorithms, in its own order
// (github.com/salesforce/hassh).
func (k *kexInit) fingerprint() string {
	sum := md5.Sum([]byte(strings.Join([]string{
		strings.Join(k.kex, ","), strings.Join(k.ciphers[0], ","), strings.Join(k.macs[0], ","), strings.Join(k.squeeze[0], ","),
	}, ";")))
	return hex.EncodeToString(sum[:])
}

// agree picks, for each part, the first of the client's that we have.
func (p profile) agree(client *kexInit) (suite, error) {
	var s suite
	pick := func(theirs, ours []string) (string, error) {
		for _, name := range theirs {
			if slices.Contains(ours, name) && name != strictServer {
				return name, nil
			}
		}
		return "", errNoMatch
	}
	var faults [7]error
	s.kex, faults[0] = pick(client.kex, p.kex)
	s.hostKey, faults[1] = pick(client.hostKeys, p.hostKeys)
	for i := range 2 {
		s.cipher[i], faults[2+i] = pick(client.ciphers[i], p.ciphers)
		if cipherModes[s.cipher[i]].aead == nil {
			s.mac[i], faults[4+i] = pick(client.macs[i], p.macs)
		}
		var err error
		if s.squeeze[i], err = pick(client.squeeze[i], p.compressions); err != nil {
			faults[6] = err
		}
	}
	return s, errors.Join(faults[:]...)
}

// guessedRight says whether the packet that the client sent on a guess is to be
// taken: both sides prefer the same (RFC 4253 section 7).
func (k *kexInit) guessedRight(p profile) bool {
	return k.kex[0] == p.kex[0] && k.hostKeys[0] == p.hostKeys[0]
}

// exchange is one run of a key exchange method.
type exchange struct {
	session *session
	hash    func() hash.Hash
	key     *hostKey

	head   []byte // the start of what is hashed: identifications, proposals and host key
	secret []byte // K, encoded as it is hashed
	id     []byte // H
}

// kexMethod is one key exchange method.
type kexMethod struct {
	hash func() hash.Hash
	// run talks with the client until x.conclude has answered it.
	run func(ctx context.Context, x *exchange) error
}

var kexMethods = map[string]kexMethod{
	"mlkem768x25519-sha256":                {sha256.New, encapsulated(mlkem768x25519)},
	"sntrup761x25519-sha512":               {sha512.New, encapsulated(sntrup761x25519)},
	"sntrup761x25519-sha512@openssh.com":   {sha512.New, encapsulated(sntrup761x25519)},
	"curve25519-sha256":                    {sha256.New, encapsulated(curve25519)},
	"curve25519-sha256@libssh.org":         {sha256.New, encapsulated(curve25519)},
	"ecdh-sha2-nistp256":                   {sha256.New, encapsulated(nistp256)},
	"ecdh-sha2-nistp384":                   {sha512.New384, encapsulated(nistp384)},
	"ecdh-sha2-nistp521":                   {sha512.New, encapsulated(nistp521)},
	"diffie-hellman-group14-sha256":        {sha256.New, fixedGroup(group14)},
	"diffie-hellman-group16-sha512":        {sha512.New, fixedGroup(group16)},
	"diffie-hellman-group18-sha512":        {sha512.New, fixedGroup(group18)},
	"diffie-hellman-group-exchange-sha256": {sha256.New, groupExchange},
}

// newExchange begins what both sides hash (RFC 4253 section 8).
func (c *session) newExchange(method kexMethod, key *hostKey, theirs, ours []byte) *exchange {
	var b cryptobyte.Builder
	addString(&b, []byte(c.clientID))
	addString(&b, []byte(c.server.banner))
	addString(&b, theirs)
	addString(&b, ours)
	addString(&b, key.blob)
	return &exchange{session: c, hash: method.hash, key: key, head: b.BytesOrPanic()}
}

// receive awaits one message of the method, which read has to read whole.
func (x *exchange) receive(number byte, read func(*cryptobyte.String) bool) error {
	message, err := x.session.await(number)
	if err != nil {
		return err
	}
	s := cryptobyte.String(message[1:])
	if !read(&s) || !s.Empty() {
		return errCorrupt
	}
	return nil
}

// encapsulated is every method in which both sides send one string: the answer
// to theirs is ours and the shared secret, encoded.
func encapsulated(encapsulate func(theirs []byte) (ours, secret []byte, err error)) func(context.Context, *exchange) error {
	return func(ctx context.Context, x *exchange) error {
		var theirs []byte
		err := x.receive(msgKexFirst, func(s *cryptobyte.String) (ok bool) {
			theirs, ok = readString(s)
			return ok
		})
		if err != nil {
			return err
		}
		return x.session.server.compute(ctx, func() error {
			ours, secret, err := encapsulate(theirs)
			if err != nil {
				return err
			}
			var public, reply cryptobyte.Builder
			addString(&public, theirs)
			addString(&public, ours)
			addString(&reply, ours)
			return x.conclude(msgKexFirst+1, public.BytesOrPanic(), reply.BytesOrPanic(), secret)
		})
	}
}

// conclude hashes the whole exchange, signs it and sends the reply: host key,
// our public value and the signature.
func (x *exchange) conclude(number byte, public, reply, secret []byte) error {
	h := x.hash()
	h.Write(x.head)
	h.Write(public)
	h.Write(secret)
	x.id, x.secret = h.Sum(nil), secret
	signature, err := x.key.sign(x.id)
	if err != nil {
		return err
	}
	var b cryptobyte.Builder
	b.AddUint8(number)
	addString(&b, x.key.blob)
	b.AddBytes(reply)
	addString(&b, signature)
	return x.session.wire.write(b.BytesOrPanic())
}

// derive makes n bytes of key for one purpose (RFC 4253 section 7.2).
func (x *exchange) derive(purpose byte, n int) []byte {
	h := x.hash()
	h.Write(x.secret)
	h.Write(x.id)
	h.Write([]byte{purpose})
	h.Write(x.session.id)
	out := h.Sum(nil)
	for len(out) < n {
		h.Reset()
		h.Write(x.secret)
		h.Write(x.id)
		h.Write(out)
		out = h.Sum(out)
	}
	return out[:n]
}

// cipher makes the cipher of one direction.
func (x *exchange) cipher(iv, key, mac byte, cipherName, macName string) packetCipher {
	mode := cipherModes[cipherName]
	if mode.aead != nil {
		return mode.aead(x.derive(key, mode.keySize), x.derive(iv, mode.ivSize))
	}
	macMode := macModes[macName]
	return newCounter(x.derive(key, mode.keySize), x.derive(iv, mode.ivSize), macMode, x.derive(mac, macMode.keySize))
}

// compute waits for its turn: a flood of handshakes has no more than its share
// of the processor.
func (s *Server) compute(ctx context.Context, work func() error) error {
	return inTurn(ctx, s.work, work)
}

// inTurn does work while it holds one of a few tokens.
func inTurn(ctx context.Context, tokens chan struct{}, work func() error) error {
	select {
	case tokens <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-tokens }()
	return work()
}
