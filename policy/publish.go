package policy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// keep is how many generations are remembered.
const keep = 20

// write stores the next record, the Generations and their snapshots, in one transaction
// if that fits into one. If not, chunks of snapshots are written first: a controller that
// dies in between leaves chunks that no list names, which the next one deletes (sweep).
func (b *build) write(ctx context.Context) error {
	p := b.p
	if b.unchanged() && !b.proofsCame() && !b.stagesLag() {
		return b.sweep(ctx)
	}
	b.next.Inputs, b.next.AsOf = b.v.revision, b.now.UTC()
	var chunkOps, final []store.Op
	for _, o := range []*outcome{b.base, b.candidate, b.blocked} {
		if o == nil || p.snapshots.has(o) {
			continue
		}
		ops, list, err := p.snapshots.saveOps(o)
		if err != nil {
			p.snapshots.known = false
			return err
		}
		for _, op := range ops {
			if !slices.ContainsFunc(chunkOps, func(other store.Op) bool { return other.Key == op.Key }) {
				chunkOps = append(chunkOps, op)
			}
		}
		final = append(final, list)
	}
	if err := b.readBefore(ctx); err != nil {
		return err
	}
	generations, gone, err := b.generationOps()
	if err != nil {
		return err
	}
	final = append(final, generations...)
	for _, op := range p.snapshots.deleteOps(func(l snapshotList) bool { return !gone[l.Number] }, chunkOps) {
		if !slices.ContainsFunc(final, func(other store.Op) bool { return other.Key == op.Key }) {
			final = append(final, op)
		}
	}
	parts := split(chunkOps, final)
	was := b.revision
	for i, part := range parts {
		agreed := b.was
		if i == len(parts)-1 {
			agreed = b.next
		}
		op, err := agreed.op(was)
		if err != nil {
			return err
		}
		if was, err = p.store.Apply(ctx, append(part, op)...); err != nil {
			p.snapshots.known = false
			return fmt.Errorf("write generation %d: %w", b.next.Number, err)
		}
		p.snapshots.noteWritten(part)
	}
	p.snapshots.at, b.revision = was, was
	p.applied(generations, was)
	b.announceWritten(ctx)
	return nil
}

// lateProofs are the results of proofs for a generation that went ahead of them.
type lateProofs struct {
	number uint64
	proofs []bocage.Proof // nil: there will be none, because it was replaced before
}

// condition is the generation's condition Proved that follows from them.
func (l *lateProofs) condition(now time.Time) bocage.Condition {
	c := provedCondition(&outcome{proofs: l.proofs, at: now}, 1)
	if l.proofs == nil {
		c.Reason, c.Message = reasonReplaced, "it only tightened what was in force before, and was replaced before all statements about it were proved"
	}
	return c
}

// late returns the outstanding results of a generation's proofs, if they can be reported
// now; else nil.
func (b *build) late(g *bocage.Generation) *lateProofs {
	if !awaitsProofs(g) {
		return nil
	}
	number, digest, p := g.Status.Number, g.Status.Digest, b.p
	if b.base != nil && b.base.number == number && b.base.proofs != nil {
		return &lateProofs{number, b.base.proofs}
	}
	if i := slices.IndexFunc(p.provedDigests, func(s provedDigest) bool { return s.digest == digest && s.proofs != nil }); i >= 0 {
		return &lateProofs{number, p.provedDigests[i].proofs}
	}
	switch {
	case conditionOf(g.Status.Conditions, bocage.ConditionProved).Reason == reasonReplaced:
	case number == b.next.Base.Number:
	case b.next.Candidate != nil && number == b.next.Candidate.Number:
	case p.proving != nil && p.proving.of.output.Digest() == digest:
	default:
		return &lateProofs{number: number}
	}
	return nil
}

