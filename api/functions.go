package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// functionsPath is where questions are asked that are no resources. They are not
// part of discovery: kubectl has no use for them.
//
//	GET  explain     ?from=&to=&port=&protocol=&at=&generation=  Explanation
//	GET  flows       ?from=&to=&port=&protocol=&verdict=&wouldRefuse=&since=&limit=&follow=
//	                                                         one FlowRecord a line
//	POST hunt        ?limit=              SQL                HuntResult
//	GET  suggest     ?since=&namespace=                      SuggestResult
//	POST plan        ?name=&namespace=    YAML or JSON       PlanResult
//	POST test        ?name=&namespace=    YAML or JSON       a list of TestResult
//	GET  blast       ?from=&hops=&uninspected=&lasting=&leastWeight=&generation=  BlastResult
//	GET  matrix      ?namespace=                             ReachMatrix
//	POST rollout                          RolloutRequest     RolloutStatus
//	POST apply       ?name=&dryRun=&force=&fieldManager=  YAML or JSON   ApplyResult
//	POST joinTokens                       {"path","ttlSeconds"}  {"token"}
//	POST certificates                     {"name","groups","ttlSeconds","csr"}  Certificate
//	POST login       (one-time token as bearer)              Session
//	POST sessions                         {"person","ttlSeconds"}  Session
//	GET  sessions                                            a list of Session, without tokens
//	DELETE sessions  ?name=                                  {"ended"}
//	GET  audit       ?from=                                  one audit.Entry a line
//	GET  anchors                                             {"node","anchors"}
//	GET  whoami                                              Person
const functionsPath = "/apis/functions." + Group + "/" + Version

// Functions answer questions that are other rooms' business.
type Functions struct {
	Explain func(ctx context.Context, q bocage.ExplainQuery) (bocage.Explanation, error)
	// Flows gives each record to each, until there are none left, each fails, or,
	// when following, ctx ends.
	Flows   func(ctx context.Context, q bocage.FlowsQuery, each func(bocage.FlowRecord) error) error
	Hunt    func(ctx context.Context, sql string, limit int) (bocage.HuntResult, error)
	Suggest func(ctx context.Context, since time.Duration, namespaces []string) (bocage.SuggestResult, error)
	// Plan says what the objects would change if they were declared; an object
	// with a deletionTimestamp stands for its deletion.
	Plan func(ctx context.Context, objects []bocage.Resource) (bocage.PlanResult, error)
	// Test runs the PolicyTests among the objects on what would be in force with
	// the others; without any, those that are declared.
	Test func(ctx context.Context, objects []bocage.Resource) ([]bocage.TestResult, error)
	// Blast says what can be reached from somewhere.
	Blast func(ctx context.Context, q bocage.BlastQuery) (bocage.BlastResult, error)
	// Matrix says who reaches whom in some namespaces; none is all of them.
	Matrix func(ctx context.Context, namespaces []string) (bocage.ReachMatrix, error)
	// Rollout does what a person says of the newest generation; who is theirs.
	Rollout func(ctx context.Context, who string, r bocage.RolloutRequest) (bocage.RolloutStatus, error)
	// JoinToken makes a token with which an agent joins, for a path such as /agent/h1.
	JoinToken func(ctx context.Context, path string, ttl time.Duration) (string, error)
	// Certificate signs a certificate for a person's path, /user/NAME, with which
	// nobody can be a server, and returns its chain in PEM. The request (PKCS#10,
	// DER) only proves possession of the key.
	Certificate func(ctx context.Context, path string, groups []string, csr []byte, ttl time.Duration) ([]byte, error)
}

// Limits of questions.
const (
	maxQuery         = 64 << 10 // bytes of SQL
	defaultHuntLimit = 1000
	maxHuntLimit     = 100_000
	defaultJoinTTL   = time.Hour
	longestJoinTTL   = 7 * 24 * time.Hour
	longestRisk      = time.Hour
)

