package bocage

import "slices"

// Newcomers is an enforcing Scope as an agent needs it for an interface whose workload is
// not in the inventory yet. The agent applies it by the namespace and the labels that its
// host has discovered.
type Newcomers struct {
	Namespaces []string `json:"namespaces,omitempty"` // none: every namespace
	Workload   Selector `json:"workload,omitzero"`
}

// Picks reports whether the scope picks a workload of the namespace with these labels.
func (n Newcomers) Picks(namespace string, labels map[string]string) bool {
	return (len(n.Namespaces) == 0 || slices.Contains(n.Namespaces, namespace)) && n.Workload.Matches(labels)
}

// NewcomersOn reduces a scope to what it asks of workloads on a host in a zone (empty:
// none). Its requirements on host and zone are evaluated here, so that only those on
// namespaces and other labels are left. It is false if the scope enforces nothing there.
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
