package explain

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Change puts an object in the place of the one of its kind and name, or takes
// it away.
type Change struct {
	Object bocage.Resource
	Delete bool
}

// Apply returns the input with the changes made, one after the other. Neither
// the input nor its objects are touched.
func Apply(in compile.Input, changes []Change) compile.Input {
	in.Applications = changed(in.Applications, changes)
	in.Guardrails = changed(in.Guardrails, changes)
	in.Scopes = changed(in.Scopes, changes)
	in.Profiles = changed(in.Profiles, changes)
	in.Decoys = changed(in.Decoys, changes)
	in.Quarantines = changed(in.Quarantines, changes)
	in.ThreatConditions = changed(in.ThreatConditions, changes)
	in.Workloads = changed(in.Workloads, changes)
	in.Exceptions = changed(in.Exceptions, changes)
	in.Responses = changed(in.Responses, changes)
	in.AddressGroups = changed(in.AddressGroups, changes)
	in.Zones = changed(in.Zones, changes)
	in.Namespaces = changed(in.Namespaces, changes)
	in.NetworkPolicies = changed(in.NetworkPolicies, changes)
	in.ClusterNetworkPolicies = changed(in.ClusterNetworkPolicies, changes)
	in.Hosts = changed(in.Hosts, changes)
	return in
}

// changed makes the changes that are of the list's kind. It looks every name up
// once, so that many changes of a long list cost no more than the list.
func changed[T bocage.Resource](list []T, changes []Change) []T {
	if !slices.ContainsFunc(changes, func(c Change) bool { _, is := c.Object.(T); return is }) {
		return list
	}
	if len(changes) == 1 {
		return changedOnce(list, changes[0])
	}
	type name struct{ namespace, name string }
	at := make(map[name]int, len(list))
	out := slices.Clone(list)
	gone := make([]bool, len(out), len(out)+len(changes))
	for i, o := range out {
		at[name{o.Meta().Namespace, o.Meta().Name}] = i
	}
	for _, c := range changes {
		o, is := c.Object.(T)
		if !is {
			continue
		}
		key := name{o.Meta().Namespace, o.Meta().Name}
		i, known := at[key]
		switch {
		case known:
			out[i], gone[i] = o, c.Delete
		case !c.Delete:
			at[key] = len(out)
			out, gone = append(out, o), append(gone, false)
		}
	}
	kept := out[:0]
	for i, o := range out {
		if !gone[i] {
			kept = append(kept, o)
		}
	}
	return kept
}

// changedOnce makes one change that is of the list's kind.
func changedOnce[T bocage.Resource](list []T, c Change) []T {
	o := c.Object.(T)
	i := len(list) - 1 // of two of one name the last counts
	for i >= 0 && (list[i].Meta().Name != o.Meta().Name || list[i].Meta().Namespace != o.Meta().Namespace) {
		i--
	}
	out := make([]T, 0, len(list)+1)
	switch {
	case i < 0 && c.Delete:
		return append(out, list...)
	case i < 0:
		return append(append(out, list...), o)
	case !c.Delete:
		out = append(out, list...)
		out[i] = o
		return out
	}
	return append(append(out, list[:i]...), list[i+1:]...)
}

// with returns a judge of the changed objects. Only what changed is read again.
func (j *Judge) with(changes []Change) *Judge {
	next := *j
	effective := make([]Change, len(changes))
	for i, c := range changes {
		effective[i] = Change{c.Object, c.Delete || !j.isValid(c.Object)}
	}
	next.in = Apply(j.in, effective)
	var applications, profiles, others, places, policies, exceptions bool
	for _, c := range changes {
		switch c.Object.(type) {
		case *bocage.Application:
			applications = true
			sorted(&next.in.Applications)
		case *bocage.Guardrail:
			exceptions = true
			sorted(&next.in.Guardrails)
			next.in.Guardrails = slices.DeleteFunc(next.in.Guardrails, func(g *bocage.Guardrail) bool { return g.InForce() == nil })
		case *bocage.InspectionProfile:
			profiles = true
			sorted(&next.in.Profiles)
		case *bocage.Exception:
			exceptions = true
			sorted(&next.in.Exceptions)
		case *bocage.Scope:
			sorted(&next.in.Scopes)
		case *bocage.Workload:
			places = true
		case *bocage.NetworkPolicy, *bocage.ClusterNetworkPolicy:
			policies = true
		case *bocage.Quarantine, *bocage.ThreatCondition:
		default:
			others = true
		}
	}
	if places {
		next.place(next.in.Workloads)
	}
	if others {
		next.zones = nil // they may be others
	}
	if policies {
		next.kubernetes = next.newEvaluator()
	}
	switch {
	case others:
		next.derive()
		return &next
	case applications:
		next.deriveApplications()
	}
	if profiles {
		next.deriveProfiles()
	}
	if exceptions {
		next.admitExceptions()
	}
	if len(next.in.ThreatConditions)+len(next.spares) > 0 {
		next.deriveSpares()
	}
	return &next
}

// About returns a judge of flows between a few workloads, which is given only what
// can have a say there: their applications, the policies that select them, their
// namespaces and hosts, all of them valid. Everything else is the receiver's, read
// only once. Labels that are known are not put together again.
func (j *Judge) About(part compile.Input, known ...Known) *Judge {
	next := *j
	next.known = known
	next.in.Applications, next.in.NetworkPolicies, next.in.Namespaces, next.in.Hosts = part.Applications, part.NetworkPolicies, part.Namespaces, part.Hosts
	sorted(&next.in.Applications)
	sorted(&next.in.NetworkPolicies)
	next.place(part.Workloads)
	next.kubernetes = next.newEvaluator()
	next.deriveApplications()
	if len(next.in.ThreatConditions)+len(next.spares) > 0 {
		next.deriveSpares()
	}
	return &next
}

// sorted sorts a copy of the list by name, if it is not in order.
func sorted[T bocage.Resource](list *[]T) {
	byName := func(a, b T) int { return cmp.Compare(a.Meta().NamespacedName(), b.Meta().NamespacedName()) }
	if !slices.IsSortedFunc(*list, byName) {
		*list = slices.Clone(*list)
		slices.SortStableFunc(*list, byName)
	}
}
