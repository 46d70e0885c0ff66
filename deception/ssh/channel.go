package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	xssh "golang.org/x/crypto/ssh"

	"bocage.dev/bocage"
)

// Bounds of one who got in.
const (
	maxChannels = 10       // MaxSessions of sshd_config
	ourWindow   = 64 << 10 // bytes that a client may send ahead
	ourPacket   = 32 << 10
	maxInput    = 4 << 20 // bytes that a client may send in all
	maxSent     = 8 << 20 // bytes that a client is sent in all
)

// channels is the connection protocol (RFC 4254) of one login. One goroutine
// reads; each channel's program writes.
type channels struct {
	session *session
	ctx     context.Context
	user    string

	programs sync.WaitGroup

	mu    sync.Mutex // guards what follows, writing to the wire, and every channel
	open  map[uint32]*channel
	next  uint32
	input int
	sent  int
	ended bool
}

// channel is one session channel. Its lock is that of its channels.
type channel struct {
	all    *channels
	number uint32 // ours
	theirs uint32
	window uint32 // that we may still send
	packet uint32 // most of one message
	room   sync.Cond

	in     []byte // that nobody read yet
	inEnd  bool   // EOF or closed
	taken  int    // read since the window was last widened
	closed bool   // we said so
	gone   bool   // the client said so

	terminal bool
	started  bool
	running  bool
}

// serveChannels serves a login until the client leaves or is out of bounds.
func (c *session) serveChannels(ctx context.Context, user string) error {
	ctx, cancel := context.WithCancel(ctx)
	all := &channels{session: c, ctx: ctx, user: user, open: make(map[uint32]*channel)}
	if err := c.wire.w.Flush(); err != nil {
		cancel()
		return err
	}
	c.wire.shared, c.wire.packets = true, maxSessionful
	c.conn.SetDeadline(time.Time{}) // the session's own end stays
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		tcp.SetNoDelay(true)
	}
	err := all.announceKeys()
	for err == nil {
		err = all.handle()
	}
	cancel()
	all.end()
	all.programs.Wait()
	return err
}

// end wakes every program that waits: there is nobody any more.
func (a *channels) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	for _, ch := range a.open {
		ch.closed, ch.inEnd = true, true
		ch.room.Broadcast()
	}
	// A program may be writing: it has until now.
	a.session.conn.SetWriteDeadline(time.Now())
}

// send writes messages and sends them. The lock is held.
func (a *channels) send(messages ...[]byte) error {
	for _, m := range messages {
		if a.sent += len(m); a.sent > maxSent {
			return errChatter
		}
		if err := a.session.wire.write(m); err != nil {
			return err
		}
	}
	return a.session.wire.w.Flush()
}

