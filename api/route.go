package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
)

// call is one request to a resource, understood.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	person Person
	access
	version string // in which the client reads and writes objects of the kind
	name    string
	query   url.Values
	form    form // in which the client wants the answer
	// acceptable says that the client takes a form that can be made.
	acceptable bool
	// dryRun says that the client wants nothing changed, wherever it says so.
	dryRun bool
	// outcome is what the audit log says of a change.
	outcome string
	// entries are for the audit trail; saying is what a function was asked.
	entries []audit.Entry
	saying  string
	// stored is the object as a change left it.
	stored []byte
	// large holds the places of large bodies; holdsLarge says that one is taken.
	large      chan struct{}
	holdsLarge bool
}

// ServeHTTP implements http.Handler: it bounds, authenticates, counts and logs
// every request, and lets no answer to a change out before the trail has it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	answer := &recorder{ResponseWriter: w, code: http.StatusOK, held: s.trail != nil && mayChangeThings(r)}
	c := &call{w: answer, r: r, query: r.URL.Query(), large: s.limits.large}
	c.dryRun = c.query.Has("dryRun")
	c.form, c.acceptable = formOf(strings.Join(r.Header.Values("Accept"), ","))
	c.form.pretty = says(c.query, "pretty")
	err := s.serveSafely(c)
	if err != nil && answer.held && answer.began {
		answer.discard()
	}
	broken := err != nil && answer.began
	refusal := ""
	if err != nil && !broken {
		refusal = asProblem(err).Message
		writeProblem(answer, err)
	}
	s.audit(c, answer.code)
	if err := s.record(c, answer.code, refusal); err != nil {
		answer.discard()
		p := unrecorded(err)
		if refusal == "" {
			p.Message = "this was done, and cannot be recorded: " + p.Message
		}
		writeProblem(answer, p)
	}
	verb, resource := "other", "other"
	if c.kind.Plural != "" {
		verb, resource = c.verb, c.kind.Plural
	}
	s.metrics.answered(verb, resource, answer.code, time.Since(began))
	answer.release()
	if broken {
		// Half an answer must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
}

// serveSafely keeps one request's fault from ending the server.
func (s *Server) serveSafely(c *call) (err error) {
	defer func() {
		if c.holdsLarge {
			<-c.large
		}
		if fault := recover(); fault != nil {
			s.logger.Error("panic", "path", c.r.URL.Path, "fault", fault, "stack", string(debug.Stack()))
			err = newProblem(http.StatusInternalServerError, metav1.StatusReasonInternalError,
				"the request could not be served: see the controller's log")
		}
	}()
	return s.serve(c)
}

// unhurried refuses a client that asks faster than its limit.
func (s *Server) unhurried(client string) error {
	if s.limits.allow(client) {
		return nil
	}
	s.metrics.refused.WithLabelValues("rate").Inc()
	return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
		"%s makes too many requests", client).retryAfter(1)
}

// noteAdministrator tells of the connection of somebody who may change policy.
func (s *Server) noteAdministrator(c *call) {
	if s.config.Administrator == nil || c.r.TLS == nil || !c.person.has(RoleAdmin, RolePolicyAdmin, RoleResponder) {
		return
	}
	if from, err := netip.ParseAddrPort(c.r.RemoteAddr); err == nil {
		s.config.Administrator(from, c.person.Name)
	}
}

func (s *Server) serve(c *call) error {
	if s.serveHealth(c) {
		return nil
	}
	// Whoever guesses tokens is slowed down before anybody looks them up.
	from := remote(c.r)
	if err := s.unhurried("from " + from); err != nil {
		return err
	}
	most := int64(maxBody)
	if c.manyObjects() {
		most = maxApplyBody
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, most)
	var err error
	if c.person, err = s.authenticate(c.r); err != nil {
		if login, ok := s.isLogin(c.r); ok {
			if err := s.writable(c.r.Context()); err != nil {
				return err
			}
			return s.serveLogin(c, login)
		}
		c.w.Header().Set("Connection", "close") // strangers do not stay
		s.logger.Warn("refused a stranger", "from", from, "path", c.r.URL.Path, "error", err)
		c.noteTurnedAway()
		return err
	}
	if err := s.unhurried(c.person.principal()); err != nil {
		return err
	}
	if err := c.asThemselves(); err != nil {
		s.logger.Warn("refused to let somebody act as another", "person", c.person.Name, "from", from, "path", c.r.URL.Path, "error", err)
		c.noteTurnedAway()
		return err
	}
	s.noteAdministrator(c)
	if mayChangeThings(c.r) {
		if err := s.writable(c.r.Context()); err != nil {
			return err
		}
	}
	if !isResource(c.r.URL.Path) {
		return s.serveOther(c)
	}
	if err := s.understand(c); err != nil {
		return err
	}
	if err := c.authorise(); err != nil {
		return err
	}
	if !c.acceptable || c.form.as == "PartialObjectMetadataList" && !c.many() {
		return notAcceptable()
	}
	if c.verb == verbWatch {
		return s.whileAllowed(c, s.watch)
	}
	return s.bounded(c, s.serveResource)
}

// manyObjects reports whether a request carries as many objects as it likes.
func (c *call) manyObjects() bool {
	switch c.r.URL.Path {
	case functionsPath + "/apply", functionsPath + "/plan", functionsPath + "/test":
		return true
	}
	return false
}

// bounded runs a request that ends by itself, within a time and a number.
func (s *Server) bounded(c *call, serve func(*call) error) error {
	limit := requestLimit
	if c.manyObjects() {
		limit = applyLimit
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), limit)
	defer cancel()
	c.r = c.r.WithContext(ctx)
	wait, cancelWait := context.WithTimeout(ctx, time.Second)
	defer cancelWait()
	select {
	case s.limits.inFlight <- struct{}{}:
		defer func() { <-s.limits.inFlight }()
	case <-wait.Done():
		s.metrics.refused.WithLabelValues("in-flight").Inc()
		return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"%d requests are being served already", maxInFlight).retryAfter(1)
	}
	return serve(c)
}

