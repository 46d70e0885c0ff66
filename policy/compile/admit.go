package compile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// revision is part of every digest: raise it when the same objects compile to
// something else than before, so that a new program publishes a new generation.
const revision = "bocage policy 2\n"

// admitted is the input in canonical order, without what cannot take effect.
type admitted struct {
	applications     []*bocage.Application
	guardrails       []*bocage.Guardrail
	scopes           []*bocage.Scope
	profiles         []*bocage.InspectionProfile
	decoys           []*bocage.Decoy
	quarantines      []*bocage.Quarantine
	threatConditions []*bocage.ThreatCondition
	workloads        []*bocage.Workload
	exceptions       []*bocage.Exception
	responses        []*bocage.Response
	addressGroups    []*bocage.AddressGroup
	zones            []*bocage.Zone
	namespaces       []*bocage.Namespace
	hosts            []*bocage.Host
	// Kubernetes' own, sorted by name.
	networkPolicies        []*bocage.NetworkPolicy
	clusterNetworkPolicies []*bocage.ClusterNetworkPolicy

	addresses map[netip.Addr]*bocage.Workload // whose they are

	digest   string
	expires  time.Time
	faults   bocage.Faults
	findings findings
}

func admit(in Input) *admitted {
	a := &admitted{}
	digest := sha256.New()
	digest.Write([]byte(revision))
	a.applications = admitKind(a, digest, "Application", in.Applications, func(o *bocage.Application) any { return &o.Spec })
	a.guardrails = admitKind(a, digest, "Guardrail", a.inForce(in.Guardrails), func(o *bocage.Guardrail) any { return &o.Spec })
	a.scopes = admitKind(a, digest, "Scope", in.Scopes, func(o *bocage.Scope) any { return &o.Spec })
	a.profiles = admitKind(a, digest, "InspectionProfile", in.Profiles, func(o *bocage.InspectionProfile) any { return &o.Spec })
	a.decoys = admitKind(a, digest, "Decoy", in.Decoys, func(o *bocage.Decoy) any { return &o.Spec })
	a.quarantines = admitKind(a, digest, "Quarantine",
		unexpired(a, "Quarantine", in.Now, in.Quarantines, func(o *bocage.Quarantine) time.Time { return o.Spec.Until }),
		func(o *bocage.Quarantine) any { return &o.Spec })
	a.threatConditions = admitKind(a, digest, "ThreatCondition",
		unexpired(a, "ThreatCondition", in.Now, in.ThreatConditions, func(o *bocage.ThreatCondition) time.Time { return o.Spec.Expires }),
		func(o *bocage.ThreatCondition) any { return &o.Spec })
	a.exceptions = admitKind(a, digest, "Exception", a.admitExceptions(in.Exceptions, in.Now), func(o *bocage.Exception) any { return &o.Spec })
	a.responses = admitKind(a, digest, "Response", in.Responses, func(o *bocage.Response) any { return &o.Spec })
	a.addressGroups = admitKind(a, digest, "AddressGroup", in.AddressGroups, func(o *bocage.AddressGroup) any { return &o.Spec })
	a.zones = admitKind(a, digest, "Zone", in.Zones, func(o *bocage.Zone) any { return &o.Spec })
	a.namespaces = admitKind(a, digest, "Namespace", in.Namespaces, func(o *bocage.Namespace) any { return o.Labels })
	a.networkPolicies = admitKind(a, digest, "NetworkPolicy", in.NetworkPolicies, func(o *bocage.NetworkPolicy) any { return &o.Spec })
	a.clusterNetworkPolicies = admitKind(a, digest, "ClusterNetworkPolicy", in.ClusterNetworkPolicies,
		func(o *bocage.ClusterNetworkPolicy) any { return &o.Spec })
	a.hosts = admitKind(a, digest, "Host", in.Hosts, func(o *bocage.Host) any {
		return struct {
			Labels    map[string]string
			Addresses []netip.Addr
		}{o.Labels, o.Spec.Addresses}
	})
	a.admitWorkloads(digest, in.Workloads)
	a.digest = hex.EncodeToString(digest.Sum(nil))
	return a
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

type hashWriter interface{ Write([]byte) (int, error) }

// admitKind validates, sorts and digests the objects of one kind.
func admitKind[T bocage.Resource](a *admitted, digest hashWriter, kind string, objects []T, spec func(T) any) []T {
	type entry struct {
		object  T
		name    string
		content []byte
	}
	entries := make([]entry, 0, len(objects))
	for _, o := range objects {
		if faults := o.Validate(); len(faults) > 0 {
			a.refuse(kind, o, faults)
			continue
		}
		content, err := json.Marshal(spec(o))
		if err != nil {
			a.refuse(kind, o, bocage.Faults{{Field: "spec", Message: err.Error()}})
			continue
		}
		entries = append(entries, entry{o, o.Meta().NamespacedName(), content})
	}
	slices.SortFunc(entries, func(x, y entry) int {
		return cmp.Or(cmp.Compare(x.name, y.name), bytes.Compare(x.content, y.content))
	})
	out := make([]T, 0, len(entries))
	for i, e := range entries {
		if i > 0 && entries[i-1].name == e.name {
			continue // a store holds one object per name; of two, the same one counts everywhere
		}
		out = append(out, e.object)
		writeStrings(digest, kind, e.name, e.object.Meta().Annotations[bocage.SourceAnnotation])
		writeBytes(digest, e.content)
	}
	return out
}

func (a *admitted) refuse(kind string, o bocage.Resource, faults bocage.Faults) {
	ref := Ref(kind, o, "")
	slices.SortFunc(faults, compareFaults)
	a.findings.reject(ref, Invalid, "%s", faults.Error())
	for _, f := range faults {
		f.Field, f.Source = kind+" "+o.Meta().NamespacedName()+" "+f.Field, ref.Source
		a.faults = append(a.faults, f)
	}
	slices.SortFunc(a.faults, compareFaults)
}

func compareFaults(x, y bocage.Fault) int {
	return cmp.Or(cmp.Compare(x.Field, y.Field), cmp.Compare(x.Message, y.Message), cmp.Compare(x.Source, y.Source))
}

// admitWorkloads sets aside workloads that nothing can be decided about. Of two
// that claim one number, address or interface, the older one (by its number,
// which is given once and only grows) keeps it, so that nobody takes over what
// somebody else has by claiming it too.
func (a *admitted) admitWorkloads(digest hashWriter, workloads []*bocage.Workload) {
	sorted := slices.Clone(workloads)
	slices.SortFunc(sorted, func(x, y *bocage.Workload) int {
		return cmp.Or(
			cmp.Compare(x.Status.Identity, y.Status.Identity),
			cmp.Compare(x.Namespace, y.Namespace),
			cmp.Compare(x.Name, y.Name),
			slices.CompareFunc(x.Spec.Addresses, y.Spec.Addresses, netip.Addr.Compare),
			cmp.Compare(x.Spec.Host, y.Spec.Host),
			cmp.Compare(x.Spec.Interface, y.Spec.Interface),
		)
	})
	type place struct{ host, link string }
	names := make(map[[2]string]bool, len(sorted))
	numbers := make(map[bocage.Identity]*bocage.Workload, len(sorted))
	addresses := make(map[netip.Addr]*bocage.Workload, len(sorted))
	a.addresses = addresses
	places := make(map[place]*bocage.Workload, len(sorted))
	for _, w := range sorted {
		if names[[2]string{w.Namespace, w.Name}] {
			continue
		}
		if !a.admissible(w) {
			continue
		}
		if other := numbers[w.Status.Identity]; other != nil {
			a.findings.reject(Ref("Workload", w, "status.identity"), NoIdentity, "identity %d is that of %s", w.Status.Identity, other.NamespacedName())
			continue
		}
		if i := slices.IndexFunc(w.Spec.Addresses, func(addr netip.Addr) bool { return addresses[addr] != nil }); i >= 0 {
			a.findings.reject(Ref("Workload", w, "spec.addresses"), AddressTaken, "%s is the address of the older workload %s: delete one of them or correct it",
				w.Spec.Addresses[i], addresses[w.Spec.Addresses[i]].NamespacedName())
			continue
		}
		at := place{w.Spec.Host, w.Spec.Interface}
		if other := places[at]; other != nil {
			a.findings.reject(Ref("Workload", w, "spec.interface"), InterfaceTaken, "%s on %s is the interface of the older workload %s",
				at.link, at.host, other.NamespacedName())
			continue
		}
		if at.link != "" {
			places[at] = w
		} else {
			a.findings.note(Ref("Workload", w, "spec.interface"), NotPlaced, "no interface on %s is named: no enforcement point stands in front of it", at.host)
		}
		names[[2]string{w.Namespace, w.Name}] = true
		numbers[w.Status.Identity] = w
		for _, addr := range w.Spec.Addresses {
			addresses[addr] = w
		}
		a.workloads = append(a.workloads, w)
	}
	slices.SortFunc(a.workloads, func(x, y *bocage.Workload) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	var buffer []byte
	var keys []string
	for _, w := range a.workloads {
		buffer, keys = appendWorkload(buffer[:0], keys[:0], w)
		digest.Write(buffer)
	}
}

// admissible checks what the compiler relies on. The rest of Validate was done
// when the object was written, and would cost more than compiling.
func (a *admitted) admissible(w *bocage.Workload) bool {
	var faults bocage.Faults
	if w.Namespace == "" || w.Name == "" {
		faults.Add("metadata", "needs a namespace and a name")
	}
	if len(w.Spec.Addresses) == 0 {
		faults.Add("spec.addresses", "needs at least one address")
	}
	for i, addr := range w.Spec.Addresses {
		if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || slices.Contains(w.Spec.Addresses[:i], addr) {
			faults.Add("spec.addresses", "%q is not an address of its own", addr)
		}
	}
	if len(faults) > 0 {
		a.refuse("Workload", w, faults)
		return false
	}
	if w.Status.Identity < bocage.IdentityFirst {
		a.findings.reject(Ref("Workload", w, "status.identity"), NoIdentity, "it has no number of its own yet: the api room gives it when the workload is created through it")
		return false
	}
	return true
}

func appendWorkload(b []byte, keys []string, w *bocage.Workload) ([]byte, []string) {
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text("Workload")
	text(w.Namespace)
	text(w.Name)
	text(w.Spec.Host)
	text(w.Spec.Interface)
	text(w.Spec.MAC)
	b = binary.AppendUvarint(b, uint64(w.Status.Identity))
	b = binary.AppendUvarint(b, uint64(len(w.Spec.Addresses)))
	for _, addr := range w.Spec.Addresses {
		raw := addr.As16()
		b = append(b, raw[:]...)
	}
	for key := range w.Labels {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, key := range keys {
		text(key)
		text(w.Labels[key])
	}
	text(w.Status.Assurance)
	text(w.Spec.Orchestrator)
	b = binary.AppendUvarint(b, uint64(len(w.Spec.Ports)))
	for _, p := range w.Spec.Ports {
		text(p.Name)
		text(p.Protocol)
		b = binary.LittleEndian.AppendUint16(b, p.Port)
	}
	return b, keys
}

func writeStrings(w hashWriter, texts ...string) {
	for _, s := range texts {
		writeBytes(w, []byte(s))
	}
}

// writeBytes writes a length before the content, so that no two inputs look alike.
func writeBytes(w hashWriter, b []byte) {
	w.Write(binary.AppendUvarint(nil, uint64(len(b))))
	w.Write(b)
}
