package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// Ports of the server.
const (
	portTCP         = 7001
	portConnections = 7002
	portUDP         = 7003
)

// Real-time priorities: who answers goes first, so that nothing piles up.
const (
	ofClient = 10
	ofServer = 11
)

// test measures figures of a variant that stands on the path. Client and server
// are threads with blocking sockets; where the path's cost is wanted without
// wake-ups between CPUs, they share one.
type test struct {
	figures []figure
	run     func(p *path, d time.Duration) ([]float64, error)
}

var tests = []test{
	{[]figure{{name: "TCP Gbit/s, 1 stream"}}, streams(1)},
	{[]figure{{name: "TCP Gbit/s, 8 streams"}}, streams(8)},
	{[]figure{{name: "requests/s"}, {name: "request p50 µs", less: true}, {name: "request p99 µs", less: true}}, requests},
	{[]figure{{name: "connections/s"}}, connections},
	{[]figure{{name: "connections with a request/s"}}, conversations},
	{[]figure{{name: "UDP 60 B packets/s"}}, datagrams},
}

// What every connection that carries something begins with, so that it may be verified.
var (
	greeting = []byte("GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
	welcome  = []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
)

// greet says what both ends begin with.
func greet(client, server int) error {
	if _, err := unix.Write(client, greeting); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	if err := expect(server, len(greeting)); err != nil {
		return fmt.Errorf("hear the greeting: %w", err)
	}
	if _, err := unix.Write(server, welcome); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if err := expect(client, len(welcome)); err != nil {
		return fmt.Errorf("hear the answer: %w", err)
	}
	return nil
}

// expect reads so many bytes.
func expect(fd, n int) error {
	b := make([]byte, n)
	for start := time.Now(); n > 0; {
		got, err := unix.Read(fd, b[:n])
		switch {
		case again(err) && time.Since(start) < 5*time.Second:
		case err != nil:
			return err
		case got == 0:
			return io.ErrUnexpectedEOF
		default:
			n -= got
		}
	}
	return nil
}

// limit sets after how long a blocked call lets its thread look at the clock.
func limit(fd, option int) error {
	wait := unix.NsecToTimeval(int64(200 * time.Millisecond))
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &wait)
}

// again says whether a call was only interrupted, or waited long enough.
func again(err error) bool { return err == unix.EINTR || err == unix.EAGAIN }

// socket makes a blocking socket in a namespace whose reads give up after a while.
func socket(namespace string, kind int) (fd int, err error) {
	err = host.In(namespace, func() error {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		limit(fd, unix.SO_RCVTIMEO))
}

func listen(p *path, port int) (int, error) {
	fd, err := socket(p.server.namespace, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 1024)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func connect(p *path, port int) (int, error) {
	fd, err := socket(p.client.namespace, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: p.server.address.As4()}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	// Only now: with a limit, a signal would end connect instead of pausing it.
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		limit(fd, unix.SO_SNDTIMEO))
}

// onCPU runs fn on a thread of its own that keeps to one CPU. It returns when the
// thread is there: one that is not yet ahead of others may wait for long behind one
// that is.
func (p *path) onCPU(cpu, priority int, fn func()) (wait func()) {
	there, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		p.keepTo(cpu, priority)
		close(there)
		fn()
	}()
	<-there
	return func() { <-done }
}

// keepTo binds the calling thread to a CPU, ahead of ordinary processes if the
// path asks for it. Where that is refused, the figures are only less steady.
func (p *path) keepTo(cpu, priority int) {
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	_ = unix.SchedSetaffinity(0, &set)
	if p.realtime {
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: uint32(priority)}, 0)
	}
}

// stream connects and hands both ends over.
func stream(p *path, port int) (client, server int, err error) {
	l, err := listen(p, port)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(l)
	if client, err = connect(p, port); err != nil {
		return -1, -1, err
	}
	for err = unix.EINTR; err == unix.EINTR; { // the connection is there
		server, _, err = unix.Accept(l)
	}
	if err != nil {
		unix.Close(client)
		return -1, -1, fmt.Errorf("accept: %w", err)
	}
	return client, server, errors.Join(unix.SetsockoptInt(server, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		limit(server, unix.SO_RCVTIMEO), greet(client, server))
}

// streams sends as fast as it goes on n connections at once.
func streams(n int) func(*path, time.Duration) ([]float64, error) {
	return func(p *path, d time.Duration) ([]float64, error) {
		var total atomic.Int64
		var waits []func()
		ends := make([][2]int, n)
		for i := range ends {
			client, server, err := stream(p, portTCP)
			if err != nil {
				return nil, err
			}
			defer unix.Close(server)
			ends[i] = [2]int{client, server}
		}
		start := time.Now()
		for _, e := range ends {
			client, server := e[0], e[1]
			received := p.onCPU(1, ofServer, func() { total.Add(drain(server)) })
			sent := p.onCPU(0, ofClient, func() {
				fill(client, start, d)
				unix.Close(client)
			})
			waits = append(waits, sent, received)
		}
		for _, wait := range waits {
			wait()
		}
		return []float64{float64(total.Load()) * 8 / time.Since(start).Seconds() / 1e9}, nil
	}
}

// fill writes at least once, however busy the machine is.
func fill(fd int, start time.Time, d time.Duration) {
	b := make([]byte, 256<<10)
	for {
		if _, err := unix.Write(fd, b); err != nil && !again(err) {
			return
		}
		if time.Since(start) >= d {
			return
		}
	}
}

func drain(fd int) (total int64) {
	b := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, b)
		if again(err) {
			continue
		}
		if n <= 0 {
			return total
		}
		total += int64(n)
	}
}

