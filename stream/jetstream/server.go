// Package jetstream is the stream on NATS JetStream: a server embedded in the
// controller, and the one connection of each agent to it.
//
// It promises that an acknowledged message is on disk (sync always), that a log
// refuses new messages rather than dropping old ones, that every connection from
// outside is TLS 1.3 and either proves a SPIFFE id or may only ask to join, and
// that the sender of a question is who it says: permissions bind an agent to
// subjects that carry its name, and answers go nowhere but to its own inbox.
//
// It never lets an agent reach the JetStream API, another agent's subjects or
// inboxes, or make the controller publish to a subject of the agent's choice.
package jetstream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
)

const (
	defaultMaxBytes    = 8 << 30
	defaultReserve     = 256 << 20
	defaultConnections = 20_000
	startPatience      = 30 * time.Second

	// idMemory is how long a log knows the ids of its messages.
	idMemory = 5 * time.Minute

	maxPayload = stream.MaxMessage + 64<<10 // with headers
)

// ServerConfig says how to run the embedded server. Dir, Listen, SVID and Bundle
// are needed.
type ServerConfig struct {
	// Dir holds the logs; it is created with mode 0700.
	Dir string
	// Listen is the address for agents, such as 0.0.0.0:7422; port 0 takes a free one.
	Listen string
	// SVID returns the controller's current identity, Bundle is by whom agents'
	// identities are verified.
	SVID   func() *identity.SVID
	Bundle *identity.Bundle
	// Permissions returns what an identity may do, or an error if it may not
	// connect, say because it has been revoked. It is asked at every connection.
	// Nil is [AgentPermissions]. Nobody but an agent gets in, and an agent only
	// with subjects that are its own.
	Permissions func(spiffeID string) (Permissions, error)
	// MaxBytes is how large each log may grow (0: 8 GiB).
	MaxBytes int64
	// MaxAge is when messages leave a log even if nobody has trimmed it (0: never).
	MaxAge time.Duration
	// Reserve in bytes is how much of the disk has to stay free (0: 256 MiB).
	// Below it messages are refused with stream.ErrFull.
	Reserve int64
	// MaxConnections bounds how many may be connected (0: 20,000).
	MaxConnections int
	Logger         *slog.Logger
}

// Validate returns all that is wrong with a ServerConfig.
func (c ServerConfig) Validate() error {
	var faults []error
	if c.Dir == "" {
		faults = append(faults, errors.New("there is no directory for the logs"))
	}
	if _, _, err := splitListen(c.Listen); err != nil {
		faults = append(faults, err)
	}
	if c.SVID == nil || c.Bundle == nil {
		faults = append(faults, errors.New("there is no identity or no bundle to verify others by"))
	}
	if c.MaxBytes < 0 || c.MaxAge < 0 || c.Reserve < 0 || c.MaxConnections < 0 {
		faults = append(faults, fmt.Errorf("max bytes %d, max age %s, reserve %d and max connections %d may not be negative", c.MaxBytes, c.MaxAge, c.Reserve, c.MaxConnections))
	}
	return errors.Join(faults...)
}

func splitListen(listen string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("listen address %q: %w", listen, err)
	}
	if port, err = strconv.Atoi(text); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("listen address %q: %q is not a port", listen, text)
	}
	return host, port, nil
}

// Server is the embedded server with the controller's own connection to it.
type Server struct {
	config ServerConfig
	logger *slog.Logger
	lock   *os.File
	nats   *server.Server
	gate   *gate
	own    *nats.Conn
	js     jetstream.JetStream
	peer   *exchange

	ctx    context.Context // ends with Close, and the relays with it
	cancel context.CancelFunc
	relays sync.WaitGroup
}

// StartServer starts a server and returns once agents can connect and logs can be
// opened. Only one process may use a directory at a time.
func StartServer(config ServerConfig) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("start stream: %w", err)
	}
	if config.MaxBytes == 0 {
		config.MaxBytes = defaultMaxBytes
	}
	if config.Reserve == 0 {
		config.Reserve = defaultReserve
	}
	if config.MaxConnections == 0 {
		config.MaxConnections = defaultConnections
	}
	if config.Permissions == nil {
		config.Permissions = AgentPermissions
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: config, logger: config.Logger}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start stream in %s: %w", config.Dir, err), s.Close())
	}
	return s, nil
}

func (s *Server) start() error {
	if err := os.MkdirAll(s.config.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if s.lock, err = lockDir(s.config.Dir); err != nil {
		return err
	}
	svid := s.config.SVID()
	if svid == nil {
		return errors.New("the controller has no identity yet")
	}
	options, err := s.options()
	if err != nil {
		return err
	}
	s.gate = newGate(s.config, svid)
	options.CustomClientAuthentication = s.gate
	if s.nats, err = server.NewServer(options); err != nil {
		return err
	}
	s.gate.server = s.nats
	log := &natsLogger{logger: s.logger, fatal: make(chan string, 1), kinds: make(map[string]uint64)}
	s.nats.SetLoggerV2(log, false, false, false)
	s.nats.Start()
	if err := s.ready(log); err != nil {
		return err
	}
	return s.connectOwn(svid)
}

// ready waits until the server takes connections and has its data.
func (s *Server) ready(log *natsLogger) error {
	const repair = "if the data is damaged, restore it from a backup, or move the directory away to begin with empty logs"
	for began := time.Now(); !s.nats.ReadyForConnections(100 * time.Millisecond); {
		select {
		case message := <-log.fatal:
			if strings.HasPrefix(message, "Error listening on port") {
				return fmt.Errorf("%s: stop what listens there, or listen elsewhere", message)
			}
			return fmt.Errorf("%s: %s", message, repair)
		default:
		}
		if time.Since(began) > startPatience {
			return fmt.Errorf("the server is not ready after %s: %s", startPatience, repair)
		}
	}
	if !s.nats.JetStreamEnabled() {
		return errors.New("the server refuses its data: " + repair)
	}
	return nil
}

// lockDir keeps a second process out: two servers on one directory destroy it.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process uses it: stop that one, or choose another directory (%w)", err), lock.Close())
	}
	return lock, nil
}

