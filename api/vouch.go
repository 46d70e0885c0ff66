package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Workloads that hosts discover. A host speaks for what is placed on it, under
// names that end in its own, and never over what somebody declared: the
// declaration wins, and whoever asks is told why a sighting came to nothing.

// vouchedBy keeps what each host vouches for: namespace/name by the source that
// saw it.
const vouchedBy = "vouched/"

// vouchedAtOnce is how many sightings are written together.
const vouchedAtOnce = 32

// Vouch brings the Workloads of a host in line with what it sees, and returns for
// each sighting that came to none, by namespace/name, why. Those that are settled
// are not looked at again: they came to what they say before.
func (s *Server) Vouch(ctx context.Context, host string, seen bocage.Sightings, settled map[string]bool) (refused map[string]string, err error) {
	refused = map[string]string{}
	wanted := s.wanted(ctx, host, seen, refused)
	if err := s.forget(ctx, host, seen, wanted); err != nil {
		return refused, fmt.Errorf("forget what host %s sees no more: %w", host, err)
	}
	wanted = slices.DeleteFunc(wanted, func(w sighted) bool { return settled[w.workload.NamespacedName()] })
	for part := range slices.Chunk(wanted, vouchedAtOnce) {
		if err := s.vouch(ctx, host, part, refused); err != nil {
			return refused, fmt.Errorf("take over what host %s sees: %w", host, err)
		}
	}
	return refused, nil
}

// sighted is a sighting with what it stands for.
type sighted struct {
	source   string
	workload *bocage.Workload
}

// wanted sets aside what the host may not say.
func (s *Server) wanted(ctx context.Context, host string, seen bocage.Sightings, refused map[string]string) []sighted {
	may := s.mayPlace(ctx, host)
	var wanted []sighted
	names := map[string]bool{}
	for i, sighting := range seen.Sightings {
		name := sighting.NamespacedName()
		if i >= bocage.MostSightings {
			refused[name] = fmt.Sprintf("a host may have at most %d discovered workloads", bocage.MostSightings)
			continue
		}
		if sighting.Stopped {
			continue
		}
		workload, faults := sighting.Workload(host)
		if len(faults) == 0 {
			faults = may.Permits(workload)
		}
		if len(faults) == 0 && names[name] {
			faults.Add("metadata.name", "two containers have it")
		}
		if len(faults) > 0 {
			refused[name] = faults.Error()
			continue
		}
		names[name] = true
		wanted = append(wanted, sighted{sighting.Source, workload})
	}
	return wanted
}

func (s *Server) mayPlace(ctx context.Context, host string) bocage.Placeable {
	object, _, err := store.Object(ctx, s.config.Store, kindNamed("Host"), "", host)
	if err != nil {
		return bocage.Placeable{} // a host that nobody has said anything of yet
	}
	return object.(*bocage.Host).Spec.MayPlace
}

// record reads what a host vouches for.
func (b *batch) record(host string) (map[string]string, store.Revision, error) {
	entry, err := b.server.config.Store.Get(b.ctx, vouchedBy+host)
	if errors.Is(err, store.ErrNotFound) {
		return map[string]string{}, store.Absent, nil
	}
	if err != nil {
		return nil, 0, err
	}
	record := map[string]string{}
	if err := json.Unmarshal(entry.Value, &record); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", entry.Key, err)
	}
	return record, entry.Revision, nil
}

// keepRecord writes the record if it has changed.
func (b *batch) keepRecord(host string, was, record map[string]string, revision store.Revision) error {
	if maps.Equal(was, record) {
		return nil
	}
	if len(record) == 0 {
		return b.write(store.Op{Key: vouchedBy + host, Delete: true, IfWas: revision})
	}
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return b.write(store.Op{Key: vouchedBy + host, Value: value, IfWas: revision})
}

