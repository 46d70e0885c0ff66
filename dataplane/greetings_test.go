package dataplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/hello"
)

// greetings hands on what Listen does, until the test ends.
func (p *plane) greetings() <-chan bocage.Greeting {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	told, done := make(chan bocage.Greeting, 1<<12), make(chan error, 1)
	plane := p.Dataplane
	go func() { done <- plane.Listen(ctx, func(g bocage.Greeting) { told <- g }) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			p.t.Errorf("listen: %v", err)
		}
	})
	return told
}

func awaitGreeting(t testing.TB, told <-chan bocage.Greeting, port uint16) bocage.Greeting {
	t.Helper()
	timeout := time.After(long)
	for {
		select {
		case g := <-told:
			if g.Flow.DestinationPort == port {
				return g
			}
		case <-timeout:
			t.Fatalf("no greeting to port %d was told", port)
		}
	}
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"db.example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pieces is a connection that sends what is written in small segments.
type pieces struct {
	net.Conn
	size int
}

func (c pieces) Write(b []byte) (n int, err error) {
	for n < len(b) {
		end := len(b)
		if c.size > 0 {
			end = min(n+c.size, end)
		}
		sent, err := c.Conn.Write(b[n:end])
		if n += sent; err != nil {
			return n, err
		}
	}
	return n, nil
}

// Whom clients of TLS ask for and what they offer is told, where they must speak it
// and where scopes observe, however they cut what they say.
func TestRootGreetings(t *testing.T) {
	t.Parallel()
	for _, enforce := range []bool{true, false} {
		t.Run(fmt.Sprintf("enforced %v", enforce), func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			p.attach(a, b)
			p.run()
			must(t, p.Apply(verifying(1, enforce, a, b)))
			told := p.greetings()
			ports := []uint16{portOf(bocage.SpeechTLS)}
			if !enforce {
				ports = append(ports, 500) // which nothing declares
			}
			for _, port := range ports {
				for _, address := range []netip.Addr{b.v4, b.v6} {
					for i, size := range []int{0, 1, 5, 9, 64, 100, 700} {
						name := fmt.Sprintf("n%d.example.org", i)
						handshake(t, a, b, netip.AddrPortFrom(address, port), &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}}, size)
						g := awaitGreeting(t, told, port)
						if g.ServerName != name || !slices.Equal(g.ALPN, []string{"h2", "http/1.1"}) || g.Ambiguous {
							t.Errorf("in pieces of %d: %+v, want %s", size, g.Greeted, name)
						}
						if g.Flow.Kind != bocage.EventGreeting || g.Flow.Spoken != bocage.SpeechTLS || g.Flow.Source != 101 || g.Flow.Destination != 102 ||
							time.Since(g.Flow.Time) > time.Minute || g.Flow.Remote != a.v4 && g.Flow.Remote != a.v6 && g.Flow.Remote != b.v4 && g.Flow.Remote != b.v6 {
							t.Errorf("of flow %+v", g.Flow)
						}
					}
				}
			}
			select {
			case g := <-told:
				t.Errorf("told twice: %+v", g)
			default:
			}
			c, err := p.Counters()
			must(t, err)
			if c.Greeted < uint64(14*len(ports)) || c.Ungreeted > 0 {
				t.Errorf("%d pieces were told, %d lost", c.Greeted, c.Ungreeted)
			}
		})
	}
}

// handshake has a client and a server shake hands and say something.
func handshake(t testing.TB, from, to *workload, at netip.AddrPort, config *tls.Config, size int) {
	t.Helper()
	l := freed(t, to, func() (net.Listener, error) { return net.Listen("tcp", at.String()) })
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			server := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"}})
			_, err = io.Copy(io.Discard, server)
			c.Close()
		}
		served <- err
	}()
	c, err := dial(t, from, at.Addr(), at.Port(), long)
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(long)))
	config.InsecureSkipVerify = true
	client := tls.Client(pieces{c, size}, config)
	_, err = io.WriteString(client, "hello")
	must(t, err)
	must(t, client.Close())
	must(t, <-served)
}