// understand reads kind, namespace, name, subresource and verb from the path:
//
//	/apis/GROUP/VERSION/PLURAL
//	/apis/GROUP/VERSION/PLURAL/NAME[/status]
//	/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL
//	/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME[/status]
//
// and the same under /api/v1.
func (s *Server) understand(c *call) error {
	apiVersion, parts, _ := versionIn(c.r.URL.Path)
	inNamespace := parts[0] == "namespaces" && len(parts) >= 3 && !(apiVersion == bocage.NamespaceAPIVersion && len(parts) == 3 && parts[2] == "status")
	if inNamespace {
		c.namespace, parts = parts[1], parts[2:]
	}
	kind, ok := s.kindOf(apiVersion, parts[0])
	if !ok || len(parts) > 3 || (len(parts) == 3 && !slices.Contains(subresourcesOf(kind), subresourceNamed(parts[2]))) || slices.Contains(parts, "") ||
		inNamespace && (!kind.Namespaced || c.namespace == "") || (kind.Namespaced && !inNamespace && len(parts) > 1) {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound,
			"the server could not find the requested resource")
	}
	c.kind, c.version = kind, apiVersion
	if len(parts) > 1 {
		c.name = parts[1]
	}
	if len(parts) > 2 {
		c.subresource = subresourceNamed(parts[2])
	}
	return c.understandVerb()
}

// subresourceNamed reads what stands behind an object's name.
func subresourceNamed(name string) string {
	switch name {
	case "":
		return "?" // the object itself has nothing there
	case "approve":
		return subresourceApproval
	}
	return name
}

func (c *call) understandVerb() error {
	method := c.r.Method
	if c.subresource == subresourceApproval {
		if method != http.MethodPost && method != http.MethodPut {
			return newProblem(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "an approval is given with POST or PUT")
		}
		c.verb = verbCreate
		return nil
	}
	switch {
	case (method == http.MethodGet || method == http.MethodHead) && c.name != "":
		c.verb = verbGet
	case (method == http.MethodGet || method == http.MethodHead) && says(c.query, "watch"):
		c.verb = verbWatch
	case method == http.MethodGet || method == http.MethodHead:
		c.verb = verbList
	case method == http.MethodPost && c.name == "":
		c.verb = verbCreate
		if c.kind.Namespaced && c.namespace == "" {
			return badRequest("a %s is created in a namespace: POST to %s/namespaces/NAMESPACE/%s",
				c.kind.Name, versionPath(c.version), c.kind.Plural)
		}
	case method == http.MethodPut && c.name != "":
		c.verb = verbUpdate
	case method == http.MethodPatch && c.name != "":
		c.verb = verbPatch
	case method == http.MethodDelete && c.subresource == "" && c.name != "":
		c.verb = verbDelete
	case method == http.MethodDelete && c.name == "":
		c.verb = verbDeleteCollection
	default:
		return newProblem(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed,
			"%s is not supported on this path", method)
	}
	return nil
}

// many reports whether the answer is a collection.
func (c *call) many() bool {
	return c.verb == verbList || c.verb == verbWatch || c.verb == verbDeleteCollection
}

// says reads a yes or no as Kubernetes does: what is there and does not say no says
// yes, in whatever way a client's language writes it.
func says(query url.Values, key string) bool {
	values, there := query[key]
	return there && values[0] != "0" && !strings.EqualFold(values[0], "false")
}

func (s *Server) serveResource(c *call) error {
	if c.subresource == subresourceApproval {
		return s.approve(c)
	}
	switch c.verb {
	case verbGet:
		return s.get(c)
	case verbList:
		return s.list(c)
	case verbCreate:
		return s.create(c)
	case verbUpdate:
		return s.update(c)
	case verbPatch:
		return s.patch(c)
	case verbDelete:
		return s.delete(c)
	default:
		return s.deleteCollection(c)
	}
}

// audit logs who changed, or tried to change, what, from where and to what end.
func (s *Server) audit(c *call, code int) {
	if c.kind.Plural == "" && c.outcome == "" || c.kind.Plural != "" && reading(c.verb) {
		return
	}
	if c.kind.Plural == "" || len(c.entries) == 0 || code >= http.StatusBadRequest {
		s.auditWrite(c, c.access, c.name, c.outcome, 0, c.stored)
	}
}

// auditWrite notes one change; code 0 is that of the answer. Without an outcome
// it was refused before anything was prepared.
func (s *Server) auditWrite(c *call, a access, name, outcome string, code int, stored []byte) {
	if outcome == "" {
		outcome = "refused"
	}
	c.note(a, name, outcome, code, stored)
	s.logger.Log(c.r.Context(), s.auditLevel(), "audit",
		"person", c.person.Name, "role", c.person.rolesText(), "verb", a.verb,
		"kind", a.kind.Name, "namespace", a.namespace, "name", name, "subresource", a.subresource,
		"outcome", outcome, "code", code, "dryRun", c.dryRun,
		"from", remote(c.r), "client", c.r.UserAgent())
}

// remote is the address that a request came from.
func remote(r *http.Request) string {
	if r.Context().Value(peerKey{}) != nil {
		return "socket"
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// isClosing reports whether the server is being stopped.
func (s *Server) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

func kindNamed(name string) bocage.Kind {
	kind, _ := bocage.KindNamed(name)
	return kind
}

func isAny(err error, targets ...error) bool {
	for _, target := range targets {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
