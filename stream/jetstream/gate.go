package jetstream

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"bocage.dev/bocage/identity"
)

// Permissions are subjects, with "*" for one token and a final ">" for the rest.
type Permissions struct {
	Publish   []string
	Subscribe []string
}

// joinSubject is all that a connection without a certificate may ask.
const joinSubject = "join"

// AgentPermissions are what an agent needs: its own events and questions, and
// the notice of new rulesets. Others than agents are refused.
func AgentPermissions(spiffeID string) (Permissions, error) {
	name, ok := identity.AgentName(spiffeID)
	if !ok {
		return Permissions{}, fmt.Errorf("%s is no agent", spiffeID)
	}
	return Permissions{
		Publish:   []string{"events." + name, "agent." + name + ".>"},
		Subscribe: []string{"ruleset.revision"},
	}, nil
}

// inboxOf is where answers to an identity go: _INBOX.agent.h1.
func inboxOf(spiffeID string) (string, error) {
	_, path, err := identity.ParseID(spiffeID)
	if err != nil {
		return "", err
	}
	return "_INBOX" + strings.ReplaceAll(path, "/", "."), nil // names hold no dots
}

// joinInbox is where answers to a connection without a name go; the nonce, which
// it chose, keeps others without a name from listening.
func joinInbox(nonce string) string { return "_INBOX.join." + nonce }

const (
	// minNonce is how many characters of base 32 make a nonce that nobody guesses.
	minNonce, maxNonce = 20, 64
	// joinLife is how long a connection without a name may last.
	joinLife = 30 * time.Second
)

// Joining is limited in all and per address: how many at once, and one more per
// interval.
const (
	joinBurst, joinBurstEach       = 100, 10
	joinInterval, joinIntervalEach = 20 * time.Millisecond, time.Second
	// joinAddresses is how many addresses are told apart.
	joinAddresses = 4096
)

// gate decides who may connect, what they may do, and who sent what.
type gate struct {
	server      *server.Server
	secret      string
	trustDomain string
	controller  string
	permissions func(string) (Permissions, error)
	now         func() time.Time // that certificates go by
	logger      *slog.Logger
	joins       *limiter
	refused     atomic.Uint64

	mu          sync.Mutex // guards connections
	connections map[string]map[uint64]struct{}
}

func newGate(config ServerConfig, svid *identity.SVID) *gate {
	return &gate{
		secret: newSecret(), trustDomain: config.Bundle.TrustDomain(), controller: svid.ID(),
		permissions: config.Permissions, now: config.Bundle.Now, logger: config.Logger,
		joins:       newLimiter(joinBurst, joinInterval, joinBurstEach, joinIntervalEach, joinAddresses),
		connections: make(map[string]map[uint64]struct{}),
	}
}

// Check implements server.Authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	who, err := g.admit(c)
	if err != nil {
		if n := g.refused.Add(1); rarely(n) {
			g.logger.Warn("connection refused", "peer", who, "address", addressOf(c), "refused", n, "error", err)
		}
		return false
	}
	g.logger.Debug("connection admitted", "peer", who, "address", addressOf(c))
	return true
}

func (g *gate) admit(c server.ClientAuthentication) (who string, err error) {
	if c.Kind() != server.CLIENT {
		return "", errors.New("it is not a client")
	}
	state := c.GetTLSConnectionState()
	if state == nil {
		return g.admitOwn(c)
	}
	id, named := identity.Peer(state)
	if !named {
		return "", g.admitJoiner(c)
	}
	// Noted first: a revocation that comes now finds it.
	g.note(id, c.GetID())
	allowed, err := g.permissions(id)
	if err != nil {
		return id, err
	}
	if err := g.bound(id, allowed); err != nil {
		return id, err
	}
	inbox, err := inboxOf(id)
	if err != nil {
		return id, err
	}
	c.RegisterUser(&server.User{
		Username: id,
		Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: allowed.Publish},
			Subscribe: &server.SubjectPermission{Allow: append([]string{inbox + ".>"}, allowed.Subscribe...)},
		},
		// The connection ends with the certificate; the agent has a newer one by then.
		// How long that is NATS tells by this machine's clock.
		ConnectionDeadline: time.Now().Add(state.PeerCertificates[0].NotAfter.Add(identity.ClockTolerance).Sub(g.now())),
	})
	return id, nil
}

// admitOwn takes only the controller itself, over the pipe inside the process.
func (g *gate) admitOwn(c server.ClientAuthentication) (who string, err error) {
	if subtle.ConstantTimeCompare([]byte(c.GetOpts().Token), []byte(g.secret)) != 1 {
		return "", errors.New("it is without TLS and not from this process")
	}
	c.RegisterUser(&server.User{Username: g.controller})
	return g.controller, nil
}

func (g *gate) admitJoiner(c server.ClientAuthentication) error {
	nonce := c.GetOpts().Username
	if len(nonce) < minNonce || len(nonce) > maxNonce || strings.Trim(nonce, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		return errors.New("it shows neither a certificate nor a nonce to join with")
	}
	if !g.joins.allow(addressOf(c), time.Now()) {
		return errors.New("too many try to join")
	}
	c.RegisterUser(&server.User{
		Username: joinSubject,
		Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{joinSubject}},
			Subscribe: &server.SubjectPermission{Allow: []string{joinInbox(nonce) + ".>"}},
		},
		ConnectionDeadline: time.Now().Add(joinLife),
	})
	return nil
}

