package recognition

import (
	"maps"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/account"
	"bocage.dev/bocage/recognition/engagement"
	"bocage.dev/bocage/recognition/evidence"
	"bocage.dev/bocage/recognition/exploit"
	"bocage.dev/bocage/recognition/scan"
	"bocage.dev/bocage/recognition/silence"
	"bocage.dev/bocage/recognition/spoof"
	"bocage.dev/bocage/stream"
)

// fold is the pure part: messages in, incidents to write out. It is used by one
// goroutine.
type fold struct {
	ttl         TTLs
	updateEvery time.Duration
	ledger      *ledger
	counts      *counts
	correlator  *correlator
	scan        *scan.Detector
	silence     *silence.Detector
	hosts       map[string]time.Time
	ticked      time.Time
}

func newFold(c Config, l *ledger, counts *counts) *fold {
	f := &fold{
		ttl: c.TTLs(), updateEvery: c.UpdateEvery, ledger: l, counts: counts,
		scan: scan.New(c.Scan), silence: silence.New(), hosts: map[string]time.Time{},
	}
	f.correlator = newCorrelator(c.Idle, func(attacker evidence.Party, at time.Time) string {
		return l.adopt(attacker, at, c.Idle)
	})
	return f
}

// message folds one message of the log.
func (f *fold) message(o opened) {
	arrived := o.message.Time
	emit := func(item evidence.Item) { f.add(&item, arrived) }
	if o.err != nil {
		f.counts.rejected.Add(1)
		f.silence.Unsigned(o.message.Subject, arrived, emit)
		return
	}
	b := o.batch
	switch f.silence.Batch(b, arrived, emit) {
	case account.Duplicate:
		f.counts.duplicates.Add(1)
		return
	case account.Stale:
		f.counts.stale.Add(1)
		return
	}
	f.batch(b, arrived, emit)
}

// batch folds the records of a batch that is new. Its own account: every record
// is processed, or the batch's damage makes it shed; lost is what the sender says.
func (f *fold) batch(b *bocage.Batch, arrived time.Time, emit func(evidence.Item)) {
	host := silence.Host(b.Source)
	book := f.counts.source(host)
	for cause, n := range b.Lost {
		book.lose(cause, n)
	}
	flows := len(b.Flows) / bocage.FlowEventSize
	if damaged := len(b.Flows) % bocage.FlowEventSize; damaged != 0 {
		book.shed.Add(1) // the record that it ends in
	}
	record := evidence.Record{Source: b.Source, Boot: b.Boot, Sequence: b.Sequence}
	var e bocage.FlowEvent
	for i := range flows {
		if e.UnmarshalBinary(b.Flows[i*bocage.FlowEventSize:(i+1)*bocage.FlowEventSize]) != nil {
			book.shed.Add(1)
			continue
		}
		record.Index = i
		if e.Kind == bocage.EventStart || e.Kind == bocage.EventUpdate {
			continue // no detector weighs them
		}
		if from, to := evidence.Ends(&e); f.ledger.mayReport(host, from, to) {
			f.flow(&e, arrived, record, emit)
		} else {
			f.foreign(b, from, to, arrived, emit)
		}
	}
	for i := range b.Inspections {
		e := &b.Inspections[i]
		record.Index = flows + i
		from, to := f.ledger.who(e.Source, e.Flow.Source), f.ledger.who(e.Destination, e.Flow.Destination)
		if !f.ledger.mayReport(host, from, to) {
			f.foreign(b, from, to, arrived, emit)
			continue
		}
		if item, ok := exploit.Inspection(e, from, to, record); ok {
			emit(item)
		}
	}
	for i := range b.Engagements {
		e := &b.Engagements[i]
		record.Index = flows + len(b.Inspections) + i
		from, to := f.ledger.who(e.Source, e.Flow.Source), f.ledger.who(e.Destination, e.Flow.Destination)
		if !f.ledger.mayReport(host, from, to) {
			f.foreign(b, from, to, arrived, emit)
			continue
		}
		if item, ok := engagement.Engagement(e, from, to, record); ok {
			emit(item)
		}
	}
	for i := range b.Greetings { // for the lake: no detector weighs them
		if from, to := evidence.Ends(&b.Greetings[i].Flow); !f.ledger.mayReport(host, from, to) {
			f.foreign(b, from, to, arrived, emit)
		}
	}
	if damaged := len(b.Cadences) % bocage.CadenceSize; damaged != 0 {
		book.shed.Add(1)
	}
	cadences := len(b.Cadences) / bocage.CadenceSize // for the lake: no detector weighs them
	book.processed.Add(uint64(flows + cadences + len(b.Greetings) + len(b.Inspections) + len(b.Engagements)))
}