// forget removes what is gone: what a source that was read does not show, what a
// source saw that the host has no more, and what stopped and has something that
// another needs now.
func (s *Server) forget(ctx context.Context, host string, seen bocage.Sightings, wanted []sighted) error {
	shown, needed := map[string]bool{}, map[string]string{}
	stopped := map[string]bool{}
	for _, sighting := range seen.Sightings {
		shown[sighting.NamespacedName()] = true
		stopped[sighting.NamespacedName()] = sighting.Stopped
	}
	for _, w := range wanted {
		for _, key := range claimsOf(w.workload) {
			needed[key] = w.workload.NamespacedName()
		}
	}
	unseen := func(name, source string) bool {
		return !slices.Contains(seen.Sources, source) || !shown[name] && slices.Contains(seen.Known, source)
	}
	inTheWay := func(w *bocage.Workload) bool {
		return slices.ContainsFunc(claimsOf(w), func(key string) bool {
			by, is := needed[key]
			return is && by != w.NamespacedName()
		})
	}
	for done := false; !done; {
		err := s.commit(ctx, []*change{unnamed()}, func(b *batch) error {
			was, revision, err := b.record(host)
			if err != nil {
				return err
			}
			record := maps.Clone(was)
			done = true
			for _, name := range slices.Sorted(maps.Keys(was)) {
				if shown[name] && !stopped[name] && !unseen(name, was[name]) {
					continue
				}
				old, w, err := b.vouched(name, host)
				if err != nil {
					return err
				}
				if w == nil {
					delete(record, name) // removed, or somebody's declaration by now
					continue
				}
				if !unseen(name, was[name]) && !inTheWay(w) {
					continue
				}
				if len(was)-len(record) >= vouchedAtOnce {
					done = false
					break
				}
				delete(record, name)
				if err := b.remove(changeOf(old, w)); err != nil {
					return err
				}
			}
			return b.keepRecord(host, was, record, revision)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// anyHost stands for whichever host vouches for a workload.
const anyHost = ""

// vouched returns a workload that the host vouches for; nil if there is none.
func (b *batch) vouched(name, host string) (*stored, *bocage.Workload, error) {
	kind := kindNamed("Workload")
	entry, err := b.server.config.Store.Get(b.ctx, kind.KeyPrefix()+name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	object, err := store.DecodeObject(kind, entry)
	if err != nil {
		return nil, nil, err
	}
	w := object.(*bocage.Workload)
	if w.Status.VouchedBy == "" || host != anyHost && w.Status.VouchedBy != host {
		return nil, nil, nil
	}
	tree, err := decodeStored(entry.Value)
	return &stored{object: tree, value: entry.Value, revision: entry.Revision}, w, err
}

// unnamed stands for changes that nobody has to be told of.
func unnamed() *change { return &change{access: access{kind: kindNamed("Workload")}, same: true} }

func changeOf(old *stored, w *bocage.Workload) *change {
	return &change{access: access{kind: kindNamed("Workload"), namespace: w.Namespace}, name: w.Name, old: old, vouching: true}
}

// vouch writes some sightings in one go.
func (s *Server) vouch(ctx context.Context, host string, part []sighted, refused map[string]string) error {
	return s.commit(ctx, []*change{unnamed()}, func(b *batch) error {
		was, revision, err := b.record(host)
		if err != nil {
			return err
		}
		record := maps.Clone(was)
		for _, w := range part {
			name := w.workload.NamespacedName()
			delete(refused, name)
			why, err := b.sight(host, *w.workload)
			if err != nil {
				return err
			}
			if why != "" {
				refused[name] = why
				continue
			}
			record[name] = w.source
		}
		return b.keepRecord(host, was, record, revision)
	})
}

// sight writes one workload, or says why not.
func (b *batch) sight(host string, w bocage.Workload) (why string, err error) {
	old, before, err := b.vouched(w.NamespacedName(), host)
	if err != nil {
		return "", err
	}
	ch, labels := changeOf(old, &w), w.Labels
	if before == nil {
		if why, err := b.mayAppear(ch, &w); why != "" || err != nil {
			return why, err
		}
		meta := store.NewMeta(w.Name, b.server.now())
		meta.Namespace = w.Namespace
		w.ObjectMeta = meta
		before = &bocage.Workload{}
	} else {
		w.ObjectMeta = before.ObjectMeta
		w.Status.Identity, w.Status.SPIFFEID, w.Status.Conditions = before.Status.Identity, before.Status.SPIFFEID, before.Status.Conditions
		if !sameJSON(before.Spec, w.Spec) {
			w.Generation++
		}
	}
	relabel(&w, before, labels)
	faults, err := b.claimsFree(&w, false)
	if err != nil || len(faults) > 0 {
		return faults.Error(), err
	}
	if err := b.place(ch, &w); err != nil {
		return "", err
	}
	op := store.Op{Key: ch.kind.Key(w.Namespace, w.Name), IfWas: store.Absent}
	if op.Value, err = store.EncodeObject(ch.kind, &w); err != nil {
		return "", err
	}
	if old != nil {
		if op.IfWas = old.revision; unchanged(old.value, op.Value) {
			return "", nil
		}
	}
	return "", b.write(op)
}

// mayAppear says why a workload that is not there yet may not come.
func (b *batch) mayAppear(ch *change, w *bocage.Workload) (why string, err error) {
	_, err = b.server.load(b.ctx, ch.kind, w.Namespace, w.Name)
	switch {
	case err == nil:
		return "somebody declared a workload of this name: the declaration counts", nil
	case !errors.Is(err, store.ErrNotFound):
		return "", err
	}
	if err := b.server.accepting(ch, w.Name); err != nil {
		return err.Error(), nil
	}
	err = b.withinQuota(ch, w.Name)
	var p *problem
	if errors.As(err, &p) {
		return p.Error(), nil
	}
	return "", err
}

// relabel gives a workload the labels that its host saw. Those that people gave it
// stay, and win.
func relabel(w, before *bocage.Workload, labels map[string]string) {
	w.Labels, w.Status.VouchedLabels = map[string]string{}, nil
	for key, value := range before.Labels {
		if !slices.Contains(before.Status.VouchedLabels, key) {
			w.Labels[key] = value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if _, taken := w.Labels[key]; !taken {
			w.Labels[key] = labels[key]
			w.Status.VouchedLabels = append(w.Status.VouchedLabels, key)
		}
	}
}

// adopt makes a declaration of a discovered workload whose spec somebody writes: from
// then on that counts, and its host's word does not.
func adopt(old, w *bocage.Workload) {
	if w.Status.VouchedBy == "" || sameJSON(old.Spec, w.Spec) {
		return
	}
	w.Status.VouchedBy, w.Status.VouchedLabels, w.Status.Assurance = "", nil, ""
}
