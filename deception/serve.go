package deception

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/deception/ssh"
)

// Bounds of the child.
const (
	sessionTime    = 15 * time.Minute
	maxEngagements = 2000 // of one session
	childQueue     = 4096 // reports that wait for the agent
	countsEvery    = time.Second
	flushTime      = time.Second // for reports that wait when the child ends
	acceptPause    = 10 * time.Millisecond
)

// kernelKeepAlive is what Linux does for a server that asks for it and says no
// more (tcp_keepalive_time and its like).
var kernelKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Hour, Interval: 75 * time.Second, Count: 9}

// handler speaks one protocol.
type handler struct {
	serve func(ctx context.Context, conn net.Conn, report func(bocage.Depth, map[string]string))
	// refusal is what the real service says to whom it has no room for.
	refusal string
}

// newHandler is where protocols enter: the one place that names them.
func newHandler(p bocage.DecoyPlacement, secret []byte) (handler, error) {
	switch p.Protocol {
	case "ssh":
		server, err := ssh.New(ssh.Config{Banner: p.Banner, Secret: secret})
		if err != nil {
			return handler{}, err
		}
		return handler{server.Serve, ssh.Refusal}, nil
	default:
		return handler{}, fmt.Errorf("protocol %q is not one that decoys speak: ssh", p.Protocol)
	}
}

// Serve is the child: it takes orders and listening sockets from in, which has
// to be one end of a UNIX stream socket (an *os.File), answers connections and
// writes reports to out, until in ends or ctx does.
//
// It first gives up, for the whole process and for ever, everything that it does
// not need. So it is called by a process that does nothing else.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("serve decoys: %w", err)
	}
	orders, err := openOrders(in)
	if err != nil {
		return fmt.Errorf("serve decoys: %w", err)
	}
	defer orders.Close()
	if err := confine(); err != nil {
		return fmt.Errorf("serve decoys: %w", err)
	}
	if err := newServant(out).run(ctx, orders); err != nil {
		return fmt.Errorf("serve decoys: %w", err)
	}
	return nil
}

func openOrders(in io.Reader) (*net.UnixConn, error) {
	file, ok := in.(*os.File)
	if !ok {
		return nil, fmt.Errorf("orders come from a %T and not from a socket: this command is for the agent to start", in)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("orders do not come from a socket, this command is for the agent to start: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("orders come from a socket of another kind: this command is for the agent to start")
	}
	return unixConn, nil
}

// servant is the state of the child.
type servant struct {
	out     io.Writer
	gate    *gate
	reports chan report
	log     *slog.Logger // to the agent, which escapes it

	sessions sync.WaitGroup

	mu        sync.Mutex                // guards what follows
	decoys    map[string]*decoy         // by name
	listeners map[uint16][]net.Listener // by port
}

// decoy is one placement that is served.
type decoy struct {
	placed  placed
	handler handler
	ctx     context.Context // ends its sessions when it is placed no more
	cancel  context.CancelFunc
}

func newServant(out io.Writer) *servant {
	return &servant{
		out: out, gate: newGate(), reports: make(chan report, childQueue),
		log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
		decoys: make(map[string]*decoy), listeners: make(map[uint16][]net.Listener),
	}
}

// run obeys until orders end, then lets go of everything.
func (s *servant) run(ctx context.Context, orders *net.UnixConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { orders.Close() })
	defer stop()

	written := make(chan error, 1)
	closing := make(chan struct{})
	go func() {
		err := s.write(closing)
		if err != nil {
			orders.Close() // nobody listens: there is no use in going on
		}
		written <- err
	}()

	err := s.obey(ctx, orders)
	s.closeAll()
	s.sessions.Wait()
	close(closing)
	// The agent may be gone, or stuck: what it does not take in time is lost
	// with it.
	select {
	case writeErr := <-written:
		err = errors.Join(err, writeErr)
	case <-time.After(flushTime):
	}
	return err
}

