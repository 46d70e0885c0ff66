package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// The questions to the policy room.

// suggest draws policy from what was seen.
func (s *Server) suggest(c *call) error {
	var faults bocage.Faults
	since := time.Hour
	readParameter(&faults, c.query, "since", &since, time.ParseDuration)
	if since < 0 {
		faults.Add("since", "must be a time such as 30m, or 0 for everything that is kept")
	}
	if err := queryFaults(faults); err != nil {
		return err
	}
	namespaces, err := c.wantedNamespaces()
	if err != nil {
		return err
	}
	if s.config.Functions.Suggest == nil {
		return notWired("suggest policy")
	}
	result, err := s.config.Functions.Suggest(c.r.Context(), since, namespaces)
	if err != nil {
		return functionFailed(err)
	}
	writeJSON(c.w, http.StatusOK, result)
	return nil
}

// wantedNamespaces are those that a question names, all of which the person must
// be allowed to read. None is all of them; of an owner, their own.
func (c *call) wantedNamespaces() ([]string, error) {
	namespaces := c.query["namespace"]
	if len(namespaces) == 0 {
		namespaces = c.person.namespaces()
	}
	for _, namespace := range namespaces {
		if !c.person.mayRead(namespace) {
			return nil, newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
				"User %q cannot read the namespace %q", c.person.Name, namespace)
		}
	}
	return namespaces, nil
}

// declared reads the documents of a body, for functions that take many.
func (c *call) declared() ([]manifest.Document, bocage.Faults, error) {
	data, err := c.readBody()
	if err != nil {
		return nil, nil, err
	}
	namespace := c.query.Get("namespace")
	if namespace == "" {
		namespace = "default"
	}
	documents, faults := manifest.Reader{Namespace: namespace, MaxBytes: maxApplyBody}.Read(c.query.Get("name"), data)
	return documents, faults, nil
}

// plan says what declarations would change.
func (s *Server) plan(c *call) error {
	documents, faults, err := c.declared()
	if err != nil {
		return err
	}
	objects := make([]bocage.Resource, len(documents))
	for i, d := range documents {
		objects[i] = d.Resource
		a := access{verbUpdate, kindNamed(d.Resource.Type().Kind), "", d.Resource.Meta().Namespace}
		if ok, why := c.person.allowed(a); !ok {
			a.verb = verbCreate
			if ok, _ := c.person.allowed(a); !ok {
				return forbidden(c.person, a, d.Resource.Meta().Name, why)
			}
		}
	}
	if err := c.mayAsk(objects); err != nil {
		return err
	}
	if len(faults) > 0 {
		writeJSON(c.w, http.StatusOK, bocage.PlanResult{Faults: faults})
		return nil
	}
	if s.config.Functions.Plan == nil {
		return notWired("plan")
	}
	result, err := s.config.Functions.Plan(c.r.Context(), objects)
	if err != nil {
		return functionFailed(err)
	}
	if err := s.ownPlan(c, &result, objects); err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, result)
	return nil
}

// test runs PolicyTests: those of the body, or without a body those that are
// declared.
func (s *Server) test(c *call) error {
	var documents []manifest.Document
	var faults bocage.Faults
	if c.r.ContentLength != 0 {
		var err error
		if documents, faults, err = c.declared(); err != nil {
			return err
		}
	}
	objects := make([]bocage.Resource, len(documents))
	for i, d := range documents {
		objects[i] = d.Resource
		a := access{verbGet, kindNamed(d.Resource.Type().Kind), "", d.Resource.Meta().Namespace}
		if ok, why := c.person.allowed(a); !ok {
			return forbidden(c.person, a, d.Resource.Meta().Name, why)
		}
	}
	if err := c.mayAsk(objects); err != nil {
		return err
	}
	if len(faults) > 0 {
		return functionFailed(faults)
	}
	if s.config.Functions.Test == nil {
		return notWired("test policy")
	}
	results, err := s.config.Functions.Test(c.r.Context(), objects)
	if err != nil {
		return functionFailed(err)
	}
	kept, err := s.ownResults(c, results, objects)
	if err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, kept)
	return nil
}

// blast says what can be reached from somewhere.
func (s *Server) blast(c *call) error {
	q := bocage.BlastQuery{From: c.query.Get("from"), Uninspected: says(c.query, "uninspected"), Lasting: says(c.query, "lasting")}
	var faults bocage.Faults
	if q.From == "" {
		faults.Add("from", "is missing: name a workload (namespace/name), a namespace (namespace/) or an address")
	}
	readParameter(&faults, c.query, "hops", &q.Hops, parseCount)
	readParameter(&faults, c.query, "leastWeight", &q.LeastWeight, parseCount)
	readParameter(&faults, c.query, "generation", &q.Generation, parseGeneration)
	if err := queryFaults(faults); err != nil {
		return err
	}
	if !c.person.mayRead(namespaceOf(q.From)) {
		return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
			"User %q cannot ask what other namespaces than %v reach", c.person.Name, c.person.namespaces())
	}
	if s.config.Functions.Blast == nil {
		return notWired("say what can be reached")
	}
	result, err := s.config.Functions.Blast(c.r.Context(), q)
	if err != nil {
		return functionFailed(err)
	}
	c.ownBlast(&result)
	writeJSON(c.w, http.StatusOK, result)
	return nil
}

// matrix says who reaches whom.
func (s *Server) matrix(c *call) error {
	namespaces, err := c.wantedNamespaces()
	if err != nil {
		return err
	}
	if s.config.Functions.Matrix == nil {
		return notWired("say who reaches whom")
	}
	result, err := s.config.Functions.Matrix(c.r.Context(), namespaces)
	if err != nil {
		return functionFailed(err)
	}
	writeJSON(c.w, http.StatusOK, result)
	return nil
}

// rollout does what a person says of the newest generation.
func (s *Server) rollout(c *call) error {
	c.outcome = "refused"
	if err := c.mustBe(RoleAdmin, RolePolicyAdmin); err != nil {
		return err
	}
	var request bocage.RolloutRequest
	if err := c.readJSON(&request); err != nil {
		return err
	}
	var faults bocage.Faults
	switch request.Action {
	case "confirm", "rollback", "promote":
	case "accept-risk":
		if len(request.Hosts) == 0 {
			faults.Add("hosts", "names no host whose sessions may be cut")
		}
		if most := int64(longestRisk / time.Second); request.Seconds < 1 || request.Seconds > most {
			faults.Add("seconds", "%d is not between 1 and %d", request.Seconds, most)
		}
	default:
		faults.Add("action", "%q is not confirm, rollback, promote or accept-risk", request.Action)
	}
	if request.Generation != 0 && request.Action != "confirm" && request.Action != "rollback" {
		faults.Add("generation", "%s takes none: leave it out", request.Action)
	}
	if err := queryFaults(faults); err != nil {
		return err
	}
	if s.config.Functions.Rollout == nil {
		return notWired("roll out policy")
	}
	status, err := s.config.Functions.Rollout(c.r.Context(), c.person.Name, request)
	if err != nil {
		return functionFailed(err)
	}
	c.name, c.outcome = strconv.FormatUint(status.Generation, 10), request.Action
	writeJSON(c.w, http.StatusOK, status)
	return nil
}

func parseGeneration(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not the number of a generation", text)
	}
	return n, nil
}