// announceWritten counts and logs what was written, and notifies agents.
func (b *build) announceWritten(ctx context.Context) {
	p := b.p
	for _, l := range b.lateProofs {
		b.tellProofs(ctx, l)
	}
	if b.next.Base.Number != b.was.Base.Number {
		p.counters.published.Add(1)
		_, _, rules := b.base.output.Size()
		p.logger.InfoContext(ctx, "generation active", slog.Uint64("generation", b.next.Base.Number), slog.Uint64("before", b.was.Base.Number),
			slog.Int("rules", rules), slog.Int("hosts", b.moved()), slog.Duration("took", time.Since(b.began)))
	}
	if b.next.Pin != nil && b.next.Base.Policy != b.was.Base.Policy {
		p.counters.rolledBack.Add(1)
	}
	if b.next.Ended != nil && b.next.Ended != b.was.Ended {
		p.counters.ended.Add(1)
	}
	if b.next.Blocked != nil && b.next.Blocked != b.was.Blocked {
		p.counters.blocked.Add(1)
	}
	b.notified = true
	p.notify(b.next.Number)
}

// tellProofs reports the results of proofs of a generation that went ahead of them. If one
// failed, the generation still stays in force: going back would open what it closed.
func (b *build) tellProofs(ctx context.Context, l *lateProofs) {
	// What the inventory broke is told of its guardrail: what tightens has no part in it.
	p, failed := b.p, slices.DeleteFunc(prove.Failed(l.proofs), prove.Inventory)
	number := slog.Uint64("generation", l.number)
	switch {
	case l.proofs == nil:
		return
	case len(failed) == 0:
		p.logger.InfoContext(ctx, "generation proved", number, slog.Int("statements", len(l.proofs)))
		return
	}
	p.counters.refuted.Add(1)
	f := failed[0]
	p.logger.ErrorContext(ctx, "proof of what went ahead failed", number, slog.String("statement", f.Statement), slog.String("by", f.By.String()), slog.String("counterexample", f.Counterexample))
	stands, act := "only tightens what was in force before, and stays in force", ". Change what is declared, or end the threat conditions that it follows from"
	if c := b.next.Candidate; l.number != b.next.Base.Number && (c == nil || l.number != c.Number) {
		stands, act = "only tightened what was in force before, and was replaced since", ""
	}
	p.notices.tell("Generation", "", generationName(l.number), reasonProofFailed,
		fmt.Sprintf("generation %d %s, but a proof of it failed: %s (%s), yet: %s%s", l.number, stands, f.Statement, f.By, f.Counterexample, act), true)
}

// moved counts the hosts that get something new.
func (b *build) moved() int {
	n := 0
	for host, number := range b.next.Hosts {
		if b.was.Hosts[host] != number {
			n++
		}
	}
	return n
}

// sweep removes, once, chunks that no generation names.
func (b *build) sweep(ctx context.Context) error {
	p := b.p
	if p.swept || b.was.Number == 0 {
		return nil
	}
	p.swept = true
	var ops []store.Op
	for after := ""; len(ops) < store.MaxOps/2; {
		part, _, err := p.store.List(ctx, chunkPrefix, after, 16, 0) // few at a time: they are large
		if err != nil {
			return fmt.Errorf("list %s: %w", chunkPrefix, err)
		}
		for _, e := range part {
			if hash := strings.TrimPrefix(e.Key, chunkPrefix); !p.snapshots.stored[hash] {
				ops = append(ops, store.Op{Key: e.Key, Delete: true, IfWas: e.Revision})
			}
			after = e.Key
		}
		if len(part) < 16 {
			break
		}
	}
	if len(ops) == 0 {
		return nil
	}
	op, err := b.was.op(b.revision) // unchanged: it only makes sure that nobody writes meanwhile
	if err != nil {
		return err
	}
	if b.revision, err = p.store.Apply(ctx, append(ops, op)...); err != nil {
		return fmt.Errorf("sweep up what no generation names: %w", err)
	}
	p.snapshots.at = b.revision
	return nil
}

// split divides writes into transactions that a store takes, the final ones all
// in the last. One more write fits into each.
func split(ops, final []store.Op) [][]store.Op {
	const mostOps, mostBytes = store.MaxOps - 1, store.MaxApply - 2<<20 // leaves room for the record
	size := func(op store.Op) int { return len(op.Key) + len(op.Value) }
	finalBytes := 0
	for _, op := range final {
		finalBytes += size(op)
	}
	var parts [][]store.Op
	var part []store.Op
	bytes := 0
	for _, op := range ops {
		if len(part) >= mostOps || len(part) > 0 && bytes+size(op) > mostBytes {
			parts, part, bytes = append(parts, part), nil, 0
		}
		part, bytes = append(part, op), bytes+size(op)
	}
	if len(part) > 0 && (len(part)+len(final) > mostOps || bytes+finalBytes > mostBytes) {
		parts, part = append(parts, part), nil
	}
	return append(parts, append(part, final...))
}