func requests(p *path, d time.Duration) ([]float64, error) {
	client, server, err := stream(p, portTCP)
	if err != nil {
		return nil, err
	}
	answered := p.onCPU(0, ofServer, func() {
		var b [1]byte
		for {
			n, err := unix.Read(server, b[:])
			if again(err) {
				continue
			}
			if n <= 0 {
				return
			}
			unix.Write(server, b[:])
		}
	})
	took := make([]time.Duration, 0, 1<<20)
	start := time.Now()
	// On a busy machine the first answer may take longer than all should.
	goesOn := func(now time.Time) bool {
		return now.Sub(start) < d || len(took) == 0 && now.Sub(start) < time.Minute
	}
	p.onCPU(0, ofClient, func() {
		var b [1]byte
		for sent := start; goesOn(sent); {
			if _, err := unix.Write(client, b[:]); err != nil {
				return
			}
			_, err := unix.Read(client, b[:])
			for again(err) && goesOn(time.Now()) {
				_, err = unix.Read(client, b[:])
			}
			if err != nil {
				return
			}
			now := time.Now()
			took = append(took, now.Sub(sent))
			sent = now
		}
	})()
	all := time.Since(start)
	unix.Close(client)
	answered()
	unix.Close(server)
	if len(took) == 0 {
		return nil, errors.New("no request was answered")
	}
	slices.Sort(took)
	at := func(share float64) float64 { return took[int(share*float64(len(took)-1))].Seconds() * 1e6 }
	return []float64{float64(len(took)) / all.Seconds(), at(0.5), at(0.99)}, nil
}

// connections are opened and reset, one after the other.
func connections(p *path, d time.Duration) ([]float64, error) {
	return oneAfterTheOther(p, d, func(int) {}, func(int) error { return nil })
}

// conversations are connections that ask once and are answered, one after the other.
func conversations(p *path, d time.Duration) ([]float64, error) {
	return oneAfterTheOther(p, d, func(c int) {
		if limit(c, unix.SO_RCVTIMEO) == nil && expect(c, len(greeting)) == nil {
			unix.Write(c, welcome)
			expect(c, 1) // until the client is gone
		}
	}, func(c int) error {
		if _, err := unix.Write(c, greeting); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		return expect(c, len(welcome))
	})
}

// oneAfterTheOther opens connections that a server and a client use and that the client
// resets, and says how many there were in a second.
func oneAfterTheOther(p *path, d time.Duration, serve func(c int), use func(c int) error) ([]float64, error) {
	l, err := listen(p, portConnections)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	accepted := p.onCPU(0, ofServer, func() {
		for time.Since(start) < d+300*time.Millisecond {
			c, _, err := unix.Accept(l)
			if err != nil {
				continue
			}
			serve(c)
			unix.Close(c)
		}
	})
	n, began := 0, start
	var failed error
	p.onCPU(0, ofClient, func() {
		linger := unix.Linger{Onoff: 1}
		address := unix.SockaddrInet4{Port: portConnections, Addr: p.server.address.As4()}
		visit := func(c int) error {
			defer unix.Close(c)
			if err := unix.Connect(c, &address); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			return errors.Join(use(c), unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &linger))
		}
		failed = host.In(p.client.namespace, func() error {
			p.keepTo(0, ofClient) // In has threads of its own, which may come late
			began = time.Now()
			for time.Since(began) < d {
				c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					err = visit(c)
				}
				if err != nil {
					return err
				}
				n++
			}
			return nil
		})
	})()
	took := time.Since(began)
	accepted()
	unix.Close(l)
	return []float64{float64(n) / took.Seconds()}, failed
}

func datagrams(p *path, d time.Duration) ([]float64, error) {
	server, err := socket(p.server.namespace, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	defer unix.Close(server)
	client, err := socket(p.client.namespace, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	defer unix.Close(client)
	err = errors.Join(unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(server, &unix.SockaddrInet4{Port: portUDP}),
		unix.Connect(client, &unix.SockaddrInet4{Port: portUDP, Addr: p.server.address.As4()}))
	if err != nil {
		return nil, err
	}
	received := 0
	start := time.Now()
	drained := p.onCPU(1, ofServer, func() {
		var b [256]byte
		for time.Since(start) < d+500*time.Millisecond {
			if n, err := unix.Read(server, b[:]); n > 0 && err == nil && time.Since(start) < d {
				received++
			}
		}
	})
	p.onCPU(0, ofClient, func() {
		b := make([]byte, 60-28)
		for time.Since(start) < d {
			unix.Write(client, b)
		}
	})()
	drained()
	return []float64{float64(received) / d.Seconds()}, nil
}
