package plan

import (
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
)

// Merge returns the input with the objects declared at a moment, those with a
// deletionTimestamp taken away. What only the system writes is kept of what is
// there; what waits for a second person counts as approved.
func Merge(in compile.Input, objects []bocage.Resource, now time.Time) compile.Input {
	changes := make([]explain.Change, len(objects))
	for i, object := range objects {
		changes[i] = explain.Change{Object: inheriting(in, object, now), Delete: deleted(object)}
	}
	before := in.Workloads
	in = explain.Apply(in, changes)
	in.Workloads = numbered(before, in.Workloads)
	in.Now = now
	return in
}

// inheriting gives a planned object what is not its author's to say.
func inheriting(in compile.Input, object bocage.Resource, now time.Time) bocage.Resource {
	switch o := object.(type) {
	case *bocage.Workload:
		copied := *o
		copied.Status = bocage.WorkloadStatus{}
		if old, known, _ := find(in, object); known {
			copied.Status = old.(*bocage.Workload).Status
		}
		return &copied
	case *bocage.Guardrail:
		copied := *o
		copied.Status.Approval = nil
		return &copied
	case *bocage.Exception:
		copied := *o
		copied.Status.Approval, copied.CreationTimestamp = nil, &now
		if old, known, _ := find(in, object); known && old.Meta().CreationTimestamp != nil {
			copied.CreationTimestamp = old.Meta().CreationTimestamp
		}
		return &copied
	}
	return object
}

// find returns the declared object of the same kind and name; read says whether
// policy reads that kind at all.
func find(in compile.Input, object bocage.Resource) (found bocage.Resource, known, read bool) {
	for _, look := range []func() (bocage.Resource, bool, bool){
		lookIn(in.Applications, object), lookIn(in.Guardrails, object), lookIn(in.Scopes, object), lookIn(in.Profiles, object),
		lookIn(in.Decoys, object), lookIn(in.Quarantines, object), lookIn(in.ThreatConditions, object), lookIn(in.Workloads, object),
		lookIn(in.Exceptions, object), lookIn(in.Responses, object), lookIn(in.AddressGroups, object), lookIn(in.Zones, object),
		lookIn(in.Namespaces, object), lookIn(in.NetworkPolicies, object), lookIn(in.ClusterNetworkPolicies, object), lookIn(in.Hosts, object),
	} {
		if found, known, read = look(); read {
			return found, known, read
		}
	}
	return nil, false, false
}

func lookIn[T bocage.Resource](list []T, object bocage.Resource) func() (bocage.Resource, bool, bool) {
	return func() (bocage.Resource, bool, bool) {
		if _, is := object.(T); !is {
			return nil, false, false
		}
		want := object.Meta()
		i := slices.IndexFunc(list, func(o T) bool { return o.Meta().Name == want.Name && o.Meta().Namespace == want.Namespace })
		if i < 0 {
			return nil, false, true
		}
		return list[i], true, true
	}
}

// numbered gives workloads that are new a number that nobody has, as the api room
// would.
func numbered(before, after []*bocage.Workload) []*bocage.Workload {
	next := bocage.IdentityFirst
	for _, w := range before {
		next = max(next, w.Status.Identity+1)
	}
	out := slices.Clone(after)
	for i, w := range out {
		if w.Status.Identity < bocage.IdentityFirst {
			copied := *w
			copied.Status.Identity, next = next, next+1
			out[i] = &copied
		}
	}
	return out
}

// mergeTests puts the planned PolicyTests in the place of those of the same name.
func mergeTests(tests []*bocage.PolicyTest, objects []bocage.Resource) []*bocage.PolicyTest {
	var out []*bocage.PolicyTest
	planned := map[string]bool{}
	for _, object := range objects {
		if t, is := object.(*bocage.PolicyTest); is {
			planned[t.NamespacedName()] = true
			if !deleted(t) {
				out = append(out, t)
			}
		}
	}
	for _, t := range tests {
		if !planned[t.NamespacedName()] && len(t.Validate()) == 0 {
			out = append(out, t)
		}
	}
	return out
}
