package compile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// revision is part of every digest: raise it when the same objects compile to
// something else than before, so that a new program publishes a new generation.
const revision = "bocage policy 4\n"

// admitted is the input in canonical order, without what cannot take effect.
type admitted struct {
	applications     []*bocage.Application
	guardrails       []*bocage.Guardrail
	scopes           []*bocage.Scope
	profiles         []*bocage.InspectionProfile
	decoys           []*bocage.Decoy
	quarantines      []*bocage.Quarantine
	threatConditions []*bocage.ThreatCondition
	exceptions       []*bocage.Exception
	responses        []*bocage.Response
	addressGroups    []*bocage.AddressGroup
	zones            []*bocage.Zone
	namespaces       []*bocage.Namespace
	hosts            []*bocage.Host
	// Kubernetes' own, sorted by name.
	networkPolicies        []*bocage.NetworkPolicy
	clusterNetworkPolicies []*bocage.ClusterNetworkPolicy

	inventory

	digest   string
	expires  time.Time
	faults   bocage.Faults
	findings findings

	last  Input // the lists as they were given, and when
	parts [kindCount]part
	rolls rolls
}

// part is what came of the objects of one kind.
type part struct {
	sum      [sha256.Size]byte // of what was admitted
	expires  time.Time
	faults   bocage.Faults
	findings findings
}

// rolls keep what is known of the objects of each kind that was given.
type rolls struct {
	applications           roll[*bocage.Application]
	guardrails             roll[*bocage.Guardrail]
	scopes                 roll[*bocage.Scope]
	profiles               roll[*bocage.InspectionProfile]
	decoys                 roll[*bocage.Decoy]
	quarantines            roll[*bocage.Quarantine]
	threatConditions       roll[*bocage.ThreatCondition]
	exceptions             roll[*bocage.Exception]
	responses              roll[*bocage.Response]
	addressGroups          roll[*bocage.AddressGroup]
	zones                  roll[*bocage.Zone]
	namespaces             roll[*bocage.Namespace]
	networkPolicies        roll[*bocage.NetworkPolicy]
	clusterNetworkPolicies roll[*bocage.ClusterNetworkPolicy]
	hosts                  roll[*bocage.Host]
}