// write sends reports and, while they change, the counts.
func (s *servant) write(closing <-chan struct{}) error {
	encoder := json.NewEncoder(s.out)
	tick := time.NewTicker(countsEvery)
	defer tick.Stop()
	var told counts
	tell := func() error {
		now := s.gate.read()
		if reflect.DeepEqual(now, told) {
			return nil
		}
		told = now.clone()
		return encoder.Encode(report{Counts: &now})
	}
	for {
		var err error
		select {
		case r := <-s.reports:
			err = encoder.Encode(r)
		case <-tick.C:
			err = tell()
		case <-closing:
			for len(s.reports) > 0 && err == nil { // no session is left to add one
				err = encoder.Encode(<-s.reports)
			}
			return errors.Join(err, tell())
		}
		if err != nil {
			return fmt.Errorf("report to the agent: %w", err)
		}
	}
}

// obey reads orders until they end, which is no error.
func (s *servant) obey(ctx context.Context, orders *net.UnixConn) error {
	reader := &orderReader{conn: orders}
	defer reader.close()
	for {
		o, err := reader.next()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read orders: %w", err)
		}
		switch {
		case o.Roster != nil:
			err = s.enroll(ctx, o.Roster.Decoys)
		case o.Listen != 0:
			err = s.listen(ctx, o.Listen, o.Sockets, reader)
		case o.Close != 0:
			s.closePort(o.Close)
		}
		if err != nil {
			return fmt.Errorf("obey: %w", err)
		}
	}
}

// enroll makes the decoys be these. Who is unchanged keeps its sessions.
func (s *servant) enroll(ctx context.Context, wanted []placed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.decoys
	s.decoys = make(map[string]*decoy, len(wanted))
	for _, p := range wanted {
		if d := old[p.Name]; d != nil && reflect.DeepEqual(d.placed, p) {
			s.decoys[p.Name] = d
			delete(old, p.Name)
			continue
		}
		h, err := newHandler(p.DecoyPlacement, p.Secret)
		if err != nil {
			return fmt.Errorf("decoy %s: %w", p.Name, err)
		}
		d := &decoy{placed: p, handler: h}
		d.ctx, d.cancel = context.WithCancel(ctx)
		s.decoys[p.Name] = d
	}
	for _, d := range old {
		d.cancel()
	}
	return nil
}

// listen takes the sockets that came with an order.
func (s *servant) listen(ctx context.Context, port uint16, sockets int, reader *orderReader) error {
	s.closePort(port)
	for range sockets {
		file, err := reader.socket()
		if err != nil {
			return err
		}
		l, err := net.FileListener(file)
		file.Close()
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		s.mu.Lock()
		s.listeners[port] = append(s.listeners[port], l)
		s.mu.Unlock()
		s.sessions.Go(func() { s.accept(ctx, l) })
	}
	return nil
}

func (s *servant) closePort(port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners[port] {
		l.Close()
	}
	delete(s.listeners, port)
}

func (s *servant) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, listeners := range s.listeners {
		for _, l := range listeners {
			l.Close()
		}
	}
	for _, d := range s.decoys {
		d.cancel()
	}
}

// accept takes connections until the listener is closed.
func (s *servant) accept(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory, or a client that left already. The
			// rest of the backlog waits for a moment in which sessions end.
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		s.admit(conn.(*net.TCPConn))
	}
}

// admit finds the decoy that a connection is for and starts a session if there
// is room.
func (s *servant) admit(conn *net.TCPConn) {
	flow := flowOf(conn)
	d := s.decoyFor(flow.Destination, flow.DestinationPort)
	name := ""
	if d != nil {
		name = d.placed.Name
	}
	cause, ok := s.gate.enter(flow.Source, name)
	if !ok {
		if cause != ShedUnplaced {
			conn.SetWriteDeadline(time.Now().Add(acceptPause))
			conn.Write([]byte(d.handler.refusal))
		}
		conn.Close()
		return
	}
	// Go asks every 15 seconds whether the client is there, which no sshd does.
	conn.SetKeepAliveConfig(kernelKeepAlive)
	s.sessions.Go(func() {
		defer s.gate.leave(flow.Source, name)
		s.session(d, conn, flow)
	})
}

