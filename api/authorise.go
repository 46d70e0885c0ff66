package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Verbs, as Kubernetes names them.
const (
	verbGet              = "get"
	verbList             = "list"
	verbWatch            = "watch"
	verbCreate           = "create"
	verbUpdate           = "update"
	verbPatch            = "patch"
	verbDelete           = "delete"
	verbDeleteCollection = "deletecollection"
)

func reading(verb string) bool { return verb == verbGet || verb == verbList || verb == verbWatch }

// changing is what a role does that writes a kind without removing it.
func changing(verb string) bool {
	return verb == verbCreate || verb == verbUpdate || verb == verbPatch
}

// The roles, by the names that they have everywhere.
type Role = bocage.Role

const (
	RoleAdmin       = bocage.RoleAdmin
	RolePolicyAdmin = bocage.RolePolicyAdmin
	RoleResponder   = bocage.RoleResponder
	RoleOwner       = bocage.RoleOwner
	RoleAuditor     = bocage.RoleAuditor
	RoleViewer      = bocage.RoleViewer
)

// Grant is a role with the namespaces that it is for; none is all of them.
type Grant struct {
	Role       Role     `json:"role"`
	Namespaces []string `json:"namespaces,omitempty"`
	// Binding is the RoleBinding that gives it; empty: it came with the
	// certificate, the token or the socket.
	Binding string `json:"binding,omitempty"`
}

// Person is who makes a request.
type Person struct {
	Name   string   `json:"name"`
	Groups []string `json:"groups,omitempty"`
	// Grants are the roles; a person may do what any of them allows.
	Grants []Grant `json:"grants,omitempty"`
	// Maker is who made the token that the person came with, if that was somebody
	// with a name of their own: what two people decide, a person and a token of
	// theirs do not decide together.
	Maker *Person `json:"maker,omitempty"`
}

// principal is the person behind a token.
func (p Person) principal() string {
	if p.Maker != nil {
		return p.Maker.principal()
	}
	return p.Name
}

// roles lists the person's roles, the one that may do most first.
func (p Person) roles() []Role {
	var found []Role
	for _, role := range bocage.Roles() {
		if slices.ContainsFunc(p.Grants, func(g Grant) bool { return g.Role == role }) {
			found = append(found, role)
		}
	}
	return found
}

func (p Person) rolesText() string {
	var names []string
	for _, role := range p.roles() {
		names = append(names, string(role))
	}
	return strings.Join(names, ",")
}

// has says whether the person has one of some roles, for all namespaces.
func (p Person) has(roles ...Role) bool {
	return slices.ContainsFunc(p.Grants, func(g Grant) bool { return slices.Contains(roles, g.Role) && g.everywhere() })
}

func (g Grant) everywhere() bool { return g.Role != RoleOwner && len(g.Namespaces) == 0 }

// covers says whether whoever has this grant could hand out another: it allows
// whatever the other does.
func (g Grant) covers(other Grant) bool {
	within := func() bool {
		return !other.everywhere() && !slices.ContainsFunc(other.Namespaces, func(n string) bool { return !slices.Contains(g.Namespaces, n) })
	}
	switch {
	case g.Role == RoleAdmin:
		return true
	case g.Role == other.Role:
		return g.everywhere() || within()
	case other.Role != RoleViewer:
		return false
	}
	return g.everywhere() || within()
}

// covers says whether some grant of the person's does.
func (p Person) covers(other Grant) bool {
	return slices.ContainsFunc(p.Grants, func(g Grant) bool { return g.covers(other) })
}

// verbsOf lists what people, of whatever role, may do with a kind. Objects that
// a room writes are theirs to read; a case may be annotated and removed. A Host's
// agent writes its status, and people what they say of it: wires, and what it may place.
func verbsOf(kind bocage.Kind) []string {
	verbs := []string{verbGet, verbList, verbWatch}
	switch {
	case kind.Writer == "api" || kind.Name == "ThreatCondition" || kind.Name == "Host":
		verbs = append(verbs, verbCreate, verbUpdate, verbPatch, verbDelete, verbDeleteCollection)
	case kind.Name == "Incident":
		verbs = append(verbs, verbUpdate, verbPatch, verbDelete)
	}
	return verbs
}

// subresourcesOf lists what lies below the objects of a kind; the first is the
// object itself.
func subresourcesOf(kind bocage.Kind) []string {
	found := []string{""}
	if hasStatus(kind) {
		found = append(found, "status")
	}
	if approvable(kind) {
		found = append(found, subresourceApproval)
	}
	return found
}

