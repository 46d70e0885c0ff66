package bocage

import "slices"

// Newcomers is a Scope that enforces, as an agent needs it for an interface that
// nobody vouches for yet: by what its host knows of who may be behind it.
type Newcomers struct {
	Namespaces []string `json:"namespaces,omitempty"` // none: every namespace
	Workload   Selector `json:"workload,omitzero"`
}

// Means says whether the scope picks a workload of the namespace with these labels.
func (n Newcomers) Means(namespace string, labels map[string]string) bool {
	return (len(n.Namespaces) == 0 || slices.Contains(n.Namespaces, namespace)) && n.Workload.Matches(labels)
}

// NewcomersOn tells what a scope means for newcomers on a host in a zone (empty:
// none): what it asks of host and zone is answered, so that only what is not known
// yet is left to ask. It is false for a scope that enforces nothing there.
func NewcomersOn(scope *Scope, host, zone string) (Newcomers, bool) {
	if scope.Spec.Mode != ModeEnforce {
		return Newcomers{}, false
	}
	known := map[string]string{LabelHost: host}
	if zone != "" {
		known[LabelZone] = zone
	}
	left := Newcomers{Namespaces: scope.Spec.Namespaces}
	for key, want := range scope.Spec.Workload.MatchLabels {
		if key != LabelHost && key != LabelZone {
			if left.Workload.MatchLabels == nil {
				left.Workload.MatchLabels = map[string]string{}
			}
			left.Workload.MatchLabels[key] = want
		} else if have, is := known[key]; !is || have != want {
			return Newcomers{}, false
		}
	}
	for _, r := range scope.Spec.Workload.MatchExpressions {
		if r.Key != LabelHost && r.Key != LabelZone {
			left.Workload.MatchExpressions = append(left.Workload.MatchExpressions, r)
		} else if !(Selector{MatchExpressions: []Requirement{r}}).Matches(known) {
			return Newcomers{}, false
		}
	}
	return left, true
}
