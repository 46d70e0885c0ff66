package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/store"
)

// Limits that hold for every server.
const (
	maxBody         = 10 << 20
	maxApplyBody    = 64 << 20 // of many objects
	readHeaderLimit = 10 * time.Second
	readLimit       = time.Minute // for a request's body
	idleLimit       = 2 * time.Minute
	requestLimit    = time.Minute     // for an answer, watches and followed flows apart
	applyLimit      = 5 * time.Minute // for many objects
	writeLimit      = 10 * time.Second
	shutdownLimit   = 5 * time.Second
	maxHeaderBytes  = 64 << 10
)

// Config says what a Server works with. Store is required; with neither Socket
// nor Listen there is nobody to serve.
type Config struct {
	// Store holds the resources.
	Store store.Store
	// TrustDomain is that of the workloads' SPIFFE ids.
	TrustDomain string
	// Socket is the path of a unix socket for root and the process's own user,
	// who are administrators.
	Socket string
	// Listen is the address of the TLS listener, such as 127.0.0.1:8443. It needs
	// SVID and Bundle.
	Listen string
	// SVID is the server's own, asked for every connection, so that it can be
	// renewed.
	SVID func() *identity.SVID
	// Bundle verifies clients' certificates.
	Bundle *identity.Bundle
	// AdminToken can be exchanged once, within ten minutes of the start, for an
	// administrator's session. Empty: never.
	AdminToken string
	// AdminTokenUsed, if it is there, is called once that has happened.
	AdminTokenUsed func()
	// Administrator, if it is there, is called for every request by TLS of somebody
	// who may change policy: the connection's end there, and who it is.
	Administrator func(from netip.AddrPort, person string)
	// Quotas bound the objects of a kind, by its plural, in each namespace; a
	// Namespace's annotations count before them.
	Quotas map[string]int
	// MaxObjects bounds all objects together; zero is a million.
	MaxObjects int
	// TwoPerson lets a guardrail take effect, and go, once a second person agrees.
	TwoPerson bool
	// Now is the time that controllers agree on; nil is this machine's.
	Now func() time.Time
	// AuditDir is the folder of the audit trail; empty keeps none. Node is the name
	// that its entries carry.
	AuditDir, Node string
	// OIDC, if it is there, accepts a provider's tokens.
	OIDC *OIDC
	// Functions are the other rooms' answers; those that are nil are answered
	// with 501.
	Functions Functions
	// Held says what keeps declarations up to a revision out of force, shortly and with
	// the reason; it waits for policy to be made of them until ctx ends. Nil: nothing does.
	Held func(ctx context.Context, inputs store.Revision) (what, why string)
	// Ready lists what must work before /readyz says so, by name.
	Ready map[string]func(context.Context) error
	// Advice lists, by name, what works but could be better: /readyz?verbose says it.
	// An empty answer is none.
	Advice map[string]func() string
	// Registry collects the metrics and is served at /metrics; nil is one of its
	// own.
	Registry *prometheus.Registry
	// Product is the version that /version names.
	Product string
	// RequestsPerSecond bounds each person's rate, with bursts of twice as many.
	// Zero is 500.
	RequestsPerSecond float64
	// MaxWatches bounds the open watches. Zero is 10000.
	MaxWatches int
	// Logger takes the audit log and errors; nil is slog.Default.
	Logger *slog.Logger
}

// Validate says everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var faults bocage.Faults
	if c.Store == nil {
		faults.Add("Store", "is missing")
	}
	if c.Listen != "" && (c.SVID == nil || c.Bundle == nil) {
		faults.Add("Listen", "needs SVID and Bundle: there is no listener without TLS")
	}
	if c.AdminToken != "" && len(c.AdminToken) < adminTokenLength {
		faults.Add("AdminToken", "is shorter than %d characters", adminTokenLength)
	}
	if c.AuditDir != "" && c.Node == "" {
		faults.Add("Node", "is missing: an audit trail names the controller")
	}
	for _, plural := range slices.Sorted(maps.Keys(c.Quotas)) {
		if kind, ok := bocage.KindNamed(plural); !ok || kind.Plural != plural || !kind.Namespaced || c.Quotas[plural] < 0 {
			faults.Add("Quotas", "%q: %d is no bound of a kind that is in namespaces: name it as in paths, such as applications", plural, c.Quotas[plural])
		}
	}
	if c.OIDC != nil {
		faults = append(faults, c.OIDC.validate().Under("OIDC")...)
	}
	return faults.Err()
}

// Server serves the API.
type Server struct {
	config         Config
	logger         *slog.Logger
	kinds          map[string]bocage.Kind // by plural
	view           *view
	bindings       *bindings
	remembered     remembered
	reach          *reach
	recheck        time.Duration // of those who follow something
	trail          *audit.Trail  // nil: none is kept
	strangers      *rate.Limiter // of those that the trail names
	signOn         *singleSignOn // nil: no provider's tokens are accepted
	schemas        *schemas
	fields         *fieldManagers
	limits         *limits
	metrics        *metrics
	adminTokenEnds time.Time
	openAPI        map[string][]byte // v3 documents by group version
	openAPI2       func() (*openAPI2, error)
	started        time.Time

	// listening is closed once the listeners are open; addresses are set by then.
	listening chan struct{}
	addresses []net.Addr
	// closing ends watches and followed flows when Run's context does.
	closing chan struct{}
}

