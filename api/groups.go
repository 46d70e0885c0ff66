package api

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Group is the API group of our own kinds, and Version its version.
const (
	Group   = "bocage.dev"
	Version = "v1"
)

const (
	resourcesPath = "/apis/" + Group + "/" + Version
	corePath      = "/api/v1"
)

// versionPath is the path of a group version: Kubernetes' core group has one of
// its own.
func versionPath(apiVersion string) string {
	if !strings.Contains(apiVersion, "/") {
		return "/api/" + apiVersion
	}
	return "/apis/" + apiVersion
}

// qualified is a kind's plural with its group, as messages name it.
func qualified(kind bocage.Kind) string { return withGroup(kind.Plural, kind) }

func withGroup(name string, kind bocage.Kind) string {
	if group := kind.Group(); group != "" {
		return name + "." + group
	}
	return name
}

// groupVersions lists those that hold kinds, ours first and the core last.
var groupVersions = sync.OnceValue(func() []string {
	var out []string
	for _, kind := range bocage.Kinds() {
		for _, version := range kind.Versions() {
			if !slices.Contains(out, version) {
				out = append(out, version)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return rank(a) - rank(b) })
	return slices.Clip(out)
})

func rank(apiVersion string) int {
	switch {
	case apiVersion == bocage.APIVersion:
		return 0
	case strings.Contains(apiVersion, "/"):
		return 1
	default:
		return 2
	}
}

// groups lists the named API groups that exist, ours first. Of several versions the
// one that objects are kept in is preferred.
func groups() []metav1.APIGroup {
	var out []metav1.APIGroup
	for _, groupVersion := range append(groupVersions(), "authorization.k8s.io/v1", "authentication.k8s.io/v1") {
		name, v, named := strings.Cut(groupVersion, "/")
		if !named {
			continue
		}
		version := metav1.GroupVersionForDiscovery{GroupVersion: groupVersion, Version: v}
		if i := slices.IndexFunc(out, func(g metav1.APIGroup) bool { return g.Name == name }); i >= 0 {
			out[i].Versions = append(out[i].Versions, version)
			continue
		}
		out = append(out, metav1.APIGroup{
			TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"},
			Name:     name, Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
		})
	}
	return out
}

// kindOf finds a kind by its group version and plural.
func (s *Server) kindOf(apiVersion, plural string) (bocage.Kind, bool) {
	kind, ok := s.kinds[plural]
	return kind, ok && kind.Reads(apiVersion)
}

// kindsIn lists the kinds of a group version, as they are in it.
func kindsIn(groupVersion string) []bocage.Kind {
	var out []bocage.Kind
	for _, kind := range bocage.Kinds() {
		if kind.Reads(groupVersion) {
			out = append(out, kind.In(groupVersion))
		}
	}
	return out
}

// versionIn cuts the group version off a path; ok is false if the path leads to
// no kind.
func versionIn(path string) (apiVersion string, rest []string, ok bool) {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2 && parts[2] != "":
		return parts[1], parts[2:], true
	case parts[0] == "apis" && len(parts) > 3 && parts[3] != "":
		return parts[1] + "/" + parts[2], parts[3:], true
	}
	return "", nil, false
}

// isResource says whether a path lies under a group version that holds kinds.
func isResource(path string) bool {
	apiVersion, _, ok := versionIn(path)
	return ok && slices.Contains(groupVersions(), apiVersion)
}

// hasStatus says whether objects of a kind have a status to speak of.
func hasStatus(kind bocage.Kind) bool {
	_, ok := reflect.TypeOf(kind.New()).Elem().FieldByName("Status")
	return ok
}