// announceKeys tells all host keys, as sshd does after a login
// (hostkeys-00@openssh.com in OpenSSH's PROTOCOL).
func (a *channels) announceKeys() error {
	var b cryptobyte.Builder
	b.AddUint8(msgGlobalRequest)
	addString(&b, []byte("hostkeys-00@openssh.com"))
	b.AddUint8(0)
	for _, algorithm := range a.session.hostKeyKinds() {
		key, err := a.session.server.keys.forAddress(a.ctx, a.session.server, a.session.victim, algorithm)
		if err != nil {
			return err
		}
		addString(&b, key.blob)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.send(b.BytesOrPanic())
}

// hostKeyKinds is one algorithm of each host key.
func (c *session) hostKeyKinds() []string {
	return []string{xssh.KeyAlgoRSASHA512, xssh.KeyAlgoECDSA256, xssh.KeyAlgoED25519}
}

// handle reads and answers one message.
func (a *channels) handle() error {
	message, sequence, err := a.session.wire.read()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if message[0] == msgKexInit {
		// Nobody else writes while keys change.
		a.session.wire.shared = false
		err := a.session.exchangeKeys(a.ctx, message)
		a.session.wire.shared = true
		return errors.Join(err, a.session.wire.w.Flush())
	}
	s := cryptobyte.String(message[1:])
	switch message[0] {
	case msgGlobalRequest:
		return a.globalRequest(&s)
	case msgChannelOpen:
		return a.openChannel(&s)
	case msgChannelWindowAdjust, msgChannelData, msgChannelExtendedData, msgChannelEOF, msgChannelClose, msgChannelRequest:
		var number uint32
		if !s.ReadUint32(&number) {
			return errCorrupt
		}
		ch := a.open[number]
		if ch == nil {
			return disconnect{fmt.Sprintf("Received %s for nonexistent channel %d.", channelMessages[message[0]], number)}
		}
		return ch.handle(message[0], &s)
	case msgRequestSuccess, msgRequestFailure, msgChannelSuccess, msgChannelFailure, msgChannelOpenConfirm, msgChannelOpenFailure, msgExtInfo:
		return nil // we ask for nothing
	default:
		return a.send(appendUint32([]byte{msgUnimplemented}, sequence))
	}
}

var channelMessages = map[byte]string{
	msgChannelWindowAdjust: "window adjust", msgChannelData: "data", msgChannelExtendedData: "extended data", msgChannelEOF: "ieof",
	msgChannelClose: "oclose", msgChannelRequest: "request",
}

func (a *channels) globalRequest(s *cryptobyte.String) error {
	name, ok := readString(s)
	var wants uint8
	if !ok || !s.ReadUint8(&wants) {
		return errCorrupt
	}
	answer := []byte{msgRequestFailure}
	switch string(name) {
	case "hostkeys-prove-00@openssh.com":
		proofs, err := a.proveKeys(s)
		if err != nil {
			return err
		}
		if proofs != nil {
			answer = append([]byte{msgRequestSuccess}, proofs...)
		}
	case "tcpip-forward":
		if host, ok := readString(s); ok {
			a.session.report(bocage.DepthCommand, map[string]string{"user": a.user, "listen": string(host)})
		}
	}
	if wants == 0 {
		return nil
	}
	return a.send(answer)
}

// proveKeys signs for each of our keys that the client asks about; nil if one is
// not ours.
func (a *channels) proveKeys(s *cryptobyte.String) ([]byte, error) {
	var out cryptobyte.Builder
	for range 4 {
		if s.Empty() {
			return out.BytesOrPanic(), nil
		}
		blob, ok := readString(s)
		if !ok {
			return nil, errCorrupt
		}
		var found *hostKey
		for _, algorithm := range a.session.hostKeyKinds() {
			key, err := a.session.server.keys.forAddress(a.ctx, a.session.server, a.session.victim, algorithm)
			if err != nil {
				return nil, err
			}
			if slices.Equal(key.blob, blob) {
				found = key
			}
		}
		if found == nil {
			return nil, nil
		}
		var signed cryptobyte.Builder
		addString(&signed, []byte("hostkeys-prove-00@openssh.com"))
		addString(&signed, a.session.id)
		addString(&signed, blob)
		signature, err := found.sign(signed.BytesOrPanic())
		if err != nil {
			return nil, err
		}
		addString(&out, signature)
	}
	return nil, nil
}

// openChannel opens sessions. Tunnels are what most of those who get in want:
// they are told of, and nobody answers at their other end.
func (a *channels) openChannel(s *cryptobyte.String) error {
	kind, ok := readString(s)
	var theirs, window, packet uint32
	if !ok || !s.ReadUint32(&theirs) || !s.ReadUint32(&window) || !s.ReadUint32(&packet) {
		return errCorrupt
	}
	refuse := func(reason uint32, text string) error {
		b := appendUint32(appendUint32([]byte{msgChannelOpenFailure}, theirs), reason)
		return a.send(append(append(b, encodeString([]byte(text))...), encodeString(nil)...))
	}
	switch string(kind) {
	case "direct-tcpip":
		host, ok := readString(s)
		var port uint32
		if !ok || !s.ReadUint32(&port) {
			return errCorrupt
		}
		a.session.report(bocage.DepthCommand, map[string]string{"user": a.user, "tunnel": net.JoinHostPort(string(host), strconv.Itoa(int(port)))})
		return refuse(2, "Connection refused")
	case "session":
	default:
		return refuse(3, "unknown channel type")
	}
	if len(a.open) >= maxChannels || packet < 256 {
		return refuse(2, "open failed")
	}
	ch := &channel{all: a, number: a.next, theirs: theirs, window: window, packet: min(packet, ourPacket)}
	ch.room.L = &a.mu
	a.open[ch.number] = ch
	a.next++
	b := appendUint32([]byte{msgChannelOpenConfirm}, theirs)
	return a.send(appendUint32(appendUint32(appendUint32(b, ch.number), ourWindow), ourPacket))
}

// handle is one message to a channel. The lock is held.
func (ch *channel) handle(number byte, s *cryptobyte.String) error {
	switch number {
	case msgChannelWindowAdjust:
		var n uint32
		if !s.ReadUint32(&n) {
			return errCorrupt
		}
		ch.window += min(n, 1<<31-1-min(ch.window, 1<<31-1))
		ch.room.Broadcast()
	case msgChannelExtendedData: // clients have none to send
	case msgChannelData:
		data, ok := readString(s)
		if !ok {
			return errCorrupt
		}
		if ch.all.input += len(data); ch.all.input > maxInput || len(ch.in)+len(data) > ourWindow {
			return errChatter
		}
		ch.in = append(ch.in, data...)
		ch.room.Broadcast()
	case msgChannelEOF:
		ch.inEnd = true
		ch.room.Broadcast()
	case msgChannelClose:
		ch.inEnd, ch.gone = true, true
		return ch.close()
	case msgChannelRequest:
		return ch.request(s)
	}
	return nil
}

// close says that nothing more comes; once is enough. The channel is forgotten
// when both sides said so and its program is gone.
func (ch *channel) close() error {
	ch.room.Broadcast()
	if ch.gone && !ch.running {
		delete(ch.all.open, ch.number)
	}
	if ch.closed {
		return nil
	}
	ch.closed = true
	return ch.all.send(appendUint32([]byte{msgChannelClose}, ch.theirs))
}

func (ch *channel) request(s *cryptobyte.String) error {
	kind, ok := readString(s)
	var wants uint8
	if !ok || !s.ReadUint8(&wants) {
		return errCorrupt
	}
	done := false
	var start func()
	switch string(kind) {
	case "pty-req":
		ch.terminal, done = true, !ch.started
	case "window-change", "signal", "env":
		done = string(kind) != "env"
	case "shell":
		if !ch.started {
			done, start = true, func() { ch.interact() }
		}
	case "exec":
		command, ok := readString(s)
		if !ok {
			return errCorrupt
		}
		if !ch.started {
			done, start = true, func() { ch.execute(string(command)) }
		}
	case "subsystem":
		if name, ok := readString(s); ok {
			ch.all.session.report(bocage.DepthCommand, map[string]string{"user": ch.all.user, "subsystem": string(name)})
		}
	}
	if wants != 0 {
		answer := byte(msgChannelFailure)
		if done {
			answer = msgChannelSuccess
		}
		if err := ch.all.send(appendUint32([]byte{answer}, ch.theirs)); err != nil {
			return err
		}
	}
	if start != nil {
		ch.started, ch.running = true, true
		ch.all.programs.Go(func() {
			defer ch.finish()
			start()
		})
	}
	return nil
}

// finish closes a channel whose program is gone.
func (ch *channel) finish() {
	ch.all.mu.Lock()
	defer ch.all.mu.Unlock()
	ch.running = false
	ch.close()
}

// exit tells a program's status, and that it says no more.
func (ch *channel) exit(status int) {
	ch.all.mu.Lock()
	defer ch.all.mu.Unlock()
	if ch.closed {
		return
	}
	b := appendUint32([]byte{msgChannelRequest}, ch.theirs)
	b = append(append(b, encodeString([]byte("exit-status"))...), 0)
	ch.all.send(appendUint32([]byte{msgChannelEOF}, ch.theirs), appendUint32(b, uint32(status)))
}

// Read is what the client sends. It widens the window as it is read.
func (ch *channel) Read(p []byte) (int, error) {
	ch.all.mu.Lock()
	defer ch.all.mu.Unlock()
	for len(ch.in) == 0 {
		if ch.inEnd || ch.closed {
			return 0, io.EOF
		}
		ch.room.Wait()
	}
	n := copy(p, ch.in)
	if ch.in = ch.in[n:]; len(ch.in) == 0 {
		ch.in = nil
	}
	if ch.taken += n; ch.taken >= ourWindow/2 && !ch.closed {
		grant := appendUint32(appendUint32([]byte{msgChannelWindowAdjust}, ch.theirs), uint32(ch.taken))
		ch.taken = 0
		if err := ch.all.send(grant); err != nil {
			return n, err
		}
	}
	return n, nil
}

// write sends data as the window allows: of kind 0, or 1 for what is an error.
func (ch *channel) write(kind uint32, data []byte) (int, error) {
	ch.all.mu.Lock()
	defer ch.all.mu.Unlock()
	sent := 0
	for sent < len(data) {
		for ch.window == 0 && !ch.closed {
			ch.room.Wait()
		}
		if ch.closed {
			return sent, io.ErrClosedPipe
		}
		n := min(len(data)-sent, int(min(ch.window, ch.packet-64)))
		ch.window -= uint32(n)
		b := appendUint32([]byte{msgChannelData}, ch.theirs)
		if kind != 0 {
			b = appendUint32(appendUint32([]byte{msgChannelExtendedData}, ch.theirs), kind)
		}
		if err := ch.all.send(append(b, encodeString(data[sent:sent+n])...)); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

func appendUint32(b []byte, n uint32) []byte {
	return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}
