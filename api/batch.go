package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// batch gathers the writes of one request: the store does all of them, or none.
// Besides the objects it writes what must stay unique across objects: the
// counter of identities, and a claim for each address and each enforcement point.
type batch struct {
	ctx    context.Context
	server *Server
	ops    []store.Op
	at     map[string]int // index in ops, by key
	// claims are the claims as they were when they were looked at: what was found
	// free is taken only if it still is.
	claims map[string]store.Entry
	// creates counts new objects by kind and namespace, where a quota bounds them.
	creates map[string]int
	last    *uint64 // last identity given; nil until it is asked for
}

// Keys beside the resources.
const (
	identityCounter = "counters/identity"
	addressClaims   = "claims/addresses/"
	portClaims      = "claims/ports/"
)

func newBatch(ctx context.Context, s *Server) *batch {
	return &batch{ctx: ctx, server: s, at: map[string]int{}, claims: map[string]store.Entry{}, creates: map[string]int{}}
}

// write adds an operation. A key that was to be deleted may be written after all.
func (b *batch) write(op store.Op) error {
	i, twice := b.at[op.Key]
	switch {
	case !twice:
		b.at[op.Key] = len(b.ops)
		b.ops = append(b.ops, op)
	case b.ops[i].Delete && !op.Delete:
		op.IfWas = b.ops[i].IfWas
		b.ops[i] = op
	default:
		return badRequest("one request changes %s twice", op.Key)
	}
	return nil
}

// remove adds the deletion of an object and of what it claims.
func (b *batch) remove(ch *change) error {
	if ch.old.virtual {
		return nil
	}
	if err := b.write(store.Op{Key: ch.kind.Key(ch.namespace, ch.name), Delete: true, IfWas: ch.old.revision}); err != nil {
		return err
	}
	if ch.kind.Name != "Workload" {
		return nil
	}
	old, err := typed(ch.kind, ch.old.object)
	if err != nil {
		return err
	}
	return b.release(old.(*bocage.Workload), nil)
}

// admit finds what is wrong with a change beyond the object itself.
func (b *batch) admit(ch *change, resource bocage.Resource) (bocage.Faults, error) {
	faults, err := ch.metaFaults(resource.Meta())
	if err != nil {
		return nil, err
	}
	var more bocage.Faults
	switch object := resource.(type) {
	case *bocage.Workload:
		if more, err = b.claimsFree(object, true); err == nil {
			var weight bocage.Faults
			weight, err = ch.weightFaults(object)
			more = append(more, weight...)
		}
	case *bocage.Incident:
		more, err = b.phaseOnly(ch, object)
	case *bocage.Namespace:
		more, err = quotaFaults(ch, object)
	case *bocage.PolicyTest:
		err = b.mayTest(ch, object)
	}
	return append(faults, more...), err
}

// weightFaults refuses a weight that cannot be read, where a person sets it. What a host
// sees of a container, whoever labelled that, is taken as it is, and so is what was there:
// a workload that is not known is not protected. Its status says how it counts.
func (ch *change) weightFaults(w *bocage.Workload) (bocage.Faults, error) {
	_, fault := w.Weight()
	if fault == "" || ch.vouching {
		return nil, nil
	}
	if ch.old != nil {
		old, err := typed(ch.kind, ch.old.object)
		if err != nil || old.Meta().Labels[bocage.LabelWeight] == w.Labels[bocage.LabelWeight] {
			return nil, err
		}
	}
	return bocage.Faults{{Field: "metadata.labels[" + bocage.LabelWeight + "]", Message: fmt.Sprintf("%q is not a whole number from 0 to %d", w.Labels[bocage.LabelWeight], bocage.HeaviestWorkload)}}, nil
}

