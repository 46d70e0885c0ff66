package dataplane

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Apply makes a ruleset the one in force, at one moment for all packets. When it
// returns, no packet is judged by the ruleset before. Flows are judged again on
// their next packet. It costs what differs from the ruleset before; lists that the
// two share as slices are passed over.
//
// A generation lower than the one in force is refused, as is the same one with
// other content, and one that was left because nobody had confirmed it; then, and
// on any error, nothing has changed. A ruleset with a ConfirmBy is in force until
// then, by the kernel's own clock, unless it is applied again without: what was in
// force before takes its place by itself, and goes on refusing who it refuses.
func (d *Dataplane) Apply(rs *bocage.Ruleset) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enforce(rs, forward)
}

// Revert is Apply for the one case in which an agent goes back: to the generation
// that was in force before one that nobody confirmed. Whoever calls it answers for
// what the ruleset must bring along (see Ruleset.WithRefusals).
func (d *Dataplane) Revert(rs *bocage.Ruleset) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enforce(rs, back)
}

// direction says whether an older generation may take the place of a newer one.
type direction bool

const (
	forward direction = false
	back    direction = true
)

func (d *Dataplane) enforce(rs *bocage.Ruleset, direction direction) error {
	start := time.Now()
	rows, err := d.apply(rs, direction)
	if err != nil {
		return fmt.Errorf("apply generation %d: %w", rs.Generation, err)
	}
	d.log.Info("applied ruleset", "generation", rs.Generation, "back", bool(direction), "peers", len(rs.Peers),
		"rules", len(rs.Rules), "refused", len(rs.Refused), "rows", rows, "took", time.Since(start))
	return nil
}

// apply says how many rows it changed.
func (d *Dataplane) apply(rs *bocage.Ruleset, direction direction) (int, error) {
	f, err := d.readForce()
	if err != nil {
		return 0, err
	}
	if err := f.permits(rs, direction); err != nil {
		return 0, err
	}
	now := readClock()
	term, err := f.termFor(rs, direction, now)
	if err != nil {
		return 0, err
	}
	next, err := d.weigh(rs, f, now)
	if err != nil {
		return 0, err
	}
	if f.header != nil && direction == forward && rs.Generation == f.header.Generation && !next.same {
		next.undo()
		return 0, errors.New("this generation is in force with other content: give the new content a higher generation")
	}
	if err := d.bringIn(next, f, term); err != nil {
		return 0, err
	}
	d.afterFlip(next)
	return next.rows.len(), nil
}

// coming is a ruleset on its way into force.
type coming struct {
	content *content
	lists   lists
	rows    *changes
	header  bpf.KernelRuleset
	same    bool   // as the one in force, generation and refusals apart
	undo    func() // takes the change of the content back
}

// weigh finds what a ruleset changes, of the content or of all that there is in
// the kernel if this process does not know it yet, and whether that fits.
func (d *Dataplane) weigh(rs *bocage.Ruleset, f *force, now clock) (*coming, error) {
	content, last := d.content, d.lists
	known := content != nil
	if !known {
		content = newContent(d.nameKey)
	}
	e, err := content.read(rs, last)
	if err != nil {
		return nil, err
	}
	if known {
		return d.edited(e, listsOf(rs), now)
	}
	rows, _ := content.change(e, now)
	if err := d.checkRoom(content); err != nil {
		return nil, err
	}
	next := &coming{content: content, lists: listsOf(rs), rows: rows, header: content.header(0), undo: func() {}}
	if next.same, err = d.compareAll(rows, f.slot()); err != nil {
		return nil, err
	}
	if f.header != nil {
		was := *f.header
		was.Generation, was.Refused, was.Slot = next.header.Generation, next.header.Refused, next.header.Slot
		next.same = next.same && was == next.header
	}
	return next, nil
}

// edited makes an edit of the content that this process knows, and says whether what
// comes of it fits.
func (d *Dataplane) edited(e *edit, lists lists, now clock) (*coming, error) {
	content, before := d.content, d.content.clock
	next := &coming{content: content, lists: lists, same: e.onlyRefused() && e.fallback == content.fallback}
	rows, inverse := content.change(e, now)
	next.rows, next.header = rows, content.header(0)
	next.undo = func() {
		content.change(inverse, before)
	}
	if err := d.checkRoom(content); err != nil {
		next.undo()
		return nil, err
	}
	return next, nil
}

// onlyRefused says whether an edit changes nothing but who is refused.
func (e *edit) onlyRefused() bool {
	return len(e.peersGone)+len(e.peersCome)+len(e.rulesGone)+len(e.rulesCome)+len(e.reasonsGone)+len(e.reasonCome)+
		len(e.groups)+len(e.decisions)+len(e.names) == 0
}

