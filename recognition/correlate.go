package recognition

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"time"

	"bocage.dev/bocage/recognition/evidence"
	"bocage.dev/bocage/recognition/exploit"
)

// Limits of the correlator.
const (
	maxCases   = 8192
	maxSlots   = 256 // different pieces of evidence by one attacker
	maxLinked  = 64  // attackers in one incident
	hubDegree  = 3   // more attackers than this have attacked it: it joins none of them
	minWeight  = 2.2 // decayed weight that two stages need together: a likelihood ratio of 160
	clockSlack = 2 * time.Second
)

// correlator joins evidence into cases, one for each attacker, and cases into
// incidents. It is a fold: what it holds depends on the set of items and their
// arrival, not on their order. It does no I/O and is not safe for concurrent use.
type correlator struct {
	idle    time.Duration
	cases   map[evidence.Party]*attackerCase
	adopt   func(attacker evidence.Party, at time.Time) string
	evicted uint64
	// attackedBy lists who attacked a party with more than a scan.
	attackedBy map[evidence.Party][]evidence.Party
	dirty      map[*attackerCase]bool
}

// attackerCase is all evidence against one attacker within decaying time.
type attackerCase struct {
	attacker  evidence.Party
	name      string // of the incident, if this attacker came first
	published string // the name under which it was last told
	slots     map[slotKey]*slot
	arrived   time.Time // of the latest item
	told      time.Time // when the incident was last posted
	rank      int       // of what was last posted; a higher one is posted at once
}

type slotKey struct{ kind, key string }

// slot is evidence of one kind, joined.
type slot struct {
	item        evidence.Item // the joined facts; its slices are the slot's own
	first, last time.Time
	arrived     time.Time
	count       int
	factsAt     time.Time
	factsTotal  int
}

func newCorrelator(idle time.Duration, adopt func(evidence.Party, time.Time) string) *correlator {
	return &correlator{
		idle: idle, adopt: adopt,
		cases:      map[evidence.Party]*attackerCase{},
		attackedBy: map[evidence.Party][]evidence.Party{},
		dirty:      map[*attackerCase]bool{},
	}
}

// add folds one item; arrived is when the log took the event behind it.
func (c *correlator) add(item *evidence.Item, arrived time.Time) {
	a := c.cases[item.Attacker]
	if a != nil && arrived.Sub(a.arrived) > c.idle {
		c.drop(a) // what it did before is another incident
		a = nil
	}
	if a == nil {
		a = c.open(item.Attacker, item.First, arrived)
	}
	if arrived.After(a.arrived) {
		a.arrived = arrived
	}
	key := slotKey{item.Kind, item.Key}
	s := a.slots[key]
	if s == nil && len(a.slots) >= maxSlots {
		key.key = "" // the rest of its kind goes together
		s = a.slots[key]
	}
	if s == nil {
		s = &slot{}
		a.slots[key] = s
	}
	s.join(item, arrived)
	if item.Kind == exploit.Kind {
		c.attacked(item)
	}
	c.dirty[a] = true
}

// open makes a case. Its incident's name is drawn from the attacker and the
// arrival of the first evidence, in steps of the idle time, so that every replica
// draws the same; an incident that the store already has for it goes on.
func (c *correlator) open(attacker evidence.Party, first, arrived time.Time) *attackerCase {
	if len(c.cases) >= maxCases {
		c.evict()
	}
	a := &attackerCase{attacker: attacker, slots: map[slotKey]*slot{}, arrived: arrived}
	if c.adopt != nil {
		a.name = c.adopt(attacker, first)
		a.published = a.name
	}
	if a.name == "" {
		step := strconv.AppendInt(attacker.Append(nil), arrived.Truncate(c.idle).Unix(), 10)
		a.name = "inc-" + digestOf(string(step))
	}
	c.cases[attacker] = a
	return a
}

// evict makes room: the case that was quiet for longest, one without an incident
// first.
func (c *correlator) evict() {
	var victim *attackerCase
	for _, a := range c.cases {
		if victim == nil || (a.published == "") != (victim.published == "") && a.published == "" ||
			(a.published == "") == (victim.published == "") && a.arrived.Before(victim.arrived) {
			victim = a
		}
	}
	c.evicted++
	c.drop(victim)
}

func (c *correlator) drop(a *attackerCase) {
	delete(c.cases, a.attacker)
	delete(c.dirty, a)
	for key, s := range a.slots {
		if key.kind != exploit.Kind {
			continue
		}
		for _, v := range s.item.Victims {
			rest := slices.DeleteFunc(c.attackedBy[v], func(p evidence.Party) bool { return p == a.attacker })
			if len(rest) == 0 {
				delete(c.attackedBy, v)
			} else {
				c.attackedBy[v] = rest
			}
		}
	}
}

// attacked notes who attacked whom. One more than the hub's degree is enough to
// know a hub.
func (c *correlator) attacked(item *evidence.Item) {
	for _, v := range item.Victims {
		by := c.attackedBy[v]
		if i, found := slices.BinarySearchFunc(by, item.Attacker, evidence.Party.Compare); !found && len(by) <= hubDegree {
			c.attackedBy[v] = slices.Insert(by, i, item.Attacker)
		}
	}
}

