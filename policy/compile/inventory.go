package compile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// inventory is the workloads that count. Each has a place, which it keeps while it
// is there; a place that nobody has is nil.
type inventory struct {
	workloads []*bocage.Workload // by place
	sums      [][sha256.Size]byte
	order     []int32 // places, in the order of names
	free      []int32 // places that nobody has

	numbers   map[bocage.Identity]int32
	addresses map[netip.Addr]*bocage.Workload // whose they are
	links     map[link]int32

	// Those who do not count, by name: why, and what they claim if somebody else
	// has it. While anything is contested, whoever claims or leaves the same has
	// everyone admitted anew.
	aside     map[string]bool
	contested map[any]bool
	told      map[string]findings // what authors are told of a workload, by its name
	faults    map[string]bocage.Faults
	buckets   []bucket

	// What the last change led to.
	replaced []replacement
	retold   []retelling
}

// link is an interface of a host.
type link struct{ host, name string }

// replacement is a place that has another workload than before; nil is none.
type replacement struct {
	at       int32
	was, now *bocage.Workload
}

// retelling is what was told and is told now.
type retelling struct{ was, now findings }

// bucket is the digests of some workloads, sorted, and theirs together.
type bucket struct {
	sums  [][sha256.Size]byte
	sum   [sha256.Size]byte
	stale bool
}

// bucketCount spreads workloads over buckets by name, so that a digest of all of
// them costs what changed.
const bucketCount = 1024

// takeWorkloads takes over a list of workloads.
func (v *inventory) takeWorkloads(was, given []*bocage.Workload) {
	if v.buckets == nil {
		v.buckets = make([]bucket, bucketCount)
		v.admitAll(given)
		return
	}
	var gone, come []*bocage.Workload
	eachChange(was, given, compareWorkloads, func(w *bocage.Workload) { gone = append(gone, w) }, func(w *bocage.Workload) { come = append(come, w) })
	if len(gone)+len(come) > len(given)/8+64 || !v.exchange(gone, come) {
		v.admitAll(given)
	}
}

// exchange lets workloads go and others come, if nothing is contested between
// them and anybody.
func (v *inventory) exchange(gone, come []*bocage.Workload) bool {
	contested := func(w *bocage.Workload) bool {
		return len(v.contested) > 0 && (v.contested[w.NamespacedName()] || v.contested[w.Status.Identity] ||
			slices.ContainsFunc(linksOf(w), func(l link) bool { return v.contested[l] }) ||
			slices.ContainsFunc(w.Spec.Addresses, func(a netip.Addr) bool { return v.contested[a] }))
	}
	if slices.ContainsFunc(gone, contested) || slices.ContainsFunc(come, contested) {
		return false
	}
	// Who stays under a name with the same content stays the same.
	coming := make(map[string]*bocage.Workload, len(come))
	for _, w := range come {
		if coming[w.NamespacedName()] != nil {
			return false
		}
		coming[w.NamespacedName()] = w
	}
	was := map[string]replacement{} // by name
	for _, w := range gone {
		name := w.NamespacedName()
		if v.aside[name] {
			delete(v.aside, name)
			v.tell(name, nil, nil)
			continue
		}
		at, there := v.find(name)
		if !there {
			continue // twice in the list before, as one object
		}
		if now := coming[name]; now != nil && sumOf(now) == v.sums[at] && sourceOf(now) == sourceOf(v.workloads[at]) {
			delete(coming, name)
			continue
		}
		was[name] = replacement{at: at, was: v.workloads[at]}
		v.unclaim(at)
	}
	undo := func() bool {
		for _, r := range v.replaced {
			if v.workloads[r.at] = r.was; r.was != nil {
				v.sums[r.at] = sumOf(r.was)
			}
		}
		v.replaced = v.replaced[:0]
		return false
	}
	for _, w := range come {
		name := w.NamespacedName()
		if coming[name] == nil {
			continue
		}
		r, stays := was[name]
		if _, there := v.find(name); there && !stays || v.aside[name] {
			return undo()
		}
		var told findings
		faults := admissible(w, &told)
		if len(told) > 0 {
			v.aside[name] = true
			v.tell(name, told, faults)
			continue
		}
		if v.rival(w) != nil {
			return undo()
		}
		if !stays {
			r.at = v.place(name)
		}
		delete(was, name)
		r.now = w
		v.claim(r.at, w)
		v.tell(name, placedNowhere(w), nil)
		v.replaced = append(v.replaced, r)
	}
	for name, r := range was {
		v.leave(r.at, name)
		if !v.aside[name] {
			v.tell(name, nil, nil)
		}
		v.replaced = append(v.replaced, r)
	}
	slices.SortFunc(v.replaced, func(a, b replacement) int { return cmp.Compare(a.at, b.at) })
	return true
}

