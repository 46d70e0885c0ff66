package recognition

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

// Bounds of what is written of one incident.
const (
	maxEvidence   = 32
	maxEntities   = 64
	maxConditions = 64
	maxNotes      = 16
	maxText       = 400 // bytes
)

// names tells what people call a party.
type names interface {
	// name returns the workload's namespace/name; ok is false where nothing
	// with that identity was ever seen.
	name(bocage.Identity) (name string, ok bool)
}

// post is an incident as it is to be written, and what follows from it.
type post struct {
	name   string
	status bocage.IncidentStatus
	// into is set where the incident turned out to be part of another.
	into string
	// answers are the rungs for each attacker that is a workload.
	answers map[bocage.Identity]answer
	// arrived is the log's time of the latest evidence.
	arrived time.Time
}

// answer is how far and until when an attacker is to be held.
type answer struct {
	watch, quarantine time.Time
	ttl               time.Duration // the step by which quarantine is extended
	reason            string
}

// describe makes the incident of some cases, the first of which gives its name.
func describe(members []*attackerCase, named names, ttl TTLs) *post {
	p := &post{name: members[0].name, answers: map[bocage.Identity]answer{}}
	d := &description{named: named}
	for _, a := range members {
		for key, s := range a.slots {
			d.add(a, key, s)
			p.arrived = later(p.arrived, s.arrived)
			if a.attacker.Member() && s.item.Answer > evidence.AnswerNone {
				p.answers[a.attacker.Identity] = p.answers[a.attacker.Identity].with(s, ttl)
			}
		}
	}
	p.status = d.status(members)
	for identity, held := range p.answers {
		held.reason = p.status.Title
		p.answers[identity] = held
	}
	return p
}

// with adds what one piece of evidence asks for.
func (h answer) with(s *slot, ttl TTLs) answer {
	switch s.item.Answer {
	case evidence.AnswerWatch:
		h.watch = later(h.watch, s.arrived.Add(ttl.Watch))
	case evidence.AnswerContain:
		h.quarantine, h.ttl = later(h.quarantine, s.arrived.Add(ttl.Decoy)), max(h.ttl, ttl.Decoy)
	case evidence.AnswerEliminate:
		h.quarantine, h.ttl = later(h.quarantine, s.arrived.Add(ttl.Quarantine)), max(h.ttl, ttl.Quarantine)
	}
	return h
}

// description gathers an incident's evidence.
type description struct {
	named names
	lines []line
}

// line is one piece of evidence with what its place in the title depends on.
type line struct {
	attacker *attackerCase
	slot     *slot
	facts    string // without the attacker's name
	evidence bocage.Evidence
}

func (d *description) add(a *attackerCase, key slotKey, s *slot) {
	facts := strings.ReplaceAll(s.item.Facts.String(), "{victims}", d.victims(s.item.Victims))
	e := bocage.Evidence{
		ID:        "ev-" + digestOf(key.kind+"\x00"+string(a.attacker.Append(nil))+"\x00"+key.key),
		Kind:      key.kind,
		Time:      s.first.UTC(),
		Technique: s.item.Technique,
		Weight:    round(s.item.Weight),
		HalfLife:  s.item.HalfLife.Seconds(),
		Decisive:  s.item.Decisive,
		Text:      shorten(d.called(a.attacker) + " " + facts),
		Count:     s.count,
	}
	e.Entities = append(e.Entities, d.entity(a.attacker, "attacker"))
	for _, v := range s.item.Victims {
		e.Entities = append(e.Entities, d.entity(v, "victim"))
	}
	for _, r := range s.item.Records {
		e.Records = append(e.Records, r.String())
	}
	d.lines = append(d.lines, line{a, s, facts, e})
}