// generationKind is the kind that this room writes.
func generationKind() bocage.Kind {
	kind, _ := bocage.KindNamed("Generation")
	return kind
}

func generationName(number uint64) string { return "g" + strconv.FormatUint(number, 10) }

// generationOps brings the Generations up to date: new ones, the stages of the
// others, and the oldest that are forgotten, whose numbers are returned.
func (b *build) generationOps() (ops []store.Op, gone map[uint64]bool, err error) {
	kind := generationKind()
	there := map[uint64]*object{}
	for _, o := range b.v.generations {
		there[o.resource.(*bocage.Generation).Status.Number] = o
	}
	byNumber := map[uint64]*bocage.Generation{}
	for _, o := range []*outcome{b.base, b.candidate, b.blocked} {
		if o != nil && there[o.number] == nil {
			g := b.generation(o)
			byNumber[o.number] = g
			value, err := store.EncodeObject(kind, g)
			if err != nil {
				return nil, nil, fmt.Errorf("encode generation %d: %w", o.number, err)
			}
			// A number is used only once, so whatever has this name was not written by us.
			ops = append(ops, store.Op{Key: kind.Key("", g.Name), Value: value, IfWas: store.AnyRevision})
		}
	}
	for number, o := range there {
		byNumber[number] = o.resource.(*bocage.Generation)
	}
	gone = b.forgotten(byNumber)
	for number, o := range there {
		if gone[number] {
			ops = append(ops, store.Op{Key: o.key, Delete: true, IfWas: store.AnyRevision})
			continue
		}
		old := o.resource.(*bocage.Generation)
		stage, active, confirmBy := b.stage(number, old.Status.Stage)
		proved := b.late(old)
		if stage == old.Status.Stage && active == old.Status.Active && confirmBy.Equal(old.Status.ConfirmBy) && proved == nil {
			continue
		}
		g := *old
		g.Status.Conditions = slices.Clone(g.Status.Conditions)
		if proved != nil {
			if proved.proofs != nil {
				g.Status.Proofs = proved.proofs
			}
			g.Status.Conditions = bocage.SetCondition(g.Status.Conditions, proved.condition(b.now))
			b.lateProofs = append(b.lateProofs, proved)
		}
		if c, happened := b.rolledOut(number, old.Status.Stage, stage); happened {
			g.Status.Conditions = bocage.SetCondition(g.Status.Conditions, c)
		}
		g.Status.Stage, g.Status.Active, g.Status.ConfirmBy = stage, active, confirmBy
		value, err := store.EncodeObject(kind, &g)
		if err != nil {
			return nil, nil, fmt.Errorf("encode generation %d: %w", number, err)
		}
		ops = append(ops, store.Op{Key: o.key, Value: value, IfWas: store.AnyRevision})
	}
	slices.SortFunc(ops, func(x, y store.Op) int { return cmp.Compare(x.Key, y.Key) })
	return ops, gone, nil
}

// stage says where a generation stands.
func (b *build) stage(number uint64, was string) (stage string, active bool, confirmBy time.Time) {
	next := b.next
	switch {
	case number == next.Base.Number && !next.ConfirmBy.IsZero():
		return bocage.StageConfirming, true, next.ConfirmBy
	case number == next.Base.Number:
		return bocage.StageActive, true, time.Time{}
	case next.Candidate != nil && number == next.Candidate.Number:
		return next.Candidate.Stage, false, time.Time{}
	case b.blocked != nil && number == b.blocked.number:
		return bocage.StageBlocked, false, time.Time{}
	}
	switch was {
	case bocage.StageShadow, bocage.StageCanary, bocage.StageActive, bocage.StageConfirming, "":
		switch {
		case next.Pin != nil && next.Pin.From == number:
			return bocage.StageRolledBack, false, time.Time{}
		case next.Ended != nil && next.Ended.Number == number:
			return bocage.StageEnded, false, time.Time{}
		}
		return bocage.StageSuperseded, false, time.Time{}
	}
	return was, false, time.Time{}
}