// admitAll sets aside workloads that nothing can be decided about. Of two
// that claim one number, address or interface, the older one (by its number,
// which is given once and only grows) keeps it, so that nobody takes over what
// somebody else has by claiming it too.
func (v *inventory) admitAll(workloads []*bocage.Workload) {
	old := inventory{workloads: v.workloads, sums: v.sums, told: v.told, faults: v.faults}
	n := len(workloads)
	v.numbers, v.addresses, v.links = make(map[bocage.Identity]int32, n), make(map[netip.Addr]*bocage.Workload, n), make(map[link]int32, n)
	v.aside, v.contested, v.told, v.faults = map[string]bool{}, map[any]bool{}, map[string]findings{}, map[string]bocage.Faults{}
	places := make(map[string]int32, len(old.workloads))
	for at, w := range old.workloads {
		if w != nil {
			places[w.NamespacedName()] = int32(at)
		}
	}
	v.workloads = make([]*bocage.Workload, len(old.workloads), max(n, len(old.workloads)))
	v.sums = make([][sha256.Size]byte, len(old.workloads), cap(v.workloads))
	v.buckets = make([]bucket, bucketCount)
	sorted := slices.Clone(workloads)
	slices.SortFunc(sorted, compareClaims)
	type fullName struct{ namespace, name string }
	admitted := make(map[fullName]bool, n)
	for _, w := range sorted {
		name := w.NamespacedName()
		if admitted[fullName{w.Namespace, w.Name}] {
			v.contested[name] = true
			continue
		}
		var told findings
		faults := admissible(w, &told)
		if len(told) == 0 {
			if found := v.rival(w); found != nil {
				told = *found
				v.contest(w, name)
			}
		}
		if len(told) > 0 {
			if v.aside[name] {
				v.contested[name] = true
			}
			v.aside[name] = true
			if v.told[name] = append(v.told[name], told...); len(faults) > 0 {
				v.faults[name] = append(v.faults[name], faults...)
			}
			continue
		}
		admitted[fullName{w.Namespace, w.Name}] = true
		at, known := places[name]
		if !known {
			at = int32(len(v.workloads))
			v.workloads, v.sums = append(v.workloads, nil), append(v.sums, [sha256.Size]byte{})
		}
		if known && sumOf(w) == old.sums[at] && sourceOf(w) == sourceOf(old.workloads[at]) {
			w = old.workloads[at] // of two objects with equal content the older one stays
		}
		v.claim(at, w)
		if told := placedNowhere(w); told != nil {
			v.told[name] = append(v.told[name], told...)
		}
	}
	for name := range v.aside {
		namespace, short, _ := strings.Cut(name, "/")
		if admitted[fullName{namespace, short}] {
			v.contested[name] = true
		}
	}
	v.order, v.free = v.order[:0], v.free[:0]
	for at, w := range v.workloads {
		var was *bocage.Workload
		if at < len(old.workloads) {
			was = old.workloads[at]
		}
		if w == nil {
			v.free = append(v.free, int32(at))
		} else {
			v.order = append(v.order, int32(at))
		}
		if was != w && len(old.workloads) > 0 {
			v.replaced = append(v.replaced, replacement{int32(at), was, w})
		}
	}
	slices.SortFunc(v.order, func(a, b int32) int { return compareWorkloads(v.workloads[a], v.workloads[b]) })
	for name, told := range v.told {
		v.retold = append(v.retold, retelling{old.told[name], told})
	}
	for name, told := range old.told {
		if _, still := v.told[name]; !still {
			v.retold = append(v.retold, retelling{was: told})
		}
	}
}

