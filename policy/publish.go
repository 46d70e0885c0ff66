package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/store"
)

// recordKey is where controllers agree on the generation. Everything that one of
// them publishes goes through a compare-and-set of this key.
const recordKey = "policy/record"

// keep is how many generations are remembered.
const keep = 20

// record is the agreement.
type record struct {
	// Number is the last generation that was numbered. It only grows.
	Number uint64 `json:"number"`
	// Active is the generation in force, Digest names its content.
	Active uint64 `json:"active"`
	Digest string `json:"digest"`
	// Complete says that every host's ruleset of Active was written.
	Complete bool `json:"complete"`
	// Blocked names the content of which a proof failed last.
	Blocked string `json:"blocked,omitempty"`
	// Inputs is the store's revision up to which declarations went in.
	Inputs store.Revision `json:"inputs"`
}

func (p *Policy) readRecord(ctx context.Context) (record, store.Revision, error) {
	entry, err := p.store.Get(ctx, recordKey)
	if errors.Is(err, store.ErrNotFound) {
		return record{}, store.Absent, nil
	}
	if err != nil {
		return record{}, 0, fmt.Errorf("read the last generation: %w", err)
	}
	var r record
	if err := json.Unmarshal(entry.Value, &r); err != nil {
		return record{}, 0, fmt.Errorf("read the last generation: %w", err)
	}
	return r, entry.Revision, nil
}

func (r record) op(was store.Revision) (store.Op, error) {
	value, err := json.Marshal(r)
	return store.Op{Key: recordKey, Value: value, IfWas: was}, err
}

// publish writes the rulesets of every host and the Generation, in one
// transaction if it fits into one. If not, the number is taken first and the
// content declared complete last, so that a controller that dies on the way
// leaves a generation that the next one replaces.
func (p *Policy) publish(ctx context.Context, o *outcome, last record, was store.Revision, duration time.Duration) error {
	hosts := p.hosts(o)
	ops, err := p.rulesets(o, hosts)
	if err != nil {
		return err
	}
	if err := p.listPublished(ctx); err != nil {
		return err
	}
	for _, host := range sortedNames(p.published) {
		if !slices.Contains(hosts, host) {
			ops = append(ops, store.Op{Key: bocage.RulesetKey(host), Delete: true, IfWas: store.AnyRevision})
		}
	}
	next := record{Number: o.number, Active: o.number, Digest: o.output.Ruleset.Digest, Inputs: o.view.revision, Blocked: last.Blocked}
	final, err := p.generationOps(o, duration)
	if err != nil {
		return err
	}
	chunks := split(ops, final)
	for i, chunk := range chunks {
		next.Complete = i == len(chunks)-1
		op, err := next.op(was)
		if err != nil {
			return err
		}
		if was, err = p.store.Apply(ctx, append(chunk, op)...); err != nil {
			return fmt.Errorf("write generation %d: %w", o.number, err)
		}
	}
	p.applied(final, was)
	p.published = map[string]bool{}
	for _, host := range hosts {
		p.published[host] = true
	}
	p.counters.published.Add(1)
	p.notify(o.number)
	p.logger.InfoContext(ctx, "generation active", slog.Uint64("generation", o.number), slog.Uint64("before", last.Active),
		slog.Int("rules", len(o.output.Ruleset.Rules)), slog.Int("hosts", len(hosts)), slog.Duration("took", time.Since(o.at)))
	return nil
}