// bringIn writes what is coming where nothing looks at it, and makes it the one in
// force by one store. On an error nothing is in force that was not.
func (d *Dataplane) bringIn(next *coming, f *force, term bpf.KernelTerm) (err error) {
	defer func() {
		if err != nil {
			next.undo()
		}
	}()
	target, err := d.makeRoom(next, f)
	if err != nil {
		return err
	}
	if err := d.stage(&batch{what: orderPut, slots: 1 << target}, next.rows); err != nil {
		return errors.Join(err, d.abandon(next.rows, f, target))
	}
	if err := d.writeHeader(next, target); err != nil {
		return errors.Join(err, d.abandon(next.rows, f, target))
	}
	if err := d.flip(f, target, term); err != nil {
		return errors.Join(err, d.abandon(next.rows, f, target))
	}
	return nil
}

func (d *Dataplane) writeHeader(next *coming, slot uint32) error {
	next.header.Slot = slot
	err := d.step("header")
	if err == nil {
		err = d.objects.Rulesets.Put(slot, next.header)
	}
	if err != nil {
		return fmt.Errorf("write ruleset: %w", err)
	}
	return nil
}

// makeRoom finds a free slot, and sees to it that it holds what the last ruleset
// that was brought in holds and that no packet looks at it. If rows do not fit it
// says so: a candidate goes first.
func (d *Dataplane) makeRoom(next *coming, f *force) (target uint32, err error) {
	if !d.settled {
		if err := d.await(); err != nil {
			return 0, err
		}
		d.settled = true
	}
	if err := d.fits(next.rows); err != nil {
		if f.row.Candidate == 0 {
			return 0, err
		}
		// What is only evaluated must not stand in the way of what is enforced.
		d.log.Warn("candidate dropped: it leaves no room for the next ruleset", "generation", next.header.Generation)
		if err := d.dropCandidate(); err != nil {
			return 0, err
		}
		f.row.Candidate = 0
		if d.content == nil {
			if err := d.tidy(f, next.rows); err != nil {
				return 0, err
			}
		}
		if err := d.await(); err != nil {
			return 0, err
		}
		d.settled = true
		if err := d.fits(next.rows); err != nil {
			return 0, err
		}
	}
	target = f.freeSlots()[0]
	if stale := d.stale[target]; stale != nil && d.content != nil {
		if err := d.stage(&batch{what: orderCopy, slots: 1 << target, like: f.last()}, stale); err != nil {
			return 0, err
		}
		d.stale[target] = nil
	}
	return target, nil
}

// abandon takes back what was staged; what cannot be is known to be stale.
func (d *Dataplane) abandon(rows *changes, f *force, target uint32) error {
	if d.content == nil {
		return nil // all of it is compared again, before anything else
	}
	empty := newChanges()
	if err := d.stage(&batch{what: orderCopy, slots: 1 << target, like: f.last(), empty: empty}, rows); err != nil {
		d.noteStale(target, rows)
		return err
	}
	return d.prune(empty)
}

func (d *Dataplane) noteStale(slot uint32, rows *changes) {
	if rows.len() == 0 {
		return
	}
	if d.stale[slot] == nil {
		d.stale[slot] = newChanges()
	}
	d.stale[slot].add(rows)
}

// afterFlip waits until no packet is judged by the old generation, and brings the
// slots that nothing counts on up to date. The new one is in force whatever happens
// here, so errors are only logged.
func (d *Dataplane) afterFlip(next *coming) {
	d.content, d.lists = next.content, next.lists
	defer d.moveLinks()
	f, err := d.readForce()
	if err == nil {
		d.settled = false
		if err = d.await(); err == nil {
			d.settled = true
		}
	}
	if err != nil {
		d.log.Warn("packets of the old generation not awaited", "error", err)
		for slot := range uint32(slots) {
			if slot != next.header.Slot {
				d.noteStale(slot, next.rows)
			}
		}
		return
	}
	if err := d.tidy(f, next.rows); err != nil {
		d.log.Warn("rows of older generations not brought up to date", "error", err)
	}
}

// tidy makes every free slot hold what the last ruleset that was brought in holds,
// from which it differs in some rows. Slots that are in use are known to differ.
func (d *Dataplane) tidy(f *force, rows *changes) error {
	last, empty := f.last(), newChanges()
	free, behind := uint32(0), rows
	for slot := range uint32(slots) {
		switch {
		case slot == last:
			d.stale[slot] = nil
		case f.pinned()>>slot&1 != 0:
			d.noteStale(slot, rows)
		default:
			free |= 1 << slot
			if d.stale[slot] == nil {
				continue
			}
			if behind == rows {
				behind = newChanges()
				behind.add(rows)
			}
			behind.add(d.stale[slot])
		}
	}
	if err := d.stage(&batch{what: orderCopy, slots: free, like: last, empty: empty}, behind); err != nil {
		for slot := range uint32(slots) {
			if free>>slot&1 != 0 {
				d.noteStale(slot, rows)
			}
		}
		return err
	}
	for slot := range d.stale {
		if free>>slot&1 != 0 {
			d.stale[slot] = nil
		}
	}
	return d.prune(empty)
}