func (s *Server) options() (*server.Options, error) {
	host, port, err := splitListen(s.config.Listen)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return &server.Options{
		ServerName: "bocage", Host: host, Port: port,
		NoSigs: true, NoSystemAccount: true, DisableJetStreamBanner: true,

		// TLS before anything is said, for everybody from outside.
		TLS: true, TLSConfig: identity.ServerTLS(s.config.SVID, s.config.Bundle), TLSHandshakeFirst: true,
		TLSTimeout: 5, AuthTimeout: 10,
		AlwaysEnableNonce: true,

		MaxConn: s.config.MaxConnections, MaxSubs: 4096, MaxControlLine: 4096,
		MaxPayload: maxPayload, MaxPending: 64 << 20, WriteDeadline: 10 * time.Second,
		PingInterval: 20 * time.Second, MaxPingsOut: 2,

		JetStream: true, StoreDir: s.config.Dir, SyncAlways: true,
		// Each log has a limit of its own, and Reserve guards the disk.
		JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 64 << 20,
	}, nil
}

// connectOwn opens the controller's connection: a pipe inside the process, proved
// by a secret that never leaves it.
func (s *Server) connectOwn(svid *identity.SVID) error {
	inbox, err := inboxOf(svid.ID())
	if err != nil {
		return err
	}
	s.peer = newExchange(s.logger, s.gate.sender)
	s.own, err = nats.Connect("", append(s.peer.options(),
		nats.InProcessServer(s.nats), nats.Token(s.gate.secret), nats.CustomInboxPrefix(inbox),
		nats.Name(svid.Path()), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))...)
	if err != nil {
		return fmt.Errorf("connect in process: %w", err)
	}
	s.peer.conn = s.own
	s.js, err = jetstream.New(s.own)
	return err
}

// Address is where the server listens.
func (s *Server) Address() string { return s.nats.Addr().String() }

// Exchange returns the controller's end of all exchanges.
func (s *Server) Exchange() stream.Exchange { return s.peer }

// Disconnect cuts every connection of an identity at once and returns how many.
// To keep it out, let Permissions refuse it first.
func (s *Server) Disconnect(spiffeID string) int { return s.gate.disconnect(spiffeID) }

// Counters are of the questions that have come since the start, messages for logs
// among them: asked = answered + refused + shed + what is being answered now.
type Counters struct {
	Asked    uint64 `json:"asked"`
	Answered uint64 `json:"answered"`
	Refused  uint64 `json:"refused"` // the answer would have gone to somebody else
	Shed     uint64 `json:"shed"`    // too many waited
	Lost     uint64 `json:"lost"`    // not even that could be told
	// Connections is how many have been refused.
	Connections uint64 `json:"refusedConnections"`
}

// Counters returns what has been counted since the start.
func (s *Server) Counters() Counters {
	c := &s.peer.counts
	return Counters{
		Asked: c.asked.Load(), Answered: c.answered.Load(), Refused: c.refused.Load(), Shed: c.shed.Load(),
		Lost: c.lost.Load(), Connections: s.gate.refused.Load(),
	}
}

// Close ends the controller's connection, then the server.
func (s *Server) Close() error {
	s.cancel()
	s.relays.Wait()
	if s.own != nil {
		s.own.Close()
	}
	if s.nats != nil {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
	}
	if s.lock != nil {
		return s.lock.Close()
	}
	return nil
}

// newSecret makes what proves that a connection comes from this process.
func newSecret() string { return rand.Text() }

// natsLogger writes the server's log to ours, a level lower: what it calls a
// notice is detail to us. Of each kind of fault it writes ever fewer, so that an
// agent that causes them cannot fill a disk.
type natsLogger struct {
	logger *slog.Logger
	fatal  chan string // holds the first

	mu    sync.Mutex        // guards kinds
	kinds map[string]uint64 // by format
}

func (l *natsLogger) write(level slog.Level, format string, v []any) {
	if !l.logger.Enabled(context.Background(), level) {
		return
	}
	l.mu.Lock()
	l.kinds[format]++
	n := l.kinds[format]
	l.mu.Unlock()
	if rarely(n) {
		l.logger.Log(context.Background(), level, "nats", "event", fmt.Sprintf(format, v...), "occurrence", n)
	}
}

func (l *natsLogger) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }
func (l *natsLogger) Warnf(format string, v ...any)   { l.write(slog.LevelInfo, format, v) }
func (l *natsLogger) Errorf(format string, v ...any)  { l.write(slog.LevelWarn, format, v) }
func (l *natsLogger) Debugf(string, ...any)           {}
func (l *natsLogger) Tracef(string, ...any)           {}

func (l *natsLogger) Fatalf(format string, v ...any) {
	message := fmt.Sprintf(format, v...)
	l.logger.Error("nats", "event", message)
	select {
	case l.fatal <- message:
	default:
	}
}
