package suricata

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// bed is one host with an engine, a client and a server, each in a namespace of
// its own, and a wire that does what the dataplane would: it pushes a VLAN tag,
// steers, and pops the tag. For each VLAN v the client is 10.0.v.1 and
// fd00:v::1, the server the same with 2.
type bed struct {
	t                     *testing.T
	agent, client, server string
	cfg                   Config
	logged                *logBuffer
	wire                  *wire
}

func newBed(t *testing.T, vlans ...uint16) *bed {
	t.Helper()
	hosttest.Root(t)
	b := &bed{t: t, agent: hosttest.Namespace(t), client: hosttest.Namespace(t), server: hosttest.Namespace(t), logged: &logBuffer{}}
	dir, err := os.MkdirTemp("/tmp", "bct") // not t.TempDir: a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.cfg = Config{Host: "h1", Namespace: hosttest.Name(t), Dir: dir + "/engine",
		Logger: slog.New(slog.NewTextHandler(b.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	t.Cleanup(func() {
		if err := b.inAgent(func() error { return Remove(b.cfg) }); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the room said:\n%s", b.logged)
		}
	})
	for _, v := range vlans {
		b.link(b.client, "c", v, 1)
		b.link(b.server, "s", v, 2)
	}
	return b
}

// link joins one end to the agent's namespace, at MTU 1500.
func (b *bed) link(namespace, prefix string, vlan uint16, last int) {
	b.t.Helper()
	name := fmt.Sprintf("%s%d", prefix, vlan)
	b.must(host.CreateVeth(host.Veth{Name: name, Namespace: b.agent, Peer: name, PeerNamespace: namespace}))
	b.must(host.Sysctl(b.agent, "net/ipv6/conf/"+name+"/disable_ipv6", "1"))
	b.must(host.DisableOffloads(namespace, name))
	b.must(host.AddAddress(namespace, name, netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/24", vlan, last))))
	b.must(host.AddAddress(namespace, name, netip.MustParsePrefix(fmt.Sprintf("fd00:%d::%d/64", vlan, last))))
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) inAgent(fn func() error) error { return host.In(b.agent, fn) }

// held is an engine that is run, as an agent would.
type held struct {
	*Engine
	events chan bocage.InspectionEvent
	states chan bool
	ended  chan error // what Run returned, if it was not stopped
	stop   func()
}

// run starts an engine and waits until it is up. The wire follows its ports.
func (b *bed) run(profiles ...bocage.Profile) *held {
	b.t.Helper()
	h := b.begin(profiles...)
	h.awaitState(b.t, true)
	return h
}

func (b *bed) begin(profiles ...bocage.Profile) *held {
	b.t.Helper()
	h := &held{events: make(chan bocage.InspectionEvent, 4096), states: make(chan bool, 64), ended: make(chan error, 1)}
	b.must(b.inAgent(func() (err error) {
		h.Engine, err = Start(b.t.Context(), b.cfg)
		return err
	}))
	if profiles != nil {
		b.must(h.Load(profiles))
	}
	if b.wire == nil {
		b.lay()
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		report := func(e bocage.InspectionEvent) {
			select {
			case h.events <- e:
			case <-ctx.Done(): // nobody reads any more
			}
		}
		err := h.Run(ctx, report, func(up bool) { h.states <- up })
		if ctx.Err() == nil {
			h.ended <- err
		} else if err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}()
	h.stop = func() { cancel(); <-done }
	b.t.Cleanup(h.stop)
	return h
}

const patience = 20 * time.Second // far more than needed: the machine may be busy

func (h *held) awaitState(t *testing.T, want bool) {
	t.Helper()
	select {
	case got := <-h.states:
		if got != want {
			t.Fatalf("state(%t), want %t", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("no state(%t) within %s", want, patience)
	}
}

// awaitEvent returns the next event with the signature.
func (h *held) awaitEvent(t *testing.T, signature int) bocage.InspectionEvent {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case e := <-h.events:
			if e.Signature == signature {
				return e
			}
		case <-deadline:
			t.Fatalf("no event of signature %d within %s", signature, patience)
		}
	}
}

// dial opens a connection from the client.
func (b *bed) dial(network, address string) (net.Conn, error) {
	var conn net.Conn
	err := host.In(b.client, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, address)
		return err
	})
	return conn, err
}

func (b *bed) connect(network, address string) net.Conn {
	b.t.Helper()
	conn, err := b.dial(network, address)
	b.must(err)
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

func (b *bed) listen(address string) net.Listener {
	b.t.Helper()
	var l net.Listener
	b.must(host.In(b.server, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	}))
	b.t.Cleanup(func() { l.Close() })
	return l
}

// site is an HTTP server that remembers what reached it.
type site struct {
	mu    sync.Mutex
	paths []string
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it did not arrive whole
	}
	s.mu.Lock()
	s.paths = append(s.paths, r.RequestURI)
	s.mu.Unlock()
	fmt.Fprintf(w, "you asked for %d bytes\n", len(r.RequestURI))
}