// place gives a workload its identity and takes its claims; the change has been
// admitted by then.
func (b *batch) place(ch *change, resource bocage.Resource) error {
	workload, ok := resource.(*bocage.Workload)
	if !ok {
		return nil
	}
	if workload.Status.Identity == 0 {
		id, err := b.nextIdentity()
		if err != nil {
			return err
		}
		workload.Status.Identity = id
	}
	workload.Status.SPIFFEID = "spiffe://" + b.server.config.TrustDomain + "/workload/" + workload.NamespacedName()
	var held []string
	if ch.old != nil {
		old, err := typed(ch.kind, ch.old.object)
		if err != nil {
			return err
		}
		held = claimsOf(old.(*bocage.Workload))
		if !ch.vouching {
			adopt(old.(*bocage.Workload), workload)
		}
		if err := b.release(old.(*bocage.Workload), workload); err != nil {
			return err
		}
	}
	for _, key := range claimsOf(workload) {
		if err := b.claim(key, workload.NamespacedName(), slices.Contains(held, key)); err != nil {
			return err
		}
	}
	return nil
}

// nextIdentity counts on. Where there is no counter yet, as in a store that was
// filled by other means, it starts above every identity in use.
func (b *batch) nextIdentity() (bocage.Identity, error) {
	if b.last == nil {
		entry, err := b.server.config.Store.Get(b.ctx, identityCounter)
		var last uint64
		switch {
		case err == nil:
			if last, err = strconv.ParseUint(string(entry.Value), 10, 64); err != nil {
				return 0, fmt.Errorf("read the counter of identities: %w", err)
			}
		case errors.Is(err, store.ErrNotFound):
			if last, err = b.highestIdentity(); err != nil {
				return 0, err
			}
		default:
			return 0, err
		}
		b.last = &last
		if err := b.write(store.Op{Key: identityCounter, IfWas: entry.Revision}); err != nil {
			return 0, err
		}
	}
	if *b.last >= math.MaxUint32 {
		return 0, errors.New("every identity number has been given: this trust domain takes no more workloads")
	}
	*b.last++
	b.ops[b.at[identityCounter]].Value = strconv.AppendUint(nil, *b.last, 10)
	return bocage.Identity(*b.last), nil
}

func (b *batch) highestIdentity() (uint64, error) {
	objects, _, err := store.Objects(b.ctx, b.server.config.Store, kindNamed("Workload"))
	if err != nil {
		return 0, err
	}
	last := uint64(bocage.IdentityFirst) - 1
	for _, object := range objects {
		last = max(last, uint64(object.(*bocage.Workload).Status.Identity))
	}
	return last, nil
}

// claimsOf lists the keys that only one workload may hold.
func claimsOf(w *bocage.Workload) []string {
	var keys []string
	for _, address := range w.Spec.Addresses {
		keys = append(keys, addressClaims+address.String())
	}
	for _, i := range w.Spec.Interfaces() {
		keys = append(keys, portClaims+w.Spec.Host+"/"+i.Interface)
	}
	return keys
}

// claimsFree names the workloads that already have what this one asks for. What a
// host discovered gives way to what is declared.
func (b *batch) claimsFree(w *bocage.Workload, declared bool) (bocage.Faults, error) {
	var faults bocage.Faults
	seen := map[netip.Addr]int{}
	for i, address := range w.Spec.Addresses {
		field := fmt.Sprintf("spec.addresses[%d]", i)
		if first, twice := seen[address]; twice {
			faults.Add(field, "%s is addresses[%d] too", address, first)
			continue
		}
		seen[address] = i
		holder, err := b.holderBeside(addressClaims+address.String(), declared)
		if err != nil {
			return nil, err
		}
		if holder != "" && holder != w.NamespacedName() {
			faults.Add(field, "%s belongs to workload %s already", address, holder)
		}
	}
	for i, link := range w.Spec.Interfaces() {
		holder, err := b.holderBeside(portClaims+w.Spec.Host+"/"+link.Interface, declared)
		if err != nil {
			return nil, err
		}
		field := "spec.interface"
		if i > 0 {
			field = fmt.Sprintf("spec.moreInterfaces[%d].interface", i-1)
		}
		if holder != "" && holder != w.NamespacedName() {
			faults.Add(field, "%s of host %s is the interface of workload %s already", link.Interface, w.Spec.Host, holder)
		}
	}
	return faults, nil
}

