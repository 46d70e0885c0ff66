package api

import (
	"encoding/json"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
)

// resources lists what a group version holds.
func resources(groupVersion string) ([]metav1.APIResource, bool) {
	switch groupVersion {
	case "authorization.k8s.io/v1":
		return []metav1.APIResource{
			{Name: "selfsubjectaccessreviews", SingularName: "selfsubjectaccessreview", Kind: "SelfSubjectAccessReview", Verbs: metav1.Verbs{verbCreate}},
			{Name: "selfsubjectrulesreviews", SingularName: "selfsubjectrulesreview", Kind: "SelfSubjectRulesReview", Verbs: metav1.Verbs{verbCreate}},
		}, true
	case "authentication.k8s.io/v1":
		return []metav1.APIResource{
			{Name: "selfsubjectreviews", SingularName: "selfsubjectreview", Kind: "SelfSubjectReview", Verbs: metav1.Verbs{verbCreate}},
		}, true
	}
	var out []metav1.APIResource
	for _, kind := range kindsIn(groupVersion) {
		resource := metav1.APIResource{
			Name: kind.Plural, SingularName: strings.ToLower(kind.Name), Kind: kind.Name, Namespaced: kind.Namespaced,
			ShortNames: kind.Short, Verbs: verbsOf(kind), Categories: []string{"bocage"},
		}
		if kind.Group() == "" {
			// Namespaces and events are not what "everything of this system" means.
			resource.Categories = nil
		}
		out = append(out, resource)
		for _, subresource := range subresourcesOf(kind)[1:] {
			out = append(out, metav1.APIResource{
				Name: kind.Plural + "/" + subresource, Kind: kind.Name, Namespaced: kind.Namespaced, Verbs: subresourceVerbs(kind, subresource),
			})
		}
	}
	return out, len(out) > 0
}

// serveOther serves everything that is no resource of ours.
func (s *Server) serveOther(c *call) error {
	path := strings.TrimSuffix(c.r.URL.Path, "/")
	switch {
	case strings.HasPrefix(path, functionsPath+"/"):
		return s.serveFunction(c, strings.TrimPrefix(path, functionsPath+"/"))
	case strings.HasPrefix(path, "/apis/authorization.k8s.io/v1/"), strings.HasPrefix(path, "/apis/authentication.k8s.io/v1/"):
		if c.r.Method == http.MethodPost {
			return s.bounded(c, s.serveReview)
		}
	case c.r.Method != http.MethodGet && c.r.Method != http.MethodHead:
		if _, _, resource := versionIn(path); resource { // of a group that is not here
			return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound,
				"the server could not find the requested resource")
		}
		return newProblem(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed,
			"%s is not supported on this path", c.r.Method)
	case path == "/metrics":
		return s.serveMetrics(c)
	case path == "/openapi/v2" || path == "/openapi/v3" || strings.HasPrefix(path, "/openapi/v3/"):
		return s.serveOpenAPI(c, path)
	}
	return s.discover(c, path)
}

func (s *Server) discover(c *call, path string) error {
	aggregated := wantsAggregated(c.r.Header.Get("Accept"))
	switch path {
	case "":
		paths := []string{"/api", "/apis", functionsPath, "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
		for _, groupVersion := range groupVersions() {
			paths = append(paths, versionPath(groupVersion))
		}
		slices.Sort(paths)
		writeJSON(c.w, http.StatusOK, metav1.RootPaths{Paths: paths})
	case "/version":
		writeJSON(c.w, http.StatusOK, s.version())
	case "/api":
		if aggregated {
			s.writeAggregated(c, []metav1.APIGroup{{Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "v1", Version: "v1"}}}})
			return nil
		}
		writeJSON(c.w, http.StatusOK, metav1.APIVersions{
			TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{},
		})
	case "/apis":
		if aggregated {
			s.writeAggregated(c, groups())
			return nil
		}
		writeJSON(c.w, http.StatusOK, metav1.APIGroupList{
			TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: groups(),
		})
	default:
		return s.discoverGroup(c, path)
	}
	return nil
}