// foreign refuses what a host says of a flow between workloads that are both
// elsewhere: a stolen host speaks for its own guests only.
func (f *fold) foreign(b *bocage.Batch, from, to evidence.Party, arrived time.Time, emit func(evidence.Item)) {
	f.counts.foreign.Add(1)
	f.silence.Foreign(b, []evidence.Party{from, to}, arrived, emit)
}

func (f *fold) flow(e *bocage.FlowEvent, arrived time.Time, record evidence.Record, emit func(evidence.Item)) {
	if e.Reason != bocage.ReasonDarkAddress || !f.ledger.formerly(e.Remote) {
		f.scan.Flow(e, arrived, record, emit)
	}
	if item, ok := spoof.Flow(e, record); ok {
		emit(item)
	}
}

func (f *fold) add(item *evidence.Item, arrived time.Time) {
	f.counts.evidence(item.Kind)
	f.correlator.add(item, arrived)
}

// tick does what time alone asks for.
func (f *fold) tick(now time.Time) {
	if now.Sub(f.ticked) < time.Second {
		return
	}
	f.ticked = now
	emit := func(item evidence.Item) { f.add(&item, now) }
	f.silence.Tick(now, emit)
	for host, at := range f.ledger.seen() {
		if at.After(f.hosts[host]) {
			f.hosts[host] = at
			f.silence.Seen(host, at, emit)
		}
	}
	f.correlator.expire(now)
	sources, pairs := f.scan.Evicted()
	f.counts.evicted("scan sources", sources)
	f.counts.evicted("scan pairs", pairs)
	f.counts.evicted("cases", f.correlator.evicted)
	f.counts.missing.Store(f.silence.Missing)
	f.counts.unchained.Store(f.silence.Unchained)
	f.counts.cases.Store(int64(len(f.correlator.cases)))
}

// posts describes the incidents that are to be written now: those that are new or
// became worse at once, others as often as updateEvery allows, or all.
func (f *fold) posts(now time.Time, all bool) []*post {
	if len(f.correlator.dirty) == 0 {
		return nil
	}
	dirty := slices.SortedFunc(maps.Keys(f.correlator.dirty), func(a, b *attackerCase) int {
		return a.attacker.Compare(b.attacker)
	})
	var out []*post
	for _, a := range dirty {
		if !f.correlator.dirty[a] {
			continue // written with another of its incident
		}
		members := f.correlator.component(a)
		if !isIncident(members) {
			delete(f.correlator.dirty, a)
			continue
		}
		root, rank := members[0], rankOf(members)
		changed := slices.ContainsFunc(members, func(m *attackerCase) bool { return m.published != root.name })
		if !all && !changed && rank <= root.rank && now.Sub(root.told) < f.updateEvery {
			continue
		}
		out = append(out, f.publish(members, now, rank)...)
	}
	return out
}

// publish makes the posts of one incident, and closes those that became part of it.
func (f *fold) publish(members []*attackerCase, now time.Time, rank int) []*post {
	root := members[0]
	if root.published == "" {
		f.counts.incidents.Add(1)
	}
	out := []*post{describe(members, f.ledger, f.ttl)}
	for _, m := range members {
		if m.published != "" && m.published != root.name {
			out = append(out, &post{name: m.published, into: root.name})
		}
		m.published, m.told, m.rank = root.name, now, rank
		delete(f.correlator.dirty, m)
	}
	return out
}

// rankOf grows with what an incident asks to be done about each of its attackers.
func rankOf(members []*attackerCase) int {
	rank := 0
	for _, a := range members {
		worst := 0
		for _, s := range a.slots {
			worst = max(worst, int(s.item.Severity)*8+int(s.item.Answer))
		}
		rank += worst
	}
	return rank
}

// marks remembers which message is about a horizon old.
type marks struct {
	horizon time.Duration
	points  []mark
	last    uint64
}

type mark struct {
	sequence uint64
	at       time.Time
}

func newMarks(horizon time.Duration, at checkpoint) *marks {
	return &marks{horizon: horizon, last: at.Sequence}
}

func (m *marks) passed(message stream.Message) {
	m.last = max(m.last, message.Sequence)
	if n := len(m.points); n == 0 || message.Time.Sub(m.points[n-1].at) >= m.horizon/64 {
		m.points = append(m.points, mark{message.Sequence, message.Time})
	}
	for len(m.points) > 1 && message.Time.Sub(m.points[1].at) > m.horizon {
		m.points = slices.Delete(m.points, 0, 1)
	}
}

func (m *marks) checkpoint() checkpoint {
	if len(m.points) == 0 {
		return checkpoint{Sequence: m.last, From: m.last}
	}
	return checkpoint{Sequence: m.last, From: m.points[0].sequence}
}
