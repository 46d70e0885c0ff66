// Package evidence holds what the detectors of the recognition room have in
// common: who takes part, what was seen, and how much it weighs. Weights are
// base-10 logarithms of likelihood ratios. The package promises that a party has
// one spelling, whichever enforcement point reported it, and never looks up a
// name: names are for people and come last.
package evidence

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"bocage.dev/bocage"
)

// Party is who takes part in an event: a workload by its identity, else an
// address, else the host of an agent. Exactly one part is set.
type Party struct {
	Identity bocage.Identity
	Address  netip.Addr
	Host     string
}

// IsZero reports whether nobody is known to take part.
func (p Party) IsZero() bool { return p == Party{} }

// Member reports whether the party is a workload.
func (p Party) Member() bool { return p.Identity >= bocage.IdentityFirst }

// Append appends the party's spelling, the same on every replica.
func (p Party) Append(b []byte) []byte {
	switch {
	case p.Member():
		return append(b, 'w', byte(p.Identity>>24), byte(p.Identity>>16), byte(p.Identity>>8), byte(p.Identity))
	case p.Address.IsValid():
		a := p.Address.As16()
		return append(append(b, 'a'), a[:]...)
	default:
		return append(append(b, 'h'), p.Host...)
	}
}

// Compare orders parties: hosts, then workloads by identity, then addresses.
func (p Party) Compare(q Party) int {
	switch {
	case p.Host != q.Host:
		if p.Host == "" {
			return 1
		}
		if q.Host == "" {
			return -1
		}
		return strings.Compare(p.Host, q.Host)
	case p.Member() != q.Member():
		if p.Member() {
			return -1
		}
		return 1
	case p.Identity != q.Identity:
		if p.Identity < q.Identity {
			return -1
		}
		return 1
	default:
		return p.Address.Compare(q.Address)
	}
}

// Who spells a party from an identity and, where that is no workload's, an address.
func Who(identity bocage.Identity, address netip.Addr) Party {
	if identity >= bocage.IdentityFirst {
		return Party{Identity: identity}
	}
	if !address.IsValid() || address.IsUnspecified() {
		return Party{}
	}
	return Party{Address: address.Unmap()}
}

// Ends tells who opened a flow and towards whom. The enforcement point knows the
// address of the far end only; an unknown near end is the zero Party.
func Ends(e *bocage.FlowEvent) (source, destination Party) {
	if e.Direction == bocage.DirectionFrom {
		return Who(e.Source, netip.Addr{}), Who(e.Destination, e.Remote)
	}
	return Who(e.Source, e.Remote), Who(e.Destination, netip.Addr{})
}

// Record points at one event: the index counts a batch's flows, then its
// inspections, then its engagements.
type Record struct {
	Source, Boot string
	Sequence     uint64
	Index        int
}

func (r Record) String() string {
	return fmt.Sprintf("%s/%s/%d/%d", r.Source, r.Boot, r.Sequence, r.Index)
}

// Before orders records as their senders numbered them.
func (r Record) Before(s Record) bool {
	switch {
	case r.Source != s.Source:
		return r.Source < s.Source
	case r.Boot != s.Boot:
		return r.Boot < s.Boot
	case r.Sequence != s.Sequence:
		return r.Sequence < s.Sequence
	default:
		return r.Index < s.Index
	}
}

// Stage is where in an attack a behaviour belongs. Evidence of two stages is
// independent enough to make an incident together.
type Stage uint8

// Stages, earliest first.
const (
	StageReconnaissance Stage = iota + 1
	StageSpoofing
	StageDeception // contact with what only an attacker would find
	StageIntrusion
	StageEvasion
)

// Severity is what an incident makes of evidence.
type Severity uint8

// Severities, mildest first.
const (
	Low Severity = iota + 1
	Medium
	High
	Critical
)

func (s Severity) String() string {
	return [...]string{"", "low", "medium", "high", "critical"}[s]
}

// Answer is what evidence asks to be done about its attacker.
type Answer uint8

// Answers, mildest first.
const (
	AnswerNone      Answer = iota
	AnswerWatch            // keep everything that the attacker does in full detail
	AnswerContain          // cut the attacker off: it engaged a decoy
	AnswerEliminate        // cut the attacker off: it attacked a member
)

// MaxRecords is the largest number of records that one piece of evidence names:
// the earliest.
const MaxRecords = 8

// MaxVictims is the largest number of victims that one piece of evidence names.
const MaxVictims = 32

// Item is one observation of a detector, ready to be joined with others of its
// kind by the same attacker.
type Item struct {
	Kind      string
	Stage     Stage
	Technique string // ATT&CK id
	Severity  Severity
	Answer    Answer
	Weight    float64
	HalfLife  time.Duration
	Decisive  bool
	Attacker  Party
	Victims   []Party
	// Key tells apart evidence of one kind by one attacker.
	Key string
	// Time is the event's; First is that of the first event behind it, if the
	// detector waited before it spoke.
	Time, First time.Time
	// Total is how often it was seen, where the detector counts; zero means once more.
	Total int
	// Facts says what the attacker did, as the rest of a sentence that begins
	// with its name. {victims} stands for theirs. Of several, those of the item
	// with the largest Total, else the earliest, are kept.
	Facts   fmt.Stringer
	Records []Record
}

// Text is facts that are known when they are seen.
type Text string

func (t Text) String() string { return string(t) }

// Quote makes a string of an attacker's choosing fit for one line of text: at
// most 64 characters, in quotes, nothing unprintable.
func Quote(s string) string {
	runes := []rune(s)
	if len(runes) > 64 {
		runes = append(runes[:63], '…')
	}
	for i, r := range runes {
		switch {
		case !unicode.IsPrint(r):
			runes[i] = '·'
		case r == '{' || r == '}': // they would look like a place for names
			runes[i] = '|'
		}
	}
	return "“" + string(runes) + "”"
}