func (s *Server) serveFunction(c *call, name string) error {
	functions := map[string]struct {
		method string
		serve  func(*call) error
	}{
		"audit":           {http.MethodGet, s.serveAudit},
		"anchors":         {http.MethodGet, s.serveAnchors},
		"GET sessions":    {http.MethodGet, s.listSessions},
		"DELETE sessions": {http.MethodDelete, s.endSessions},
		"explain":         {http.MethodGet, s.explain},
		"flows":           {http.MethodGet, s.flows},
		"hunt":            {http.MethodPost, s.hunt},
		"suggest":         {http.MethodGet, s.suggest},
		"plan":            {http.MethodPost, s.plan},
		"test":            {http.MethodPost, s.test},
		"blast":           {http.MethodGet, s.blast},
		"matrix":          {http.MethodGet, s.matrix},
		"rollout":         {http.MethodPost, s.rollout},
		"apply":           {http.MethodPost, s.applyAll},
		"joinTokens":      {http.MethodPost, s.joinToken},
		"sessions":        {http.MethodPost, s.makeSession},
		"certificates":    {http.MethodPost, s.makeCertificate},
		"whoami":          {http.MethodGet, func(c *call) error { writeJSON(c.w, http.StatusOK, told(c.person)); return nil }},
	}
	f, ok := functions[c.r.Method+" "+name]
	if !ok {
		f, ok = functions[name]
	}
	if !ok {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "there is no function %s", name)
	}
	if c.r.Method != f.method {
		return newProblem(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "%s is asked with %s", name, f.method)
	}
	c.verb = name
	if name == "flows" || name == "audit" {
		return s.whileAllowed(c, f.serve)
	}
	return s.bounded(c, f.serve)
}

func notWired(what string) *problem {
	return newProblem(http.StatusNotImplemented, metav1.StatusReason("NotImplemented"),
		"this controller does not %s: ask one that runs the whole system", what)
}

func (c *call) mustBe(roles ...Role) error {
	if c.person.has(roles...) {
		return nil
	}
	names := make([]string, len(roles))
	for i, role := range roles {
		names[i] = string(role)
	}
	why := "it is for " + strings.Join(names, ", ")
	if slices.ContainsFunc(c.person.Grants, func(g Grant) bool { return slices.Contains(roles, g.Role) }) {
		why += " of all namespaces, and theirs is a role in some"
	}
	return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden, "User %q cannot use %s: %s", c.person.Name, c.verb, why)
}

// functionFailed hands on the faults that a room found, so that the client can
// show all of them.
func functionFailed(err error) error {
	var faults bocage.Faults
	if errors.As(err, &faults) {
		p := newProblem(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "%s", summary(faults))
		p.Details = &metav1.StatusDetails{Causes: causes(metav1.CauseTypeFieldValueInvalid, faults)}
		return p
	}
	return err
}

// explain answers why.
func (s *Server) explain(c *call) error {
	q, err := readExplain(c.query)
	if err != nil {
		return err
	}
	if !c.person.mayRead(namespaceOf(q.From)) && !c.person.mayRead(namespaceOf(q.To)) {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"User %q cannot explain flows of other namespaces than %v", c.person.Name, c.person.namespaces())
	}
	if s.config.Functions.Explain == nil {
		return notWired("explain flows")
	}
	explanation, err := s.config.Functions.Explain(c.r.Context(), q)
	var faults bocage.Faults
	if errors.As(err, &faults) {
		return c.explainFailed(q, faults)
	}
	if err != nil {
		return functionFailed(err)
	}
	c.ownExplanation(&explanation)
	writeJSON(c.w, http.StatusOK, explanation)
	return nil
}

// namespaceOf is the namespace of an end that is a workload; empty of any other, such
// as a DNS name that is called like a namespace.
func namespaceOf(end string) string {
	namespace, _, workload := strings.Cut(end, "/")
	if !workload {
		return ""
	}
	return namespace
}

