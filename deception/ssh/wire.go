package ssh

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/crypto/cryptobyte"
)

// Message numbers (RFC 4250 section 4.1.2).
const (
	msgDisconnect      = 1
	msgIgnore          = 2
	msgUnimplemented   = 3
	msgDebug           = 4
	msgServiceRequest  = 5
	msgServiceAccept   = 6
	msgExtInfo         = 7
	msgKexInit         = 20
	msgNewKeys         = 21
	msgKexFirst        = 30 // to 49: the method's own
	msgUserauthReq     = 50
	msgUserauthFail    = 51
	msgUserauthSuccess = 52

	msgGlobalRequest       = 80
	msgRequestSuccess      = 81
	msgRequestFailure      = 82
	msgChannelOpen         = 90
	msgChannelOpenConfirm  = 91
	msgChannelOpenFailure  = 92
	msgChannelWindowAdjust = 93
	msgChannelData         = 94
	msgChannelExtendedData = 95
	msgChannelEOF          = 96
	msgChannelClose        = 97
	msgChannelRequest      = 98
	msgChannelSuccess      = 99
	msgChannelFailure      = 100
)

// disconnect is an error that the client is told. OpenSSH always gives the
// reason 2, protocol error.
type disconnect struct{ text string }

func (d disconnect) Error() string { return "disconnect: " + d.text }

func (d disconnect) message() []byte {
	var b cryptobyte.Builder
	b.AddUint8(msgDisconnect)
	b.AddUint32(2)
	addString(&b, []byte(d.text))
	addString(&b, nil) // language
	return b.BytesOrPanic()
}

var (
	errCorrupt      = errors.New("packet is corrupt")
	errDisconnected = errors.New("client disconnected")
	errChatter      = errors.New("client sent more packets than a session may")
)

// wire is the binary packet protocol (RFC 4253 section 6) over a connection. It
// belongs to one goroutine.
type wire struct {
	r       *bufio.Reader
	w       *bufio.Writer // sent whenever we are about to wait
	in, out direction
	packets int // that may still come
	// shared is set once others than the reader write too, who then send what
	// they wrote themselves.
	shared bool
	// strict is set while messages that do not belong to the first key exchange
	// end the connection (kex-strict of OpenSSH's PROTOCOL, section 1.10).
	strict bool
}

// direction is one way of the connection.
type direction struct {
	sequence uint32
	cipher   packetCipher
}

// packetCipher protects packets of one direction. A packet is length, length of
// padding, payload and padding.
type packetCipher interface {
	// blockSize is what packets are padded to, and lengthApart whether the length
	// is not counted in that.
	blockSize() int
	lengthApart() bool
	// seal protects a packet, in place if it can, and returns what goes on the wire.
	seal(sequence uint32, packet []byte) []byte
	// open reads one packet and returns it without its length.
	open(sequence uint32, r io.Reader) ([]byte, error)
}

// newWire starts without a cipher. first is called once, when the client has
// sent anything at all.
func newWire(conn net.Conn, first func()) *wire {
	return &wire{
		r: bufio.NewReaderSize(&firstByte{conn, first}, 2048), w: bufio.NewWriterSize(conn, 2048), packets: maxPackets,
		in: direction{cipher: clear{}}, out: direction{cipher: clear{}},
	}
}

// firstByte calls a function after the first read.
type firstByte struct {
	io.Reader
	first func()
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if n > 0 && f.first != nil {
		f.first()
		f.first = nil
	}
	return n, err
}

// write queues one message. Messages between two waits leave together, as they
// do from sshd.
func (w *wire) write(message []byte) error {
	cipher := w.out.cipher
	block, apart := cipher.blockSize(), 4
	if cipher.lengthApart() {
		apart = 0
	}
	padding := block - (apart+1+len(message))%block
	if padding < 4 {
		padding += block
	}
	packet := make([]byte, 4+1+len(message)+padding)
	binary.BigEndian.PutUint32(packet, uint32(len(packet)-4))
	packet[4] = byte(padding)
	copy(packet[5:], message)
	if _, unprotected := cipher.(clear); !unprotected { // OpenSSH pads with zeros until there is a key
		fillRandom(packet[5+len(message):])
	}
	_, err := w.w.Write(cipher.seal(w.out.sequence, packet))
	w.out.sequence++
	return err
}

// read returns the next message that is not about the transport itself, and the
// sequence number that it came with.
func (w *wire) read() (message []byte, sequence uint32, err error) {
	for {
		message, sequence, err = w.readAny()
		if err != nil {
			return nil, 0, err
		}
		if w.strict {
			return message, sequence, nil // whatever it is, the key exchange minds
		}
		switch message[0] {
		case msgIgnore, msgUnimplemented, msgDebug:
		case msgDisconnect:
			return nil, 0, errDisconnected
		default:
			return message, sequence, nil
		}
	}
}

func (w *wire) readAny() ([]byte, uint32, error) {
	if w.packets--; w.packets < 0 {
		return nil, 0, errChatter
	}
	if !w.shared {
		if err := w.w.Flush(); err != nil {
			return nil, 0, err
		}
	}
	packet, err := w.in.cipher.open(w.in.sequence, w.r)
	if err != nil {
		return nil, 0, err
	}
	sequence := w.in.sequence
	w.in.sequence++
	padding := int(packet[0])
	if padding < 4 {
		return nil, 0, disconnect{fmt.Sprintf("Corrupted padlen %d on input.", padding)}
	}
	message := packet[1:]
	if padding >= len(message) {
		return nil, 0, errCorrupt
	}
	message = message[:len(message)-padding]
	if number := message[0]; number < 1 || number >= 192 {
		return nil, 0, disconnect{fmt.Sprintf("Invalid ssh2 packet type: %d", number)}
	}
	return message, sequence, nil
}

// unimplemented answers a message that nobody expects here.
func (w *wire) unimplemented(sequence uint32) error {
	return w.write(binary.BigEndian.AppendUint32([]byte{msgUnimplemented}, sequence))
}

// checkLength says whether a packet's length can be, before its bytes are read
// or memory is taken for them.
func checkLength(length uint32, c packetCipher) error {
	if length < 5 || length > maxPacket {
		return errCorrupt
	}
	if !c.lengthApart() {
		length += 4
	}
	if length%uint32(c.blockSize()) != 0 {
		return errCorrupt
	}
	return nil
}

// readFull reads n more bytes behind head. Memory grows with what really comes.
func readFull(r io.Reader, head []byte, n int) ([]byte, error) {
	const step = 4096
	out := head
	for n > 0 {
		part := min(n, step)
		out = append(out, make([]byte, part)...)
		if _, err := io.ReadFull(r, out[len(out)-part:]); err != nil {
			return nil, err
		}
		n -= part
	}
	return out, nil
}

// clear is the cipher before there are keys.
type clear struct{}

func (clear) blockSize() int                             { return 8 }
func (clear) lengthApart() bool                          { return false }
func (clear) seal(sequence uint32, packet []byte) []byte { return packet }

func (c clear) open(sequence uint32, r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if err := checkLength(length, c); err != nil {
		return nil, err
	}
	return readFull(r, nil, int(length))
}

func addString(b *cryptobyte.Builder, s []byte) {
	b.AddUint32LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s) })
}

func readString(s *cryptobyte.String) (out []byte, ok bool) {
	var n uint32
	ok = s.ReadUint32(&n) && uint64(n) <= uint64(len(*s)) && s.ReadBytes(&out, int(n))
	return out, ok
}