func (s *site) reached(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.paths {
		if p == path {
			return true
		}
	}
	return false
}

// serve runs an HTTP server on port 80 of every address.
func (b *bed) serve() *site {
	b.t.Helper()
	s := &site{}
	server := &http.Server{Handler: s, ErrorLog: nil}
	l := b.listen(":80")
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	b.t.Cleanup(func() { server.Close(); <-done })
	return s
}

// get asks over a connection of its own and returns the status, or 0 if no
// answer came within the time.
func (b *bed) get(url string, patience time.Duration) int {
	b.t.Helper()
	status, err := b.do(http.MethodGet, url, nil, nil, patience)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		b.t.Logf("GET %s: %v", url, err)
	}
	return status
}

func (b *bed) do(method, url string, header map[string]string, body io.Reader, patience time.Duration) (int, error) {
	transport := &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) { return b.dial(network, address) }}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, err
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}

// refusal is how long a test waits to see that nothing comes.
const refusal = 700 * time.Millisecond

// wire stands in for the dataplane.
type wire struct {
	steering atomic.Bool // off: client and server are joined directly
	sockets  map[string]int
	index    map[string]uint32
	done     sync.WaitGroup
	closing  atomic.Bool
	lost     atomic.Uint64
}

// lay opens the wire, steering, once the engine has its links.
func (b *bed) lay() {
	b.t.Helper()
	w := &wire{sockets: map[string]int{}, index: map[string]uint32{}}
	w.steering.Store(true)
	outside, inside := linkNames(b.cfg.Host)
	links, err := host.Links(b.agent)
	b.must(err)
	b.must(b.inAgent(func() error {
		for _, l := range links {
			if l.Kind != "veth" {
				continue
			}
			fd, err := openWire(int(l.Index))
			if err != nil {
				return err
			}
			w.sockets[l.Name], w.index[l.Name] = fd, l.Index
		}
		return nil
	}))
	for name := range w.sockets {
		switch {
		case name == outside:
			w.done.Go(func() { w.fromEngine(name, "c") })
		case name == inside:
			w.done.Go(func() { w.fromEngine(name, "s") })
		case name[0] == 'c':
			w.done.Go(func() { w.fromPort(name, outside, "s"+name[1:]) })
		default:
			w.done.Go(func() { w.fromPort(name, inside, "c"+name[1:]) })
		}
	}
	b.wire = w
	b.t.Cleanup(func() {
		w.closing.Store(true)
		w.done.Wait()
		for _, fd := range w.sockets {
			unix.Close(fd)
		}
	})
}

func openWire(index int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}))
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// receive returns a frame and its VLAN id, 0 for none.
func (w *wire) receive(name string, frame, control []byte) ([]byte, uint16) {
	for !w.closing.Load() {
		n, c, _, _, err := unix.Recvmsg(w.sockets[name], frame, control, 0)
		if err != nil {
			continue // a timeout, to see whether to close
		}
		messages, err := unix.ParseSocketControlMessage(control[:c])
		if err != nil || len(messages) == 0 || len(messages[0].Data) < 20 {
			return frame[:n], 0
		}
		aux := messages[0].Data // struct tpacket_auxdata
		if binary.NativeEndian.Uint32(aux)&unix.TP_STATUS_VLAN_VALID == 0 {
			return frame[:n], 0
		}
		return frame[:n], binary.NativeEndian.Uint16(aux[16:]) & 0xfff
	}
	return nil, 0
}

func (w *wire) send(name string, frame []byte) {
	if _, err := unix.Write(w.sockets[name], frame); err != nil {
		w.lost.Add(1)
	}
}

func (w *wire) fromPort(name, engine, opposite string) {
	var vlan uint16
	fmt.Sscan(name[1:], &vlan)
	buffer, control := make([]byte, 4096), make([]byte, 256)
	tagged := make([]byte, 0, 4096)
	for {
		frame, _ := w.receive(name, buffer, control)
		switch {
		case frame == nil:
			return
		case len(frame) < 14:
		case !w.steering.Load():
			w.send(opposite, frame)
		default:
			tagged = append(tagged[:0], frame[:12]...)
			tagged = binary.BigEndian.AppendUint16(tagged, unix.ETH_P_8021Q)
			tagged = binary.BigEndian.AppendUint16(tagged, vlan)
			w.send(engine, append(tagged, frame[12:]...))
		}
	}
}

func (w *wire) fromEngine(name, prefix string) {
	buffer, control := make([]byte, 4096), make([]byte, 256)
	for {
		frame, vlan := w.receive(name, buffer, control)
		if frame == nil {
			return
		}
		if vlan != 0 {
			w.send(fmt.Sprintf("%s%d", prefix, vlan), frame)
		}
	}
}

// logBuffer keeps what was logged, for failures.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