func readExplain(query url.Values) (bocage.ExplainQuery, error) {
	q := bocage.ExplainQuery{From: query.Get("from"), To: query.Get("to"), Name: query.Get("name"), Protocol: bocage.ProtocolTCP}
	var faults bocage.Faults
	if q.From == "" {
		faults.Add("from", "is missing: name a workload (namespace/name) or an address")
	}
	if q.To == "" {
		faults.Add("to", "is missing: name a workload (namespace/name), an address or a DNS name")
	}
	readParameter(&faults, query, "port", &q.Port, parsePort)
	readParameter(&faults, query, "protocol", &q.Protocol, bocage.ParseProtocol)
	readParameter(&faults, query, "at", &q.At, parseTime)
	readParameter(&faults, query, "generation", &q.Generation, parseGeneration)
	readParameter(&faults, query, "decision", &q.Decision, parseDecision)
	return q, queryFaults(faults)
}

// parseDecision reads a decision's number, decimal or as 0x in hex.
func parseDecision(text string) (bocage.DecisionID, error) {
	id, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not the number of a decision", text)
	}
	return bocage.DecisionID(id), nil
}

// readParameter parses a parameter that is there.
func readParameter[T any](faults *bocage.Faults, query url.Values, name string, into *T, parse func(string) (T, error)) {
	text := query.Get(name)
	if text == "" {
		return
	}
	value, err := parse(text)
	if err != nil {
		faults.Add(name, "%v", err)
		return
	}
	*into = value
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port from 0 to 65535", text)
	}
	return uint16(n), nil
}

func parseTime(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("%q is not a time such as 2026-11-24T18:00:00Z", text)
	}
	return t, nil
}

func parseCount(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number from 0 up", text)
	}
	return int(n), nil
}

func parseVerdict(text string) (bocage.Verdict, error) {
	var v bocage.Verdict
	return v, v.UnmarshalText([]byte(text))
}

func queryFaults(faults bocage.Faults) error {
	if len(faults) == 0 {
		return nil
	}
	p := badRequest("the question cannot be read: %s", summary(faults))
	p.Details = &metav1.StatusDetails{Causes: causes(metav1.CauseTypeFieldValueInvalid, faults)}
	return p
}

func readFlows(query url.Values) (bocage.FlowsQuery, error) {
	q := bocage.FlowsQuery{
		From: query.Get("from"), To: query.Get("to"),
		WouldRefuse: says(query, "wouldRefuse"), Follow: says(query, "follow"),
	}
	var faults bocage.Faults
	readParameter(&faults, query, "port", &q.Port, parsePort)
	readParameter(&faults, query, "protocol", &q.Protocol, bocage.ParseProtocol)
	readParameter(&faults, query, "verdict", &q.Verdict, parseVerdict)
	readParameter(&faults, query, "since", &q.Since, parseTime)
	readParameter(&faults, query, "limit", &q.Limit, parseCount)
	return q, queryFaults(faults)
}

// flows streams records, one JSON object a line. The stream ends with a line that
// is a Status if it ends for a reason that the client should know.
func (s *Server) flows(c *call) error {
	q, err := readFlows(c.query)
	if err != nil {
		return err
	}
	if s.config.Functions.Flows == nil {
		return notWired("keep flows")
	}
	if !s.limits.watch(c.person.principal()) {
		s.metrics.refused.WithLabelValues("watches").Inc()
		return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"%d watches are open already, or %d of them are yours", s.limits.maxWatch, s.limits.share()).retryAfter(5)
	}
	defer s.limits.leave(c.person.principal())
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-ended }()
	lines := newLineWriter(c.w)
	if err := endless(lines.answer); err != nil {
		return err
	}
	if q.Follow {
		// The client learns at once that it is connected.
		c.w.Header().Set("Content-Type", "application/jsonl")
		c.w.WriteHeader(http.StatusOK)
		if err := flush(lines.answer); err != nil {
			return nil
		}
	}
	began := q.Follow
	sent := 0
	err = s.config.Functions.Flows(ctx, q, func(record bocage.FlowRecord) error {
		if !c.person.mayRead(namespaceOf(record.SourceWorkload)) && !c.person.mayRead(namespaceOf(record.DestinationWorkload)) {
			return nil
		}
		if !began {
			began = true
			c.w.Header().Set("Content-Type", "application/jsonl")
		}
		if err := lines.write(record); err != nil {
			return err
		}
		if sent++; q.Limit > 0 && sent >= q.Limit {
			return errEnough
		}
		return nil
	})
	switch {
	case err == nil || errors.Is(err, errEnough) || c.r.Context().Err() != nil:
		if !began {
			c.w.Header().Set("Content-Type", "application/jsonl")
			c.w.WriteHeader(http.StatusOK)
		}
		return nil
	case !began:
		return functionFailed(err)
	}
	_ = lines.write(asProblem(functionFailed(err)).Status)
	return nil
}