// holderBeside is holder; for a declaration, one that a host discovered is removed
// and holds nothing.
func (b *batch) holderBeside(key string, declared bool) (string, error) {
	holder, err := b.holder(key)
	if err != nil || holder == "" || !declared {
		return holder, err
	}
	old, w, err := b.vouched(holder, anyHost)
	if err != nil || w == nil {
		return holder, err
	}
	return "", b.remove(changeOf(old, w))
}

// holder returns the workload that holds a claim; empty if none does. A claim
// whose workload is gone, or has let it go, counts for nothing.
func (b *batch) holder(key string) (string, error) {
	if i, ok := b.at[key]; ok {
		if b.ops[i].Delete {
			return "", nil
		}
		return string(b.ops[i].Value), nil
	}
	entry, err := b.claimed(key)
	if err != nil || entry.Revision == store.Absent {
		return "", err
	}
	name := string(entry.Value)
	held, err := b.holds(name, key)
	if err != nil || !held {
		return "", err
	}
	return name, nil
}

// claimed reads a claim, once for the whole batch; its revision is Absent if there
// is none.
func (b *batch) claimed(key string) (store.Entry, error) {
	if entry, ok := b.claims[key]; ok {
		return entry, nil
	}
	entry, err := b.server.config.Store.Get(b.ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		entry, err = store.Entry{Key: key, Revision: store.Absent}, nil
	}
	if err == nil {
		b.claims[key] = entry
	}
	return entry, err
}

func (b *batch) holds(name, key string) (bool, error) {
	kind := kindNamed("Workload")
	entry, err := b.server.config.Store.Get(b.ctx, kind.KeyPrefix()+name)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	object, err := store.DecodeObject(kind, entry)
	if err != nil {
		return false, err
	}
	return slices.Contains(claimsOf(object.(*bocage.Workload)), key), nil
}

// claim takes what claimsFree found free. A claim that bears the workload's name
// is written again if the workload did not hold it, since others may take it for
// free, too.
func (b *batch) claim(key, name string, held bool) error {
	if i, ok := b.at[key]; ok && !b.ops[i].Delete {
		return nil
	}
	entry, err := b.claimed(key)
	if err != nil || held && string(entry.Value) == name {
		return err
	}
	return b.write(store.Op{Key: key, Value: []byte(name), IfWas: entry.Revision})
}

// release gives up what a workload held and its successor (nil: none) does not.
func (b *batch) release(old, next *bocage.Workload) error {
	var kept []string
	if next != nil {
		kept = claimsOf(next)
	}
	for _, key := range claimsOf(old) {
		if slices.Contains(kept, key) {
			continue
		}
		entry, err := b.claimed(key)
		if err != nil {
			return err
		}
		if _, pending := b.at[key]; pending || string(entry.Value) != old.NamespacedName() {
			continue
		}
		if err := b.write(store.Op{Key: key, Delete: true, IfWas: entry.Revision}); err != nil {
			return err
		}
	}
	return nil
}

// phaseOnly refuses to let people change what an incident says, other than how
// far it has been dealt with.
func (b *batch) phaseOnly(ch *change, incident *bocage.Incident) (bocage.Faults, error) {
	if ch.subresource != "status" {
		return nil, nil
	}
	old, err := typed(ch.kind, ch.old.object)
	if err != nil {
		return nil, err
	}
	var faults bocage.Faults
	switch incident.Status.Phase {
	case "open", "contained", "closed":
	default:
		faults.Add("status.phase", "%q is not open, contained or closed", incident.Status.Phase)
	}
	was := *old.(*bocage.Incident)
	was.Status.Phase = incident.Status.Phase
	if !sameJSON(was.Status, incident.Status) {
		faults.Add("status", "is recognition's: people change its phase only")
	}
	return faults, nil
}