// forgotten picks the generations to delete, if there are more than keep. Those after which
// only the environment changed, so that a newer one has the same policy, go first.
func (b *build) forgotten(all map[uint64]*bocage.Generation) map[uint64]bool {
	gone := map[uint64]bool{}
	numbers := make([]uint64, 0, len(all))
	for number := range all {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	needed := map[uint64]bool{b.next.Base.Number: true, b.next.Confirmed.Number: true}
	if c := b.next.Candidate; c != nil {
		needed[c.Number] = true
	}
	if blocked := b.next.Blocked; blocked != nil {
		needed[blocked.Number] = true
	}
	if pin := b.next.Pin; pin != nil {
		needed[pin.Number] = true
	}
	const recent = 3
	policyOf := func(number uint64) string { return b.p.snapshots.lists[number].PolicyName }
	if n := len(b.next.FormerPolicies); n > 0 { // after many attempts it must still be possible to roll back
		for _, number := range slices.Backward(numbers) {
			if policyOf(number) == b.next.FormerPolicies[n-1] {
				needed[number] = true
				break
			}
		}
	}
	for len(numbers)-len(gone) > keep {
		oldest, between := uint64(0), uint64(0)
		left := slices.DeleteFunc(slices.Clone(numbers), func(n uint64) bool { return gone[n] })
		for i, number := range left {
			if needed[number] {
				continue
			}
			if oldest == 0 {
				oldest = number
			}
			if i < len(left)-recent && between == 0 && policyOf(number) != "" && policyOf(number) == policyOf(left[i+1]) {
				between = number
			}
		}
		switch {
		case between != 0:
			gone[between] = true
		case oldest != 0:
			gone[oldest] = true
		default:
			return gone
		}
	}
	return gone
}

// applied tells the mirror of our own writes, which the watch will bring later.
func (p *Policy) applied(ops []store.Op, at store.Revision) {
	for _, op := range ops {
		var value []byte
		if !op.Delete {
			value = op.Value
		}
		p.mirror.put(op.Key, value, at)
	}
}

// generation describes an outcome.
func (b *build) generation(o *outcome) *bocage.Generation {
	digest := o.output.Digest()
	peers, groups, rules := o.output.Size()
	// What was compiled for its findings while something else was held may become a
	// generation much later.
	at := b.now.UTC()
	created := at.Truncate(time.Second)
	g := &bocage.Generation{
		ObjectMeta: bocage.ObjectMeta{Name: generationName(o.number), Generation: 1, CreationTimestamp: &created,
			UID: fmt.Sprintf("generation-%d-%.16s", o.number, digest)},
		Status: bocage.GenerationStatus{
			Number: o.number, Digest: digest, Compiled: at, Duration: o.took.Seconds(), Objects: count(o.input),
			Peers: peers, Groups: groups, Rules: rules, Proofs: o.proofs, Changed: b.changes(o),
		},
	}
	g.Status.Stage, g.Status.Active, g.Status.ConfirmBy = b.stage(o.number, "")
	if o.proofs == nil {
		g.Status.Proofs = o.early
	}
	g.Status.Conditions = bocage.SetCondition(nil, provedCondition(o, 1))
	if o.spared != "" {
		g.Status.Conditions = bocage.SetCondition(g.Status.Conditions, bocage.Condition{Type: bocage.ConditionTested, Status: "False", ObservedGeneration: 1,
			LastTransitionTime: o.at.UTC().Truncate(time.Second), Reason: "FailedAllTheSame", Message: o.spared})
	}
	return g
}

func count(in compile.Input) int {
	n := 0
	each(in, func(string, bocage.Resource) { n++ })
	return n
}

// readBefore finds what the generation in force was made of, which new generations are
// compared with: in memory, or after a start in its snapshot.
func (b *build) readBefore(ctx context.Context) error {
	if b.before != nil || b.was.Base.Number == 0 || !b.newBaseNumber && !b.newCandidateNumber && b.blocked == nil {
		return nil
	}
	if s := b.p.served.Load(); s != nil && s.base != nil && s.base.number == b.was.Base.Number && s.base.output.Digest() == b.was.Base.Digest {
		b.before = &s.base.input
		return nil
	}
	list, known := b.p.snapshots.lists[b.was.Base.Number]
	if !known || list.Environment == nil {
		return nil
	}
	input, _, err := readSnapshot(ctx, b.p.store, list)
	b.before = &input
	return err
}

// changes lists the objects that differ from what is in force, at most 100.
func (b *build) changes(o *outcome) []string {
	if b.before == nil {
		return nil
	}
	const most = 100
	before := *b.before
	c := changeList{most: most}
	compareLists(&c, "Application", before.Applications, o.input.Applications)
	compareLists(&c, "Guardrail", before.Guardrails, o.input.Guardrails)
	compareLists(&c, "Scope", before.Scopes, o.input.Scopes)
	compareLists(&c, "InspectionProfile", before.Profiles, o.input.Profiles)
	compareLists(&c, "Decoy", before.Decoys, o.input.Decoys)
	compareLists(&c, "Exception", before.Exceptions, o.input.Exceptions)
	compareLists(&c, "Response", before.Responses, o.input.Responses)
	compareLists(&c, "AddressGroup", before.AddressGroups, o.input.AddressGroups)
	compareLists(&c, "NetworkPolicy", before.NetworkPolicies, o.input.NetworkPolicies)
	compareLists(&c, "ClusterNetworkPolicy", before.ClusterNetworkPolicies, o.input.ClusterNetworkPolicies)
	compareLists(&c, "Quarantine", before.Quarantines, o.input.Quarantines)
	compareLists(&c, "ThreatCondition", before.ThreatConditions, o.input.ThreatConditions)
	compareLists(&c, "Workload", before.Workloads, o.input.Workloads)
	compareLists(&c, "Host", before.Hosts, o.input.Hosts)
	compareLists(&c, "Zone", before.Zones, o.input.Zones)
	compareLists(&c, "Namespace", before.Namespaces, o.input.Namespaces)
	return c.names
}

type changeList struct {
	names []string
	most  int
}

// compareLists walks two lists in the mirror's order.
func compareLists[T interface {
	comparable
	bocage.Resource
}](c *changeList, kind string, before, after []T) {
	if same(before, after) {
		return
	}
	note := func(o T) {
		if len(c.names) < c.most {
			c.names = append(c.names, nameOf(kind, o))
		}
	}
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch order := compareAt(before, i, after, j); {
		case order < 0:
			note(before[i])
			i++
		case order > 0:
			note(after[j])
			j++
		default:
			if before[i] != after[j] && fingerprint(before[i]) != fingerprint(after[j]) {
				note(after[j])
			}
			i, j = i+1, j+1
		}
	}
}