func (d *description) status(members []*attackerCase) bocage.IncidentStatus {
	slices.SortFunc(d.lines, func(a, b line) int {
		return cmp.Or(
			-cmp.Compare(a.slot.item.Severity, b.slot.item.Severity),
			-cmp.Compare(a.evidence.Weight, b.evidence.Weight),
			a.slot.first.Compare(b.slot.first),
			cmp.Compare(a.evidence.ID, b.evidence.ID))
	})
	status := bocage.IncidentStatus{Phase: phaseOpen, Severity: d.lines[0].slot.item.Severity.String()}
	for _, l := range d.lines {
		if status.First.IsZero() || l.slot.first.Before(status.First) {
			status.First = l.slot.first.UTC()
		}
		status.Last = later(status.Last, l.slot.last).UTC()
	}
	techniques := map[string]bool{}
	for _, l := range d.lines {
		status.Score += l.slot.weight(status.Last)
		status.Evidence = append(status.Evidence, l.evidence)
		if l.evidence.Technique != "" && !techniques[l.evidence.Technique] {
			techniques[l.evidence.Technique] = true
			status.Techniques = append(status.Techniques, l.evidence.Technique)
		}
	}
	slices.Sort(status.Techniques)
	status.Score = round(status.Score)
	status.Evidence = boundEvidence(status.Evidence)
	status.Entities = d.entities(members)
	status.Title = d.title(members)
	return status
}

// entities lists attackers, then victims.
func (d *description) entities(members []*attackerCase) []bocage.Entity {
	var out []bocage.Entity
	for _, a := range members {
		out = append(out, d.entity(a.attacker, "attacker"))
	}
	var victims []evidence.Party
	for _, l := range d.lines {
		victims = append(victims, l.slot.item.Victims...)
	}
	slices.SortFunc(victims, evidence.Party.Compare)
	for _, v := range slices.Compact(victims) {
		out = append(out, d.entity(v, "victim"))
	}
	return out[:min(len(out), maxEntities)]
}

// title says what the attackers did: of each, in order, its two gravest kinds.
func (d *description) title(members []*attackerCase) string {
	var parts []string
	for _, a := range members[:min(len(members), 3)] {
		var chosen []line
		for _, l := range d.lines { // gravest first
			known := slices.ContainsFunc(chosen, func(c line) bool { return c.slot.item.Stage == l.slot.item.Stage })
			if l.attacker == a && !known && len(chosen) < 2 {
				chosen = append(chosen, l)
			}
		}
		slices.SortStableFunc(chosen, func(a, b line) int { return a.slot.first.Compare(b.slot.first) })
		facts := make([]string, len(chosen))
		for i, l := range chosen {
			facts[i] = l.facts
		}
		parts = append(parts, d.called(a.attacker)+" "+strings.Join(facts, ", and "))
	}
	if more := len(members) - 3; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return shorten(strings.Join(parts, "; then "))
}

func (d *description) entity(p evidence.Party, role string) bocage.Entity {
	e := bocage.Entity{Type: "address", Name: d.called(p), Role: role}
	switch {
	case p.Member():
		e.Type = "workload"
	case p.Host != "":
		e.Type, e.Name = "host", p.Host
	}
	return e
}

func (d *description) called(p evidence.Party) string {
	switch {
	case p.Member():
		if name, ok := d.named.name(p.Identity); ok {
			return name
		}
		return fmt.Sprintf("identity %d", p.Identity)
	case p.Host != "":
		return "host " + p.Host
	default:
		return p.Address.String()
	}
}

// victims names targets in few words: the one, their namespaces, or one of many
// addresses.
func (d *description) victims(parties []evidence.Party) string {
	var spaces []string
	var one string
	for _, p := range parties {
		one = d.called(p)
		if space, _, ok := strings.Cut(one, "/"); ok && p.Member() && !slices.Contains(spaces, space) {
			spaces = append(spaces, space)
		}
	}
	slices.Sort(spaces)
	switch {
	case len(parties) == 0:
		return "others"
	case len(parties) == 1:
		return one
	case len(spaces) == 0:
		return d.called(parties[0]) + " and others"
	case len(spaces) > 4:
		return fmt.Sprintf("%s and %d more namespaces", strings.Join(spaces[:3], ", "), len(spaces)-3)
	case len(spaces) > 1:
		return strings.Join(spaces[:len(spaces)-1], ", ") + " and " + spaces[len(spaces)-1]
	default:
		return spaces[0]
	}
}

