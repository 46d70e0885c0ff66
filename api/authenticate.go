package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage/store"
)

// Role is what a person may do, in broad terms; authorise says exactly.
type Role string

// Roles.
const (
	RoleAdmin     Role = "admin"     // everything that people may do
	RoleResponder Role = "responder" // reads all, and writes quarantines, threat conditions and incidents' phases
	RoleOwner     Role = "owner"     // reads and writes the Applications of some namespaces
	RoleViewer    Role = "viewer"    // reads all
)

// Person is who makes a request.
type Person struct {
	Name string `json:"name"`
	Role Role   `json:"role"`
	// Namespaces are an owner's.
	Namespaces []string `json:"namespaces,omitempty"`
}

type peerKey struct{}

// withPeer notes the credentials of the process at the other end of a unix
// socket, which the kernel vouches for.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return ctx
	}
	var credentials *unix.Ucred
	err = raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			credentials = u
		}
	})
	if err != nil || credentials == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, credentials)
}

// authenticate finds out who makes a request. A bearer token counts before the
// connection's own credentials, so that an administrator can act as somebody with
// less.
func (s *Server) authenticate(r *http.Request) (Person, error) {
	if header := r.Header.Get("Authorization"); header != "" {
		token, ok := strings.CutPrefix(header, "Bearer ")
		if !ok {
			return Person{}, unauthorized("the Authorization header is no bearer token")
		}
		return s.session(r.Context(), token)
	}
	if peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
		return localPerson(peer)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		// Verified again for each request: a connection does not outlive its
		// certificate.
		id, err := s.config.Bundle.Verify(r.TLS.PeerCertificates, time.Now())
		if err != nil {
			return Person{}, unauthorized("the client certificate is not accepted: %v", err)
		}
		return certifiedPerson(id)
	}
	return Person{}, unauthorized("nobody is named: use the unix socket, a client certificate or a bearer token")
}

func unauthorized(format string, args ...any) *problem {
	return newProblem(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, format, args...)
}

// localPerson is root, or whoever runs this very process: both could read its
// memory anyway.
func localPerson(peer *unix.Ucred) (Person, error) {
	name := strconv.Itoa(int(peer.Uid))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Getuid() {
		return Person{}, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"the local socket is for root: log in with a token, or use a client certificate")
	}
	return Person{Name: "local:" + name, Role: RoleAdmin}, nil
}

// certifiedPerson reads a role from a SPIFFE id: /admin/NAME, /responder/NAME,
// /viewer/NAME or /owner/NAMESPACE/NAME. Agents, controllers and workloads have
// no business here.
func certifiedPerson(id string) (Person, error) {
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	parts := strings.Split(path, "/")
	switch role := Role(parts[0]); {
	case len(parts) == 2 && (role == RoleAdmin || role == RoleResponder || role == RoleViewer):
		return Person{Name: id, Role: role}, nil
	case len(parts) == 3 && role == RoleOwner:
		return Person{Name: id, Role: role, Namespaces: parts[1:2]}, nil
	}
	return Person{}, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
		"%s is nobody's who may use this interface", id)
}

// Sessions: a token that was handed out, kept in the store under its hash, so
// that every replica knows it and reading the store gives nobody a token.

const (
	sessionsPrefix   = "sessions/"
	loginsPrefix     = "logins/"
	defaultSession   = 12 * time.Hour
	longestSession   = 30 * 24 * time.Hour
	sessionsAtMost   = 1000
	adminTokenLength = 16 // of at least so many characters
)

// Session is a token with its bearer and its end.
type Session struct {
	Token   string    `json:"token,omitempty"` // shown once, when it is made
	Person  Person    `json:"person"`
	Expires time.Time `json:"expires"`
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// session finds the bearer of a session token.
func (s *Server) session(ctx context.Context, token string) (Person, error) {
	entry, err := s.config.Store.Get(ctx, sessionsPrefix+hashOf(token))
	if errors.Is(err, store.ErrNotFound) {
		return Person{}, unauthorized("the token is unknown or expired: log in again")
	}
	if err != nil {
		return Person{}, err
	}
	var session Session
	if err := json.Unmarshal(entry.Value, &session); err != nil {
		return Person{}, fmt.Errorf("read session: %w", err)
	}
	if !time.Now().Before(session.Expires) {
		return Person{}, unauthorized("the token is unknown or expired: log in again")
	}
	return session.Person, nil
}

// login exchanges the administrator's one-time token for a session. The store
// remembers that the token was used, so that of two who try one succeeds, on any
// replica and after any restart.
func (s *Server) login(ctx context.Context, token string) (Session, error) {
	want := s.config.AdminToken
	now := time.Now()
	if len(want) < adminTokenLength || hashOf(token) != hashOf(want) || !now.Before(s.adminTokenEnds) {
		return Session{}, unauthorized("the one-time token is unknown, used or expired: a new one is made when the controller starts")
	}
	session, write, err := newSession(Person{Name: "token:admin", Role: RoleAdmin}, defaultSession, now)
	if err != nil {
		return Session{}, err
	}
	used := store.Op{Key: loginsPrefix + hashOf(token), Value: []byte(now.UTC().Format(time.RFC3339)), IfWas: store.Absent}
	if _, err = s.config.Store.Apply(ctx, used, write); errors.Is(err, store.ErrConflict) {
		return Session{}, unauthorized("the one-time token is unknown, used or expired: a new one is made when the controller starts")
	}
	return session, err
}

// newSession makes a token and the write that remembers it.
func newSession(person Person, ttl time.Duration, now time.Time) (Session, store.Op, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return Session{}, store.Op{}, fmt.Errorf("make a token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(secret)
	session := Session{Person: person, Expires: now.Add(ttl).UTC().Truncate(time.Second)}
	value, err := json.Marshal(session)
	if err != nil {
		return Session{}, store.Op{}, err
	}
	session.Token = token
	return session, store.Op{Key: sessionsPrefix + hashOf(token), Value: value, IfWas: store.Absent}, nil
}

// createSession hands out a token for somebody with a role.
func (s *Server) createSession(ctx context.Context, person Person, ttl time.Duration) (Session, error) {
	if err := s.sweepSessions(ctx); err != nil {
		return Session{}, err
	}
	session, write, err := newSession(person, ttl, time.Now())
	if err != nil {
		return Session{}, err
	}
	_, err = s.config.Store.Apply(ctx, write)
	return session, err
}

// sweepSessions removes ended sessions and refuses when too many are left.
func (s *Server) sweepSessions(ctx context.Context) error {
	entries, _, err := s.config.Store.List(ctx, sessionsPrefix, "", 0, 0)
	if err != nil {
		return err
	}
	now, left := time.Now(), 0
	for _, entry := range entries {
		var session Session
		if json.Unmarshal(entry.Value, &session) == nil && now.Before(session.Expires) {
			left++
			continue
		}
		if _, err := store.Delete(ctx, s.config.Store, entry.Key, entry.Revision); err != nil &&
			!errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if left >= sessionsAtMost {
		return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"there are %d sessions already: end some, or wait until they expire", left).retryAfter(60)
	}
	return nil
}
