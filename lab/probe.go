package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage/host"
)

// probeInterval is the time between two probes.
const probeInterval = time.Millisecond

// probePatience is how long answers may come in after the last probe.
const probePatience = 2 * time.Second

// ProbeResult says what became of a series of probes.
type ProbeResult struct {
	Sent, Answered uint64
	// Lost counts probes without an answer, and packets of a connection that were
	// lost and had to be sent again.
	Lost uint64
	// Twice counts datagrams that were answered more than once.
	Twice uint64
	// Resets is 1 if the connection was reset or closed by anybody.
	Resets uint64
	// LongestGap is the longest time between two answers.
	LongestGap time.Duration
}

// Probe is a series of probes under way.
type Probe struct {
	conn    net.Conn
	echo    io.Closer // what answers, if it is ours
	stop    chan struct{}
	sending sync.WaitGroup
	reading sync.WaitGroup

	mu     sync.Mutex // guards what follows
	result ProbeResult
	last   time.Time // of the last answer
	err    error     // of the first unexpected end
}

// Probe asks one of the shop's servers something harmless every millisecond,
// over one TCP connection, without waiting for answers, until it is stopped.
// What is lost on either way is counted.
func (l *Lab) Probe(ctx context.Context, from, to string, port uint16) (*Probe, error) {
	talk, err := talkOn(port)
	if err != nil {
		return nil, err
	}
	conn, err := l.Dial(ctx, from, "tcp", l.destination(to, port))
	if err != nil {
		return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	p := &Probe{conn: conn, stop: make(chan struct{})}
	next := talk.answers(conn)
	p.start(func(uint64) error {
		_, err := io.WriteString(conn, talk.question)
		return err
	}, func() (int, error) { return 1, next() })
	return p, nil
}

// ProbeUDP sends a numbered datagram every millisecond to an echo of its own on
// another workload's port, until it is stopped.
func (l *Lab) ProbeUDP(ctx context.Context, from, to string, port uint16) (*Probe, error) {
	var echo net.PacketConn
	err := host.In(l.Namespace(to), func() (err error) {
		echo, err = net.ListenPacket("udp", l.destination(to, port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	conn, err := l.Dial(ctx, from, "udp", l.destination(to, port))
	if err != nil {
		echo.Close()
		return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	p := &Probe{conn: conn, echo: echo, stop: make(chan struct{})}
	p.reading.Go(func() { echoDatagrams(echo) })
	p.numbered(8, 0, conn.Read)
	return p, nil
}

// ProbeICMP sends a numbered echo request every millisecond to a workload's
// kernel, until it is stopped.
func (l *Lab) ProbeICMP(ctx context.Context, from, to string) (*Probe, error) {
	conn, err := l.Dial(ctx, from, "ip4:icmp", l.Address(to).String())
	if err != nil {
		return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	p := &Probe{conn: conn, stop: make(chan struct{})}
	p.numbered(16, 8, func(b []byte) (int, error) {
		n, _, err := conn.(*net.IPConn).ReadFrom(b) // unlike Read, without the IP header
		return n, err
	})
	return p, nil
}

// echoDatagrams answers each datagram with itself until the socket is closed.
func echoDatagrams(echo net.PacketConn) {
	buffer := make([]byte, 64)
	for {
		n, sender, err := echo.ReadFrom(buffer)
		if err != nil {
			return
		}
		echo.WriteTo(buffer[:n], sender) // if it is refused, the probe is lost, as it should be
	}
}

// numbered sends datagrams of a size with their number at an offset; before it
// is the header of an ICMP echo. read yields one answer.
func (p *Probe) numbered(size, offset int, read func([]byte) (int, error)) {
	packet := make([]byte, size)
	seen := map[uint64]bool{} // grows by one entry per answer, a thousand per second
	answer := make([]byte, 64)
	p.start(func(number uint64) error {
		binary.BigEndian.PutUint64(packet[offset:], number)
		if offset > 0 {
			packet[0], packet[1], packet[2], packet[3] = 8, 0, 0, 0 // echo request
			binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		}
		_, err := p.conn.Write(packet)
		return err
	}, func() (int, error) {
		n, err := read(answer)
		if err != nil {
			return 0, err
		}
		if n != size || offset > 0 && answer[0] != 0 { // not an echo reply
			return 0, nil
		}
		number := binary.BigEndian.Uint64(answer[offset:])
		if seen[number] {
			p.mu.Lock()
			p.result.Twice++
			p.mu.Unlock()
			return 0, nil
		}
		seen[number] = true
		return 1, nil
	})
}

// checksum is the Internet checksum of an even number of bytes (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// start runs the two halves: one sends, the other counts the answers that each
// read yields.
func (p *Probe) start(send func(number uint64) error, read func() (answers int, err error)) {
	p.last = time.Now()
	p.sending.Go(func() {
		ticker := time.NewTicker(probeInterval)
		defer ticker.Stop()
		for number := uint64(0); ; number++ {
			select {
			case <-p.stop:
				return
			case <-ticker.C:
			}
			if err := send(number); err != nil {
				p.ended(err)
				return
			}
			p.mu.Lock()
			p.result.Sent++
			p.mu.Unlock()
		}
	})
	p.reading.Go(func() {
		for {
			answers, err := read()
			if err != nil {
				p.ended(err)
				return
			}
			p.mu.Lock()
			p.result.Answered += uint64(answers)
			now := time.Now()
			p.result.LongestGap, p.last = max(p.result.LongestGap, now.Sub(p.last)), now
			p.mu.Unlock()
		}
	})
}

// ended notes why a half ended. Being stopped is no reason.
func (p *Probe) ended(err error) {
	select {
	case <-p.stop:
		if isTimeout(err) {
			return
		}
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	if interrupted(err) {
		p.result.Resets = 1
	}
}

// Stop sends no more, waits for the answers that are still to come, and says
// what became of the probes. An error is one that is neither loss nor reset.
func (p *Probe) Stop() (ProbeResult, error) {
	close(p.stop)
	p.conn.SetWriteDeadline(time.Now()) // a sender that is stuck
	p.sending.Wait()
	deadline := time.NewTimer(probePatience)
	defer deadline.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
waiting:
	for !p.complete() {
		select {
		case <-deadline.C:
			break waiting
		case <-ticker.C:
		}
	}
	p.conn.SetReadDeadline(time.Now())
	if p.echo != nil {
		p.echo.Close()
	}
	p.reading.Wait()
	result, err := p.result, p.err
	result.Lost = result.Sent - min(result.Sent, result.Answered)
	if tcp, ok := p.conn.(*net.TCPConn); ok {
		result.Lost += lostSegments(tcp)
		tcp.SetLinger(0)
	}
	p.conn.Close()
	if err != nil && !interrupted(err) && !isTimeout(err) {
		return result, fmt.Errorf("probe: %w", err)
	}
	return result, nil
}

// complete says whether nothing more is to come.
func (p *Probe) complete() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil || p.result.Answered >= p.result.Sent
}

// talk is one harmless question in the protocol of one of the shop's servers.
type talk struct {
	question string
	// answers returns a function that reads one answer.
	answers func(from io.Reader) (next func() error)
}

// talkOn knows what to ask on a port of the shop.
func talkOn(port uint16) (talk, error) {
	switch port {
	case CachePort:
		return talk{"PING\r\n", func(from io.Reader) func() error {
			buffered := bufio.NewReader(from)
			return func() error {
				value, _, err := decodeRESP(buffered)
				if err == nil && string(value) != "PONG" {
					err = fmt.Errorf("cache answered %q to PING", value)
				}
				return err
			}
		}}, nil
	case WebPort, APIPort:
		return talk{"GET /ping HTTP/1.1\r\nHost: shop\r\n\r\n", func(from io.Reader) func() error {
			buffered := bufio.NewReader(from)
			return func() error {
				response, err := http.ReadResponse(buffered, nil)
				if err != nil {
					return err
				}
				defer response.Body.Close()
				body, err := io.ReadAll(io.LimitReader(response.Body, mostOutput))
				if err == nil && strings.TrimSpace(string(body)) != "pong" {
					err = fmt.Errorf("answered %s to /ping", response.Status)
				}
				return err
			}
		}}, nil
	}
	return talk{}, fmt.Errorf("nobody knows what to ask on port %d: %d, %d and %d are known", port, WebPort, APIPort, CachePort)
}