// greetingOf builds a ClientHello that is longer than a segment.
func greetingOf(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2", strings.Repeat("x", 200)}}).Handshake()
		client.Close()
	}()
	b := make([]byte, 1<<14)
	n, err := server.Read(b)
	must(t, err)
	if said, answer := hello.Parse(b[:n]); answer != hello.Yes || said.ServerName != name {
		t.Fatalf("the client says %+v, %v", said, answer)
	}
	return b[:n]
}

// What no stack would send: any order, other bytes, the wrong direction.
func TestRootGreetingsOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, enforce := range []bool{true, false} {
		t.Run(fmt.Sprintf("enforced %v", enforce), func(t *testing.T) {
			t.Parallel()
			x := newTap(t, enforce)
			told := x.p.greetings()
			said := greetingOf(t, "db.example.org")
			open := func() *stream {
				if enforce {
					return x.open(bocage.SpeechTLS)
				}
				x.port++
				s := &stream{x, x.port, 500, [2]uint32{^uint32(0) - 300, 5}} // its numbers wrap
				s.passes(false, segment{at: -1, flags: syn})
				s.passes(true, segment{at: -1, flags: syn | ack})
				s.passes(false, segment{flags: ack})
				return s
			}
			is := func(s *stream, want bocage.Greeted) {
				t.Helper()
				g := awaitGreeting(t, told, s.server)
				if g.Flow.SourcePort != s.client {
					t.Fatalf("told of another flow: %+v", g)
				}
				if g.ServerName != want.ServerName || g.Ambiguous != want.Ambiguous || want.ServerName != "" && g.ALPN[0] != "h2" {
					t.Fatalf("told %+v, want %+v", g.Greeted, want)
				}
			}
			named := bocage.Greeted{ServerName: "db.example.org"}
			answer := append([]byte{22, 3, 3, 0, 80, 2, 0, 0, 76, 3, 3}, make([]byte, 74)...)

			s := open() // the second part first
			s.passes(false, segment{at: 900, flags: ack, bytes: said[900:]})
			s.passes(false, segment{at: 0, flags: ack, bytes: said[:900]})
			is(s, named)
			s.passes(true, segment{known: len(said), flags: ack, bytes: answer})
			s.passes(false, segment{at: len(said), known: len(answer), flags: ack, bytes: []byte("more")})
			if s.isWatched() {
				t.Error("still listened to")
			}

			s = open() // byte by byte
			for i := range said {
				s.passes(false, segment{at: i, flags: ack, bytes: said[i : i+1]})
				if i%100 == 99 {
					s.passes(true, segment{known: i + 1, flags: ack})
				}
			}
			is(s, named)

			s = open() // what was acknowledged, and the rest later
			s.passes(false, segment{at: 0, flags: ack, bytes: said[:100]})
			s.passes(true, segment{known: 100, flags: ack})
			s.passes(false, segment{at: 100, known: 0, flags: ack, bytes: said[100:]})
			is(s, named)

			s = open() // the name again, otherwise
			at := strings.Index(string(said), "db.example.org")
			s.passes(false, segment{at: 0, flags: ack, bytes: said[:at+14]})
			s.passes(false, segment{at: at, flags: ack, bytes: []byte("xx.example.org")})
			s.passes(false, segment{at: at + 14, flags: ack, bytes: said[at+14:]})
			is(s, bocage.Greeted{Ambiguous: true})

			s = open() // all of it again, with another name
			s.passes(false, segment{at: 0, flags: ack, bytes: said})
			is(s, named)
			s.passes(false, segment{at: 0, flags: ack, bytes: []byte(strings.Replace(string(said), "db.example.org", "xx.example.org", 1))})
			is(s, bocage.Greeted{Ambiguous: true})

			s = open() // behind what may be told at all
			s.passes(false, segment{at: 0, flags: ack, bytes: said[:200]})
			s.passes(false, segment{at: 1 << 20, flags: ack, bytes: said})
			s.passes(false, segment{at: 200, flags: ack, bytes: said[200:]})
			is(s, named)

			if !enforce { // something else first, of which the server takes nothing
				for _, first := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "G", "SSH-2.0-x\r\n", strings.Repeat("x", 200)} {
					s = open()
					s.passes(false, segment{at: 0, flags: ack, bytes: []byte(first)})
					s.passes(true, segment{known: 0, flags: ack})
					s.passes(false, segment{at: 0, flags: ack, bytes: said})
					is(s, bocage.Greeted{Ambiguous: true})
					s.passes(true, segment{known: len(said), flags: ack, bytes: answer})
					s.passes(false, segment{at: len(said), known: len(answer), flags: ack, bytes: []byte("more")})
					if s.isWatched() {
						t.Errorf("after %.10q: still listened to", first)
					}
				}
				s = open() // a beginning that the server never takes
				s.passes(false, segment{flags: rst})
				s.bases[0] -= 5000
				s.passes(false, segment{at: -1, flags: syn})
				s.bases[0] += 5000
				s.passes(false, segment{at: 0, flags: ack, bytes: said})
				is(s, bocage.Greeted{Ambiguous: true})

				s = open() // what a client of something else says is taken
				s.passes(false, segment{at: 0, flags: ack, bytes: []byte("GET / HTTP/1.1\r\n")})
				s.passes(true, segment{known: 16, flags: ack})
				if row := s.row(); s.isWatched() || bocage.AppProtocol(row.Speech) != bocage.SpeechHTTP {
					t.Errorf("speech %d, watched %v", row.Speech, s.isWatched())
				}
			}
			if !enforce { // a server that says what clients do, and a client of something else
				s = open()
				s.passes(true, segment{known: 0, flags: ack, bytes: said})
				s.passes(false, segment{at: 0, known: len(said), flags: ack, bytes: []byte("GET / HTTP/1.1\r\n\r\n" + string(said))})
				s.passes(false, segment{at: 18 + len(said), known: len(said), flags: ack, bytes: said})
			}
			s = open()
			s.passes(false, segment{at: 0, flags: ack, bytes: said})
			is(s, named) // and nothing was told of the one before
		})
	}
}