// admit takes an input in and says of which kinds other objects count than
// before. Lists in which nothing changed cost a comparison of pointers.
func (a *admitted) admit(in Input) kinds {
	var changed kinds
	first := a.digest == ""
	// ended reports whether time alone admits other objects of a kind.
	ended := func(k kinds) bool {
		end := a.parts[k.index()].expires
		return in.Now.Before(a.last.Now) || !end.IsZero() && !in.Now.Before(end)
	}
	look := func(k kinds, same bool, take func(digest hash.Hash)) {
		if !first && same {
			return
		}
		a.findings, a.faults, a.expires = nil, nil, time.Time{}
		digest := sha256.New()
		take(digest)
		was := &a.parts[k.index()]
		now := part{expires: a.expires, faults: a.faults, findings: a.findings}
		digest.Sum(now.sum[:0])
		if first || now.sum != was.sum {
			changed |= k
		}
		*was = now
	}
	take(a, look, kindApplication, &a.applications, &a.rolls.applications, &a.last.Applications, in.Applications, false, nil,
		func(o *bocage.Application) any { return &o.Spec })
	sameGuardrails := slices.Equal(a.last.Guardrails, in.Guardrails)
	take(a, look, kindGuardrail, &a.guardrails, &a.rolls.guardrails, &a.last.Guardrails, in.Guardrails, false,
		a.inForce, func(o *bocage.Guardrail) any { return &o.Spec })
	take(a, look, kindScope, &a.scopes, &a.rolls.scopes, &a.last.Scopes, in.Scopes, false, nil, func(o *bocage.Scope) any { return &o.Spec })
	take(a, look, kindProfile, &a.profiles, &a.rolls.profiles, &a.last.Profiles, in.Profiles, false, nil, func(o *bocage.InspectionProfile) any { return &o.Spec })
	take(a, look, kindDecoy, &a.decoys, &a.rolls.decoys, &a.last.Decoys, in.Decoys, false, nil, func(o *bocage.Decoy) any { return &o.Spec })
	take(a, look, kindQuarantine, &a.quarantines, &a.rolls.quarantines, &a.last.Quarantines, in.Quarantines, ended(kindQuarantine),
		func(list []*bocage.Quarantine) []*bocage.Quarantine {
			return unexpired(a, "Quarantine", in.Now, list, func(o *bocage.Quarantine) time.Time { return o.Spec.Until })
		}, func(o *bocage.Quarantine) any { return &o.Spec })
	take(a, look, kindThreatCondition, &a.threatConditions, &a.rolls.threatConditions, &a.last.ThreatConditions, in.ThreatConditions, ended(kindThreatCondition),
		func(list []*bocage.ThreatCondition) []*bocage.ThreatCondition {
			return unexpired(a, "ThreatCondition", in.Now, list, func(o *bocage.ThreatCondition) time.Time { return o.Spec.Expires })
		}, func(o *bocage.ThreatCondition) any { return &o.Spec })
	// An exception that was never begun lasts from now.
	floating := slices.ContainsFunc(in.Exceptions, func(e *bocage.Exception) bool { return e.Begins().IsZero() })
	take(a, look, kindException, &a.exceptions, &a.rolls.exceptions, &a.last.Exceptions, in.Exceptions,
		ended(kindException) || !sameGuardrails || floating && !in.Now.Equal(a.last.Now),
		func(list []*bocage.Exception) []*bocage.Exception { return a.admitExceptions(list, in.Now) },
		func(o *bocage.Exception) any { return &o.Spec })
	take(a, look, kindResponse, &a.responses, &a.rolls.responses, &a.last.Responses, in.Responses, false, nil, func(o *bocage.Response) any { return &o.Spec })
	take(a, look, kindAddressGroup, &a.addressGroups, &a.rolls.addressGroups, &a.last.AddressGroups, in.AddressGroups, false, nil,
		func(o *bocage.AddressGroup) any { return &o.Spec })
	take(a, look, kindZone, &a.zones, &a.rolls.zones, &a.last.Zones, in.Zones, false, nil, func(o *bocage.Zone) any { return &o.Spec })
	take(a, look, kindNamespace, &a.namespaces, &a.rolls.namespaces, &a.last.Namespaces, in.Namespaces, false, nil,
		func(o *bocage.Namespace) any { return o.Labels })
	take(a, look, kindNetworkPolicy, &a.networkPolicies, &a.rolls.networkPolicies, &a.last.NetworkPolicies, in.NetworkPolicies, false, nil,
		func(o *bocage.NetworkPolicy) any { return &o.Spec })
	take(a, look, kindClusterNetworkPolicy, &a.clusterNetworkPolicies, &a.rolls.clusterNetworkPolicies,
		&a.last.ClusterNetworkPolicies, in.ClusterNetworkPolicies, false, nil, func(o *bocage.ClusterNetworkPolicy) any { return &o.Spec })
	take(a, look, kindHost, &a.hosts, &a.rolls.hosts, &a.last.Hosts, in.Hosts, false, nil, func(o *bocage.Host) any {
		return struct {
			Labels    map[string]string
			Addresses []netip.Addr
			Wires     []bocage.Wire
		}{o.Labels, o.Spec.Addresses, o.Spec.Wires}
	})
	a.replaced, a.retold = a.replaced[:0], a.retold[:0]
	look(kindWorkload, slices.Equal(a.last.Workloads, in.Workloads), func(digest hash.Hash) {
		a.takeWorkloads(a.last.Workloads, in.Workloads)
		a.last.Workloads = slices.Clone(in.Workloads)
		a.inventory.digest(digest)
	})
	a.last.Now = in.Now
	a.gather()
	return changed
}

// gather joins what came of each kind.
func (a *admitted) gather() {
	digest := sha256.New()
	digest.Write([]byte(revision))
	a.findings, a.faults, a.expires = nil, nil, time.Time{}
	for i := range a.parts {
		p := &a.parts[i]
		digest.Write(p.sum[:])
		a.findings, a.faults = append(a.findings, p.findings...), append(a.faults, p.faults...)
		if !p.expires.IsZero() {
			a.changesAt(p.expires)
		}
	}
	for _, faults := range a.inventory.faults {
		a.faults = append(a.faults, faults...)
	}
	slices.SortFunc(a.faults, compareFaults)
	a.digest = hex.EncodeToString(digest.Sum(nil))
}

// unexpired leaves out what has ended and notes when the next of the rest will.
func unexpired[T bocage.Resource](a *admitted, kind string, now time.Time, objects []T, until func(T) time.Time) []T {
	var out []T
	for _, o := range objects {
		end := until(o)
		switch {
		case end.IsZero():
		case !now.Before(end):
			a.findings.note(Ref(kind, o, ""), Expired, "ended at %s", end.UTC().Format(time.RFC3339))
			continue
		default:
			a.changesAt(end)
		}
		out = append(out, o)
	}
	return out
}

// roll is what is known of the objects of one kind: those that were given, in
// their order, and those that count, in the order of their names.
type roll[T comparable] struct {
	given, admitted []*record[T]
	sums            []byte // of the admitted ones
	plain           bool   // those given are those admitted, in the same order
}

type record[T comparable] struct {
	object T
	name   string
	sum    [sha256.Size]byte
	faults bocage.Faults
}