// checkRoom says before anything is written whether a ruleset is within what is
// configured.
func (d *Dataplane) checkRoom(c *content) error {
	var faults faults
	rows := func(n, each, entries int, what, table string) {
		if n > each*entries {
			faults.add("%d %s and room for %d: give the agent --table-entries %s=%d or more", n, what, each*entries, table, (n+each-1)/each)
		}
	}
	check := func(n, entries int, what, table string) { rows(n, 1, entries, what, table) }
	shorter := 0
	for _, lengths := range [][hostLength]int{c.prefixes.used4, c.prefixes.used6} {
		for _, n := range lengths {
			shorter += n
		}
	}
	check(c.peers.count-shorter, d.cfg.PeerEntries, "host addresses", "addresses")
	check(len(c.groups), d.cfg.PeerEntries, "groups", "addresses")
	check(shorter, d.cfg.PrefixEntries, "prefixes", "prefixes")
	rows(len(c.prefixes.rows), prefixRowsEach, d.cfg.PrefixEntries, "rows to find prefixes by", "prefixes")
	check(c.cells, d.cfg.RuleEntries, "rules after splitting port ranges", "rules")
	check(len(c.refused), d.cfg.RefusedEntries, "refused identities", "refused")
	ending, limited, ranked := 0, 0, 0
	for _, n := range c.decisions {
		ending += int(number(!n.until.IsZero()))
		limited += int(number(n.row.Limited != 0))
		ranked += int(number(n.row.Flags&decisionRanked != 0))
	}
	check(ending, d.cfg.EndingEntries, "decisions that end", "endings")
	check(limited, d.cfg.LimitEntries, "decisions that limit flows", "limits")
	check(len(c.names), d.cfg.NameEntries, "DNS names", "names")
	check(ranked, d.cfg.RankEntries, "decisions with ranks of names", "ranks")
	return faults.err()
}

// fits says whether the tables have room for the rows that are not there yet, next
// to those of the generations that are in force, to go back to, or evaluated.
func (d *Dataplane) fits(rows *changes) error {
	more := [tables]int{len(rows.peers), len(rows.prefixes), len(rows.groups), len(rows.cells), len(rows.refused), len(rows.successions), len(rows.limits), len(rows.names), len(rows.ranks)}
	full := func() bool {
		for table, n := range more {
			if n > 0 && d.count[table]+n > int(d.mapOf(uint32(table)).MaxEntries()) {
				return true
			}
		}
		return false
	}
	if !full() {
		return nil
	}
	count := &batch{what: orderCount}
	if err := d.stage(count, rows); err != nil {
		return err
	}
	if more = count.fresh; !full() {
		return nil
	}
	var faults faults
	names := [tables][2]string{{"host addresses", "addresses"}, {"rows to find prefixes by", "prefixes"}, {"groups", "addresses"},
		{"rules after splitting port ranges", "rules"}, {"refused identities", "refused"}, {"decisions that end", "endings"}, {"decisions that limit flows", "limits"}, {"DNS names", "names"},
		{"decisions with ranks of names", "ranks"}}
	for table, n := range more {
		if room := int(d.mapOf(uint32(table)).MaxEntries()); d.count[table]+n > room {
			faults.add("%d %s are held for the rulesets in force and to go back to, %d more come, and the table has room for %d: give the agent --table-entries %s=%d or more",
				d.count[table], names[table][0], n, room, names[table][1], *d.cfg.entries()[names[table][1]]+(d.count[table]+n-room+1)/2)
		}
	}
	return faults.err()
}

// clearRows deletes the rows whose key is chosen.
func clearRows[K comparable](m *ebpf.Map, chosen func(K) bool) error {
	var doomed []K
	for key, err := range keysIn[K](m) {
		if err != nil {
			return fmt.Errorf("list %s: %w", m, err)
		}
		if chosen(key) {
			doomed = append(doomed, key)
		}
	}
	for _, key := range doomed {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("clear %s: %w", m, err)
		}
	}
	return nil
}

// keysIn walks the keys of a map that nobody else changes.
func keysIn[K any](m *ebpf.Map) iter.Seq2[K, error] {
	return func(yield func(K, error) bool) {
		var key, next K
		err := m.NextKey(nil, &next)
		for ; err == nil; err = m.NextKey(key, &next) {
			if !yield(next, nil) {
				return
			}
			key = next
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			yield(next, err)
		}
	}
}

func number(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
