package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// SoakResult says what became of a stream of bytes that was sent to an echo.
type SoakResult struct {
	// Sent and Echoed count bytes.
	Sent, Echoed uint64
	// Wrong counts numbers that came back at the wrong place.
	Wrong uint64
	// Resets is 1 if the connection was reset or closed by anybody.
	Resets uint64
	// LostSegments counts packets of the sender that were lost on the way.
	LostSegments uint64
	// LongestGap is the longest time in which nothing came back.
	LongestGap time.Duration
}

// Soak is a stream under way.
type Soak struct {
	conn     *net.TCPConn
	listener net.Listener
	echo     sync.WaitGroup
	stopping atomic.Bool
	sending  sync.WaitGroup
	reading  sync.WaitGroup
	result   SoakResult // each field has one writer, read when both are done
	reset    atomic.Bool
}

// Soak streams numbers from one workload to an echo of its own on a port of
// another, and checks what comes back, until it is stopped.
func (l *Lab) Soak(ctx context.Context, from, to string, port uint16) (*Soak, error) {
	listener, err := l.Listen(to, port)
	if err != nil {
		return nil, fmt.Errorf("soak %s from %s: %w", to, from, err)
	}
	s := &Soak{listener: listener}
	s.echo.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn) // how it ended shows at the other end
	})
	conn, err := l.Dial(ctx, from, "tcp", l.destination(to, port))
	if err != nil {
		listener.Close()
		s.echo.Wait()
		return nil, fmt.Errorf("soak %s from %s: %w", to, from, err)
	}
	s.conn = conn.(*net.TCPConn)
	s.sending.Go(s.send)
	s.reading.Go(s.read)
	return s, nil
}

// soakChunk is how many bytes are sent each millisecond: 8 Mbit/s, enough to
// have packets under way at any time and little enough for any machine.
const soakChunk = 1024

func (s *Soak) send() {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	chunk := make([]byte, soakChunk)
	for number := uint64(0); !s.stopping.Load(); <-ticker.C {
		for i := 0; i < len(chunk); i += 8 {
			binary.BigEndian.PutUint64(chunk[i:], number)
			number++
		}
		n, err := s.conn.Write(chunk)
		s.result.Sent += uint64(n)
		if err != nil {
			s.reset.Store(s.reset.Load() || interrupted(err))
			return
		}
	}
	s.conn.CloseWrite()
}

func (s *Soak) read() {
	var number [8]byte
	last := time.Now()
	for expected := uint64(0); ; expected++ {
		n, err := io.ReadFull(s.conn, number[:])
		s.result.Echoed += uint64(n)
		if err != nil {
			// After the sender has said that it is done, an end is as it should be.
			s.reset.Store(s.reset.Load() || interrupted(err) && !s.stopping.Load())
			return
		}
		if got := binary.BigEndian.Uint64(number[:]); got != expected {
			s.result.Wrong++
			expected = got
		}
		now := time.Now()
		s.result.LongestGap, last = max(s.result.LongestGap, now.Sub(last)), now
	}
}

// Stop ends the stream, waits until everything came back, and says what became
// of it.
func (s *Soak) Stop() SoakResult {
	s.stopping.Store(true)
	s.conn.SetDeadline(time.Now().Add(probePatience))
	s.sending.Wait()
	s.reading.Wait()
	s.result.LostSegments = lostSegments(s.conn)
	s.conn.Close()
	s.listener.Close()
	s.echo.Wait()
	if s.reset.Load() {
		s.result.Resets = 1
	}
	return s.result
}