// Streams that owe to speak something and never do keep their places only for a while;
// what found no room meanwhile is not said to speak anything.
func TestRootHearingsOfSilence(t *testing.T) {
	t.Parallel()
	x := newTap(t, false)
	told := x.p.greetings()
	said := greetingOf(t, "db.example.org")
	const owed, rows, rowSize, sinceAt = uint64(1) << 62, 4, 224, 40
	fill := func(since uint64) {
		m := x.p.objects.Hearings
		bucket := make([]byte, m.ValueSize())
		for i := range rows {
			binary.NativeEndian.PutUint64(bucket[8+i*rowSize+sinceAt:], since|1|owed)
		}
		for key := range m.MaxEntries() {
			must(t, m.Put(key, bucket))
		}
	}
	begin := func() *stream {
		x.port++
		s := &stream{x, x.port, 500, [2]uint32{7, 5}}
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{flags: ack, bytes: said})
		s.passes(true, segment{known: len(said), flags: ack, bytes: []byte{22, 3, 3, 0, 80, 2, 0, 0, 76, 3, 3}})
		return s
	}
	const known = 0x1f
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now))
	fill(uint64(now.Nano()))
	if row := begin().row(); row.Speech != 0 {
		t.Errorf("without room, speech %#x", row.Speech)
	}
	fill(0) // since the machine began
	s := begin()
	if row := s.row(); bocage.AppProtocol(row.Speech&known) != bocage.SpeechTLS {
		t.Errorf("speech %#x, want TLS", row.Speech)
	}
	if g := awaitGreeting(t, told, s.server); g.Flow.SourcePort != s.client || g.ServerName != "db.example.org" {
		t.Errorf("told %+v", g)
	}
}