// compareAt orders the heads of two lists; one that is over comes last.
func compareAt[T bocage.Resource](a []T, i int, b []T, j int) int {
	switch {
	case i == len(a):
		return 1
	case j == len(b):
		return -1
	}
	x, y := a[i].Meta(), b[j].Meta()
	switch {
	case x == y:
		return 0
	case x.Namespace == y.Namespace:
		return cmp.Compare(x.Name, y.Name)
	}
	return cmp.Compare(x.Namespace+"/", y.Namespace+"/")
}

func provedCondition(o *outcome, generation int64) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionProved, Status: "True", ObservedGeneration: generation,
		LastTransitionTime: o.at.UTC().Truncate(time.Second), Reason: "Proved",
		Message: fmt.Sprintf("%d statements hold for every pair of groups and every port", len(o.proofs))}
	if o.proofs == nil && o.blocked == "" {
		c.Status, c.Reason = "Unknown", reasonProving
		c.Message = "it only tightens what was in force before, so that it is in force before all statements about it are proved"
	} else if failed := prove.Failed(o.proofs); len(failed) > 0 {
		c.Status, c.Reason = "False", reasonProofFailed
		c.Message = fmt.Sprintf("%s (%s), yet: %s", failed[0].Statement, failed[0].By, failed[0].Counterexample)
		if o.blocked == "" && failed[0].Standing {
			c.Message += "; it did not hold before either, or today's inventory broke it: only changes that make it worse are kept back"
		}
	} else if o.blocked != "" {
		c.Status, c.Reason, c.Message = "False", "TestFailed", o.blocked
		if o.incomplete {
			c.Reason = "Unreadable"
		}
	}
	return c
}
