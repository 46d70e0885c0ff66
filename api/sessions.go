package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

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

// LoggedInOnce says whether a one-time token was ever used in a store, so that
// nobody makes another.
func LoggedInOnce(ctx context.Context, s store.Store) (bool, error) {
	entries, _, err := s.List(ctx, loginsPrefix, "", 1, 0)
	return len(entries) > 0, err
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// session finds the bearer of a session token.
func (s *Server) session(ctx context.Context, token string) (Person, error) {
	entry, err := s.sessionEntry(ctx, sessionsPrefix+hashOf(token))
	if errors.Is(err, store.ErrNotFound) {
		return Person{}, unauthorized("the token is unknown or expired: log in again")
	}
	if err != nil {
		return Person{}, err
	}
	session, err := readSession(entry.Value)
	if err != nil {
		return Person{}, fmt.Errorf("read session: %w", err)
	}
	if !s.config.Now().Before(session.Expires) {
		return Person{}, unauthorized("the token is unknown or expired: log in again")
	}
	if len(session.Person.Grants) == 0 {
		return Person{}, unlessEarly(session.Person.Name, entry.Value)
	}
	return s.heldTo(ctx, session.Person)
}

// readSession reads a session as the store has it. Of one that somebody made for
// themselves, earlier versions kept the name that its maker chose and no more.
func readSession(value []byte) (Session, error) {
	var session Session
	if err := json.Unmarshal(value, &session); err != nil {
		return Session{}, err
	}
	if p := &session.Person; p.Maker != nil && !strings.HasPrefix(p.Name, p.Maker.tokens()) {
		p.Name = p.Maker.tokens() + strings.TrimPrefix(p.Name, tokenName)
	}
	return session, nil
}

// tokens is what the names of the tokens that a person makes begin with. Nobody's are
// called like somebody else's; whoever has the machine gives names of the site.
func (p Person) tokens() string {
	if p.aboveAll() {
		return tokenName
	}
	return tokenName + p.principal() + "/"
}

// unlessEarly says what to do about a token without roles: earlier versions kept
// them in another way.
func unlessEarly(name string, value []byte) error {
	var early struct {
		Person struct {
			Role       Role     `json:"role"`
			Namespaces []string `json:"namespaces"`
		} `json:"person"`
	}
	if json.Unmarshal(value, &early) != nil || early.Person.Role == "" {
		return unauthorized("the token of %s gives no role: make a new one", name)
	}
	again := fmt.Sprintf("bocage user token %s --role %s", strings.TrimPrefix(name, tokenName), early.Person.Role)
	if len(early.Person.Namespaces) > 0 {
		again += " --namespace " + strings.Join(early.Person.Namespaces, ",")
	}
	return unauthorized("the token of %s was made by an earlier version, which kept roles in another way: it gives none any more. "+
		"An administrator makes a new one with `%s`, and ends this one with `bocage user sessions --end %s`", name, again, name)
}

// heldTo takes from the bearer of a token what its maker does not have any more.
func (s *Server) heldTo(ctx context.Context, p Person) (Person, error) {
	if p.Maker == nil {
		return p, nil
	}
	maker, err := s.withBindings(ctx, *p.Maker)
	if err != nil {
		return Person{}, err
	}
	p.Grants = slices.DeleteFunc(slices.Clone(p.Grants), func(g Grant) bool { return !maker.covers(g) })
	if len(p.Grants) == 0 {
		return Person{}, unauthorized("%s, who made the token, has lost the roles that it gives", maker.Name)
	}
	return p, nil
}

// login exchanges the administrator's one-time token for a session. The store
// remembers that the token was used, so that of two who try one succeeds, on any
// replica and after any restart.
func (s *Server) login(ctx context.Context, token string) (Session, error) {
	want, now := s.config.AdminToken, s.config.Now()
	if len(want) < adminTokenLength || hashOf(token) != hashOf(want) || !time.Now().Before(s.adminTokenEnds) {
		return Session{}, unauthorized("the one-time token is unknown, used or expired: while none was used, each start of the controller makes one")
	}
	session, write, err := newSession(Person{Name: bootstrapName + "admin", Grants: []Grant{{Role: RoleAdmin}}}, defaultSession, now)
	if err != nil {
		return Session{}, err
	}
	used := store.Op{Key: loginsPrefix + hashOf(token), Value: []byte(now.UTC().Format(time.RFC3339)), IfWas: store.Absent}
	if _, err = s.config.Store.Apply(ctx, used, write); errors.Is(err, store.ErrConflict) {
		return Session{}, unauthorized("the one-time token is unknown, used or expired: while none was used, each start of the controller makes one")
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
	left, err := s.sweepSessions(ctx)
	if err != nil {
		return Session{}, err
	}
	if len(left) >= sessionsAtMost {
		return Session{}, newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"there are %d sessions already: end some, or wait until they expire", len(left)).retryAfter(60)
	}
	session, write, err := newSession(person, ttl, s.config.Now())
	if err != nil {
		return Session{}, err
	}
	_, err = s.config.Store.Apply(ctx, write)
	return session, err
}

// keptSession is a session in the store.
type keptSession struct {
	Session
	key      string
	revision store.Revision
}

// sweepSessions removes ended sessions and returns the others.
func (s *Server) sweepSessions(ctx context.Context) ([]keptSession, error) {
	entries, _, err := s.config.Store.List(ctx, sessionsPrefix, "", 0, 0)
	if err != nil {
		return nil, err
	}
	var left []keptSession
	now := s.config.Now()
	for _, entry := range entries {
		kept := keptSession{key: entry.Key, revision: entry.Revision}
		var unreadable error
		if kept.Session, unreadable = readSession(entry.Value); unreadable == nil && now.Before(kept.Expires) {
			left = append(left, kept)
		} else if err := s.removeSession(ctx, kept); err != nil {
			return nil, err
		}
	}
	return left, nil
}

func (s *Server) removeSession(ctx context.Context, kept keptSession) error {
	_, err := store.Delete(ctx, s.config.Store, kept.key, kept.revision)
	if isAny(err, store.ErrConflict, store.ErrNotFound) {
		return nil // somebody else was faster
	}
	return err
}

// makeSession hands out a token for somebody with roles: of those that its maker
// has, since nobody gives more than they have.
func (s *Server) makeSession(c *call) error {
	c.outcome = "refused"
	var request struct {
		Person struct {
			Name   string   `json:"name"`
			Groups []string `json:"groups"`
			// Role and Namespaces are short for one grant.
			Role       Role     `json:"role"`
			Namespaces []string `json:"namespaces"`
			Grants     []Grant  `json:"grants"`
		} `json:"person"`
		TTLSeconds int64 `json:"ttlSeconds"`
	}
	if err := c.readJSON(&request); err != nil {
		return err
	}
	p := Person{Name: request.Person.Name, Groups: request.Person.Groups, Grants: request.Person.Grants}
	if request.Person.Role != "" || len(p.Grants) == 0 {
		p.Grants = append([]Grant{{Role: request.Person.Role, Namespaces: request.Person.Namespaces}}, p.Grants...)
	}
	var faults bocage.Faults
	if !personName.MatchString(p.Name) {
		faults.Add("person.name", "%q is not a name of at most 100 letters, digits and .-_@", p.Name)
	}
	for i, g := range p.Grants {
		at := "person"
		if i > 0 || request.Person.Role == "" {
			at = fmt.Sprintf("person.grants[%d]", i)
		}
		faults = append(faults, bocage.ValidateRole(g.Role, g.Namespaces).Under(at)...)
		p.Grants[i].Binding = ""
	}
	ttl := readTTL(&faults, request.TTLSeconds, defaultSession, longestSession)
	if err := queryFaults(faults); err != nil {
		return err
	}
	if err := c.mayGive(&p); err != nil {
		return err
	}
	p.Name = c.person.tokens() + p.Name
	session, err := s.createSession(c.r.Context(), p, ttl)
	if err != nil {
		return err
	}
	c.name, c.outcome = session.Person.Name, "created"
	writeJSON(c.w, http.StatusCreated, toldSession(session))
	return nil
}

var personName = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._@]{0,99}$`)

// mayGive refuses a token that gives more than its maker has, and notes who that
// is: whoever has the machine may vouch for others, everybody else speaks for
// themselves.
func (c *call) mayGive(p *Person) error {
	refuse := func(format string, args ...any) error {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"User %q cannot make this token: %s", c.person.Name, fmt.Sprintf(format, args...))
	}
	if c.person.aboveAll() {
		return nil
	}
	if c.person.Maker != nil {
		return refuse("a token that somebody made for themselves makes no others: ask as %s", c.person.principal())
	}
	for _, g := range p.Grants {
		if !c.person.covers(g) {
			return refuse("they have no role that includes %s%s", g.Role, inNamespaces(g.Namespaces))
		}
	}
	for _, group := range p.Groups {
		if !slices.Contains(c.person.Groups, group) {
			return refuse("they are not in the group %q", group)
		}
	}
	maker := Person{Name: c.person.Name, Groups: c.person.Groups}
	for _, g := range c.person.Grants {
		if g.Binding == "" { // the others are looked up whenever the token is used
			maker.Grants = append(maker.Grants, g)
		}
	}
	p.Maker = &maker
	return nil
}

func inNamespaces(namespaces []string) string {
	if len(namespaces) == 0 {
		return ""
	}
	return " of " + strings.Join(namespaces, ", ")
}

// mine says whether a session is a person's own: it is theirs, or they made it.
func (p Person) mine(session Session) bool {
	return session.Person.Name == p.Name || session.Person.Maker != nil && session.Person.Maker.Name == p.Name
}

// listSessions tells administrators all sessions, and others their own.
func (s *Server) listSessions(c *call) error {
	left, err := s.sweepSessions(c.r.Context())
	if err != nil {
		return err
	}
	found := []saidSession{}
	for _, kept := range left {
		if c.person.has(RoleAdmin) || c.person.mine(kept.Session) {
			found = append(found, toldSession(kept.Session))
		}
	}
	slices.SortFunc(found, func(a, b saidSession) int {
		return cmp.Or(strings.Compare(a.Person.Name, b.Person.Name), a.Expires.Compare(b.Expires))
	})
	writeJSON(c.w, http.StatusOK, found)
	return nil
}

// endSessions ends every session of a name, and those that were made with them.
// Without a name it ends the session that the request comes with.
func (s *Server) endSessions(c *call) error {
	c.outcome = "refused"
	name := c.query.Get("name")
	if name == "" {
		name = c.person.Name
	}
	c.name = name
	left, err := s.sweepSessions(c.r.Context())
	if err != nil {
		return err
	}
	ended := 0
	for _, kept := range left {
		named := slices.Contains([]string{name, tokenName + name, c.person.tokens() + name}, kept.Person.Name)
		if maker := kept.Person.Maker; maker != nil {
			named = named || maker.Name == name || maker.Name == tokenName+name
		}
		if !named || !c.person.has(RoleAdmin) && !c.person.mine(kept.Session) {
			continue
		}
		if err := s.removeSession(c.r.Context(), kept); err != nil {
			return err
		}
		ended++
	}
	if ended == 0 {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "%q has no session that you may end", name)
	}
	c.outcome = fmt.Sprintf("ended %d", ended)
	writeJSON(c.w, http.StatusOK, map[string]int{"ended": ended})
	return nil
}

// saidPerson is what people are told of a person: the role that may do most, and
// all of them.
type saidPerson struct {
	Name       string   `json:"name"`
	Groups     []string `json:"groups,omitempty"`
	Role       Role     `json:"role,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"` // none: all
	Grants     []Grant  `json:"grants,omitempty"`
	Maker      string   `json:"maker,omitempty"`
}

type saidSession struct {
	Token   string     `json:"token,omitempty"`
	Person  saidPerson `json:"person"`
	Expires time.Time  `json:"expires"`
}

func told(p Person) saidPerson {
	said := saidPerson{Name: p.Name, Groups: p.Groups, Grants: p.Grants, Namespaces: p.namespaces()}
	if roles := p.roles(); len(roles) > 0 {
		said.Role = roles[0]
	}
	if p.Maker != nil {
		said.Maker = p.Maker.Name
	}
	return said
}

func toldSession(s Session) saidSession { return saidSession{s.Token, told(s.Person), s.Expires} }

// isLogin reports whether a request that nobody is known to make may be the
// exchange of a one-time token, and returns the token.
func (s *Server) isLogin(r *http.Request) (string, bool) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token, ok && r.Method == http.MethodPost && r.URL.Path == functionsPath+"/login"
}

func (s *Server) serveLogin(c *call, token string) error {
	c.verb, c.outcome = "login", "refused"
	session, err := s.login(c.r.Context(), token)
	if err != nil {
		return err
	}
	c.person, c.outcome = session.Person, "created"
	if s.config.AdminTokenUsed != nil {
		s.config.AdminTokenUsed()
	}
	writeJSON(c.w, http.StatusCreated, toldSession(session))
	return nil
}
