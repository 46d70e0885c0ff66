package policy

import (
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// view is the mirror at one moment. Making one costs what changed since the last.
type view struct {
	// input is everything that is declared and known now.
	input       compile.Input
	tests       []*bocage.PolicyTest
	rollout     *bocage.Rollout // nil: there is none
	hosts       []*bocage.Host  // as they report now
	generations []*object
	objects     map[string][]*object // by plural, sorted by key
	revision    store.Revision
	policy      *snapshot       // what people declare as policy
	environment *snapshot       // the rest of the input: the inventory, threat conditions, quarantines
	unreadable  map[string]bool // keys of the objects that cannot be read (see unreadable.go)
}

func (m *mirror) view() view {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{revision: m.revision, objects: make(map[string][]*object, len(m.byKind)), unreadable: map[string]bool{}}
	for key := range m.unreadable {
		v.unreadable[key] = true
	}
	for plural, objects := range m.byKind {
		v.objects[plural] = objects.settled()
	}
	v.input = compile.Input{
		Applications:           inputsOf[*bocage.Application](m.byKind["applications"]),
		Guardrails:             inputsOf[*bocage.Guardrail](m.byKind["guardrails"]),
		Scopes:                 inputsOf[*bocage.Scope](m.byKind["scopes"]),
		Profiles:               inputsOf[*bocage.InspectionProfile](m.byKind["inspectionprofiles"]),
		Decoys:                 inputsOf[*bocage.Decoy](m.byKind["decoys"]),
		Quarantines:            inputsOf[*bocage.Quarantine](m.byKind["quarantines"]),
		ThreatConditions:       inputsOf[*bocage.ThreatCondition](m.byKind["threatconditions"]),
		Workloads:              inputsOf[*bocage.Workload](m.byKind["workloads"]),
		Exceptions:             inputsOf[*bocage.Exception](m.byKind["exceptions"]),
		Responses:              inputsOf[*bocage.Response](m.byKind["responses"]),
		AddressGroups:          inputsOf[*bocage.AddressGroup](m.byKind["addressgroups"]),
		Zones:                  inputsOf[*bocage.Zone](m.byKind["zones"]),
		Namespaces:             inputsOf[*bocage.Namespace](m.byKind["namespaces"]),
		NetworkPolicies:        inputsOf[*bocage.NetworkPolicy](m.byKind["networkpolicies"]),
		ClusterNetworkPolicies: inputsOf[*bocage.ClusterNetworkPolicy](m.byKind["clusternetworkpolicies"]),
		Hosts:                  inputsOf[*bocage.Host](m.byKind["hosts"]),
	}
	v.tests = inputsOf[*bocage.PolicyTest](m.byKind["policytests"])
	for _, o := range v.objects["hosts"] {
		v.hosts = append(v.hosts, o.resource.(*bocage.Host))
	}
	v.generations = v.objects["generations"]
	if rollouts := v.objects["rollouts"]; len(rollouts) > 0 {
		v.rollout = rollouts[0].resource.(*bocage.Rollout)
	}
	v.policy, v.environment = m.policies.snapshot(), m.environment.snapshot()
	return v
}

// find returns the object with a key, nil if there is none.
func (m *mirror) find(key string) *object {
	m.mu.Lock()
	defer m.mu.Unlock()
	kind, known := m.kindOf(key)
	if !known {
		return nil
	}
	return m.byKind[kind.Plural].objects[key]
}

// spec is what the rollout asks for; the zero value where there is none.
func (v view) spec() bocage.RolloutSpec {
	if v.rollout == nil || len(v.rollout.Validate()) > 0 {
		return bocage.RolloutSpec{}
	}
	return v.rollout.Spec
}

// isPolicy reports whether a kind is policy: what a rollout brings into force and a
// rollback takes back. The other kinds (the inventory, threat conditions, quarantines) are
// the environment: their present state counts, whatever policy is in force.
func isPolicy(kind string) bool {
	switch kind {
	case "Application", "Guardrail", "Scope", "InspectionProfile", "Decoy", "Exception", "Response", "AddressGroup",
		"NetworkPolicy", "ClusterNetworkPolicy":
		return true
	}
	return false
}

// withPolicy returns an input with the environment of today and another policy.
func withPolicy(today, policy compile.Input) compile.Input {
	today.Applications, today.Guardrails, today.Scopes = policy.Applications, policy.Guardrails, policy.Scopes
	today.Profiles, today.Decoys = policy.Profiles, policy.Decoys
	today.Exceptions, today.Responses, today.AddressGroups = policy.Exceptions, policy.Responses, policy.AddressGroups
	today.NetworkPolicies, today.ClusterNetworkPolicies = policy.NetworkPolicies, policy.ClusterNetworkPolicies
	return today
}

// each calls do for every object of an input.
func each(in compile.Input, do func(kind string, o bocage.Resource)) {
	walk(in.Applications, "Application", do)
	walk(in.Guardrails, "Guardrail", do)
	walk(in.Scopes, "Scope", do)
	walk(in.Profiles, "InspectionProfile", do)
	walk(in.Decoys, "Decoy", do)
	walk(in.Exceptions, "Exception", do)
	walk(in.Responses, "Response", do)
	walk(in.AddressGroups, "AddressGroup", do)
	walk(in.NetworkPolicies, "NetworkPolicy", do)
	walk(in.ClusterNetworkPolicies, "ClusterNetworkPolicy", do)
	walk(in.Quarantines, "Quarantine", do)
	walk(in.ThreatConditions, "ThreatCondition", do)
	walk(in.Workloads, "Workload", do)
	walk(in.Hosts, "Host", do)
	walk(in.Zones, "Zone", do)
	walk(in.Namespaces, "Namespace", do)
}

func walk[T bocage.Resource](list []T, kind string, do func(string, bocage.Resource)) {
	for _, o := range list {
		do(kind, o)
	}
}

// add puts a declaration or a member of the inventory into an input.
func add(in *compile.Input, resource bocage.Resource) {
	switch o := resource.(type) {
	case *bocage.Application:
		in.Applications = append(in.Applications, o)
	case *bocage.Guardrail:
		in.Guardrails = append(in.Guardrails, o)
	case *bocage.Scope:
		in.Scopes = append(in.Scopes, o)
	case *bocage.InspectionProfile:
		in.Profiles = append(in.Profiles, o)
	case *bocage.Decoy:
		in.Decoys = append(in.Decoys, o)
	case *bocage.Quarantine:
		in.Quarantines = append(in.Quarantines, o)
	case *bocage.ThreatCondition:
		in.ThreatConditions = append(in.ThreatConditions, o)
	case *bocage.Workload:
		in.Workloads = append(in.Workloads, o)
	case *bocage.Exception:
		in.Exceptions = append(in.Exceptions, o)
	case *bocage.Response:
		in.Responses = append(in.Responses, o)
	case *bocage.AddressGroup:
		in.AddressGroups = append(in.AddressGroups, o)
	case *bocage.Zone:
		in.Zones = append(in.Zones, o)
	case *bocage.Namespace:
		in.Namespaces = append(in.Namespaces, o)
	case *bocage.NetworkPolicy:
		in.NetworkPolicies = append(in.NetworkPolicies, o)
	case *bocage.ClusterNetworkPolicy:
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, o)
	case *bocage.Host:
		in.Hosts = append(in.Hosts, o)
	}
}

