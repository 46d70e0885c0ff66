package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Reviews tell people what they may do (authorization.k8s.io/v1) and who they
// are (authentication.k8s.io/v1), as far as kubectl auth asks.

type accessReview struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		ResourceAttributes *struct {
			Namespace   string `json:"namespace,omitempty"`
			Verb        string `json:"verb,omitempty"`
			Group       string `json:"group,omitempty"`
			Version     string `json:"version,omitempty"`
			Resource    string `json:"resource,omitempty"`
			Subresource string `json:"subresource,omitempty"`
			Name        string `json:"name,omitempty"`
		} `json:"resourceAttributes,omitempty"`
		NonResourceAttributes *struct {
			Path string `json:"path,omitempty"`
			Verb string `json:"verb,omitempty"`
		} `json:"nonResourceAttributes,omitempty"`
	} `json:"spec"`
	Status struct {
		Allowed bool   `json:"allowed"`
		Reason  string `json:"reason,omitempty"`
	} `json:"status"`
}

type rulesReview struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Namespace string `json:"namespace,omitempty"`
	} `json:"spec"`
	Status struct {
		ResourceRules    []resourceRule    `json:"resourceRules"`
		NonResourceRules []nonResourceRule `json:"nonResourceRules"`
		Incomplete       bool              `json:"incomplete"`
	} `json:"status"`
}

type resourceRule struct {
	Verbs     []string `json:"verbs"`
	APIGroups []string `json:"apiGroups"`
	Resources []string `json:"resources"`
}

type nonResourceRule struct {
	Verbs           []string `json:"verbs"`
	NonResourceURLs []string `json:"nonResourceURLs"`
}

type subjectReview struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Status          struct {
		UserInfo struct {
			Username string   `json:"username"`
			Groups   []string `json:"groups"`
		} `json:"userInfo"`
	} `json:"status"`
}

func (s *Server) serveReview(c *call) error {
	data, err := c.readBody()
	if err != nil {
		return err
	}
	if data, err = protobufAsJSON(data, reviewMessage(c.r.URL.Path)); err != nil {
		return badRequest("the review cannot be read: %v", err)
	}
	read := func(into any) error {
		if err := json.Unmarshal(data, into); err != nil {
			return badRequest("the review cannot be read: %v", err)
		}
		return nil
	}
	switch c.r.URL.Path {
	case "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
		var review accessReview
		if err := read(&review); err != nil {
			return err
		}
		review.TypeMeta = metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"}
		s.reviewAccess(c.person, &review)
		writeJSON(c.w, http.StatusCreated, review)
	case "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews":
		var review rulesReview
		if err := read(&review); err != nil {
			return err
		}
		review.TypeMeta = metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"}
		reviewRules(c.person, &review)
		writeJSON(c.w, http.StatusCreated, review)
	case "/apis/authentication.k8s.io/v1/selfsubjectreviews":
		var review subjectReview
		if err := read(&review); err != nil {
			return err
		}
		review.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}
		review.Status.UserInfo.Username = c.person.Name
		review.Status.UserInfo.Groups = slices.Clone(c.person.Groups)
		for _, role := range c.person.roles() {
			review.Status.UserInfo.Groups = append(review.Status.UserInfo.Groups, "bocage:"+string(role))
		}
		writeJSON(c.w, http.StatusCreated, review)
	default:
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	}
	return nil
}

func (s *Server) reviewAccess(p Person, review *accessReview) {
	switch a := review.Spec.ResourceAttributes; {
	case a != nil && a.Resource == "*" && (a.Group == "*" || a.Group == ""):
		_, all := p.readable()
		review.Status.Allowed = p.has(RoleAdmin) || reading(a.Verb) && all
	case a != nil:
		kind, ok := s.kinds[a.Resource]
		if !ok || a.Group != kind.Group() && a.Group != "*" || a.Version != "" && a.Version != "*" && a.Version != kind.Version() {
			review.Status.Reason = "there is no such resource"
			return
		}
		verbs := []string{a.Verb}
		if a.Verb == "*" {
			verbs = subresourceVerbs(kind, a.Subresource)
		}
		for _, verb := range verbs {
			asked := &call{person: p, access: access{verb, kind, a.Subresource, a.Namespace}, name: a.Name}
			if err := asked.mayEver(); err != nil {
				review.Status.Reason = err.Error()
				return
			}
		}
		review.Status.Allowed = true
	case review.Spec.NonResourceAttributes != nil:
		asked := review.Spec.NonResourceAttributes
		review.Status.Allowed = strings.EqualFold(asked.Verb, "get") && !(p.confined() && asked.Path == "/metrics")
	default:
		review.Status.Reason = "there is no such resource"
	}
}

func reviewRules(p Person, review *rulesReview) {
	namespace := review.Spec.Namespace
	for _, kind := range bocage.Kinds() {
		for _, subresource := range subresourcesOf(kind) {
			resource := kind.Plural
			if subresource != "" {
				resource += "/" + subresource
			}
			verbs := slices.DeleteFunc(slices.Clone(subresourceVerbs(kind, subresource)), func(verb string) bool {
				ok, _ := p.allowed(access{verb, kind, subresource, namespace})
				return !ok
			})
			if len(verbs) > 0 {
				review.Status.ResourceRules = append(review.Status.ResourceRules,
					resourceRule{Verbs: verbs, APIGroups: []string{kind.Group()}, Resources: []string{resource}})
			}
		}
	}
	urls := []string{"*"}
	if p.confined() { // everything but /metrics
		urls = []string{"/", "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi/*", "/readyz", "/version"}
	}
	review.Status.NonResourceRules = []nonResourceRule{{Verbs: []string{verbGet}, NonResourceURLs: urls}}
}