// subresourceVerbs lists what people may do with what lies below an object: read
// its status, move an incident's phase, and approve.
func subresourceVerbs(kind bocage.Kind, subresource string) []string {
	switch {
	case subresource == "":
		return verbsOf(kind)
	case subresource == subresourceApproval:
		return []string{verbCreate, verbUpdate}
	case kind.Name == "Incident":
		return []string{verbGet, verbUpdate, verbPatch}
	}
	return []string{verbGet}
}

func statusVerbsOf(kind bocage.Kind) []string { return subresourceVerbs(kind, "status") }

// access is what somebody wants to do to what, as far as authorising it goes.
type access struct {
	verb        string
	kind        bocage.Kind
	subresource string
	namespace   string // empty: in all of them
}

// allowed says whether a person may, and if not why.
func (p Person) allowed(a access) (bool, string) {
	if !slices.Contains(subresourcesOf(a.kind), a.subresource) {
		return false, "there is no such subresource"
	}
	if !slices.Contains(subresourceVerbs(a.kind, a.subresource), a.verb) {
		switch a.subresource {
		case "status":
			return false, "status is written by the system and not by people"
		case subresourceApproval:
			return false, "an approval is given with a POST and cannot be taken back"
		}
		if a.kind.Writer == "api" {
			return false, "there is no such verb: " + strings.Join(verbsOf(a.kind), ", ")
		}
		return false, "it is written by the system and not by people"
	}
	var why []string
	for _, grant := range p.Grants {
		ok, reason := grant.allowed(a)
		if ok {
			return true, ""
		}
		if !slices.Contains(why, reason) {
			why = append(why, reason)
		}
	}
	if len(why) == 0 {
		why = append(why, "nobody gave them a role")
	}
	return false, strings.Join(why, "; ")
}

// mayChange says whether a person may write a kind wherever it is, which is also
// who may approve what others write of it.
func (p Person) mayChange(kind bocage.Kind) bool {
	ok, _ := p.allowed(access{verb: verbUpdate, kind: kind})
	return ok
}

func (g Grant) allowed(a access) (bool, string) {
	if reading(a.verb) {
		if g.everywhere() {
			return true, ""
		}
		return g.readsIn(a)
	}
	kind := a.kind.Name
	if a.subresource == subresourceApproval {
		a.verb = verbUpdate // who may write it may approve it
	}
	switch g.Role {
	case RoleAdmin:
		return true, ""
	case RolePolicyAdmin:
		switch kind {
		case "Guardrail", "Exception", "Scope", "Response", "InspectionProfile", "Decoy", "Zone", "AddressGroup",
			"ClusterNetworkPolicy", "NetworkPolicy", "PolicyTest", "Rollout":
			return true, ""
		case "Namespace":
			return changing(a.verb), "a policy-admin labels namespaces, and does not remove them"
		case "Host":
			return changing(a.verb), "a policy-admin declares hosts, and does not remove them"
		}
		return false, "a policy-admin writes what the company demands: guardrails, scopes, exceptions, responses, profiles, decoys, zones, hosts, cluster-wide policies, tests and rollouts"
	case RoleResponder:
		writes := kind == "Quarantine" || kind == "ThreatCondition" || kind == "Incident" && a.verb != verbDelete
		return writes, "a responder writes quarantines, threat conditions and incidents' phases"
	case RoleOwner:
		return g.ownerWrites(a)
	case RoleAuditor:
		return false, "an auditor reads, the audit trail too, and writes nothing"
	case RoleViewer:
		return false, "a viewer only reads"
	}
	return false, "the role is unknown"
}

// readsIn: who has a role in some namespaces sees what lies in them and the rules
// that bind it. Who is suspected of what, and where decoys stand, is not theirs
// to see.
func (g Grant) readsIn(a access) (bool, string) {
	if a.kind.Namespaced {
		return slices.Contains(g.Namespaces, a.namespace), "their role of " + string(g.Role) + " is for " + g.placesText()
	}
	switch a.kind.Name {
	case "Namespace": // those of others are not shown
		return true, ""
	case "Guardrail", "Scope", "InspectionProfile", "Generation", "Exception", "ClusterNetworkPolicy", "AddressGroup", "Zone":
		return true, ""
	}
	return false, "who has a role in some namespaces reads guardrails, exceptions, scopes, profiles, generations and what they name"
}