// boundEvidence keeps the gravest and counts the rest in one entry.
func boundEvidence(all []bocage.Evidence) []bocage.Evidence {
	if len(all) <= maxEvidence {
		return all
	}
	kept, rest := all[:maxEvidence-1:maxEvidence-1], all[maxEvidence-1:]
	more := bocage.Evidence{ID: "ev-more", Kind: kindMore, Time: rest[0].Time}
	for _, e := range rest {
		more.Count += e.Count
		more.Time = earlier(more.Time, e.Time)
	}
	more.Text = fmt.Sprintf("%d more pieces of evidence, seen %d times", len(rest), more.Count)
	return append(kept, more)
}

const kindMore = "more"

func round(w float64) float64 { return math.Round(w*100) / 100 }

// shorten cuts text to its bound between characters.
func shorten(s string) string {
	if len(s) <= maxText {
		return s
	}
	cut := maxText - len("…")
	for cut > 0 && s[cut]&0xc0 == 0x80 {
		cut--
	}
	return s[:cut] + "…"
}

// Phases of an incident.
const (
	phaseOpen      = "open"
	phaseContained = "contained"
	phaseClosed    = "closed"
)

// merge joins what the store has with what is known here, so that replicas may
// write in any order and a replica that knows less takes nothing back. Whoever
// knows more gives the title and the order.
func merge(stored, ours bocage.IncidentStatus) bocage.IncidentStatus {
	more, less := ours, stored
	if weigh(stored.Evidence) > weigh(ours.Evidence) {
		more, less = stored, ours
	}
	out := more
	if !less.First.IsZero() {
		out.First = earlier(less.First, more.First)
	}
	out.Last = later(less.Last, more.Last)
	out.Score = max(less.Score, more.Score)
	if rank(less.Severity) > rank(more.Severity) {
		out.Severity = less.Severity
	}
	out.Evidence = mergeEvidence(more.Evidence, less.Evidence)
	out.Entities = union(more.Entities, less.Entities, maxEntities)
	out.Techniques = union(more.Techniques, less.Techniques, maxEvidence)
	slices.Sort(out.Techniques)
	out.ThreatConditions = union(more.ThreatConditions, less.ThreatConditions, maxConditions)
	slices.Sort(out.ThreatConditions)
	out.Notes = union(stored.Notes, ours.Notes, maxNotes)
	return out
}

// weigh tells how much was known: the sum of weights, then of counts.
func weigh(all []bocage.Evidence) float64 {
	sum := 0.0
	for _, e := range all {
		sum += e.Weight + math.Log1p(float64(e.Count))/1000
	}
	return sum
}

func mergeEvidence(more, less []bocage.Evidence) []bocage.Evidence {
	byID := map[string]int{}
	out := slices.Clone(more)
	for i, e := range out {
		byID[e.ID] = i
	}
	for _, e := range less {
		i, known := byID[e.ID]
		if !known {
			out = append(out, e)
			continue
		}
		joined := out[i]
		if e.Count > joined.Count {
			joined = e
		}
		joined.Time = earlier(e.Time, out[i].Time)
		joined.Weight = max(e.Weight, out[i].Weight)
		joined.Decisive = e.Decisive || out[i].Decisive
		out[i] = joined
	}
	if len(out) <= maxEvidence {
		return out
	}
	// The entry that counts the rest stays the last.
	slices.SortStableFunc(out, func(a, b bocage.Evidence) int {
		return cmp.Or(compareBool(a.Kind == kindMore, b.Kind == kindMore), -cmp.Compare(a.Weight, b.Weight))
	})
	return boundEvidence(out)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

// union appends what is new, up to a bound.
func union[T comparable](first, second []T, bound int) []T {
	out := slices.Clone(first)
	for _, v := range second {
		if len(out) < bound && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func rank(severity string) int {
	return slices.Index([]string{"", "low", "medium", "high", "critical"}, severity)
}