func compareClaims(x, y *bocage.Workload) int {
	if x.Status.Identity != y.Status.Identity {
		return cmp.Compare(x.Status.Identity, y.Status.Identity)
	}
	return cmp.Or(
		compareWorkloads(x, y),
		slices.CompareFunc(x.Spec.Addresses, y.Spec.Addresses, netip.Addr.Compare),
		cmp.Compare(x.Spec.Host, y.Spec.Host),
		cmp.Compare(x.Spec.Interface, y.Spec.Interface),
	)
}

// sourceOf is where a workload was declared, which what is told of it names.
func sourceOf(w *bocage.Workload) string { return w.Annotations[bocage.SourceAnnotation] }

// linksOf lists the interfaces that a workload claims.
func linksOf(w *bocage.Workload) []link {
	if w.Spec.Interface == "" {
		return nil // it is connected nowhere that a host knows of
	}
	out := []link{{w.Spec.Host, w.Spec.Interface}}
	for _, more := range w.Spec.MoreInterfaces {
		out = append(out, link{w.Spec.Host, more.Interface})
	}
	return out
}

// rival says who has what a workload claims; nil if nobody has.
func (v *inventory) rival(w *bocage.Workload) *findings {
	var told findings
	if at, taken := v.numbers[w.Status.Identity]; taken {
		told.reject(Ref("Workload", w, "status.identity"), NoIdentity, "identity %d is that of %s", w.Status.Identity, v.workloads[at].NamespacedName())
		return &told
	}
	for _, address := range w.Spec.Addresses {
		if other := v.addresses[address]; other != nil {
			told.reject(Ref("Workload", w, "spec.addresses"), AddressTaken, "%s is the address of the older workload %s: delete one of them or correct it",
				address, other.NamespacedName())
			return &told
		}
	}
	for _, l := range linksOf(w) {
		if at, taken := v.links[l]; taken {
			told.reject(Ref("Workload", w, "spec.interface"), InterfaceTaken, "%s on %s is the interface of the older workload %s",
				l.name, l.host, v.workloads[at].NamespacedName())
			return &told
		}
	}
	return nil
}

// contest notes all that somebody who is set aside claims.
func (v *inventory) contest(w *bocage.Workload, name string) {
	v.contested[name], v.contested[w.Status.Identity] = true, true
	for _, l := range linksOf(w) {
		v.contested[l] = true
	}
	for _, address := range w.Spec.Addresses {
		v.contested[address] = true
	}
}

// claim gives a place to a workload, with all that is its own.
func (v *inventory) claim(at int32, w *bocage.Workload) {
	v.workloads[at], v.sums[at] = w, sumOf(w)
	v.numbers[w.Status.Identity] = at
	for _, address := range w.Spec.Addresses {
		v.addresses[address] = w
	}
	for _, l := range linksOf(w) {
		v.links[l] = at
	}
	b := v.bucketOf(w)
	i, _ := slices.BinarySearchFunc(b.sums, v.sums[at], compareSums)
	if b.sums == nil {
		b.sums = make([][sha256.Size]byte, 0, len(v.workloads)/bucketCount*9/8+4)
	}
	b.sums, b.stale = slices.Insert(b.sums, i, v.sums[at]), true
}

// unclaim frees what a workload has, but for its place.
func (v *inventory) unclaim(at int32) {
	w := v.workloads[at]
	delete(v.numbers, w.Status.Identity)
	for _, address := range w.Spec.Addresses {
		delete(v.addresses, address)
	}
	for _, l := range linksOf(w) {
		delete(v.links, l)
	}
	b := v.bucketOf(w)
	i, _ := slices.BinarySearchFunc(b.sums, v.sums[at], compareSums)
	b.sums, b.stale = slices.Delete(b.sums, i, i+1), true
}

func compareSums(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) }