// publishMissing writes the rulesets of hosts that came since the generation
// was published.
func (p *Policy) publishMissing(ctx context.Context, o *outcome, last record, was store.Revision) error {
	if err := p.listPublished(ctx); err != nil {
		return err
	}
	var missing []string
	for _, host := range p.hosts(o) {
		if !p.published[host] {
			missing = append(missing, host)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ops, err := p.rulesets(o, missing)
	if err != nil {
		return err
	}
	for _, chunk := range split(ops, nil) {
		op, err := last.op(was) // unchanged: it only makes sure that the generation still is
		if err != nil {
			return err
		}
		if was, err = p.store.Apply(ctx, append(chunk, op)...); err != nil {
			return fmt.Errorf("write rulesets of new hosts: %w", err)
		}
	}
	for _, host := range missing {
		p.published[host] = true
	}
	p.notify(o.number)
	return nil
}

// listPublished finds, once, which hosts have a ruleset in the store.
func (p *Policy) listPublished(ctx context.Context) error {
	if p.publishedKnown {
		return nil
	}
	prefix := bocage.RulesetKey("")
	for after := ""; ; {
		// Few at a time: the values are large.
		part, _, err := p.store.List(ctx, prefix, after, 16, 0)
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, e := range part {
			p.published[e.Key[len(prefix):]] = true
			after = e.Key
		}
		if len(part) < 16 {
			p.publishedKnown = true
			return nil
		}
	}
}

// hosts lists everyone who needs a ruleset: hosts with an agent, and hosts that
// workloads are placed on.
func (p *Policy) hosts(o *outcome) []string {
	names := map[string]bool{}
	for _, h := range o.view.hosts {
		names[h.Name] = true
	}
	for _, w := range o.input.Workloads {
		names[w.Spec.Host] = true
	}
	delete(names, "")
	return sortedNames(names)
}

func sortedNames(set map[string]bool) []string {
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// rulesets signs the parts of the hosts.
func (p *Policy) rulesets(o *outcome, hosts []string) ([]store.Op, error) {
	e, err := newEncoder(o.output.Ruleset)
	if err != nil {
		return nil, err
	}
	cutter := compile.NewCutter(o.output.Ruleset, o.input)
	ops := make([]store.Op, 0, len(hosts))
	for _, host := range hosts {
		payload, err := e.encode(cutter.Cut(host))
		if err != nil {
			return nil, err
		}
		envelope, err := p.sign(bocage.SignedRuleset, payload)
		if err != nil {
			return nil, fmt.Errorf("sign the ruleset of %s: %w", host, err)
		}
		if len(envelope) > store.MaxValue {
			return nil, fmt.Errorf("the ruleset of %s has %d bytes, more than the %d that a store keeps: place its workloads on more hosts: %w",
				host, len(envelope), store.MaxValue, store.ErrTooLarge)
		}
		ops = append(ops, store.Op{Key: bocage.RulesetKey(host), Value: envelope, IfWas: store.AnyRevision})
	}
	return ops, nil
}

// split divides writes into transactions that a store takes, the final ones all
// in the last. One more write fits into each.
func split(ops, final []store.Op) [][]store.Op {
	const mostOps, mostBytes = store.MaxOps - 1, store.MaxApply - 64<<10
	size := func(op store.Op) int { return len(op.Key) + len(op.Value) }
	finalBytes := 0
	for _, op := range final {
		finalBytes += size(op)
	}
	var chunks [][]store.Op
	var chunk []store.Op
	bytes := 0
	for _, op := range ops {
		if len(chunk) >= mostOps || bytes+size(op) > mostBytes {
			chunks, chunk, bytes = append(chunks, chunk), nil, 0
		}
		chunk, bytes = append(chunk, op), bytes+size(op)
	}
	if len(chunk)+len(final) > mostOps || bytes+finalBytes > mostBytes {
		chunks, chunk = append(chunks, chunk), nil
	}
	return append(chunks, append(chunk, final...))
}

// generationKind is the kind that this room writes.
func generationKind() bocage.Kind {
	kind, _ := bocage.KindNamed("Generation")
	return kind
}

// generationOps writes the new Generation, takes the mark of the active one off
// the others and forgets the oldest.
func (p *Policy) generationOps(o *outcome, duration time.Duration) ([]store.Op, error) {
	kind := generationKind()
	g := generation(o, duration)
	value, err := store.EncodeObject(kind, g)
	if err != nil {
		return nil, fmt.Errorf("encode generation %d: %w", o.number, err)
	}
	ops := []store.Op{{Key: kind.Key("", g.Name), Value: value, IfWas: store.Absent}}
	others := slices.Clone(o.view.generations)
	slices.SortFunc(others, func(a, b *object) int {
		return cmp.Compare(b.resource.(*bocage.Generation).Status.Number, a.resource.(*bocage.Generation).Status.Number)
	})
	for i, other := range others {
		old := *other.resource.(*bocage.Generation)
		switch {
		case old.Name == g.Name:
			// A number is used once; what is here under this name is no record of ours.
			ops[0].IfWas = other.revision
		case i >= keep-1 && !old.Status.Active:
			ops = append(ops, store.Op{Key: kind.Key("", old.Name), Delete: true, IfWas: other.revision})
		case old.Status.Active && !o.blocked:
			old.Status.Active = false
			old.Status.Conditions = slices.Clone(old.Status.Conditions)
			value, err := store.EncodeObject(kind, &old)
			if err != nil {
				return nil, fmt.Errorf("encode generation %d: %w", old.Status.Number, err)
			}
			ops = append(ops, store.Op{Key: kind.Key("", old.Name), Value: value, IfWas: other.revision})
		}
	}
	return ops, nil
}

// applied tells the mirror of our own writes, which the watch will bring later.
func (p *Policy) applied(ops []store.Op, at store.Revision) {
	for _, op := range ops {
		var value []byte
		if !op.Delete {
			value = op.Value
		}
		p.mirror.put(op.Key, value, at, p.logger)
	}
}

// recordBlocked writes down a generation that a proof held back. The active one
// stays as it is.
func (p *Policy) recordBlocked(ctx context.Context, o *outcome, last record, was store.Revision) (record, store.Revision, error) {
	ops, err := p.generationOps(o, time.Since(o.at))
	if err != nil {
		return last, was, err
	}
	last.Number, last.Blocked, last.Inputs = o.number, o.output.Ruleset.Digest, o.view.revision
	op, err := last.op(was)
	if err != nil {
		return last, was, err
	}
	at, err := p.store.Apply(ctx, append(ops, op)...)
	if err != nil {
		return last, was, fmt.Errorf("record blocked generation %d: %w", o.number, err)
	}
	p.applied(ops, at)
	return last, at, nil
}

// tighten adds the refusals of a blocked outcome to the generation in force:
// they can only close, so they need none of the proofs that failed. A process
// that has not compiled the generation in force itself cannot do it.
func (p *Policy) tighten(ctx context.Context, o *outcome, last record, was store.Revision) error {
	active := p.active.Load()
	if active == nil || active.number != last.Active {
		return nil
	}
	rs := active.output.Ruleset
	refused := map[bocage.Identity]bocage.Refusal{}
	for _, r := range rs.Refused {
		refused[r.Identity] = r
	}
	decisions := slices.Clone(rs.Decisions)
	digest := sha256.New()
	digest.Write([]byte(rs.Digest))
	more := false
	for _, r := range o.output.Ruleset.Refused {
		if old, is := refused[r.Identity]; is && (old.Until.IsZero() || !r.Until.IsZero() && !r.Until.After(old.Until)) {
			continue // what is in force lasts at least as long
		}
		more, refused[r.Identity] = true, r
		fmt.Fprintf(digest, " %d %d %s", r.Identity, r.Decision, r.Until)
		if d, ok := o.output.Ruleset.Decision(r.Decision); ok && !slices.ContainsFunc(decisions, func(old bocage.Decision) bool { return old.ID == d.ID }) {
			decisions = append(decisions, d)
		}
	}
	if !more {
		return nil
	}
	slices.SortFunc(decisions, func(a, b bocage.Decision) int { return cmp.Compare(a.ID, b.ID) })
	tight := &outcome{input: active.input, view: p.mirror.view(), number: last.Number + 1, activeNo: last.Number + 1, proofs: active.proofs, at: o.at}
	tight.view.revision = o.view.revision
	tight.input.Quarantines, tight.input.ThreatConditions = o.input.Quarantines, o.input.ThreatConditions
	tight.judge = sync.OnceValue(func() *explain.Judge { return explain.NewJudge(tight.input) })
	tight.output.Ruleset = &bocage.Ruleset{
		Generation: tight.number, Digest: hex.EncodeToString(digest.Sum(nil)), Peers: rs.Peers, Groups: rs.Groups, Rules: rs.Rules,
		Decisions: decisions, Default: rs.Default, Profiles: rs.Profiles, Decoys: rs.Decoys,
	}
	for _, id := range slices.Sorted(maps.Keys(refused)) {
		tight.output.Ruleset.Refused = append(tight.output.Ruleset.Refused, refused[id])
	}
	if err := p.publish(ctx, tight, last, was, time.Since(o.at)); err != nil {
		return err
	}
	p.active.Store(tight)
	o.activeNo = tight.number
	return nil
}

// generation describes an outcome.
func generation(o *outcome, duration time.Duration) *bocage.Generation {
	rs := o.output.Ruleset
	created := o.at.UTC().Truncate(time.Second)
	in := o.input
	g := &bocage.Generation{
		ObjectMeta: bocage.ObjectMeta{Name: "g" + strconv.FormatUint(o.number, 10), Generation: 1, CreationTimestamp: &created,
			UID: fmt.Sprintf("generation-%d-%.16s", o.number, rs.Digest)},
		Status: bocage.GenerationStatus{
			Number: o.number, Digest: rs.Digest, Active: !o.blocked, Compiled: o.at.UTC(), Duration: duration.Seconds(),
			Objects: len(in.Applications) + len(in.Guardrails) + len(in.Scopes) + len(in.Profiles) + len(in.Decoys) +
				len(in.Quarantines) + len(in.ThreatConditions) + len(in.Workloads),
			Peers: len(rs.Peers), Groups: len(rs.Groups), Rules: len(rs.Rules), Proofs: o.proofs,
		},
	}
	g.Status.Conditions = bocage.SetCondition(nil, provedCondition(o, 1))
	return g
}