// placesText says where a grant holds, for people.
func (g Grant) placesText() string {
	if len(g.Namespaces) == 0 {
		return "no namespace"
	}
	what := "the namespaces "
	if len(g.Namespaces) == 1 {
		what = "the namespace "
	}
	few := g.Namespaces[:min(len(g.Namespaces), 5)]
	if len(few) < len(g.Namespaces) {
		return what + strings.Join(few, ", ") + fmt.Sprintf(" and %d more", len(g.Namespaces)-len(few))
	}
	return what + strings.Join(few, ", ")
}

// ownerWrites: owners write the contracts of their namespaces, and may ask for
// exceptions, which take effect once somebody else agrees.
func (g Grant) ownerWrites(a access) (bool, string) {
	if !a.kind.Namespaced {
		return a.kind.Name == "Exception" && a.verb == verbCreate && a.subresource == "",
			"an owner reads guardrails, writes Applications, NetworkPolicies and PolicyTests, and creates Exceptions"
	}
	if !slices.Contains(g.Namespaces, a.namespace) {
		return false, "their role of owner is for " + g.placesText()
	}
	switch a.kind.Name {
	case "Application", "NetworkPolicy", "PolicyTest":
		return true, ""
	}
	return false, "an owner writes Applications, NetworkPolicies and PolicyTests"
}

// readable returns the namespaces that a person may read things of; all is true
// for those who read everything.
func (p Person) readable() (namespaces []string, all bool) {
	for _, g := range p.Grants {
		if g.everywhere() {
			return nil, true
		}
		namespaces = append(namespaces, g.Namespaces...)
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces), false
}

// namespaces are those that a person is held to; none is all of them.
func (p Person) namespaces() []string {
	namespaces, _ := p.readable()
	return namespaces
}

// mayRead says whether a person may read things that belong to a namespace;
// empty is everything.
func (p Person) mayRead(namespace string) bool {
	namespaces, all := p.readable()
	return all || slices.Contains(namespaces, namespace)
}

// authorise refuses what the person may not do. Who is named as an approver is
// found out once the object is read.
func (c *call) authorise() error {
	if c.subresource == subresourceApproval {
		return nil
	}
	return c.mayEver()
}

// mayEver says whether the person may, whatever the object says.
func (c *call) mayEver() error {
	if ok, why := c.person.allowed(c.access); !ok {
		return forbidden(c.person, c.access, c.name, why)
	}
	if c.kind.Name == "Namespace" && c.name != "" && !c.person.mayRead(c.name) {
		return forbidden(c.person, c.access, c.name, "it is a namespace of others")
	}
	return nil
}

// recheckEvery is how long whoever follows something goes on seeing it after they
// lost the right to.
const recheckEvery = 30 * time.Second

// whileAllowed serves what has no end of its own, and ends it once the person is
// not who they were, or may not any more.
func (s *Server) whileAllowed(c *call, serve func(*call) error) error {
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	asked := c.r
	// A timer and not a goroutine: many follow at once.
	var again *time.Timer
	made := make(chan struct{})
	again = time.AfterFunc(s.recheck, func() {
		<-made
		p, err := s.authenticate(asked)
		if err == nil && isResource(asked.URL.Path) {
			err = (&call{person: p, access: c.access, name: c.name}).authorise()
		}
		if code := codeOf(err); code == http.StatusUnauthorized || code == http.StatusForbidden {
			cancel()
		} else if ctx.Err() == nil {
			again.Reset(s.recheck)
		}
	})
	close(made)
	defer again.Stop()
	c.r = c.r.WithContext(ctx)
	return serve(c)
}

func codeOf(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return int(asProblem(err).Code)
}

func forbidden(p Person, a access, name, why string) *problem {
	what := a.kind.Plural
	if a.subresource != "" {
		what += "/" + a.subresource
	}
	where := "at the cluster scope"
	if a.kind.Namespaced {
		where = "in all namespaces"
		if a.namespace != "" {
			where = "in the namespace \"" + a.namespace + "\""
		}
	}
	object := qualified(a.kind)
	if name != "" {
		object += fmt.Sprintf(" %q", name)
	}
	return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
		"%s is forbidden: User %q cannot %s resource %q in API group %q %s: %s",
		object, p.Name, a.verb, what, a.kind.Group(), where, why).about(a.kind, name)
}
