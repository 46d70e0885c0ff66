package suricata

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Probe frames go in at one steering link and must come out of the other: they
// take the path of every steered packet, through the worker of their direction,
// and are never dropped by a signature. So silence means that nothing passes.
const (
	// probeEthertype is IEEE Std 802 - Local Experimental Ethertype 1, which the
	// engine copies as it copies everything that it does not know.
	probeEthertype = 0x88b5
	probeLength    = 60 // bytes, the shortest Ethernet frame
	probeHistory   = 64 // probes whose moment of sending is remembered
)

// Offsets in a probe frame, behind the 14 bytes of Ethernet header.
const (
	probeTokenAt    = 14 // 8 bytes: which agent sent it
	probeSequenceAt = 22
	probeEnd        = 30
)

// prober sends probes through the data path, both directions, and listens for
// them. It is not for concurrent use.
type prober struct {
	outside, inside *tap
	token           [8]byte
	sequence        uint64
	inward, outward pulse // outside to inside, and back
	frame, received []byte
}

// newProber opens its sockets in the calling thread's network namespace.
func newProber(outside, inside uint32) (*prober, error) {
	p := &prober{frame: make([]byte, probeLength), received: make([]byte, 256)}
	rand.Read(p.token[:])
	copy(p.frame, []byte{0x02, 0xb1, 0, 0, 0, 0x02, 0x02, 0xb1, 0, 0, 0, 0x01}) // locally administered, nobody's
	binary.BigEndian.PutUint16(p.frame[12:], probeEthertype)
	copy(p.frame[probeTokenAt:], p.token[:])
	var err error
	if p.outside, err = openTap(outside); err != nil {
		return nil, fmt.Errorf("open probe socket outside: %w", err)
	}
	if p.inside, err = openTap(inside); err != nil {
		p.outside.close()
		return nil, fmt.Errorf("open probe socket inside: %w", err)
	}
	return p, nil
}

func (p *prober) close() {
	p.outside.close()
	p.inside.close()
}

// reset forgets what was sent: what comes back from now on was sent from now on.
func (p *prober) reset() {
	p.inward, p.outward = pulse{first: p.sequence + 1}, pulse{first: p.sequence + 1}
}

// beat hears what has arrived since the last beat and sends the next probes. An
// agent that was itself kept from running first hears, then judges, so it does
// not take its own absence for the engine's.
func (p *prober) beat(now time.Time) error {
	p.hear(p.inside, &p.inward)
	p.hear(p.outside, &p.outward)
	p.sequence++
	binary.BigEndian.PutUint64(p.frame[probeSequenceAt:], p.sequence)
	p.inward.sent(p.sequence, now)
	p.outward.sent(p.sequence, now)
	return errors.Join(p.send(p.outside), p.send(p.inside))
}

// send puts the probe on a link. A link that is gone is an error; one that is
// merely full loses the probe, as it would a packet.
func (p *prober) send(t *tap) error {
	err := t.write(p.frame)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: send probe: %w", ErrSteering, err)
	}
	return nil
}

func (p *prober) hear(t *tap, pulse *pulse) {
	for {
		n, err := t.read(p.received)
		if err != nil {
			return // nothing more has arrived
		}
		frame := p.received[:n]
		if n >= probeEnd && bytes.Equal(frame[probeTokenAt:probeSequenceAt], p.token[:]) {
			pulse.heard(binary.BigEndian.Uint64(frame[probeSequenceAt:probeEnd]))
		}
	}
}

// silence is how long the worse of the two directions has owed an answer.
func (p *prober) silence(now time.Time) time.Duration {
	return max(p.inward.silence(now), p.outward.silence(now))
}

// answered is how many probes in a row the worse direction has answered.
func (p *prober) answered() int { return min(p.inward.answered, p.outward.answered) }

// pulse is what is known of one direction.
type pulse struct {
	first    uint64 // probes before it do not count
	last     uint64 // sent
	back     uint64 // heard, the latest
	answered int    // since the last silence
	times    [probeHistory]time.Time
}

func (p *pulse) sent(sequence uint64, now time.Time) {
	p.last = sequence
	p.times[sequence%probeHistory] = now
}

func (p *pulse) heard(sequence uint64) {
	if sequence < p.first || sequence > p.last || sequence <= p.back {
		return // an old one, or not ours
	}
	p.back = sequence
	p.answered++
}

// silence is the age of the oldest probe that nothing sent since has answered.
func (p *pulse) silence(now time.Time) time.Duration {
	oldest := max(p.back+1, p.first)
	if p.last == 0 || oldest > p.last {
		return 0
	}
	if p.last-oldest >= probeHistory {
		oldest = p.last - probeHistory + 1
	}
	return now.Sub(p.times[oldest%probeHistory])
}

// tap is a raw socket on one link that hears nothing but probes that arrive.
type tap struct {
	fd    int
	index int
}

// probeFilter is classic BPF: keep 256 bytes of frames with our ethertype.
var probeFilter = [...]unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: probeEthertype, Jt: 0, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 256},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// openTap asks for every protocol and filters, since only such sockets hear a
// frame before the programs on the link's TCX hook do. Nothing arrives before
// the filter is set: protocol 0 hears nothing.
func openTap(index uint32) (*tap, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t := &tap{fd: fd, index: int(index)}
	filter := probeFilter
	steps := []func() error{
		func() error {
			return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		},
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		// Around queues and egress programs: the probe asks about the engine.
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1) },
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: t.index})
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return t, nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (t *tap) write(frame []byte) error {
	address := unix.SockaddrLinklayer{Ifindex: t.index, Protocol: networkOrder(probeEthertype), Halen: 6}
	copy(address.Addr[:], frame[:6])
	return unix.Sendto(t.fd, frame, 0, &address)
}

func (t *tap) read(buffer []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(t.fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue // ENETDOWN is told once and cleared
		default:
			return n, err
		}
	}
}

func (t *tap) close() { unix.Close(t.fd) }