// specOf returns the declaration of a resource that counts for policy, nil of
// kinds that have none.
func specOf(resource bocage.Resource) any {
	switch o := resource.(type) {
	case *bocage.Application:
		return &o.Spec
	case *bocage.Guardrail:
		return &o.Spec
	case *bocage.Scope:
		return &o.Spec
	case *bocage.InspectionProfile:
		return &o.Spec
	case *bocage.Decoy:
		return &o.Spec
	case *bocage.Quarantine:
		return &o.Spec
	case *bocage.ThreatCondition:
		return &o.Spec
	case *bocage.Workload:
		return &o.Spec
	case *bocage.Exception:
		return &o.Spec
	case *bocage.Response:
		return &o.Spec
	case *bocage.AddressGroup:
		return &o.Spec
	case *bocage.Zone:
		return &o.Spec
	case *bocage.NetworkPolicy:
		return &o.Spec
	case *bocage.ClusterNetworkPolicy:
		return &o.Spec
	case *bocage.PolicyTest:
		return &o.Spec
	case *bocage.Rollout:
		return &o.Spec
	case *bocage.Host:
		return &o.Spec
	case *bocage.Namespace:
		return struct{}{} // its name and labels are all there is
	}
	return nil
}

// relevant is what policy depends on of a resource: its declaration, and of the
// metadata and the status what counts for its kind.
func relevant(resource bocage.Resource) []any {
	meta := resource.Meta()
	parts := []any{meta.Annotations[bocage.SourceAnnotation], meta.CreationTimestamp, specOf(resource)}
	switch o := resource.(type) {
	case *bocage.Workload:
		parts = append(parts, o.Labels, o.Status.Identity, o.Status.Assurance)
	case *bocage.Host, *bocage.Namespace, *bocage.Zone, *bocage.AddressGroup:
		parts = append(parts, meta.Labels)
	case *bocage.Guardrail:
		if a := o.Status.Approval; a != nil {
			parts = append(parts, o.Generation, a.Generation, a.Approved)
		}
	case *bocage.Exception:
		if a := o.Status.Approval; a != nil {
			parts = append(parts, o.Generation, a.Generation)
		}
	}
	return parts
}

// nameOf is "Kind namespace/name".
func nameOf(kind string, o bocage.Resource) string {
	return kind + " " + strings.TrimPrefix(o.Meta().NamespacedName(), "/")
}
