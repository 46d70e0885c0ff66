package explain

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// mostProfiles is how many inspection profiles can be told apart on the wire.
const mostProfiles = 4094

// admit keeps the objects that can take effect, each kind by name.
func (j *Judge) admit() {
	in := j.in
	j.in.Applications = valid(in.Applications)
	j.in.Guardrails = slices.DeleteFunc(valid(in.Guardrails), func(g *bocage.Guardrail) bool { return g.InForce() == nil })
	j.in.Scopes = valid(in.Scopes)
	j.in.Profiles = valid(in.Profiles)
	j.in.Decoys = valid(in.Decoys)
	j.in.Responses = valid(in.Responses)
	j.in.AddressGroups = valid(in.AddressGroups)
	j.in.Zones = valid(in.Zones)
	j.in.Namespaces = valid(in.Namespaces)
	j.in.NetworkPolicies = valid(in.NetworkPolicies)
	j.in.ClusterNetworkPolicies = valid(in.ClusterNetworkPolicies)
	j.in.Hosts = valid(in.Hosts)
	j.in.Quarantines = slices.DeleteFunc(valid(in.Quarantines), func(q *bocage.Quarantine) bool {
		return !q.Spec.Until.IsZero() && !in.Now.Before(q.Spec.Until)
	})
	j.in.ThreatConditions = slices.DeleteFunc(valid(in.ThreatConditions), func(t *bocage.ThreatCondition) bool {
		return !in.Now.Before(t.Spec.Expires)
	})
	j.in.Exceptions = valid(in.Exceptions)
}

// derive prepares what follows from the admitted objects.
func (j *Judge) derive() {
	j.deriveApplications()
	j.deriveProfiles()
	j.groups = map[string][]netip.Prefix{}
	for _, g := range j.in.AddressGroups {
		j.groups[g.Name] = g.Spec.Addresses
	}
	j.zones = map[string]string{}
	for _, z := range slices.Backward(j.in.Zones) { // the first by name has the last word
		for _, host := range z.Spec.Hosts {
			j.zones[host] = z.Name
		}
	}
	j.admitExceptions()
	j.deriveSpares()
}

func (j *Judge) deriveApplications() {
	j.applications = make(map[string][]*bocage.Application, len(j.in.Applications))
	for _, a := range j.in.Applications {
		j.applications[a.Namespace] = append(j.applications[a.Namespace], a)
	}
}

func (j *Judge) deriveProfiles() {
	j.profiles = make(map[string]*bocage.InspectionProfile, len(j.in.Profiles))
	for _, p := range j.in.Profiles[:min(len(j.in.Profiles), mostProfiles)] {
		j.profiles[p.Name] = p
	}
}

// deriveSpares asks of everybody whom an automated quarantine is about whether it
// has protected flows.
func (j *Judge) deriveSpares() {
	j.spares = map[string]bool{}
	for _, t := range j.in.ThreatConditions {
		if t.Spec.Level == bocage.LevelQuarantine {
			j.spares[t.Spec.Workload] = j.touched(t.Spec.Workload)
		}
	}
}

// valid returns the valid objects by name; of two of one name, either counts,
// for a store holds one.
func valid[T bocage.Resource](objects []T) []T {
	var out []T
	for _, o := range objects {
		if len(o.Validate()) == 0 {
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b T) int { return cmp.Compare(a.Meta().NamespacedName(), b.Meta().NamespacedName()) })
	return slices.CompactFunc(out, func(a, b T) bool { return a.Meta().NamespacedName() == b.Meta().NamespacedName() })
}

// place gives every address to the oldest workload that claims it. A workload
// that claims anything of an older one is nobody.
func (j *Judge) place(workloads []*bocage.Workload) {
	j.workloads = map[netip.Addr]*bocage.Workload{}
	byAge := slices.Clone(workloads)
	slices.SortStableFunc(byAge, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Status.Identity, b.Status.Identity), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var placed []*bocage.Workload
	interfaces, names, numbers := map[string]bool{}, map[string]bool{}, map[bocage.Identity]bool{}
	for _, w := range byAge {
		if w.Status.Identity < bocage.IdentityFirst || len(w.Spec.Addresses) == 0 || numbers[w.Status.Identity] || names[w.NamespacedName()] {
			continue
		}
		links := w.Spec.Interfaces()
		if slices.ContainsFunc(links, func(l bocage.WorkloadInterface) bool { return interfaces[w.Spec.Host+" "+l.Interface] }) {
			continue
		}
		if slices.ContainsFunc(w.Spec.Addresses, func(a netip.Addr) bool { return j.workloads[a] != nil }) {
			continue
		}
		numbers[w.Status.Identity], names[w.NamespacedName()] = true, true
		for _, l := range links {
			interfaces[w.Spec.Host+" "+l.Interface] = true
		}
		for _, a := range w.Spec.Addresses {
			j.workloads[a] = w
		}
		placed = append(placed, w)
	}
	j.in.Workloads = placed
}

// admitExceptions keeps those that have begun and that their guardrail admits.
func (j *Judge) admitExceptions() {
	terms := map[string]bocage.ExceptionTerms{}
	for _, g := range j.in.Guardrails {
		terms[g.Name] = g.InForce().Exceptions
	}
	j.exceptions = map[string][]*bocage.Exception{}
	for _, e := range j.in.Exceptions {
		begins := e.Begins()
		lasts := e.Spec.Until.Sub(begins)
		if begins.IsZero() {
			lasts = e.Spec.Until.Sub(j.in.Now)
		}
		t := terms[e.Spec.Guardrail]
		tooLong := t.Longest() > 0 && lasts > t.Longest()
		begun := !begins.After(j.in.Now) && j.in.Now.Before(e.Spec.Until)
		if t.Allowed && begun && !tooLong && !e.Status.Approval.Waits(e.Generation) {
			j.exceptions[e.Spec.Guardrail] = append(j.exceptions[e.Spec.Guardrail], e)
		}
	}
}