// bound refuses permissions by which one could speak as another.
func (g *gate) bound(id string, allowed Permissions) error {
	name, ok := identity.AgentName(id)
	if !ok || id != g.agent(name) {
		return errors.New("only agents of this trust domain connect")
	}
	for _, subject := range allowed.Publish {
		if owner, _, err := g.owner(subject); err != nil || owner != id {
			return fmt.Errorf("it may not be given %s, which is not its own", subject)
		}
	}
	for _, subject := range allowed.Subscribe {
		first, _, _ := strings.Cut(subject, ".")
		switch {
		case first == "", strings.ContainsAny(first[:1], "_$*>"), first == keptToken, first == joinSubject:
			return fmt.Errorf("it may not be given %s, which holds what is for others", subject)
		case first == "agent", first == "events":
			if owner, _, err := g.owner(subject); err != nil || owner != id {
				return fmt.Errorf("it may not be given %s, which is not its own", subject)
			}
		}
	}
	return nil
}

func (g *gate) agent(name string) string { return "spiffe://" + g.trustDomain + "/agent/" + name }

// owner says who alone may publish to a subject, and where its answers go. The
// subject may be a pattern; what is nobody else's is the controller's.
func (g *gate) owner(subject string) (id, inbox string, err error) {
	first, rest, _ := strings.Cut(subject, ".")
	switch first {
	case joinSubject:
		return "", "_INBOX.join", nil
	case "agent", "events":
		name, _, _ := strings.Cut(rest, ".")
		id = g.agent(name)
		inbox, err = inboxOf(id) // refuses wildcards
		return id, inbox, err
	}
	inbox, err = inboxOf(g.controller)
	return g.controller, inbox, err
}

// maxJoin is the most that somebody without a name may send, in bytes.
const maxJoin = 64 << 10

// sender returns whose question it is, and whether that is the controller's own,
// or an error if its answer would go to somebody else: permissions say nothing
// about where an answer is sent, so an agent could have the controller publish to
// any subject.
func (g *gate) sender(message *nats.Msg) (id string, own bool, err error) {
	id, inbox, err := g.owner(message.Subject)
	if err != nil {
		return "", false, err
	}
	if !strings.HasPrefix(message.Reply, inbox+".") || strings.ContainsAny(message.Reply, "*> \t\r\n") {
		return "", false, fmt.Errorf("it wants its answer on %q, which is not its sender's", message.Reply)
	}
	if id == "" && len(message.Data) > maxJoin {
		return "", false, fmt.Errorf("it has %d bytes: want at most %d to join", len(message.Data), maxJoin)
	}
	return id, id == g.controller, nil
}

// note remembers a connection for disconnect, and forgets those that are over.
func (g *gate) note(id string, connection uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.connections[id]
	if known == nil {
		known = make(map[uint64]struct{})
		g.connections[id] = known
	}
	for old := range known {
		if g.server.GetClient(old) == nil {
			delete(known, old)
		}
	}
	known[connection] = struct{}{}
}

func (g *gate) disconnect(id string) int {
	g.mu.Lock()
	known := g.connections[id]
	delete(g.connections, id)
	g.mu.Unlock()
	cut := 0
	for connection := range known {
		if err := g.server.DisconnectClientByID(connection); err == nil {
			cut++
		}
	}
	return cut
}

func addressOf(c server.ClientAuthentication) string {
	address := c.RemoteAddress()
	if address == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}

// limiter is a token bucket for all and one for each key.
type limiter struct {
	mu    sync.Mutex // guards the fields below
	all   bucket
	each  bucket // what a new key's starts as
	keys  map[string]*bucket
	limit int
}

type bucket struct {
	tokens, burst float64
	interval      time.Duration // per token
	filled        time.Time
}

func newLimiter(burst float64, interval time.Duration, burstEach float64, intervalEach time.Duration, keys int) *limiter {
	return &limiter{
		all:  bucket{tokens: burst, burst: burst, interval: interval},
		each: bucket{tokens: burstEach, burst: burstEach, interval: intervalEach},
		keys: make(map[string]*bucket), limit: keys,
	}
}

func (b *bucket) fill(now time.Time) {
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(b.burst, b.tokens+float64(passed)/float64(b.interval))
		b.filled = now
	}
}

func (l *limiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.keys[key]
	if own == nil {
		if len(l.keys) >= l.limit {
			l.forget(now)
		}
		if len(l.keys) >= l.limit {
			return false
		}
		fresh := l.each
		own = &fresh
		l.keys[key] = own
	}
	l.all.fill(now)
	own.fill(now)
	if l.all.tokens < 1 || own.tokens < 1 {
		return false
	}
	l.all.tokens--
	own.tokens--
	return true
}

// forget drops the keys that are as good as new.
func (l *limiter) forget(now time.Time) {
	for key, b := range l.keys {
		if b.fill(now); b.tokens >= b.burst {
			delete(l.keys, key)
		}
	}
}