// place finds a place for a name.
func (v *inventory) place(name string) int32 {
	at := int32(len(v.workloads))
	if n := len(v.free); n > 0 {
		at, v.free = v.free[n-1], v.free[:n-1]
	} else {
		v.workloads, v.sums = append(v.workloads, nil), append(v.sums, [sha256.Size]byte{})
	}
	i, _ := v.search(name)
	v.order = slices.Insert(v.order, i, at)
	return at
}

// leave frees a place.
func (v *inventory) leave(at int32, name string) {
	i, _ := v.search(name)
	v.order = slices.Delete(v.order, i, i+1)
	v.workloads[at], v.free = nil, append(v.free, at)
}

// find returns the place of a workload, by its "namespace/name".
func (v *inventory) find(name string) (int32, bool) {
	i, found := v.search(name)
	if !found {
		return 0, false
	}
	return v.order[i], true
}

func (v *inventory) search(name string) (int, bool) {
	namespace, name, _ := strings.Cut(name, "/")
	return slices.BinarySearchFunc(v.order, [2]string{namespace, name}, func(at int32, want [2]string) int {
		w := v.workloads[at]
		return cmp.Or(cmp.Compare(w.Namespace, want[0]), cmp.Compare(w.Name, want[1]))
	})
}

// tell replaces what is told of a workload.
func (v *inventory) tell(name string, told findings, faults bocage.Faults) {
	if was := v.told[name]; len(was)+len(told) > 0 {
		v.retold = append(v.retold, retelling{was, told})
	}
	if delete(v.told, name); len(told) > 0 {
		v.told[name] = told
	}
	if delete(v.faults, name); len(faults) > 0 {
		v.faults[name] = faults
	}
}

// digest writes what names all workloads that count.
func (v *inventory) digest(to hash.Hash) {
	for i := range v.buckets {
		b := &v.buckets[i]
		switch {
		case !b.stale:
		case len(b.sums) == 0:
			*b = bucket{}
		default:
			all := sha256.New()
			for n := range b.sums {
				all.Write(b.sums[n][:])
			}
			all.Sum(b.sum[:0])
			b.stale = false
		}
		to.Write(b.sum[:])
	}
}

func (v *inventory) bucketOf(w *bocage.Workload) *bucket {
	h := fnv.New32a()
	h.Write([]byte(w.Namespace))
	h.Write([]byte{'/'})
	h.Write([]byte(w.Name))
	return &v.buckets[h.Sum32()%bucketCount]
}

func compareWorkloads(x, y *bocage.Workload) int {
	if x.Namespace != y.Namespace {
		return cmp.Compare(x.Namespace, y.Namespace)
	}
	return cmp.Compare(x.Name, y.Name)
}

// admissible checks what the compiler relies on, and tells the author of what
// there is to correct. The rest of Validate was done when the object was written,
// and would cost more than compiling.
func admissible(w *bocage.Workload, told *findings) bocage.Faults {
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
		return refused(told, "Workload", w, faults)
	}
	if w.Status.Identity < bocage.IdentityFirst {
		told.reject(Ref("Workload", w, "status.identity"), NoIdentity, "it has no number of its own yet: the api room gives it when the workload is created through it")
	}
	return nil
}

// placedNowhere tells of a workload that no interface is named of.
func placedNowhere(w *bocage.Workload) findings {
	if w.Spec.Interface != "" {
		return nil
	}
	var told findings
	told.note(Ref("Workload", w, "spec.interface"), NotPlaced, "no interface on %s is named: no enforcement point stands in front of it", w.Spec.Host)
	return told
}

// sumOf is the digest of all that counts of a workload.
func sumOf(w *bocage.Workload) [sha256.Size]byte {
	var room [512]byte
	var keys [16]string
	b, _ := appendWorkload(room[:0], keys[:0], w)
	return sha256.Sum256(b)
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
	text(w.Spec.Instance)
	b = binary.AppendUvarint(b, uint64(len(w.Spec.MoreInterfaces)))
	for _, more := range w.Spec.MoreInterfaces {
		text(more.Interface)
		text(more.MAC)
		b = binary.AppendUvarint(b, uint64(len(more.Addresses)))
		for _, addr := range more.Addresses {
			raw := addr.As16()
			b = append(b, raw[:]...)
		}
	}
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