// join folds an item into the slot. Every part is a minimum, a maximum, a union
// or a count.
func (s *slot) join(item *evidence.Item, arrived time.Time) {
	if s.count == 0 {
		s.item = *item
		s.item.Victims, s.item.Records = nil, nil
		s.first, s.last, s.arrived = item.First, item.Time, arrived
		s.factsAt, s.factsTotal = item.First, item.Total
	}
	if item.Total > s.factsTotal || item.Total == 0 && item.First.Before(s.factsAt) {
		s.item.Facts, s.factsAt, s.factsTotal = item.Facts, item.First, item.Total
		s.item.Technique = item.Technique
	}
	s.item.Weight = max(s.item.Weight, item.Weight)
	s.item.Severity = max(s.item.Severity, item.Severity)
	s.item.Answer = max(s.item.Answer, item.Answer)
	s.item.Decisive = s.item.Decisive || item.Decisive
	s.first = earlier(s.first, item.First)
	s.last = later(s.last, item.Time)
	s.arrived = later(s.arrived, arrived)
	if item.Total > 0 {
		s.count = max(s.count, item.Total)
	} else {
		s.count++
	}
	for _, v := range item.Victims {
		i, found := slices.BinarySearchFunc(s.item.Victims, v, evidence.Party.Compare)
		if !found && i < evidence.MaxVictims {
			s.item.Victims = slices.Insert(s.item.Victims, i, v)
			s.item.Victims = s.item.Victims[:min(len(s.item.Victims), evidence.MaxVictims)]
		}
	}
	s.records(item)
}

// records keeps the earliest: of a detector that counts, those it names; else in
// the order of their senders' numbers.
func (s *slot) records(item *evidence.Item) {
	if item.Total > 0 {
		s.item.Records = append(s.item.Records[:0], item.Records...)
		return
	}
	for _, r := range item.Records {
		i, found := slices.BinarySearchFunc(s.item.Records, r, func(a, b evidence.Record) int {
			switch {
			case a == b:
				return 0
			case a.Before(b):
				return -1
			default:
				return 1
			}
		})
		if !found && i < evidence.MaxRecords {
			s.item.Records = slices.Insert(s.item.Records, i, r)
			s.item.Records = s.item.Records[:min(len(s.item.Records), evidence.MaxRecords)]
		}
	}
}

// weight is the slot's weight at a moment after its last event.
func (s *slot) weight(at time.Time) float64 {
	age := max(0, at.Sub(s.last))
	return s.item.Weight * math.Exp2(-float64(age)/float64(s.item.HalfLife))
}

// component returns the attackers whose cases are one incident with a's: those it
// attacked and that then attacked others, and so on, both ways. The first of them
// in time comes first. A victim by itself never joins two attackers: everybody
// scans the same servers. Neither does an attacker that many have attacked.
func (c *correlator) component(a *attackerCase) []*attackerCase {
	seen := map[*attackerCase]bool{a: true}
	members := []*attackerCase{a}
	for i := 0; i < len(members) && len(members) < maxLinked; i++ {
		for _, b := range c.neighbours(members[i]) {
			if !seen[b] && len(members) < maxLinked {
				seen[b] = true
				members = append(members, b)
			}
		}
	}
	slices.SortFunc(members, func(a, b *attackerCase) int {
		return cmp.Or(a.first().Compare(b.first()), a.attacker.Compare(b.attacker))
	})
	return members
}

func (c *correlator) neighbours(a *attackerCase) []*attackerCase {
	var out []*attackerCase
	for key, s := range a.slots {
		if key.kind != exploit.Kind {
			continue
		}
		for _, v := range s.item.Victims {
			if b := c.cases[v]; b != nil && c.leadsTo(a, b) {
				out = append(out, b)
			}
		}
	}
	for _, p := range c.attackedBy[a.attacker] {
		if b := c.cases[p]; b != nil && c.leadsTo(b, a) {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(a, b *attackerCase) int { return a.attacker.Compare(b.attacker) })
	return out
}

// leadsTo reports whether a attacked b, and b became an attacker after that.
func (c *correlator) leadsTo(a, b *attackerCase) bool {
	if len(c.attackedBy[b.attacker]) > hubDegree {
		return false
	}
	for key, s := range a.slots {
		if key.kind != exploit.Kind {
			continue
		}
		if _, hit := slices.BinarySearchFunc(s.item.Victims, b.attacker, evidence.Party.Compare); hit &&
			!b.last().Before(s.first.Add(-clockSlack)) {
			return true
		}
	}
	return false
}

func (a *attackerCase) first() time.Time {
	var first time.Time
	for _, s := range a.slots {
		if first.IsZero() || s.first.Before(first) {
			first = s.first
		}
	}
	return first
}

func (a *attackerCase) last() time.Time {
	var last time.Time
	for _, s := range a.slots {
		last = later(last, s.last)
	}
	return last
}

// isIncident reports whether the cases together need a person: one decisive item,
// or two stages of enough weight.
func isIncident(members []*attackerCase) bool {
	var last time.Time
	for _, a := range members {
		last = later(last, a.last())
	}
	stages := map[evidence.Stage]bool{}
	weight := 0.0
	for _, a := range members {
		for _, s := range a.slots {
			if s.item.Decisive {
				return true
			}
			stages[s.item.Stage] = true
			weight += s.weight(last)
		}
	}
	return len(stages) >= 2 && weight >= minWeight
}

// expire drops cases that have been quiet for the idle time.
func (c *correlator) expire(now time.Time) {
	for _, a := range c.cases {
		if now.Sub(a.arrived) > c.idle {
			c.drop(a)
		}
	}
}

// digestOf shortens a string to 12 hex digits of its SHA-256.
func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