// take admits the objects of one kind, if they may be others than before. pick
// leaves out those that do not count for now.
func take[T resource](a *admitted, look func(kinds, bool, func(hash.Hash)), k kinds, admitted *[]T, r *roll[T], last *[]T, given []T, again bool,
	pick func([]T) []T, spec func(T) any) {
	look(k, !again && slices.Equal(*last, given), func(digest hash.Hash) {
		*last = slices.Clone(given) // the caller may change its list
		if pick != nil {
			given = pick(given)
		}
		objects := slices.Clone(*admitted)
		if !replace(r, k, given, objects, spec) {
			admitRoll(r, a, k, given, spec)
			objects = make([]T, len(r.admitted))
			for i, e := range r.admitted {
				objects[i] = e.object
			}
		}
		*admitted = objects
		digest.Write(r.sums)
	})
}

type resource interface {
	comparable
	bocage.Resource
}

// replace takes over a list in which some objects have become others of the same
// name, and reports whether that is all that happened.
func replace[T resource](r *roll[T], k kinds, given, objects []T, spec func(T) any) bool {
	if !r.plain || len(given) != len(r.given) || len(objects) != len(given) {
		return false
	}
	for i, o := range given {
		if r.given[i].object == o {
			continue
		}
		e := examine(k, o, spec)
		if len(e.faults) > 0 || e.name != r.given[i].name {
			return false
		}
		r.given[i] = e
		if e.sum != r.admitted[i].sum { // of two objects with equal content the older one stays
			r.admitted[i], objects[i] = e, o
			copy(r.sums[i*sha256.Size:], e.sum[:])
		}
	}
	return true
}

// admitRoll validates, sorts and digests. What is known of an object is not found
// out again, and of two objects with equal content the older one stays.
func admitRoll[T resource](r *roll[T], a *admitted, k kinds, given []T, spec func(T) any) {
	old := r.given
	first, last := 0, 0
	for first < len(old) && first < len(given) && old[first].object == given[first] {
		first++
	}
	for last < len(old)-first && last < len(given)-first && old[len(old)-1-last].object == given[len(given)-1-last] {
		last++
	}
	entries := make([]*record[T], 0, len(given))
	entries = append(entries, old[:first]...)
	for _, o := range given[first : len(given)-last] {
		entries = append(entries, examine(k, o, spec))
	}
	entries = append(entries, old[len(old)-last:]...)
	r.given, r.plain = entries, true

	valid := make([]*record[T], 0, len(entries))
	for _, e := range entries {
		if len(e.faults) > 0 {
			a.refuse(k.String(), e.object, slices.Clone(e.faults))
			r.plain = false
			continue
		}
		valid = append(valid, e)
	}
	if !slices.IsSortedFunc(valid, func(x, y *record[T]) int { return cmp.Compare(x.name, y.name) }) {
		r.plain = false
	}
	slices.SortStableFunc(valid, func(x, y *record[T]) int {
		if order := cmp.Compare(x.name, y.name); order != 0 {
			return order
		}
		return bytes.Compare(x.sum[:], y.sum[:])
	})
	// A store holds one object per name; of two, the same one counts everywhere.
	before := r.admitted
	r.admitted, r.sums = make([]*record[T], 0, len(valid)), make([]byte, 0, len(valid)*sha256.Size)
	for i, e := range valid {
		if i > 0 && valid[i-1].name == e.name {
			r.plain = false
			continue
		}
		for len(before) > 0 && before[0].name < e.name {
			before = before[1:]
		}
		if len(before) > 0 && before[0].name == e.name && before[0].sum == e.sum {
			e = before[0]
		}
		r.admitted, r.sums = append(r.admitted, e), append(r.sums, e.sum[:]...)
	}
}

// examine finds out about one object.
func examine[T resource](k kinds, o T, spec func(T) any) *record[T] {
	e := &record[T]{object: o, name: o.Meta().NamespacedName(), faults: o.Validate()}
	if len(e.faults) > 0 {
		return e
	}
	content, err := json.Marshal(spec(o))
	if err != nil {
		e.faults = bocage.Faults{{Field: "spec", Message: err.Error()}}
		return e
	}
	var b []byte
	for _, text := range []string{k.String(), e.name, o.Meta().Annotations[bocage.SourceAnnotation]} {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	e.sum = sha256.Sum256(append(b, content...))
	return e
}

func (a *admitted) refuse(kind string, o bocage.Resource, faults bocage.Faults) {
	a.faults = append(a.faults, refused(&a.findings, kind, o, faults)...)
	slices.SortFunc(a.faults, compareFaults)
}

// refused tells the author of an object of its faults, and returns them with the
// object's name.
func refused(findings *findings, kind string, o bocage.Resource, faults bocage.Faults) bocage.Faults {
	ref := Ref(kind, o, "")
	slices.SortFunc(faults, compareFaults)
	findings.reject(ref, Invalid, "%s", faults.Error())
	out := make(bocage.Faults, 0, len(faults))
	for _, f := range faults {
		f.Field, f.Source = kind+" "+o.Meta().NamespacedName()+" "+f.Field, ref.Source
		out = append(out, f)
	}
	return out
}

func compareFaults(x, y bocage.Fault) int {
	return cmp.Or(cmp.Compare(x.Field, y.Field), cmp.Compare(x.Message, y.Message), cmp.Compare(x.Source, y.Source))
}
