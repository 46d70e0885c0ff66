package bocage

import (
	"fmt"
	"net/netip"
	"slices"
)

// Labels that every workload carries besides its own.
const (
	LabelNamespace = "bocage.dev/namespace"
	LabelName      = "bocage.dev/name"
	LabelHost      = "bocage.dev/host"      // where it is placed
	LabelZone      = "bocage.dev/zone"      // of its host, where a Zone names that
	LabelAssurance = "bocage.dev/assurance" // L0 to L5: how its identity is vouched for
)

// Selector picks workloads by label, as Kubernetes' LabelSelector does. An empty
// selector picks every workload that its place allows.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
}

// Requirement compares one label. NotIn and DoesNotExist also match where the
// key is absent, as in Kubernetes.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // In, NotIn, Exists, DoesNotExist
	Values   []string `json:"values,omitempty"`
}

// Matches reports whether labels satisfy the selector.
func (s Selector) Matches(labels map[string]string) bool {
	for key, want := range s.MatchLabels {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		if !r.matches(labels) {
			return false
		}
	}
	return true
}

func (r Requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.Key]
	switch r.Operator {
	case "In":
		return ok && slices.Contains(r.Values, value)
	case "NotIn":
		return !ok || !slices.Contains(r.Values, value)
	case "Exists":
		return ok
	case "DoesNotExist":
		return !ok
	default:
		return false
	}
}

// Validate returns the selector's faults, paths relative to it.
func (s Selector) Validate() Faults {
	faults := validateLabels(s.MatchLabels).Under("matchLabels")
	for i, r := range s.MatchExpressions {
		at := fmt.Sprintf("matchExpressions[%d]", i)
		faults = append(faults, validateLabelKey(r.Key).Under(at+".key")...)
		switch r.Operator {
		case "In", "NotIn":
			if len(r.Values) == 0 {
				faults.Add(at+".values", "%s needs at least one value", r.Operator)
			}
		case "Exists", "DoesNotExist":
			if len(r.Values) > 0 {
				faults.Add(at+".values", "%s takes no values", r.Operator)
			}
		default:
			faults.Add(at+".operator", "%q is not In, NotIn, Exists or DoesNotExist", r.Operator)
		}
	}
	return faults
}

// Side is one end of a flow in a corporate declaration. Its parts are
// conditions that must all hold; an empty Side is everyone, the world included.
type Side struct {
	// Namespaces restricts the side to workloads of these namespaces.
	Namespaces []string `json:"namespaces,omitempty"`
	// Workload restricts it to workloads whose labels match.
	Workload *Selector `json:"workload,omitempty"`
	// Data restricts it to interfaces that offer one of these data classes; it
	// makes sense on the receiving side only.
	Data []string `json:"data,omitempty"`
	// External names addresses outside the inventory; it excludes the other parts.
	External []netip.Prefix `json:"external,omitempty"`
	// AddressGroups names AddressGroups, which add to External.
	AddressGroups []string `json:"addressGroups,omitempty"`
}

// everyone reports whether the side narrows nothing.
func (s Side) everyone() bool {
	return len(s.Namespaces) == 0 && (s.Workload == nil || len(s.Workload.MatchLabels) == 0 && len(s.Workload.MatchExpressions) == 0) &&
		len(s.Data) == 0 && !s.Outside()
}

// Outside reports whether the side names addresses outside the inventory.
func (s Side) Outside() bool { return len(s.External) > 0 || len(s.AddressGroups) > 0 }

// Validate returns the side's faults, paths relative to it.
func (s Side) Validate() Faults {
	var faults Faults
	for i, ns := range s.Namespaces {
		if !isDNSLabel(ns) {
			faults.Add(fmt.Sprintf("namespaces[%d]", i), "%q is not a namespace", ns)
		}
	}
	if s.Workload != nil {
		faults = append(faults, s.Workload.Validate().Under("workload")...)
	}
	for i, class := range s.Data {
		if !isDNSLabel(class) {
			faults.Add(fmt.Sprintf("data[%d]", i), "%q is not a data class: a lower-case DNS label", class)
		}
	}
	faults = append(faults, validatePrefixes(s.External).Under("external")...)
	for i, name := range s.AddressGroups {
		if !isDNSSubdomain(name) {
			faults.Add(fmt.Sprintf("addressGroups[%d]", i), "%q is not the name of an AddressGroup", name)
		}
	}
	if s.Outside() && (len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0) {
		faults.Add("external", "addresses outside the inventory have no namespace, label or data class: use two entries")
	}
	return faults
}

func validatePrefixes(prefixes []netip.Prefix) Faults {
	var faults Faults
	for i, p := range prefixes {
		switch at := fmt.Sprintf("[%d]", i); {
		case !p.IsValid():
			faults.Add(at, "is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32")
		case p != p.Masked():
			faults.Add(at, "%s has bits set beyond its length: write %s", p, p.Masked())
		}
	}
	return faults
}