// New makes a server that listens once Run is called.
func New(config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Registry == nil {
		config.Registry = prometheus.NewRegistry()
	}
	if config.TrustDomain == "" {
		config.TrustDomain = identity.DefaultTrustDomain
	}
	if config.Product == "" {
		config.Product = "v0.0.0-devel"
	}
	s := &Server{
		config: config, logger: config.Logger.With("room", "api"), kinds: map[string]bocage.Kind{},
		limits: newLimits(config.RequestsPerSecond, config.MaxWatches), started: time.Now(),
		adminTokenEnds: time.Now().Add(10 * time.Minute), strangers: rate.NewLimiter(strangersPerSecond, strangersAtOnce), recheck: recheckEvery,
		listening: make(chan struct{}), closing: make(chan struct{}),
	}
	for _, kind := range bocage.Kinds() {
		s.kinds[kind.Plural] = kind
	}
	var err error
	if s.schemas, err = newSchemas(); err != nil {
		return nil, fmt.Errorf("api: describe the kinds: %w", err)
	}
	if s.fields, err = newFieldManagers(s.schemas); err != nil {
		return nil, fmt.Errorf("api: track the owners of fields: %w", err)
	}
	if s.openAPI, err = openAPIDocuments(s.schemas); err != nil {
		return nil, fmt.Errorf("api: write OpenAPI: %w", err)
	}
	s.openAPI2 = sync.OnceValues(func() (*openAPI2, error) { return newOpenAPI2(s.openAPI) })
	if s.metrics, err = newMetrics(config.Registry); err != nil {
		return nil, fmt.Errorf("api: register metrics: %w", err)
	}
	s.view = newView(config.Store, s.logger, s.metrics)
	s.bindings = &bindings{view: s.view, remembered: &s.remembered}
	s.reach = &reach{view: s.view}
	if config.AuditDir != "" {
		if s.trail, err = audit.Open(audit.Config{Dir: config.AuditDir, Node: config.Node, Store: config.Store, Now: config.Now, Logger: s.logger}); err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
	}
	if config.OIDC != nil {
		if s.signOn, err = newSingleSignOn(*config.OIDC, s.logger); err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
	}
	return s, nil
}

// Run listens and serves until ctx ends.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() {
		if s.trail != nil {
			err = errors.Join(err, s.trail.Close())
		}
	}()
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	for _, l := range listeners {
		s.addresses = append(s.addresses, l.Addr())
	}
	close(s.listening)

	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: readHeaderLimit, ReadTimeout: readLimit, IdleTimeout: idleLimit,
		// Watches and followed flows set deadlines of their own.
		WriteTimeout:   requestLimit + writeLimit,
		MaxHeaderBytes: maxHeaderBytes, ConnContext: withPeer,
		ConnState: newConnections(s.limits.maxWatch, s.metrics.refused.WithLabelValues("connections").Inc).changed,
		ErrorLog:  slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	viewing, stopViewing := context.WithCancel(context.WithoutCancel(ctx))
	recording, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	var trail sync.WaitGroup
	if s.trail != nil {
		trail.Go(func() { _ = s.trail.Run(recording) })
	}
	serving.Go(func() { s.view.run(viewing) })
	serving.Go(func() { s.sweep(viewing) })
	if s.signOn != nil {
		serving.Go(func() { s.signOn.run(viewing) })
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		serving.Go(func() { failed <- server.Serve(l) })
		s.logger.Info("listening", "address", l.Addr().String())
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	close(s.closing)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	stopViewing()
	serving.Wait()
	// The last answers have been written by now.
	stopRecording()
	trail.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return nil
}

// Addresses waits until the server listens and returns where.
func (s *Server) Addresses(ctx context.Context) ([]net.Addr, error) {
	select {
	case <-s.listening:
		return s.addresses, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Server) listen() (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
		}
	}()
	if s.config.Socket != "" {
		l, err := listenUnix(s.config.Socket)
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, l)
	}
	if s.config.Listen != "" {
		l, err := net.Listen("tcp", s.config.Listen)
		if err != nil {
			return listeners, fmt.Errorf("listen for the API: %w", err)
		}
		config := identity.ServerTLS(s.config.SVID, s.config.Bundle)
		config.NextProtos = []string{"h2", "http/1.1"}
		listeners = append(listeners, tls.NewListener(l, config))
	}
	return listeners, nil
}

// listenUnix replaces a socket that nobody serves any more; it refuses to take
// one over from a process that lives.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make a place for the socket %s: %w", path, err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen on %s: another process serves it: stop it first", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old socket: %w", err)
		}
	}
	// Between bind and chmod the socket has the mode that the umask leaves; who
	// connects then is still asked for credentials.
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect the socket %s: %w", path, err)
	}
	return l, nil
}