func (s *Server) discoverGroup(c *call, path string) error {
	name, grouped := strings.CutPrefix(path, "/apis/")
	if !grouped {
		name = strings.TrimPrefix(path, "/api/")
	}
	for _, group := range groups() {
		if grouped && group.Name == name {
			writeJSON(c.w, http.StatusOK, group)
			return nil
		}
	}
	list, ok := resources(name)
	if !ok || grouped == (name == "v1") {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound,
			"the server could not find the requested resource")
	}
	writeJSON(c.w, http.StatusOK, metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: name, APIResources: list,
	})
	return nil
}

// version speaks of the dialect first, since tools decide by it what they may ask.
func (s *Server) version() version.Info {
	return version.Info{
		Major: "1", Minor: "37", GitVersion: "v1.37.0+bocage-" + strings.TrimPrefix(s.config.Product, "v"), GitTreeState: "clean",
		GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// Aggregated discovery: all groups with all resources in one answer. The types
// are those of apidiscovery.k8s.io/v2, which lives in a module that nothing else
// here needs.

type groupDiscovery struct {
	Metadata metav1.ObjectMeta  `json:"metadata"`
	Versions []versionDiscovery `json:"versions"`
}

type versionDiscovery struct {
	Version   string              `json:"version"`
	Resources []resourceDiscovery `json:"resources"`
	Freshness string              `json:"freshness"`
}

type resourceDiscovery struct {
	Resource         string                  `json:"resource"`
	ResponseKind     metav1.GroupVersionKind `json:"responseKind"`
	Scope            string                  `json:"scope"`
	SingularResource string                  `json:"singularResource"`
	Verbs            []string                `json:"verbs"`
	ShortNames       []string                `json:"shortNames,omitempty"`
	Categories       []string                `json:"categories,omitempty"`
	Subresources     []subresourceDiscovery  `json:"subresources,omitempty"`
}

type subresourceDiscovery struct {
	Subresource  string                  `json:"subresource"`
	ResponseKind metav1.GroupVersionKind `json:"responseKind"`
	Verbs        []string                `json:"verbs"`
}

func wantsAggregated(accept string) bool {
	for _, part := range strings.Split(accept, ",") {
		mediaType, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err == nil && mediaType == "application/json" &&
			params["as"] == "APIGroupDiscoveryList" && params["g"] == "apidiscovery.k8s.io" && params["v"] == "v2" {
			return true
		}
	}
	return false
}

func (s *Server) writeAggregated(c *call, of []metav1.APIGroup) {
	list := struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta  `json:"metadata"`
		Items           []groupDiscovery `json:"items"`
	}{TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}}
	for _, group := range of {
		item := groupDiscovery{Metadata: metav1.ObjectMeta{Name: group.Name}}
		for _, v := range group.Versions {
			found, _ := resources(v.GroupVersion)
			item.Versions = append(item.Versions, versionDiscovery{
				Version: v.Version, Resources: aggregate(metav1.GroupVersionKind{Group: group.Name, Version: v.Version}, found), Freshness: "Current",
			})
		}
		list.Items = append(list.Items, item)
	}
	data, err := json.Marshal(list)
	if err != nil {
		writeProblem(c.w, err)
		return
	}
	c.w.Header().Set("Vary", "Accept")
	_ = c.writeDocument("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", data)
}

func aggregate(gvk metav1.GroupVersionKind, found []metav1.APIResource) []resourceDiscovery {
	var out []resourceDiscovery
	for _, r := range found {
		gvk.Kind = r.Kind
		if _, subresource, is := strings.Cut(r.Name, "/"); is {
			last := &out[len(out)-1]
			last.Subresources = append(last.Subresources, subresourceDiscovery{subresource, gvk, r.Verbs})
			continue
		}
		scope := "Cluster"
		if r.Namespaced {
			scope = "Namespaced"
		}
		out = append(out, resourceDiscovery{
			Resource: r.Name, ResponseKind: gvk, Scope: scope, SingularResource: r.SingularName,
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		})
	}
	return out
}