var errEnough = errors.New("enough")

// lineWriter writes JSON lines to a client that must keep up.
type lineWriter struct {
	w      io.Writer
	answer *http.ResponseController
}

func newLineWriter(w http.ResponseWriter) *lineWriter {
	return &lineWriter{w, http.NewResponseController(w)}
}

func (l *lineWriter) write(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := l.answer.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	if _, err := l.w.Write(append(data, '\n')); err != nil {
		return err
	}
	return flush(l.answer)
}

// hunt asks the flow history.
func (s *Server) hunt(c *call) error {
	if err := c.mustBe(RoleAdmin, RolePolicyAdmin, RoleResponder, RoleAuditor, RoleViewer); err != nil {
		return err
	}
	var faults bocage.Faults
	limit := defaultHuntLimit
	readParameter(&faults, c.query, "limit", &limit, parseCount)
	sql, err := c.readBody()
	if err != nil {
		return err
	}
	c.saying, c.outcome = string(sql), "refused"
	if text := strings.TrimSpace(string(sql)); text == "" || len(text) > maxQuery {
		faults.Add("", "the body must be SQL of at most %d KiB", maxQuery>>10)
	}
	if err := queryFaults(faults); err != nil {
		return err
	}
	if s.config.Functions.Hunt == nil {
		return notWired("keep a history of flows")
	}
	result, err := s.config.Functions.Hunt(c.r.Context(), string(sql), min(max(limit, 1), maxHuntLimit))
	if err != nil {
		return functionFailed(err)
	}
	c.outcome = ""
	c.note(c.access, "", "", 0, nil)
	writeJSON(c.w, http.StatusOK, result)
	return nil
}

// joinToken makes a token for an agent.
func (s *Server) joinToken(c *call) error {
	c.outcome = "refused"
	if err := c.mustBe(RoleAdmin); err != nil {
		return err
	}
	var request struct {
		Path       string `json:"path"`
		TTLSeconds int64  `json:"ttlSeconds"`
	}
	if err := c.readJSON(&request); err != nil {
		return err
	}
	var faults bocage.Faults
	if !agentPath.MatchString(request.Path) {
		faults.Add("path", "%q is not /agent/HOST", request.Path)
	}
	ttl := readTTL(&faults, request.TTLSeconds, defaultJoinTTL, longestJoinTTL)
	if err := queryFaults(faults); err != nil {
		return err
	}
	if s.config.Functions.JoinToken == nil {
		return notWired("let agents join")
	}
	token, err := s.config.Functions.JoinToken(c.r.Context(), request.Path, ttl)
	if err != nil {
		return functionFailed(err)
	}
	c.name, c.outcome = request.Path, "created"
	writeJSON(c.w, http.StatusCreated, map[string]any{"token": token, "expires": s.config.Now().Add(ttl).UTC()})
	return nil
}

var agentPath = regexp.MustCompile(`^/agent/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (c *call) readJSON(into any) error {
	data, err := c.readBody()
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return badRequest("the body cannot be read: %v", err)
	}
	return nil
}

func readTTL(faults *bocage.Faults, seconds int64, usual, longest time.Duration) time.Duration {
	switch {
	case seconds == 0:
		return usual
	case seconds < 0 || seconds > int64(longest/time.Second):
		faults.Add("ttlSeconds", "%d is out of range: 1 to %d", seconds, int64(longest/time.Second))
	}
	return time.Duration(seconds) * time.Second
}