// decoyFor picks the decoy of a port that stands in for an address most
// precisely, the first by name among equals.
func (s *servant) decoyFor(address netip.Addr, port uint16) *decoy {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *decoy
	precision := -1
	for _, d := range s.decoys {
		if d.placed.Port != port {
			continue
		}
		p := covers(d.placed.DecoyPlacement, address)
		if p > precision || p == precision && p >= 0 && d.placed.Name < best.placed.Name {
			best, precision = d, p
		}
	}
	return best
}

// session talks with one client until it is over.
func (s *servant) session(d *decoy, conn *net.TCPConn, flow bocage.Flow) {
	defer conn.Close()
	defer func() {
		if v := recover(); v != nil {
			s.gate.panicked()
			s.log.Error("a session panicked", slog.String("decoy", d.placed.Name), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
		}
	}()
	ctx, cancel := context.WithTimeout(d.ctx, sessionTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var random [8]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	var made atomic.Int64
	tell := func(depth bocage.Depth, detail map[string]string) {
		if made.Add(1) > maxEngagements {
			s.gate.engaged(false)
			return
		}
		s.tell(&bocage.EngagementEvent{Time: time.Now().UTC(), Flow: flow, Decoy: d.placed.Name, Session: id, Depth: depth, Detail: safe(detail)})
	}
	tell(bocage.DepthTouch, nil)
	d.handler.serve(ctx, conn, tell)
}

// safe is a detail that may be told: printable and bounded.
func safe(detail map[string]string) map[string]string {
	out := make(map[string]string, len(detail))
	for k, v := range detail {
		out[k] = printable(v, maxValue)
	}
	return out
}

// tell queues an engagement, or counts it as lost: no session waits for it.
func (s *servant) tell(e *bocage.EngagementEvent) {
	select {
	case s.reports <- report{Engagement: e}:
		s.gate.engaged(true)
	default:
		s.gate.engaged(false)
	}
}

// flowOf tells a connection as its client sees it: the destination is the
// address that it tried, since every address is local here.
func flowOf(conn *net.TCPConn) bocage.Flow {
	source := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	destination := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	return bocage.Flow{
		Source: source.Addr().Unmap().WithZone(""), SourcePort: source.Port(),
		Destination: destination.Addr().Unmap().WithZone(""), DestinationPort: destination.Port(),
		Protocol: bocage.ProtocolTCP,
	}
}

// orderReader reads lines and the sockets that come with them.
type orderReader struct {
	conn    *net.UnixConn
	pending []byte
	sockets []*os.File
}

func (r *orderReader) next() (order, error) {
	buffer, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(8*4))
	for {
		if i := bytes.IndexByte(r.pending, '\n'); i >= 0 {
			var o order
			err := json.Unmarshal(r.pending[:i], &o)
			r.pending = r.pending[i+1:]
			return o, err
		}
		if len(r.pending) > maxOrder {
			return order{}, fmt.Errorf("an order is longer than %d bytes", maxOrder)
		}
		n, oobn, _, _, err := r.conn.ReadMsgUnix(buffer, rights)
		if err != nil {
			return order{}, err
		}
		if n == 0 && oobn == 0 {
			return order{}, io.EOF
		}
		r.pending = append(r.pending, buffer[:n]...)
		if err := r.unpack(rights[:oobn]); err != nil {
			return order{}, err
		}
	}
}

func (r *orderReader) unpack(rights []byte) error {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			r.sockets = append(r.sockets, os.NewFile(uintptr(fd), "listener"))
		}
	}
	return nil
}

// socket is the next one that came. A socket never comes later than the first
// byte of its order.
func (r *orderReader) socket() (*os.File, error) {
	if len(r.sockets) == 0 {
		return nil, errors.New("an order came without its sockets")
	}
	s := r.sockets[0]
	r.sockets = r.sockets[1:]
	return s, nil
}

func (r *orderReader) close() {
	for _, s := range r.sockets {
		s.Close()
	}
}
